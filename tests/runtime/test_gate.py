"""Tasks that wait at a gate on Ray: they hold no CPU, stop when they are cancelled, and may be run again."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pytest
import ray

from aiodata.options import ExecutionOptions
from aiodata.plan.nodes import Resources
from aiodata.plan.pieces import Origin, TablePiece
from aiodata.plan.transforms import MapBatches
from aiodata.plan.work import Cuts, OutputMetadata, TaskEnd, Work
from aiodata.runtime.base import Pair, Runtime, Task
from aiodata.runtime.ray.runtime import open_ray
from tests.conftest import until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

NUM_BLOCKS = 6
# Each block is cut at once, and there is room for one.
CUTS = Cuts(1, 1, 1, 1, 1, 1 << 40, 1 << 40, room_bytes=8)


class Writes:
    """Yields numbers, and writes down its process and that it was closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, batch: Any) -> Iterator[Any]:
        (self.folder / "pid").write_text(str(os.getpid()))
        try:
            for number in range(NUM_BLOCKS):
                yield {"id": [number]}
        finally:
            (self.folder / "closed").touch()


class Watched:
    """A task on Ray whose pairs are pulled as they surface."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.pairs: list[Pair] = []
        self.said: list[OutputMetadata | TaskEnd] = []
        self.task: Task | None = None

    def on_ready(self, task: Task) -> None:
        self.pairs += task.pull()

    async def seen(self, count: int) -> list[int]:
        """Wait for so many pairs; return the numbers in their blocks."""
        await until(lambda: len(self.pairs) >= count, f"there are not {count} pairs", within_s=60)
        self.said = [await self.runtime.fetch(pair) for pair in self.pairs]
        blocks = [pair.ref for pair, said in zip(self.pairs, self.said, strict=True) if not isinstance(said, TaskEnd)]
        return [number for ref in blocks for number in (await self.runtime.get(ref))["id"].to_pylist()]


@asynccontextmanager
async def submitted(folder: Path, *, in_actor: bool) -> AsyncIterator[Watched]:
    """Start a task that has room for one block."""
    transform = MapBatches(Writes, 1, constructor_args=(folder,)) if in_actor else MapBatches(Writes(folder), 1)
    work = Work((TablePiece(pa.table({"id": [0]}), Origin("numbers", None)),), CUTS)
    async with open_ray(ExecutionOptions(runtime="ray")) as runtime:
        watched = Watched(runtime)
        stage = await runtime.stage("stage", (transform,), Resources())
        if in_actor:
            actor = stage.start_actor()
            await actor.wait_ready()
            watched.task = actor.submit(work, (), watched.on_ready)
        else:
            watched.task = stage.submit(work, (), watched.on_ready)
        try:
            yield watched
        finally:
            watched.task.cancel()
            await watched.task.wait_stopped()
            watched.pairs.clear()
            if in_actor:
                actor.stop()
                await actor.wait_stopped()


IN = pytest.mark.parametrize("in_actor", [False, True], ids=["task", "actor"])


@IN
async def test_task_makes_as_many_blocks_as_it_is_given_room_for(tmp_path: Path, in_actor: bool) -> None:
    async with submitted(tmp_path, in_actor=in_actor) as watched:
        assert watched.task is not None
        numbers = await watched.seen(2)
        for room in (0, 1, 3):
            watched.task.give_room(room)
            numbers = await watched.seen(2 + room)
            assert numbers == list(range(2 + room))
            assert [one.needs_room for one in watched.said if isinstance(one, OutputMetadata)] == [
                False,
                *[True] * (1 + room),
            ]
        watched.task.give_room(100)
        assert await watched.seen(NUM_BLOCKS + 1) == list(range(NUM_BLOCKS))
        assert isinstance(watched.said[-1], TaskEnd)


async def test_task_that_waits_holds_no_cpu(tmp_path: Path) -> None:
    async with submitted(tmp_path, in_actor=False) as watched:
        assert watched.task is not None
        await watched.seen(2)
        watched.task.give_room(0)
        await until(lambda: ray.available_resources().get("CPU") == 2, "a CPU is held", within_s=30)


@IN
async def test_task_that_waits_stops_when_it_is_cancelled(tmp_path: Path, in_actor: bool) -> None:
    async with submitted(tmp_path, in_actor=in_actor) as watched:
        assert watched.task is not None
        await watched.seen(2)
        watched.task.give_room(0)
        await anyio.sleep(0.1)
        watched.task.cancel()
        await until((tmp_path / "closed").exists, "the call was not ended", within_s=30)
        await watched.task.wait_stopped()


async def test_task_whose_worker_is_killed_while_it_waits_makes_the_same_blocks(tmp_path: Path) -> None:
    async with submitted(tmp_path, in_actor=False) as watched:
        assert watched.task is not None
        await watched.seen(2)
        watched.task.give_room(1)
        await watched.seen(3)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        watched.task.give_room(100)
        assert await watched.seen(NUM_BLOCKS + 1) == list(range(NUM_BLOCKS))
