"""Questions about a dataset that need no iterator: its schema and its number of rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio
import pyarrow as pa

from aiodata.bundle import RefBundle
from aiodata.concurrency import ask_in_thread, running_loop, start
from aiodata.concurrency.supervise import unwrap
from aiodata.errors import AiodataError
from aiodata.execution.executor import StreamingExecutor
from aiodata.options import ExecutionOptions
from aiodata.plan.nodes import Limit, Plan, Read
from aiodata.plan.optimize import push_down
from aiodata.plan.output_schema import MAX_UNKNOWN_ROWS
from aiodata.plan.planning import find_plan_schema
from aiodata.plan.source import Skip, raise_it
from aiodata.runtime import choose_runtime

_T = TypeVar("_T")


async def find_schema(plan: Plan, options: ExecutionOptions) -> pa.Schema:
    """Return the schema of a plan's rows: from its sources and verbs, or, if functions make them, by a short run.

    Files that cannot be read say nothing, if errors are allowed.
    """
    schema = await _ask(partial(find_plan_schema, plan, _skip(options)))
    if schema is not None:
        return schema
    # As many rows as the run itself would look at, so that the answer is what its batches have.
    executor = await _run(plan.then(Limit(MAX_UNKNOWN_ROWS)), options, _is_enough)
    if executor.schema is None:
        unlimited = Plan(plan.origin, tuple(step for step in plan.steps if not isinstance(step, Limit)))
        executor = await _run(unlimited.then(Limit(MAX_UNKNOWN_ROWS)), options, _is_enough)
    return executor.schema if executor.schema is not None else pa.schema([])


async def count_rows(plan: Plan, options: ExecutionOptions) -> int:
    """Return the number of a plan's rows, which is what an iteration gives: by a run that fetches no block.

    Where no verb and no error that is allowed can change it, it is what the source says.
    """
    if isinstance(plan.origin, Read) and not options.max_errored_blocks:
        source, steps = push_down(plan)
        limits = [step.num_rows for step in steps if isinstance(step, Limit)]
        if all(isinstance(step, Limit) or step.transform.keeps_num_rows for step in steps):
            await _ask(partial(find_plan_schema, plan, raise_it))
            if (known := await _ask(partial(source.count_rows, raise_it))) is not None:
                return min([known, *limits])
    total = 0

    def add(bundle: RefBundle) -> bool:
        nonlocal total
        total += bundle.num_rows
        return False

    await _run(plan, options, add)
    return total


def _skip(options: ExecutionOptions) -> Skip:
    return _forget if options.max_errored_blocks else raise_it


def _forget(error: AiodataError) -> None:
    pass


async def _ask(question: Callable[[], _T]) -> _T:
    """Ask a source, which may block."""
    return await ask_in_thread(question)


def _is_enough(bundle: RefBundle) -> bool:
    return True


async def _run(plan: Plan, options: ExecutionOptions, visit: Callable[[RefBundle], bool]) -> StreamingExecutor:
    """Run a plan and visit its bundles, until one is enough."""
    running_loop("a run")
    try:
        async with choose_runtime(options)() as runtime:
            executor = StreamingExecutor(plan, runtime, options)
            send, receive = anyio.create_memory_object_stream[RefBundle](1)
            async with send, receive, anyio.create_task_group() as group:
                start(group, executor.run, send)
                async for bundle in receive:
                    if visit(bundle):
                        group.cancel_scope.cancel()
                        break
            return executor
    except Exception as error:  # noqa: BLE001 - raised again below, without the groups around it.
        failure = unwrap(error)
    if isinstance(failure, AiodataError):
        failure.__context__ = None
        failure = failure.with_traceback(None)
    raise failure
