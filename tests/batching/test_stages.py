"""Collating and finalizing: how many calls at a time and ahead, and in what order."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata.batching import cutter
from aiodata.batching.stages import Outlet
from tests.batching.calls import BOTH_KINDS, BOTH_ORDERS, SIZE, Calls, begun, blocks, collating, rest_of
from tests.batching.feeds import FakeFeed, cancel_later, drain, iterate, settle, without_gc
from tests.conftest import PATIENCE_S, until


@BOTH_ORDERS
@BOTH_KINDS
@pytest.mark.parametrize("workers", [1, 3])
async def test_so_many_calls_run_at_a_time_and_all_workers_are_used(
    workers: int, is_async: bool, is_ordered: bool
) -> None:
    calls = Calls(is_async=is_async, held=True)
    batches = collating(calls, blocks(20), workers=workers, is_ordered=is_ordered)
    waiting = asyncio.ensure_future(anext(batches))
    for number in range(10):
        await begun(calls, number + workers)
        assert len(calls.running) == workers
        calls.release(number)
        assert await waiting == number
        waiting = asyncio.ensure_future(anext(batches))
    calls.release_all()
    rest = await rest_of(batches, waiting)
    assert (rest if is_ordered else sorted(rest)) == list(range(10, 20))
    assert calls.peak_running == workers


@BOTH_ORDERS
@BOTH_KINDS
@pytest.mark.parametrize("workers", [1, 3])
async def test_twice_as_many_batches_as_workers_are_in_flight_when_none_is_taken(
    workers: int, is_async: bool, is_ordered: bool
) -> None:
    calls = Calls(is_async=is_async)
    async with collating(calls, blocks(40), workers=workers, is_ordered=is_ordered) as batches:
        for taken in range(1, 6):
            await anext(batches)
            await begun(calls, taken + 2 * workers)
            assert len(calls.begun) == taken + 2 * workers


@BOTH_KINDS
async def test_slow_first_batch_holds_up_no_more_than_are_in_flight_where_order_counts(is_async: bool) -> None:
    calls = Calls(is_async=is_async, held=True)
    calls.release(*range(1, 20))
    batches = collating(calls, blocks(20), workers=3, is_ordered=True)
    waiting = asyncio.ensure_future(anext(batches))
    await begun(calls, 6)
    await until(lambda: len(calls.running) == 1, "the others do not end")
    await settle()
    assert len(calls.begun) == 6
    assert not waiting.done()
    calls.release(0)
    assert await rest_of(batches, waiting) == list(range(20))


@BOTH_KINDS
async def test_finished_batches_pass_a_slower_one_where_order_does_not_count(is_async: bool) -> None:
    calls = Calls(is_async=is_async, held=True)
    calls.release(*range(1, 20))
    batches = collating(calls, blocks(20), workers=2)
    with anyio.fail_after(PATIENCE_S):
        others = [await anext(batches) for _ in range(19)]
    assert calls.running == {0}
    calls.release(0)
    assert sorted(others) == list(range(1, 20))
    assert await drain(batches) == [0]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=12),
    size=st.none() | st.integers(1, 50),
    workers=st.integers(1, 4),
    is_ordered=st.booleans(),
    drop_last=st.booleans(),
    max_rows=st.none() | st.integers(1, 60),
    prefetch_to_device=st.none() | st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
async def test_all_rows_leave_once_and_a_bounded_number_of_batches_is_in_flight_at_any_speed(
    sizes: list[int],
    size: int | None,
    workers: int,
    is_ordered: bool,
    drop_last: bool,
    max_rows: int | None,
    prefetch_to_device: int | None,
    seed: int,
) -> None:
    chance = random.Random(seed)
    feed = FakeFeed(sizes)
    num_begun = num_running = num_taken = 0
    max_in_flight = 2 * workers + (0 if prefetch_to_device is None else max(1, prefetch_to_device))

    async def some_turns(most: int) -> None:
        for _ in range(chance.randrange(most)):
            await anyio.lowlevel.checkpoint()

    async def collate(batch: Any) -> list[int]:
        nonlocal num_begun, num_running
        num_begun += 1
        num_running += 1
        assert num_running <= workers
        assert num_begun - num_taken <= max_in_flight
        await some_turns(12)
        num_running -= 1
        ids: list[int] = batch["id"].tolist()
        return ids

    async def finalize(ids: list[int]) -> list[int]:
        await some_turns(5)
        return ids

    more: dict[str, Any] = (
        {} if prefetch_to_device is None else {"finalize_fn": finalize, "prefetch_to_device": prefetch_to_device}
    )
    batches = iterate(
        feed,
        is_ordered=is_ordered,
        batch_size=size,
        drop_last=drop_last,
        max_prefetch_bytes=None if max_rows is None else max_rows * 8,
        collate_fn=collate,
        collate_workers=workers,
        **more,
    )
    left: list[list[int]] = []
    with anyio.fail_after(PATIENCE_S):
        async with feed.conducted(chance, 3):
            async for ids in batches:
                num_taken += 1
                left.append(ids)
                await some_turns(12)
    if not is_ordered:
        left.sort()
    if size is not None and drop_last:
        assert [one for ids in left for one in ids] == feed.ids[: len(feed.ids) // size * size]
    else:
        assert [one for ids in left for one in ids] == feed.ids
    assert size is None or all(len(ids) == size for ids in left[:-1])
    assert batches.stats().rows == sum(map(len, left))


@BOTH_ORDERS
async def test_cancelled_next_loses_no_batch_of_a_stage(is_ordered: bool) -> None:
    chance = random.Random(5)

    async def finalize(batch: Any) -> int:
        for _ in range(chance.randrange(8)):
            await anyio.lowlevel.checkpoint()
        return int(batch["id"][0])

    batches = iterate(
        blocks(60), is_ordered=is_ordered, batch_size=SIZE, collate_fn=dict, finalize_fn=finalize, prefetch_to_device=0
    )
    got: list[int] = []
    given_up = 0
    with anyio.fail_after(PATIENCE_S), suppress(StopAsyncIteration):
        while True:
            with anyio.CancelScope() as scope:
                cancel_later(scope, chance.randrange(30))
                got.append(await anext(batches))
            given_up += scope.cancelled_caught
    assert sorted(got) == list(range(0, 600, 10))
    assert not is_ordered or got == sorted(got)
    assert given_up > 5


async def test_finalizing_gets_what_was_collated_one_at_a_time_and_in_order() -> None:
    seen: list[Any] = []
    running = 0

    async def finalize(number: int) -> str:
        nonlocal running
        running += 1
        assert running == 1
        await anyio.lowlevel.checkpoint()
        running -= 1
        seen.append(number)
        return f"final {number}"

    batches = iterate(
        blocks(12),
        batch_size=SIZE,
        collate_fn=Calls().function,
        collate_workers=3,
        finalize_fn=finalize,
        prefetch_to_device=3,
    )
    assert await drain(batches) == [f"final {number}" for number in range(12)]
    assert seen == list(range(12))


async def test_no_rows_are_no_calls() -> None:
    calls = Calls()
    for sizes in ([], [0, 0]):
        batches = iterate(FakeFeed(sizes), collate_fn=calls.function, finalize_fn=calls.function)
        assert await drain(batches) == []
    assert calls.begun == []


async def test_closed_outlet_takes_nothing_and_is_at_its_end() -> None:
    outlet = Outlet(is_ordered=True)
    outlet.close()
    feed = blocks(1)
    with without_gc():
        async for batch in iterate(feed, batch_format="pyarrow", batch_size=SIZE):
            outlet.put(cutter.Item(0, 0, SIZE, 0, batch))
            del batch
        assert feed.memory.live == 0
    assert len(outlet) == 0
    with anyio.fail_after(PATIENCE_S):
        assert await outlet.next() is cutter.Signal.END
