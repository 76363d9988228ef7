"""The streaming executor: turns a plan into operators and runs them in one task group."""

from __future__ import annotations

from contextlib import ExitStack

import anyio
import pyarrow as pa

from aiodata.bundle import RefBundle
from aiodata.concurrency import cleared_frames, close_and_drop
from aiodata.errors import AiodataError
from aiodata.execution.operators import InputOperator, Inputs, LimitOperator, Operator, Output
from aiodata.execution.task_operator import TaskOperator
from aiodata.options import ExecutionOptions
from aiodata.plan.nodes import Plan
from aiodata.plan.optimize import InputStage, LimitStage, MapStage, ReadStage, Stage, optimize
from aiodata.runtime.base import Runtime

# Bundles that may wait between two operators; a bundle is a reference, and tasks hold back when it is full.
_MAX_WAITING_BUNDLES = 2


class StreamingExecutor:
    """Runs a plan once: `run` sends its bundles to a stream and returns when all are sent.

    Args:
        plan: What to run.
        runtime: Where tasks run; open for as long as `run` is.
        options: How to run it.
    """

    def __init__(self, plan: Plan, runtime: Runtime, options: ExecutionOptions) -> None:
        """Make the operators; nothing runs yet."""
        self._operators = [_make_operator(stage, runtime, options) for stage in optimize(plan)]
        self.counters = [operator.counters for operator in self._operators]

    @property
    def schema(self) -> pa.Schema | None:
        """The schema of the run's blocks, once it has seen one; else None. A limit has that of what it limits."""
        makers = [operator for operator in self._operators if not isinstance(operator, LimitOperator)]
        return makers[-1].counters.schema

    async def run(self, output: Output) -> None:
        """Run all operators; returns at the end of the data, or when `output` has no receiver any more.

        `output` is closed at the end of the data alone, as soon as that is known: it is never closed by a failure.

        Raises:
            AiodataError: An operator was cancelled from outside.
            TaskError: A transform failed. It comes out of a task group, so it may be in an exception group.
            SourceError: A file is missing, corrupt or unreadable, or no file matches.
        """
        scopes: list[anyio.CancelScope] = []
        inputs: Inputs | None = None
        with ExitStack() as streams:
            async with anyio.create_task_group() as group:
                for operator in self._operators[:-1]:
                    send, receive = anyio.create_memory_object_stream[RefBundle](_MAX_WAITING_BUNDLES)
                    streams.enter_context(send)
                    group.start_soon(_run_operator, operator, inputs, send, scopes, name=operator.counters.name)
                    inputs = receive
                last = self._operators[-1]
                group.start_soon(_run_operator, last, inputs, output, scopes, name=last.counters.name)
        if group.cancel_scope.cancel_called:
            raise AiodataError("an operator of the run was cancelled from outside")


async def _run_operator(
    operator: Operator, inputs: Inputs | None, output: Output, scopes: list[anyio.CancelScope]
) -> None:
    """Run one operator; when it ends, so does all that comes before it."""
    upstream = list(scopes)
    with anyio.CancelScope() as scope:
        scopes.append(scope)
        try:
            with cleared_frames():
                await operator.run(inputs, output)
        except* anyio.BrokenResourceError:  # Whoever takes the outputs has enough.
            pass
        finally:
            if inputs is not None:
                close_and_drop(inputs)
        # Not where it failed: whoever takes the outputs must not take that for the end of the data.
        output.close()
    for earlier in upstream:
        earlier.cancel()


def _make_operator(stage: Stage, runtime: Runtime, options: ExecutionOptions) -> Operator:
    match stage:
        case InputStage(source):
            return InputOperator(stage.name, source.bundles() or ())
        case LimitStage(num_rows):
            return LimitOperator(stage.name, num_rows)
        case MapStage(chain):
            return TaskOperator(stage.name, chain, None, runtime, options)
        case ReadStage(source, chain):
            return TaskOperator(stage.name, chain, source, runtime, options)
