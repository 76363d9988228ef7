"""What a consumer holds is bounded, in bytes of blocks, at any speed and to the very end.

It is seen from outside: the memory of blocks tells of its own birth and death.
"""

from __future__ import annotations

import asyncio
import bisect
import random
import time
from dataclasses import dataclass
from typing import Any

import anyio
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiodata import BatchIterator
from aiodata.bundle import RefBundle
from tests.batching.calls import BOTH_KINDS, copied_ids, copy_in_thread, copy_on_the_loop
from tests.batching.feeds import ROW_BYTES, FakeFeed, drain, iterate, settle, some_turns, without_gc
from tests.conftest import PATIENCE_S, until

# Arrow rounds its allocations up.
PADDING_BYTES = 4096


async def standstill(feed: FakeFeed) -> None:
    """Wait until no fetch has begun for a while."""
    num_begun, since = len(feed.begun), time.perf_counter()

    def stands_still() -> bool:
        nonlocal num_begun, since
        if len(feed.begun) != num_begun:
            num_begun, since = len(feed.begun), time.perf_counter()
        return time.perf_counter() - since > 0.05

    await until(stands_still, "fetches go on and on")


@dataclass(frozen=True, slots=True)
class Sample:
    """What is held at one moment, in bytes.

    Attributes:
        live: Memory of blocks that is alive.
        copied: Copies that Arrow has made, and that are alive.
        in_hand: The batch that the user holds.
        asked_for: The batch that is being put together for the user, who waits for it.
        counted: The iterator's own figure.
    """

    live: int
    copied: int
    in_hand: int
    asked_for: int
    counted: int


class Reader:
    """A user who reads all batches, holding one until there is the next, and notes what is held in all."""

    def __init__(self, feed: FakeFeed, batch_size: int | None) -> None:
        self.ids: list[np.ndarray[Any, Any]] = []
        self.samples: list[Sample] = []
        self._feed = feed
        self._size = batch_size
        self._in_hand = 0
        self._is_asking = False
        self._copied_before = pa.total_allocated_bytes()
        self._batches: BatchIterator | None = None
        feed.on_block = self.note

    async def read(self, batches: BatchIterator, chance: random.Random, max_turns: int) -> None:
        self._batches = batches
        self._is_asking = True
        async for batch in batches:
            self._is_asking = False
            self.ids.append(copied_ids(batch))
            self._in_hand = self._num_bytes(self.ids[-1])
            self.note()
            await some_turns(chance, max_turns)
            self.note()
            self._is_asking = True

    def note(self) -> None:
        assert self._batches is not None
        stats = self._batches.stats()
        assert stats.prefetched_bytes <= stats.peak_prefetched_bytes
        asked_for = (self._size or max(self._feed.sizes)) * ROW_BYTES if self._is_asking else 0
        copied = pa.total_allocated_bytes() - self._copied_before
        self.samples.append(Sample(self._feed.memory.live, copied, self._in_hand, asked_for, stats.prefetched_bytes))

    def _num_bytes(self, ids: np.ndarray[Any, Any]) -> int:
        if self._size is not None:
            return len(ids) * ROW_BYTES
        # A batch that is the rows of a block that count pins all of it.
        return self._feed.sizes[bisect.bisect_right(self._feed.starts, ids[0]) - 1] * ROW_BYTES


@dataclass(frozen=True, slots=True)
class Case:
    """Blocks, how to cut them, and the speeds of both sides, in turns of the loop."""

    sizes: list[int]
    ranges: list[tuple[int, int]]
    batch_size: int | None
    max_rows: int
    options: dict[str, Any]
    fetch_turns: int
    user_turns: int
    seed: int

    @property
    def max_bytes(self) -> int:
        return self.max_rows * ROW_BYTES

    def feed(self) -> FakeFeed:
        return FakeFeed(self.sizes, ranges=self.ranges)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Blocks of very different sizes, and limits from less than the smallest to more than all of them."""
    block_rows = st.integers(0, 50) | st.integers(100, 5000) | st.integers(50_000, 100_000)
    sizes = draw(st.lists(block_rows, min_size=1, max_size=10))
    ranges = [(0, size) for size in sizes]
    if draw(st.booleans()):
        ranges = [(min(cut), max(cut)) for cut in (draw(st.tuples(*[st.integers(0, size)] * 2)) for size in sizes)]
    total = sum(sizes)
    # So many batches, that no case takes long.
    size = draw(st.none() | st.integers(1 + total // 100, 2 + total) | st.integers(1 + total // 100, 2 + total // 5))
    options = {
        "batch_format": draw(st.sampled_from(["numpy", "pyarrow"])),
        "prefetch_batches": draw(st.integers(0, 6)),
        "drop_last": draw(st.booleans()),
    }
    return Case(
        sizes,
        ranges,
        size,
        draw(st.integers(1, 100) | st.integers(1, 2 + max(sizes)) | st.integers(1, 2 + total)),
        options,
        draw(st.sampled_from([0, 3, 12])),
        draw(st.sampled_from([0, 3, 12])),
        draw(st.integers(0, 2**32)),
    )


async def read_all(case: Case, **more: Any) -> tuple[FakeFeed, Reader]:
    """Read a case to its end and check what is true in every case: the rows, and the end."""
    chance = random.Random(case.seed)
    feed = case.feed()
    options = case.options | {"batch_size": case.batch_size, "max_prefetch_bytes": case.max_bytes} | more
    reader, batches = Reader(feed, case.batch_size), iterate(feed, **options)
    with anyio.fail_after(PATIENCE_S):
        async with feed.conducted(chance, case.fetch_turns):
            await reader.read(batches, chance, case.user_turns)
    ids = np.concatenate([np.array([], np.int64), *reader.ids])
    ranges = zip(feed.starts, feed.ranges, strict=True)
    expected = np.concatenate([np.arange(start + first, start + last) for start, (first, last) in ranges])
    num_dropped = len(expected) % case.batch_size if case.options["drop_last"] and case.batch_size else 0
    if "local_shuffle_buffer_size" not in more:
        assert np.array_equal(ids, expected[: len(expected) - num_dropped])
    else:
        ids.sort()
        assert len(ids) == len(expected) - num_dropped
        assert (np.diff(ids) > 0).all()
        assert num_dropped or np.array_equal(ids, expected)
    assert batches.stats().prefetched_bytes == 0
    assert feed.memory.live == 0
    return feed, reader


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(case=cases())
async def test_bytes_held_are_at_most_the_limit_and_a_block_and_the_batch_in_use(case: Case) -> None:
    with without_gc():
        feed, reader = await read_all(case)
    for sample in reader.samples:
        in_use = feed.largest_bytes + sample.in_hand + sample.asked_for
        assert sample.live <= case.max_bytes + in_use
        if case.batch_size is not None:
            # The last whole batch of a block is a copy, and so is what comes after it.
            copies = 2 * case.batch_size * ROW_BYTES + PADDING_BYTES
            assert sample.live + sample.copied <= case.max_bytes + in_use + copies


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(case=cases())
async def test_prefetched_bytes_are_never_below_those_of_the_blocks_that_are_not_in_use(case: Case) -> None:
    with without_gc():
        feed, reader = await read_all(case)
    for sample in reader.samples:
        assert sample.live <= sample.counted + sample.in_hand + sample.asked_for
        assert sample.counted <= case.max_bytes + feed.largest_bytes


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(case=cases().filter(lambda case: case.batch_size is not None), buffer_rows=st.integers(1, 20_000))
async def test_bytes_held_are_at_most_a_shuffle_buffer_more_where_rows_are_shuffled(
    case: Case, buffer_rows: int
) -> None:
    assert case.batch_size is not None
    with without_gc():
        feed, reader = await read_all(case, local_shuffle_buffer_size=buffer_rows, local_shuffle_seed=case.seed)
    # The first fill may be a batch, which is more than a small buffer.
    buffer_bytes = max(2 * buffer_rows, buffer_rows + case.batch_size) * ROW_BYTES
    for sample in reader.samples:
        # The batches themselves are copies, all of them.
        assert sample.live <= case.max_bytes + feed.largest_bytes + buffer_bytes
        assert sample.live <= sample.counted + buffer_bytes
        # What is shuffled is copied: to be combined, to leave, and to stay.
        assert sample.live + sample.copied <= case.max_bytes + feed.largest_bytes + 4 * buffer_bytes + PADDING_BYTES


def case_of(batch_size: int | None) -> Case:
    """Many blocks of 1,000 rows, and a limit of as many."""
    options = {"batch_format": "pyarrow", "drop_last": False}
    return Case([1000] * 30, [(0, 1000)] * 30, batch_size, 1000, options, 0, 9, 0)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(case=cases(), workers=st.integers(1, 4), is_async=st.booleans())
@example(case=case_of(3000), workers=4, is_async=True)
@example(case=case_of(None), workers=4, is_async=True)
async def test_bytes_held_are_at_most_the_limit_and_a_block_and_a_batch_where_batches_are_collated(
    case: Case, workers: int, is_async: bool
) -> None:
    collate = copy_on_the_loop if is_async else copy_in_thread
    with without_gc():
        feed, reader = await read_all(case, collate_fn=collate, collate_workers=workers)
    # What the user holds is new; but one batch may be about to be collated.
    batch_bytes = feed.largest_bytes if case.batch_size is None else case.batch_size * ROW_BYTES
    for sample in reader.samples:
        assert sample.live <= case.max_bytes + feed.largest_bytes + batch_bytes
        assert sample.live <= sample.counted + batch_bytes


@BOTH_KINDS
async def test_batches_that_wait_to_be_taken_hold_no_more_than_the_limit(is_async: bool) -> None:
    feed = FakeFeed([1000] * 20)
    collate: Any = copy_on_the_loop if is_async else copy_in_thread
    async with iterate(
        feed, batch_size=None, collate_fn=collate, collate_workers=3, max_prefetch_bytes=2500 * ROW_BYTES
    ) as batches:
        await anext(batches)
        await standstill(feed)
        assert feed.memory.live <= 3500 * ROW_BYTES
        assert batches.stats().prefetched_bytes >= feed.memory.live


@pytest.mark.parametrize(
    ("batch_size", "rows"), [(None, 1000), (None, 10), (10, 10), (400, 1000), (900, 1000), (2500, 1000)]
)
async def test_calls_that_go_on_hold_no_more_than_the_limit_and_the_block_in_use(
    batch_size: int | None, rows: int
) -> None:
    feed = FakeFeed([1000] * 20, ranges=[(0, rows)] * 20)
    max_bytes = 1500 * ROW_BYTES
    release = anyio.Event()

    async def collate(batch: Any) -> int:
        await release.wait()
        return len(batch["id"])

    batches = iterate(
        feed,
        batch_size=batch_size,
        batch_format="pyarrow",
        collate_fn=collate,
        collate_workers=4,
        max_prefetch_bytes=max_bytes,
    )
    waiting = asyncio.ensure_future(anext(batches))
    await settle()
    live = feed.memory.live
    counted = batches.stats().prefetched_bytes
    release.set()
    assert sum([await waiting, *await drain(batches)]) == 20 * rows
    # One more batch may be about to be collated.
    batch_bytes = (batch_size or 1000) * ROW_BYTES
    assert live <= max_bytes + feed.largest_bytes + batch_bytes
    assert live <= counted + batch_bytes


LONG_ROWS = 100_000


class LongToCut(FakeFeed):
    """Its blocks have many strings, which polars takes long to convert; only the memory of the ids is watched."""

    texts = pa.array([f"a longer text with the number {one}" for one in range(LONG_ROWS)])

    async def fetch(self, bundle: RefBundle) -> pa.Table:
        block = await super().fetch(bundle)
        for name in "abcd":
            block = block.append_column(name, self.texts)
        return block


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, LONG_ROWS, LONG_ROWS * 5 // 2])
async def test_batches_cut_ahead_for_a_user_that_holds_the_loop_are_within_the_limit(batch_size: int | None) -> None:
    feed = LongToCut([LONG_ROWS] * 16)
    max_bytes = LONG_ROWS * ROW_BYTES
    peak = num_rows = 0
    async for batch in iterate(
        feed, batch_size=batch_size, batch_format="polars", max_prefetch_bytes=max_bytes, prefetch_batches=6
    ):
        num_rows += len(batch["id"])
        if num_rows <= 5 * LONG_ROWS:
            time.sleep(0.003)  # noqa: ASYNC251 - the hold.
        elif num_rows <= 10 * LONG_ROWS:
            await standstill(feed)
        peak = max(peak, feed.memory.live)
    assert num_rows == 16 * LONG_ROWS
    # One batch is in use, and a second one may be about to be, however large it is.
    assert peak <= max_bytes + feed.largest_bytes + 2 * (batch_size or LONG_ROWS) * ROW_BYTES
