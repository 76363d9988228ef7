"""What tests of the simulated runtime share: work to submit, and a look at all that comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio

from aiodata.bundle import BlockRef
from aiodata.plan.nodes import Resources
from aiodata.plan.pieces import BlockPiece
from aiodata.plan.source import raise_it
from aiodata.plan.transforms import Transform
from aiodata.plan.work import Cuts, OutputMetadata, Position, TaskEnd, Work
from aiodata.runtime.base import Pair, Task
from aiodata.testing import SimulatedBlock, SimulatedRuntime, SimulatedSource, VirtualTimeLoop
from aiodata.testing.actors import SimulatedActor
from aiodata.testing.blocks import RowRanges
from aiodata.testing.simulated import SimulatedStage

T = TypeVar("T")

SOURCE = SimulatedSource(num_pieces=1, blocks_per_piece=4, rows_per_block=10, bytes_per_block=100, s_per_block=1.0)


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())


@asynccontextmanager
async def open_stage(
    runtime: SimulatedRuntime, *chain: Transform, resources: Resources | None = None
) -> AsyncIterator[SimulatedStage]:
    async with runtime:
        yield await runtime.stage("stage", chain, resources or Resources())


def cuts(*, task_bytes: int = 1 << 40, task_calls: int = 1 << 40) -> Cuts:
    return Cuts(1, 1, 1, 1, 1, task_bytes, task_calls)


def reading(
    source: SimulatedSource = SOURCE,
    *,
    task_bytes: int = 1 << 40,
    start: Position = Position(),
    max_errors: int = 0,
) -> Work:
    return Work(tuple(source.pieces(1, raise_it)), cuts(task_bytes=task_bytes), start, max_errors)


def mapping(*blocks: SimulatedBlock, task_calls: int = 1 << 40, start: Position = Position()) -> Work:
    pieces = tuple(BlockPiece(index, 0, one.num_rows, one.num_bytes, "") for index, one in enumerate(blocks))
    return Work(pieces, cuts(task_calls=task_calls), start)


class Watched:
    """A task that was submitted, and the pairs that it gives, with the times at which it said so."""

    def __init__(self, stage: SimulatedStage | SimulatedActor, work: Work, refs: Sequence[BlockRef] = ()) -> None:
        self.pairs: list[Pair] = []
        self.times: list[float] = []
        self._ended = anyio.Event()
        self.task = stage.submit(work, refs, self._on_ready)

    @property
    def blocks(self) -> list[SimulatedBlock]:
        return [pair.ref for pair in self.pairs if pair.ref is not None]

    @property
    def rows(self) -> RowRanges:
        return tuple(one for block in self.blocks for one in block.rows)

    async def end(self, runtime: SimulatedRuntime) -> TaskEnd:
        await self._ended.wait()
        end = await runtime.fetch(self.pairs[-1])
        assert isinstance(end, TaskEnd)
        return end

    def _on_ready(self, task: Task) -> None:
        while pairs := task.pull():
            self.pairs += pairs
            self.times += [anyio.current_time()] * len(pairs)
        if self.pairs and self.pairs[-1].ref is None:
            self._ended.set()


def outputs(outcomes: Sequence[object]) -> list[tuple[int, int]]:
    """Rows and bytes of each block's metadata."""
    return [(one.block.num_rows, one.block.num_bytes) for one in outcomes if isinstance(one, OutputMetadata)]
