"""Cutter: batches of the right rows, and no block is held longer than its rows are needed."""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata import TaskError
from aiodata.batching.cutter import Cutter, Item, Signal
from aiodata.batching.options import BatchOptions
from aiodata.batching.window import FetchWindow
from aiodata.block import copy_rows
from aiodata.bundle import RefBundle
from tests.batching.feeds import ROW_BYTES, FakeFeed, settle, without_gc
from tests.conftest import PATIENCE_S

FORMATS = ["numpy", "pyarrow", "pandas", "polars"]

# A block that is copied in a thread.
LARGE_ROWS = 600_000


class Cutting:
    """A cutter over a feed, with the window that is between them."""

    def __init__(self, feed: FakeFeed, *, is_direct: bool = True, rows_ahead: int = 0, **options: Any) -> None:
        given = BatchOptions(**{"batch_format": "pyarrow"} | options)
        self.window = FetchWindow(rows_ahead, 1, given.max_prefetch_bytes)
        self.cutter = Cutter(given, self.window, epoch=0, grace_s=PATIENCE_S, is_direct=is_direct)
        self._feed = feed

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Cutter]:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self.window.run, self._feed)
                yield self.cutter
                group.cancel_scope.cancel()
        finally:
            self.cutter.close()


def ids_in(batch: Any) -> list[int]:
    ids: list[int] = np.array(batch["id"]).tolist()
    return ids


async def all_batches(cutter: Cutter) -> list[list[int]]:
    batches: list[list[int]] = []
    while (batch := await cutter.next()) is not Signal.END:
        batches.append(ids_in(batch))
    return batches


async def next_item(cutter: Cutter) -> Item:
    item = await cutter.next_item()
    assert isinstance(item, Item)
    return item


def expected_batches(ids: Sequence[int], size: int, *, drop_last: bool) -> list[list[int]]:
    batches = [list(ids[start : start + size]) for start in range(0, len(ids), size)]
    return batches[:-1] if drop_last and batches and len(batches[-1]) < size else batches


@st.composite
def feeds(draw: st.DrawFn) -> FakeFeed:
    """Blocks of very different sizes, of which all rows count, or some."""
    sizes = draw(st.lists(st.integers(0, 20) | st.integers(0, 2000), max_size=12))
    cuts = [draw(st.just((0, size)) | st.tuples(st.integers(0, size), st.integers(0, size))) for size in sizes]
    return FakeFeed(sizes, ranges=[(min(cut), max(cut)) for cut in cuts])


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    feed=feeds(),
    size=st.integers(1, 50) | st.integers(1, 3000),
    batch_format=st.sampled_from(FORMATS),
    max_rows=st.none() | st.integers(1, 3000),
    drop_last=st.booleans(),
    rows_ahead=st.integers(0, 3000),
    seed=st.integers(0, 2**32),
)
async def test_all_rows_leave_in_order_in_batches_of_one_size_however_often_it_is_cancelled(
    feed: FakeFeed,
    size: int,
    batch_format: str,
    max_rows: int | None,
    drop_last: bool,
    rows_ahead: int,
    seed: int,
) -> None:
    chance = random.Random(seed)
    cutting = Cutting(
        feed,
        rows_ahead=rows_ahead,
        batch_size=size,
        batch_format=batch_format,
        max_prefetch_bytes=None if max_rows is None else max_rows * ROW_BYTES,
        drop_last=drop_last,
    )
    batches: list[list[int]] = []
    batch: Any = None
    with anyio.fail_after(PATIENCE_S):
        async with feed.conducted(chance, 2), cutting.running() as cutter:
            while batch is not Signal.END:
                batch = None
                with anyio.CancelScope() as scope:
                    if chance.random() < 0.3:
                        scope.cancel()
                    batch = await cutter.next()
                if batch is None:
                    await anyio.lowlevel.checkpoint()
                elif batch is not Signal.END:
                    batches.append(ids_in(batch))
            assert await cutter.next() is Signal.END
            rows = cutter.rows
    assert batches == expected_batches(feed.ids, size, drop_last=drop_last)
    assert rows == sum(map(len, batches))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    feed=feeds(),
    size=st.integers(1, 50) | st.integers(1, 3000),
    buffer_rows=st.integers(1, 50) | st.integers(1, 3000),
    max_rows=st.none() | st.integers(1, 3000),
    drop_last=st.booleans(),
    seed=st.integers(0, 2**32),
)
async def test_all_rows_leave_once_when_they_are_shuffled(
    feed: FakeFeed, size: int, buffer_rows: int, max_rows: int | None, drop_last: bool, seed: int
) -> None:
    cutting = Cutting(
        feed,
        batch_size=size,
        max_prefetch_bytes=None if max_rows is None else max_rows * ROW_BYTES,
        drop_last=drop_last,
        local_shuffle_buffer_size=buffer_rows,
        local_shuffle_seed=7,
    )
    with anyio.fail_after(PATIENCE_S):
        async with feed.conducted(random.Random(seed), 2), cutting.running() as cutter:
            batches = await all_batches(cutter)
            assert cutting.window.held_bytes == 0
    ids = [one for batch in batches for one in batch]
    assert len(set(ids)) == len(ids)
    assert set(ids) <= set(feed.ids)
    assert list(map(len, batches)) == list(map(len, expected_batches(feed.ids, size, drop_last=drop_last)))


@settings(max_examples=50, deadline=None)
@given(feed=feeds(), batch_format=st.sampled_from(FORMATS), max_rows=st.none() | st.integers(1, 3000))
async def test_without_a_batch_size_each_block_that_has_rows_is_a_batch(
    feed: FakeFeed, batch_format: str, max_rows: int | None
) -> None:
    max_bytes = None if max_rows is None else max_rows * ROW_BYTES
    cutting = Cutting(feed, batch_size=None, batch_format=batch_format, max_prefetch_bytes=max_bytes)
    async with cutting.running() as cutter:
        batches = await all_batches(cutter)
    ranges = zip(feed.starts, feed.ranges, strict=True)
    assert batches == [list(range(start + first, start + last)) for start, (first, last) in ranges if first < last]


@pytest.mark.parametrize("batch_format", FORMATS)
@pytest.mark.parametrize("max_bytes", [None, 10**6], ids=["free", "limited"])
async def test_block_whose_whole_batches_are_used_is_let_go_of_before_the_next_one_has_come(
    max_bytes: int | None, batch_format: str
) -> None:
    feed = FakeFeed([25, 5], held=True)
    cutting = Cutting(feed, batch_size=10, batch_format=batch_format, max_prefetch_bytes=max_bytes)
    with without_gc():
        async with cutting.running() as cutter, anyio.create_task_group() as group:
            await settle()
            feed.gates[0].set()
            batches = [await cutter.next() for _ in range(2)]
            rest: list[Any] = []

            async def take_rest() -> None:
                rest.append(await cutter.next())

            group.start_soon(take_rest)
            await settle()
            batches.clear()
            assert feed.memory.live == 0
            feed.release_all()
    assert ids_in(rest[0]) == list(range(20, 30))


@pytest.mark.parametrize("batch_format", FORMATS)
async def test_with_a_limit_the_last_whole_batch_in_hand_holds_no_block(batch_format: str) -> None:
    feed = FakeFeed([25, 5], held=True)
    cutting = Cutting(feed, batch_size=10, batch_format=batch_format, max_prefetch_bytes=10**6)
    with without_gc():
        async with cutting.running() as cutter:
            await settle()
            feed.gates[0].set()
            await cutter.next()
            last = await cutter.next()
            assert feed.memory.live == 0
            await settle()
            assert cutting.window.held_bytes == 5 * ROW_BYTES, "only the block that is being fetched"
            assert ids_in(last) == list(range(10, 20))


async def test_with_a_limit_even_a_large_remainder_holds_no_block() -> None:
    feed = FakeFeed([LARGE_ROWS, 5], held=True)
    cutting = Cutting(feed, batch_size=LARGE_ROWS - 200_000, max_prefetch_bytes=1)
    with without_gc():
        async with cutting.running() as cutter:
            await settle()
            feed.gates[0].set()
            batch = await cutter.next()
            assert feed.memory.live == 0
            feed.release_all()
            rest = await cutter.next()
    assert ids_in(pa.concat_tables([batch, rest])) == feed.ids


async def test_without_a_limit_a_large_remainder_is_not_copied_and_its_block_counts_as_held() -> None:
    feed = FakeFeed([LARGE_ROWS, LARGE_ROWS], held=True)
    cutting = Cutting(feed, batch_size=LARGE_ROWS - 200_000)
    async with cutting.running() as cutter:
        await settle()
        feed.gates[0].set()
        allocated = pa.total_allocated_bytes()
        await cutter.next()
        assert pa.total_allocated_bytes() == allocated
        assert feed.memory.live == LARGE_ROWS * ROW_BYTES
        await settle()
        assert cutting.window.held_bytes == 2 * LARGE_ROWS * ROW_BYTES


@pytest.mark.parametrize("buffer_rows", [None, LARGE_ROWS], ids=["copied", "shuffled"])
async def test_cancelled_copy_in_a_thread_is_made_again(buffer_rows: int | None) -> None:
    feed = FakeFeed([LARGE_ROWS])
    cutting = Cutting(
        feed, batch_size=LARGE_ROWS - 200_000, max_prefetch_bytes=1, local_shuffle_buffer_size=buffer_rows
    )
    batches: list[list[int]] = []
    given_up = 0
    async with cutting.running() as cutter:
        while given_up < 20:
            with anyio.CancelScope() as scope:
                for _ in range(given_up):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
                batches.append(ids_in(await cutter.next()))
            given_up += 1
        batches += await all_batches(cutter)
    assert given_up == 20
    assert list(map(len, batches)) == [LARGE_ROWS - 200_000, 200_000]
    assert sorted(one for batch in batches for one in batch) == feed.ids


async def test_blocks_that_a_larger_batch_consists_of_are_not_copied_and_go_with_it() -> None:
    feed = FakeFeed([10] * 8)
    cutting = Cutting(feed, batch_size=40, max_prefetch_bytes=100)
    allocated = pa.total_allocated_bytes()
    with without_gc():
        async with cutting.running() as cutter:
            batch = await cutter.next()
            assert pa.total_allocated_bytes() == allocated
            assert feed.memory.live >= 40 * ROW_BYTES
            del batch
            await settle()
            assert feed.memory.live == cutting.window.held_bytes == 10 * ROW_BYTES


async def test_some_rows_of_a_large_block_do_not_hold_it_while_a_batch_waits_for_others() -> None:
    feed = FakeFeed([1000, 10], ranges=[(500, 505), (0, 10)], held=True)
    cutting = Cutting(feed, batch_size=10)
    with without_gc():
        async with cutting.running() as cutter, anyio.create_task_group() as group:
            group.start_soon(cutter.next)
            await settle()
            feed.gates[0].set()
            await settle()
            assert feed.fetched == [0]
            assert feed.memory.live == 0
            feed.release_all()


async def test_small_rest_of_a_block_does_not_hold_it_in_the_shuffle_buffer() -> None:
    feed = FakeFeed([25, 5], held=True)
    cutting = Cutting(feed, batch_size=10, local_shuffle_buffer_size=10)
    with without_gc():
        async with cutting.running() as cutter, anyio.create_task_group() as group:
            await settle()
            feed.gates[0].set()
            # 10 rows of the first block, then the rest of it, which is too few for another shuffle.
            first = await cutter.next()
            group.start_soon(cutter.next)
            await settle()
            assert feed.memory.live == 0
            assert cutting.window.held_bytes == 5 * ROW_BYTES, "only the block that is being fetched"
            feed.release_all()
    assert len(ids_in(first)) == 10


async def test_items_are_numbered_and_know_their_rows_of_the_pass() -> None:
    async with Cutting(FakeFeed([3, 0, 4, 5]), is_direct=False, batch_size=5).running() as cutter:
        items = [await next_item(cutter) for _ in range(3)]
        assert await cutter.next_item() is Signal.END
    assert [(item.number, item.start, item.stop) for item in items] == [(0, 0, 5), (1, 5, 10), (2, 10, 12)]
    assert [ids_in(item.value) for item in items] == expected_batches(range(12), 5, drop_last=False)


async def test_source_names_the_blocks_of_rows_that_were_not_handed_over() -> None:
    async with Cutting(FakeFeed([3, 0, 4, 50]), is_direct=False, batch_size=5).running() as cutter:
        first, *_ = [await next_item(cutter) for _ in range(4)]
        assert cutter.source(0, 3) == "block 0"
        assert cutter.source(0, 5) == "block 0, block 2"
        assert cutter.source(2, 8) == "block 0, block 2, block 3"
        assert cutter.source(5, 10) == "block 2, block 3"
        assert cutter.source(10, 15) == "block 3"
        cutter.hand_over(first)
        assert cutter.source(0, 5) == "block 2", "the other is gone, and nothing keeps its name"
        assert cutter.source(5, 10) == "block 2, block 3"


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=10),
    size=st.integers(1, 40),
    is_limited=st.booleans(),
    seed=st.integers(0, 2**32),
)
async def test_blocks_are_held_until_what_they_became_is_handed_over_in_any_order(
    sizes: list[int], size: int, is_limited: bool, seed: int
) -> None:
    chance = random.Random(seed)
    feed = FakeFeed(sizes)
    cutting = Cutting(feed, is_direct=False, batch_size=size, max_prefetch_bytes=10**6 if is_limited else None)
    async with cutting.running() as cutter:
        items: list[Item] = []
        while isinstance(item := await cutter.next_item(), Item):
            items.append(item)
        del item
        chance.shuffle(items)
        while items:
            assert feed.memory.live <= cutting.window.held_bytes + sum(
                (item.stop - item.start) * ROW_BYTES for item in items
            )
            item = items.pop()
            cutter.hand_over(item)
            del item
        assert cutting.window.held_bytes == 0
        assert feed.memory.live == 0
        assert not cutter._spans


@pytest.mark.parametrize("size", [3, 10, 35, 1000])
@pytest.mark.parametrize("is_direct", [True, False], ids=["direct", "staged"])
@pytest.mark.parametrize("buffer_rows", [None, 50], ids=["plain", "shuffled"])
async def test_what_is_known_of_blocks_does_not_add_up(buffer_rows: int | None, is_direct: bool, size: int) -> None:
    feed = FakeFeed([10] * 400)
    most = 0
    cutting = Cutting(
        feed, is_direct=is_direct, batch_size=size, max_prefetch_bytes=160, local_shuffle_buffer_size=buffer_rows
    )
    async with cutting.running() as cutter:
        while (batch := await (cutter.next() if is_direct else cutter.next_item())) is not Signal.END:
            most = max(most, len(cutter._spans))
            if isinstance(batch, Item):
                cutter.hand_over(batch)
    assert most <= 2 * (size // 10 + 2)


@pytest.mark.parametrize("buffer_rows", [None, 30], ids=["plain", "shuffled"])
async def test_closed_cutter_holds_nothing_and_is_at_its_end(buffer_rows: int | None) -> None:
    feed = FakeFeed([25] * 9)
    cutting = Cutting(feed, batch_size=10, rows_ahead=50, local_shuffle_buffer_size=buffer_rows)
    with without_gc():
        async with cutting.running() as cutter:
            await cutter.next()
            await settle()
            assert feed.memory.live
            cutter.close()
            assert feed.memory.live == 0
            assert await cutter.next() is Signal.END
            assert await cutter.next_item() is Signal.END
            assert cutter.rows == 10
            assert cutting.window.held_bytes == 0


async def test_close_during_a_copy_in_a_thread_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, closed = threading.Event(), threading.Event()

    def copy_until_closed(rows: pa.Table) -> pa.Table:
        begun.set()
        closed.wait(PATIENCE_S)
        return copy_rows(rows)

    monkeypatch.setattr("aiodata.batching.cutter.copy_rows", copy_until_closed)
    feed = FakeFeed([LARGE_ROWS])
    cutting = Cutting(feed, batch_size=LARGE_ROWS - 200_000, max_prefetch_bytes=1)
    ends: list[Any] = []
    async with cutting.running() as cutter, anyio.create_task_group() as group:

        async def take() -> None:
            ends.append(await cutter.next())

        group.start_soon(take)
        while not begun.is_set():
            await anyio.lowlevel.checkpoint()
        cutter.close()
        closed.set()
    assert ends == [Signal.END]
    assert cutting.window.held_bytes == 0


async def test_supply_that_ended_early_leaves_no_last_batch() -> None:
    feed = FakeFeed([10, 10], held=True)
    cutting = Cutting(feed, batch_size=15)
    async with cutting.running() as cutter, anyio.create_task_group() as group:
        ends: list[Any] = []

        async def take() -> None:
            ends.append(await cutter.next())

        group.start_soon(take)
        await settle()
        feed.gates[0].set()
        await settle()
        cutting.window.end()
    assert ends == [Signal.END]


class WithoutColumns(FakeFeed):
    """Its blocks have rows, but no columns."""

    async def fetch(self, bundle: RefBundle) -> pa.Table:
        return (await super().fetch(bundle)).select([])


class OfManyTypes(FakeFeed):
    """Its blocks do not go together."""

    async def fetch(self, bundle: RefBundle) -> pa.Table:
        block = await super().fetch(bundle)
        return block if bundle.ref % 2 else block.cast(pa.schema([("id", pa.string())]))


@pytest.mark.parametrize("buffer_rows", [None, 5], ids=["plain", "shuffled"])
async def test_block_that_can_not_be_cut_is_named(buffer_rows: int | None) -> None:
    cutting = Cutting(WithoutColumns([10]), batch_size=4, local_shuffle_buffer_size=buffer_rows)
    async with cutting.running() as cutter:
        with pytest.raises(TaskError, match=r"aiter_batches failed on block 0: .*no columns") as caught:
            await cutter.next()
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("buffer_rows", [None, 5], ids=["plain", "shuffled"])
async def test_blocks_that_do_not_go_together_are_an_error_of_the_data(buffer_rows: int | None) -> None:
    cutting = Cutting(OfManyTypes([3, 3]), batch_size=6, local_shuffle_buffer_size=buffer_rows)
    async with cutting.running() as cutter:
        with pytest.raises(TaskError, match=r"failed on .*block.*(do not go together|in the rows before)"):
            await cutter.next()
