"""Questions about a dataset that need no iterator: its schema and its number of rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pyarrow as pa

from aiodata.bundle import RefBundle
from aiodata.concurrency import ask_in_thread, running_loop
from aiodata.concurrency.supervise import unwrap
from aiodata.errors import AiodataError
from aiodata.execution.failures import SkippedErrors, warn_of_skips
from aiodata.execution.run import Run
from aiodata.options import ExecutionOptions
from aiodata.plan.nodes import Limit, Plan, Read
from aiodata.plan.optimize import push_down
from aiodata.plan.output_schema import MAX_UNKNOWN_ROWS
from aiodata.plan.planning import find_plan_schema
from aiodata.plan.source import raise_it
from aiodata.stats import LatestRun, RunStats

_T = TypeVar("_T")


async def find_schema(plan: Plan, options: ExecutionOptions, latest: LatestRun | None = None) -> pa.Schema:
    """Return the schema of a plan's rows: from its sources and verbs, or, if functions make them, by a short run.

    Files that cannot be read say nothing, if errors are allowed.

    Args:
        plan: The plan.
        options: How to run it.
        latest: Where to note what was skipped; None: nowhere, since another run has told of it.
    """
    skipped = SkippedErrors(-1, is_quiet=True)
    schema = await _ask(partial(find_plan_schema, plan, skipped.add if options.max_errored_blocks else raise_it))
    if schema is not None:
        if latest is not None:
            latest.note(RunStats(errors=tuple(skipped.lines), errored_blocks=skipped.num_errors))
            warn_of_skips(latest.stats, is_complete=False)
        return schema
    # As many rows as the run itself would look at, so that the answer is what its batches have.
    run = await _run(plan.then(Limit(MAX_UNKNOWN_ROWS)), options, _is_enough, latest)
    if run.schema is None and any(isinstance(step, Limit) for step in plan.steps):
        unlimited = Plan(plan.origin, tuple(step for step in plan.steps if not isinstance(step, Limit)))
        run = await _run(unlimited.then(Limit(MAX_UNKNOWN_ROWS)), options, _is_enough, latest)
    return run.schema if run.schema is not None else pa.schema([])


async def count_rows(plan: Plan, options: ExecutionOptions, latest: LatestRun) -> int:
    """Return the number of a plan's rows, which is what an iteration gives: by a run that fetches no block.

    Where no verb and no error that is allowed can change it, it is what the source says.

    Args:
        plan: The plan.
        options: How to run it.
        latest: Where to note what the run has done.
    """
    if isinstance(plan.origin, Read) and not options.max_errored_blocks:
        source, steps = push_down(plan)
        limits = [step.num_rows for step in steps if isinstance(step, Limit)]
        if all(isinstance(step, Limit) or step.transform.keeps_num_rows for step in steps):
            await _ask(partial(find_plan_schema, plan, raise_it))
            if (known := await _ask(partial(source.count_rows, raise_it))) is not None:
                latest.note(RunStats())
                return min([known, *limits])
    total = 0

    def add(bundle: RefBundle) -> bool:
        nonlocal total
        total += bundle.num_rows
        return False

    await _run(plan, options, add, latest)
    return total


async def _ask(question: Callable[[], _T]) -> _T:
    """Ask a source, which may block."""
    return await ask_in_thread(question)


def _is_enough(bundle: RefBundle) -> bool:
    return True


async def _run(
    plan: Plan, options: ExecutionOptions, visit: Callable[[RefBundle], bool], latest: LatestRun | None
) -> Run:
    """Run a plan and visit its bundles, until one is enough."""

    async def consume(run: Run) -> None:
        async for bundle in run:
            if visit(bundle):
                break

    running_loop("a run")
    try:
        run = Run(plan, options, latest=latest, is_quiet=latest is None)
        await run.execute(consume)
        return run
    except Exception as error:  # noqa: BLE001 - raised again below, without the groups around it.
        failure = unwrap(error)
    if isinstance(failure, AiodataError):
        failure.__context__ = None
        failure = failure.with_traceback(None)
    raise failure
