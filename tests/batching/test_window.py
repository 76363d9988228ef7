"""FetchWindow: blocks come in order, as far ahead as asked, and never in more bytes than allowed."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata.batching.window import Fetched, FetchWindow
from aiodata.concurrency.supervise import unwrap
from tests.batching.feeds import ROW_BYTES, FakeFeed, settle, without_gc
from tests.conftest import PATIENCE_S


@asynccontextmanager
async def running(window: FetchWindow, feed: FakeFeed) -> AsyncIterator[None]:
    """Run a window until the body is left, and close it; on entry it has done what it can."""
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(window.run, feed)
            await settle()
            yield
            group.cancel_scope.cancel()
    finally:
        window.close()


async def next_block(window: FetchWindow) -> Fetched:
    while (fetched := window.take()) is None:
        await window.wait()
    return fetched


async def take_and_settle(window: FetchWindow) -> Fetched:
    """Take a block that is there, and let the window do what it can then."""
    fetched = window.take()
    assert fetched is not None
    await settle()
    return fetched


async def test_fetches_run_at_once_until_enough_rows_are_ahead() -> None:
    feed, window = FakeFeed([10] * 9, held=True), FetchWindow(25, 1, None)
    async with running(window, feed):
        assert feed.begun == [0, 1, 2]
        feed.gates[0].set()
        await settle()
        assert feed.begun == [0, 1, 2], "a block that has come is still ahead"
        await take_and_settle(window)
        assert feed.begun == [0, 1, 2, 3]


async def test_one_block_is_ahead_however_few_rows_are_wanted() -> None:
    feed, window = FakeFeed([10] * 9), FetchWindow(0, 1, None)
    async with running(window, feed):
        assert feed.begun == [0]
        await take_and_settle(window)
        assert feed.begun == [0, 1]


async def test_so_many_blocks_are_ahead_however_many_rows_they_have() -> None:
    feed, window = FakeFeed([10] * 9), FetchWindow(0, 3, None)
    async with running(window, feed):
        assert feed.begun == [0, 1, 2]
        await take_and_settle(window)
        assert feed.begun == [0, 1, 2, 3]


@pytest.mark.parametrize(("rows", "blocks"), [(10**9, 1), (0, 10**9)])
async def test_blocks_ahead_are_limited_however_much_is_wanted(rows: int, blocks: int) -> None:
    feed, window = FakeFeed([1] * 40), FetchWindow(rows, blocks, None)
    async with running(window, feed):
        assert len(feed.begun) == 16
        await take_and_settle(window)
        assert len(feed.begun) == 17


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(6)))
async def test_blocks_are_handed_on_in_order_whatever_the_order_their_fetches_end_in(order: list[int]) -> None:
    feed, window = FakeFeed([3] * 6, held=True), FetchWindow(18, 1, None)
    taken: list[Fetched] = []
    async with running(window, feed):
        for count, index in enumerate(order, 1):
            feed.gates[index].set()
            await settle()
            while (fetched := window.take() if len(taken) < 6 else None) is not None:
                taken.append(fetched)
            first_missing = min(set(range(7)) - set(order[:count]))
            assert [one.held.source for one in taken] == [f"block {number}" for number in range(first_missing)]
    assert [one for fetched in taken for one in fetched.rows["id"].to_pylist()] == feed.ids


async def test_nothing_is_fetched_before_there_is_room_for_it() -> None:
    feed, window = FakeFeed([10] * 9), FetchWindow(10**9, 1, 25 * ROW_BYTES)
    async with running(window, feed):
        assert feed.begun == [0, 1]
        first = await take_and_settle(window)
        assert feed.begun == [0, 1, 2], "the block in use is not counted"
        second = await take_and_settle(window)
        assert feed.begun == [0, 1, 2], "but one that was in use before is"
        window.release(first.held)
        await settle()
        assert feed.begun == [0, 1, 2, 3]
        window.release(second.held)
        await settle()
        assert feed.begun == [0, 1, 2, 3], "no block is in use, two are ahead"


async def test_block_that_fits_exactly_is_fetched() -> None:
    feed, window = FakeFeed([10] * 9), FetchWindow(10**9, 1, 20 * ROW_BYTES)
    async with running(window, feed):
        assert feed.begun == [0, 1]


async def test_block_larger_than_the_limit_is_fetched_when_nothing_else_is_held() -> None:
    feed, window = FakeFeed([100, 1000, 5, 100]), FetchWindow(10**9, 1, 10 * ROW_BYTES)
    async with running(window, feed):
        assert feed.begun == [0]
        first = await take_and_settle(window)
        assert feed.begun == [0], "the block in use is something else that is held"
        window.release(first.held)
        await settle()
        assert feed.begun == [0, 1]
        second = await take_and_settle(window)
        assert feed.begun == [0, 1, 2], "small ones fit beside a large one that is in use"
        window.release(second.held)
        await settle()
        assert feed.begun == [0, 1, 2]


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 100), max_size=20),
    max_rows=st.none() | st.integers(1, 150),
    rows_ahead=st.integers(0, 200),
    kept=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
async def test_held_bytes_stay_within_the_limit_and_are_never_less_than_those_alive(
    sizes: list[int], max_rows: int | None, rows_ahead: int, kept: int, seed: int
) -> None:
    chance = random.Random(seed)
    feed = FakeFeed(sizes)
    window = FetchWindow(rows_ahead, 1, None if max_rows is None else max_rows * ROW_BYTES)
    held: list[Fetched] = []
    ids: list[int] = []

    def check() -> None:
        assert feed.memory.live <= window.held_bytes <= window.peak_held_bytes
        if max_rows is not None:
            # What was in use when a fetch began may be in use no more, or be another block.
            assert window.held_bytes <= max_rows * ROW_BYTES + feed.largest_bytes

    feed.on_block = check
    with anyio.fail_after(PATIENCE_S):
        async with feed.conducted(chance, 3), running(window, feed):
            while True:
                try:
                    fetched = window.take()
                except anyio.EndOfStream:
                    break
                # Whoever waits holds nothing: the next block may be one that needs all the room.
                while len(held) > (0 if fetched is None else kept):
                    window.release(held.pop(chance.randrange(len(held))).held)
                    check()
                if fetched is None:
                    await window.wait()
                else:
                    held.append(fetched)
                    ids += fetched.rows["id"].to_pylist()
                    check()
                del fetched
                await anyio.lowlevel.checkpoint()
            while held:
                window.release(held.pop().held)
            assert window.held_bytes == feed.memory.live == 0
    assert ids == feed.ids
    assert window.is_complete
    assert window.bytes_fetched == len(ids) * ROW_BYTES
    assert window.blocks_fetched == len(sizes)


async def test_held_bytes_are_passed_on_with_each_request_for_a_bundle() -> None:
    feed, window = FakeFeed([10] * 9), FetchWindow(25, 1, None)
    async with running(window, feed):
        assert feed.told == [0, 80, 160]
        first = await take_and_settle(window)
        assert feed.told == [0, 80, 160, 240], "the block in use is held, too"
        window.release(first.held)
        await take_and_settle(window)
        assert feed.told == [0, 80, 160, 240, 240]


async def test_block_of_which_some_rows_count_is_held_as_a_whole() -> None:
    feed = FakeFeed([100, 100], ranges=[(20, 30), (0, 100)])
    window = FetchWindow(50, 1, None)
    async with running(window, feed):
        assert window.held_bytes == 200 * ROW_BYTES
        part, whole = window.take(), window.take()
    assert part is not None
    assert whole is not None
    assert (part.rows["id"].to_pylist(), part.held.num_bytes, part.held.is_whole) == (list(range(20, 30)), 800, False)
    assert (whole.rows.num_rows, whole.held.num_bytes, whole.held.is_whole) == (100, 800, True)


async def test_end_of_the_bundles_is_the_end_once_all_is_taken() -> None:
    feed, window = FakeFeed([1, 1]), FetchWindow(10, 1, None)
    async with running(window, feed):
        assert window.is_complete
        with anyio.fail_after(PATIENCE_S):
            assert [(await next_block(window)).held.source for _ in range(2)] == ["block 0", "block 1"]
            for _ in range(2):
                with pytest.raises(anyio.EndOfStream):
                    await next_block(window)


async def test_window_does_not_end_before_its_last_fetch() -> None:
    feed, window = FakeFeed([1, 1], held=True), FetchWindow(10, 1, None)
    async with running(window, feed):
        assert len(feed.told) == 3
        assert not window.is_complete
        assert window.take() is None
        feed.release_all()
        await settle()
        assert window.is_complete


async def test_failed_fetch_ends_the_window_and_what_has_come_before_can_be_taken() -> None:
    feed, window = FakeFeed([1] * 9, held=True), FetchWindow(5, 1, None)
    feed.errors[1] = ZeroDivisionError()

    async def run() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(window.run, feed)
            for index in (2, 0, 1):
                await settle()
                feed.gates[index].set()

    with pytest.raises(ExceptionGroup) as caught:
        await run()
    assert unwrap(caught.value) is feed.errors[1]
    window.end()
    assert not window.is_complete
    assert (await next_block(window)).held.source == "block 0"
    with pytest.raises(anyio.EndOfStream):
        window.take()
    window.close()


async def test_cancelled_wait_takes_nothing() -> None:
    feed, window = FakeFeed([1, 1], held=True), FetchWindow(10, 1, None)
    async with running(window, feed):
        for _ in range(3):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await window.wait()
            assert scope.cancelled_caught
        feed.release_all()
        with anyio.fail_after(PATIENCE_S):
            assert [(await next_block(window)).held.source for _ in range(2)] == ["block 0", "block 1"]


async def test_cancelled_run_keeps_no_block_that_waits_for_an_earlier_one() -> None:
    feed, window = FakeFeed([10] * 4, held=True), FetchWindow(40, 1, None)
    with without_gc():
        async with running(window, feed):
            for index in (3, 1):
                feed.gates[index].set()
            await settle()
            assert feed.memory.live == 20 * ROW_BYTES
        assert feed.memory.live == 0


async def test_closed_window_holds_nothing_and_is_at_its_end() -> None:
    feed, window = FakeFeed([10] * 9), FetchWindow(50, 1, None)
    async with running(window, feed):
        fetched = await take_and_settle(window)
        assert feed.memory.live == window.held_bytes == 60 * ROW_BYTES
        window.close()
        assert window.held_bytes == 0
        del fetched
        assert feed.memory.live == 0
        with pytest.raises(anyio.EndOfStream):
            window.take()
        with anyio.fail_after(PATIENCE_S):
            await window.wait()
    assert not window.is_complete
