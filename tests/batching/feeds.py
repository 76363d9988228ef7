"""A supply of blocks whose memory is watched, and whose fetches end when the test says so."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pyarrow as pa

from aiodata import ExecutionOptions
from aiodata.batching.consumer import Consumer
from aiodata.batching.feed import BundleSource
from aiodata.batching.options import BatchOptions
from aiodata.batching.pipeline import make_pipeline
from aiodata.bundle import BlockMetadata, RefBundle
from aiodata.iterator import BatchIterator
from aiodata.stats import RunStats
from tests.conftest import PATIENCE_S

SCHEMA = pa.schema([("id", pa.int64())])
ROW_BYTES = 8


def do_nothing() -> None:
    pass


class Watch:
    """Counts objects, or their bytes, from birth to death, whoever holds them, and in whatever thread."""

    def __init__(self) -> None:
        self.born = 0
        self.peak = 0
        self._keys = itertools.count()
        # Setting and popping are atomic: births and deaths may be in different threads.
        self._alive: dict[int, int] = {}

    @property
    def live(self) -> int:
        return sum(self._alive.copy().values())

    def add(self, thing: Any, amount: int = 1) -> None:
        key = next(self._keys)
        self._alive[key] = amount
        weakref.finalize(thing, self._alive.pop, key).atexit = False
        self.born += amount
        self.peak = max(self.peak, self.live)


def table_on_numpy(ids: np.ndarray[Any, Any]) -> pa.Table:
    """A table without a copy: the array lives as long as the table, or any part or view of it."""
    return pa.Table.from_arrays([pa.Array.from_buffers(pa.int64(), len(ids), [None, pa.py_buffer(ids)])], schema=SCHEMA)


class FakeFeed:
    """Blocks of consecutive ids, of so many rows each; where `ranges` are given, only those rows of each count.

    With `held`, a fetch ends when its event in `gates` is set; `release_all` lets all end, and those to come.
    """

    ends_together = False

    def __init__(
        self, sizes: Sequence[int], *, ranges: Sequence[tuple[int, int]] | None = None, held: bool = False
    ) -> None:
        # No budget of a run's limits what is held.
        self.max_held_bytes = 1 << 62
        self.sizes = sizes
        self.starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self.ranges = ranges or [(0, size) for size in sizes]
        # Bytes of the blocks that are alive.
        self.memory = Watch()
        # What `next_bundle` was told, one number per call.
        self.told: list[int] = []
        # What `note_finished` was told.
        self.noted: list[int] = []
        self.begun: list[int] = []
        self.fetched: list[int] = []
        self.gates: dict[int, anyio.Event] = {}
        self.errors: dict[int, Exception] = {}
        self.on_block: Callable[[], object] = do_nothing
        self._held = held
        self._news = anyio.Event()

    @property
    def ids(self) -> list[int]:
        """The ids of all rows that count."""
        ranges = zip(self.starts, self.ranges, strict=True)
        return [one for start, (first, last) in ranges for one in range(start + first, start + last)]

    @property
    def largest_bytes(self) -> int:
        return max(self.sizes, default=0) * ROW_BYTES

    def stats(self) -> RunStats:
        return RunStats("fake")

    def leave(self) -> None:
        pass

    async def run(self, consume: Callable[[BundleSource], Awaitable[None]]) -> None:
        await consume(self)

    async def next_bundle(self, prefetched_bytes: int) -> RefBundle | None:
        index = len(self.told)
        self.told.append(prefetched_bytes)
        await anyio.lowlevel.checkpoint()
        if index >= len(self.sizes):
            return None
        size = self.sizes[index]
        return RefBundle(index, BlockMetadata(size, size * ROW_BYTES, SCHEMA, f"block {index}"), *self.ranges[index])

    async def fetch(self, bundle: RefBundle) -> pa.Table:
        index = bundle.ref
        self.begun.append(index)
        gate = self.gates[index] = anyio.Event()
        self._news.set()
        if self._held:
            await gate.wait()
        del self.gates[index]
        if index in self.errors:
            raise self.errors[index]
        block = self._make(index)
        self.fetched.append(index)
        self.on_block()
        return block if bundle.num_rows == self.sizes[index] else block.slice(bundle.start, bundle.num_rows)

    def note_finished(self, num_rows: int) -> None:
        self.noted.append(num_rows)

    def release_all(self) -> None:
        self._held = False
        for gate in self.gates.values():
            gate.set()

    @asynccontextmanager
    async def conducted(self, chance: random.Random, max_turns: int) -> AsyncIterator[None]:
        """Let fetches end in any order, each so many turns of the loop after the one before, at most."""
        self._held = True
        async with anyio.create_task_group() as group:
            group.start_soon(self._conduct, chance, max_turns)
            yield
            group.cancel_scope.cancel()

    async def _conduct(self, chance: random.Random, max_turns: int) -> None:
        while True:
            if not (waiting := [index for index, gate in self.gates.items() if not gate.is_set()]):
                self._news = anyio.Event()
                await self._news.wait()
                continue
            for _ in range(chance.randint(0, max_turns)):
                await anyio.lowlevel.checkpoint()
            if (gate := self.gates.get(chance.choice(waiting))) is not None:
                gate.set()

    def _make(self, index: int) -> pa.Table:
        ids = np.arange(self.starts[index], self.starts[index] + self.sizes[index])
        self.memory.add(ids, ids.nbytes)
        return table_on_numpy(ids)


def iterate(feed: FakeFeed, *, is_ordered: bool = True, grace_s: float = PATIENCE_S, **options: Any) -> BatchIterator:
    """An iterator over the batches of a feed, as `Dataset.aiter_batches` makes it."""
    pipeline = make_pipeline(BatchOptions(**options), epoch=0, is_ordered=is_ordered, grace_s=grace_s)
    return BatchIterator(Consumer(feed, pipeline, ExecutionOptions(close_timeout_s=grace_s)))


async def settle() -> None:
    """Give all tasks more turns than they can need, so that they wait; anyio's own function for it takes 0.1 s."""
    for _ in range(60):
        await anyio.lowlevel.checkpoint()


async def some_turns(chance: random.Random, most: int) -> None:
    """Give other tasks so many turns of the loop, at most."""
    for _ in range(chance.randint(0, most)):
        await anyio.lowlevel.checkpoint()


def cancel_later(scope: anyio.CancelScope, turns: int) -> None:
    """Cancel a scope after so many turns of the loop."""
    if turns:
        asyncio.get_running_loop().call_soon(cancel_later, scope, turns - 1)
    else:
        scope.cancel()


async def drain(batches: BatchIterator) -> list[Any]:
    """All batches that are left."""
    return [batch async for batch in batches]


def at(part: str, function: Callable[[Any], Any]) -> dict[str, Any]:
    """The argument that makes a function that part of the pipeline."""
    return {part: function}


@contextmanager
def without_gc() -> Iterator[None]:
    """Let nothing die by the cyclic garbage collection: what is seen to die has died when its last user let go."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
