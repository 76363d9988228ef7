"""Runs of the executor on a runtime with handles: a test chooses what happens next."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from aiodata.bundle import RefBundle
from aiodata.execution.executor import StreamingExecutor
from aiodata.options import ExecutionOptions
from aiodata.plan.nodes import Apply, Limit, Plan, Read, Union
from aiodata.plan.source import Source
from aiodata.plan.transforms import MapBatches, Transform
from tests.conftest import PATIENCE_S
from tests.execution.fakes import OPTIONS, SCHEMA, FakeRuntime, ids_in, settle


def alone(name: str = "alone") -> MapBatches:
    """A transform that is a stage of its own."""

    def fn(batch: object) -> object:
        return batch

    fn.__name__ = name
    return MapBatches(fn, None, "numpy", schema=SCHEMA, fuses=False)


def plan(source: Source, *steps: Transform | int) -> Plan:
    """A plan of transforms; a number is a limit."""
    return then(Plan(Read(source)), *steps)


def union(*plans: Plan) -> Plan:
    return Plan(Union(plans))


def then(made: Plan, *steps: Transform | int) -> Plan:
    for step in steps:
        made = made.then(Limit(step) if isinstance(step, int) else Apply(step))
    return made


class Run:
    """A run whose bundles are taken one at a time.

    Attributes:
        executor: What runs.
        runtime: Where.
        rows: The rows that were taken.
        is_done: Whether the run has ended.
    """

    def __init__(self, made: Plan, options: ExecutionOptions, runtime: FakeRuntime) -> None:
        self.executor = StreamingExecutor(made, runtime, options)
        self.runtime = runtime
        self.rows: list[int] = []
        self.is_done = False
        self.output, self.receive = anyio.create_memory_object_stream[RefBundle](0)

    async def run(self) -> None:
        await self.executor.run(self.output)
        self.is_done = True

    def take(self) -> bool:
        """Take a bundle that is there, note its rows, and let go of it."""
        try:
            self.rows += ids_in(self.receive.receive_nowait())
        except (anyio.WouldBlock, anyio.EndOfStream):
            return False
        return True

    async def started(self, count: int = 1) -> None:
        """Wait until so many tasks run: where a source is planned, a thread is waited for."""
        with anyio.fail_after(PATIENCE_S):
            while len(self.runtime.running) < count:
                await anyio.lowlevel.checkpoint()
        await settle()

    async def to_end(
        self,
        choose: Callable[[int], int] = lambda _: 0,
        *,
        num_bytes: int = 8,
        max_rows: int | None = None,
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """Have tasks work, and take what comes, in an order of one's choosing, until the run ends.

        Args:
            choose: Given a number of things that could happen next, which one does.
            num_bytes: The size of each task's block.
            max_rows: After how many rows a task stops.
            on_turn: Called after each step.
        """
        patience_ends = math.inf
        while not self.is_done:
            await settle(12)
            on_turn()
            running = self.runtime.running
            at = choose(len(running) + 1)
            if at < len(running):
                running[at].work_on(max_rows, num_bytes=num_bytes)
            elif not self.take() and running:
                running[0].work_on(max_rows, num_bytes=num_bytes)
            elif not running:
                now = anyio.current_time()
                patience_ends = min(patience_ends, now + PATIENCE_S)
                if now > patience_ends:
                    pytest.fail(f"the run stands still: {self.executor.stats()}")
                await anyio.lowlevel.checkpoint()
                continue
            patience_ends = math.inf
        while self.take():
            pass


@asynccontextmanager
async def started(
    made: Plan, options: ExecutionOptions = OPTIONS, runtime: FakeRuntime | None = None
) -> AsyncIterator[Run]:
    """A run in the background, which is cancelled at the end."""
    run = Run(made, options, runtime or FakeRuntime())
    async with anyio.create_task_group() as group:
        group.start_soon(run.run)
        with run.output, run.receive:
            yield run
        group.cancel_scope.cancel()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not run.runtime.running, "tasks of the run are left"


def chooser(choices: Sequence[int]) -> Callable[[int], int]:
    """A `choose` that goes through given numbers, again and again."""
    place = -1

    def choose(count: int) -> int:
        nonlocal place
        place += 1
        return choices[place % len(choices)] % count

    return choose
