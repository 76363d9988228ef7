"""A cancelled `__anext__` loses no batch, and one iterator's end is nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import aiodata
from tests.conftest import collect

pytestmark = pytest.mark.usefixtures("clean")

NUM_ROWS = 3000

# Asks for a batch and gives up now and then; returns the batch, or None if it gave up.
Attempt = Callable[[aiodata.BatchIterator, random.Random], Awaitable[Any]]


async def with_asyncio_timeout(batches: aiodata.BatchIterator, chance: random.Random) -> Any:
    with suppress(TimeoutError):
        async with asyncio.timeout(chance.choice([0.0, chance.uniform(0, 0.005)])):
            return await anext(batches)


async def with_wait_for(batches: aiodata.BatchIterator, chance: random.Random) -> Any:
    with suppress(TimeoutError):
        return await asyncio.wait_for(anext(batches), chance.uniform(0, 0.005))


async def with_anyio_scope(batches: aiodata.BatchIterator, chance: random.Random) -> Any:
    batch = None
    with anyio.move_on_after(chance.choice([0.0, chance.uniform(0, 0.005)])):
        batch = await anext(batches)
    return batch


async def with_task_cancel(batches: aiodata.BatchIterator, chance: random.Random) -> Any:
    async def next_batch() -> Any:
        return await anext(batches)

    task = asyncio.create_task(next_batch())
    for _ in range(chance.randrange(30)):
        await asyncio.sleep(0)
    task.cancel()
    # Time for the run to get on: what it does in threads takes no turns of the loop.
    await anyio.sleep(0.0005)
    with suppress(asyncio.CancelledError):
        return await task


async def with_scope_cancelled_from_outside(batches: aiodata.BatchIterator, chance: random.Random) -> Any:
    batch: Any = None
    at_end = False
    async with anyio.create_task_group() as group:

        async def next_batch() -> None:
            nonlocal batch, at_end
            try:
                batch = await anext(batches)
            except StopAsyncIteration:
                at_end = True

        group.start_soon(next_batch)
        for _ in range(chance.randrange(30)):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    if at_end:
        raise StopAsyncIteration
    return batch


ATTEMPTS: list[Attempt] = [
    with_asyncio_timeout,
    with_wait_for,
    with_anyio_scope,
    with_task_cancel,
    with_scope_cancelled_from_outside,
]


def rows_in_many_blocks(runtime: str, *, preserve_order: bool = True) -> aiodata.Dataset:
    ds = aiodata.range(NUM_ROWS, num_blocks=7).map_batches(lambda batch: {"id": batch["id"]}, batch_size=50)
    return ds.with_options(runtime=runtime, preserve_order=preserve_order, target_block_bytes=2000)


async def collect_with_interruptions(
    ds: aiodata.Dataset, attempt: Attempt, chance: random.Random, batch_size: int
) -> tuple[list[list[int]], int]:
    """Return the ids of each batch, and how often the attempt to get one was given up."""
    collected: list[list[int]] = []
    given_up = in_a_row = 0
    async with ds.aiter_batches(batch_size=batch_size, prefetch_batches=chance.randrange(4)) as batches:
        while True:
            try:
                # Short attempts alone might never see a slow start end.
                batch = await (anext(batches) if in_a_row > 20 else attempt(batches, chance))
            except StopAsyncIteration:
                return collected, given_up
            if batch is None:
                given_up += 1
                in_a_row += 1
            else:
                in_a_row = 0
                collected.append(batch["id"].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("preserve_order", [True, False], ids=["in_order", "as_they_come"])
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.__name__)
async def test_cancelled_next_loses_no_batch(runtime: str, attempt: Attempt, preserve_order: bool) -> None:
    ds = rows_in_many_blocks(runtime, preserve_order=preserve_order)
    total_given_up = 0
    for seed in range(12 if runtime == "local" else 2):
        chance = random.Random(seed)
        batch_size = chance.choice([7, 64, 256, 1000])
        batches, given_up = await collect_with_interruptions(ds, attempt, chance, batch_size)
        ids = [one for batch in batches for one in batch]
        assert (ids if preserve_order else sorted(ids)) == list(range(NUM_ROWS)), f"seed {seed}"
        assert {len(batch) for batch in batches[:-1]} <= {batch_size}
        total_given_up += given_up
    assert total_given_up > 5


async def test_cancelled_first_next_starts_the_run_for_the_second(runtime: str) -> None:
    async with rows_in_many_blocks(runtime).aiter_batches(batch_size=10) as batches:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anext(batches)
        assert scope.cancelled_caught
        assert (await anext(batches))["id"].tolist() == list(range(10))


async def test_next_in_a_cancelled_scope_takes_nothing_once_the_fast_path_is_over(runtime: str) -> None:
    ids: list[int] = []
    async with rows_in_many_blocks(runtime).aiter_batches(batch_size=NUM_ROWS // 3) as batches:
        for _ in range(3):
            with anyio.CancelScope() as scope:
                scope.cancel()
                ids += (await anext(batches))["id"].tolist()
            if scope.cancelled_caught:
                ids += (await anext(batches))["id"].tolist()
        ids += [one async for batch in batches for one in batch["id"].tolist()]
    assert ids == list(range(NUM_ROWS))


async def test_second_task_on_one_iterator_is_told_and_the_first_gets_its_batch(runtime: str) -> None:
    async with rows_in_many_blocks(runtime).aiter_batches(batch_size=10) as batches:
        first = asyncio.create_task(one_batch(batches))
        await asyncio.sleep(0)
        with pytest.raises(aiodata.BusyError, match="two tasks"):
            await anext(batches)
        assert await first == list(range(10))
        assert await one_batch(batches) == list(range(10, 20))


async def test_batches_give_a_full_pass_each_time(runtime: str) -> None:
    batches = rows_in_many_blocks(runtime).aiter_batches(batch_size=100)
    for _ in range(3):
        assert [one async for batch in batches for one in batch["id"].tolist()] == list(range(NUM_ROWS))


async def test_pass_that_is_left_early_does_not_shorten_the_next(runtime: str) -> None:
    batches = rows_in_many_blocks(runtime).aiter_batches(batch_size=100)
    async for _ in batches:
        break
    assert [one async for batch in batches for one in batch["id"].tolist()] == list(range(NUM_ROWS))


async def test_two_iterators_side_by_side_each_get_all_rows(runtime: str) -> None:
    ds = rows_in_many_blocks(runtime)
    left, right = aiter(ds.aiter_batches(batch_size=100)), aiter(ds.aiter_batches(batch_size=70))
    left_ids: list[int] = []
    right_ids: list[int] = []
    for _ in range(NUM_ROWS // 100):
        left_ids += await one_batch(left)
        right_ids += await one_batch(right)
    right_ids += [one async for batch in right for one in batch["id"].tolist()]
    assert left_ids == right_ids == list(range(NUM_ROWS))
    with pytest.raises(StopAsyncIteration):
        await anext(left)


async def test_two_tasks_with_an_iterator_each_get_all_rows(runtime: str) -> None:
    ds = rows_in_many_blocks(runtime)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(collect(ds, batch_size=batch_size)) for batch_size in (10, 99, 500)]
    assert [task.result() for task in tasks] == [list(range(NUM_ROWS))] * 3


async def test_two_tasks_may_enter_one_batches(runtime: str) -> None:
    batches = rows_in_many_blocks(runtime).aiter_batches(batch_size=100)
    both_entered, first_left = anyio.Event(), anyio.Event()
    second_ids: list[int] = []

    async def second() -> None:
        async with batches as iterator:
            both_entered.set()
            await first_left.wait()
            second_ids.extend([one async for batch in iterator for one in batch["id"].tolist()])

    async with asyncio.TaskGroup() as group:
        async with batches as iterator:
            await anext(iterator)
            _ = group.create_task(second())
            await both_entered.wait()
        first_is_closed = await anext(iterator, None) is None
        first_left.set()
    await iterator.aclose()
    assert first_is_closed
    assert second_ids == list(range(NUM_ROWS))


async def test_cancelled_consumer_does_not_stop_its_neighbour(runtime: str) -> None:
    ds = rows_in_many_blocks(runtime)
    neighbour = asyncio.create_task(collect(ds, batch_size=50))
    got_one = anyio.Event()

    async def consume() -> None:
        async for _ in ds.aiter_batches(batch_size=10):
            got_one.set()
            await asyncio.sleep(0)

    task = asyncio.create_task(consume())
    await got_one.wait()
    task.cancel()
    assert await neighbour == list(range(NUM_ROWS))
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_closed_iterator_is_at_its_end_and_closes_again(runtime: str) -> None:
    batches = aiter(rows_in_many_blocks(runtime).aiter_batches(batch_size=10))
    assert await one_batch(batches) == list(range(10))
    for _ in range(3):
        await batches.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(batches)
    assert batches.stats().rows == 10


async def test_iterator_at_its_end_stays_there(runtime: str) -> None:
    batches = aiter(rows_in_many_blocks(runtime).aiter_batches())
    async for _ in batches:
        pass
    for _ in range(3):
        with pytest.raises(StopAsyncIteration):
            await anext(batches)
    await batches.aclose()
    assert batches.stats().rows == NUM_ROWS


@pytest.mark.parametrize("close", [True, False], ids=["closed", "dropped"])
async def test_iterator_that_is_never_started_leaves_nothing_open(runtime: str, close: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = aiter(rows_in_many_blocks(runtime).aiter_batches())
        if close:
            await batches.aclose()
        del batches
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


async def test_closing_from_another_task_ends_the_one_that_waits(runtime: str) -> None:
    batches = aiter(rows_in_many_blocks(runtime).aiter_batches(batch_size=10 * NUM_ROWS))
    waiting = asyncio.create_task(anext(batches, "at the end"))
    await asyncio.sleep(0)
    await batches.aclose()
    assert await waiting == "at the end"


async def test_many_tasks_may_close_one_iterator(runtime: str) -> None:
    batches = aiter(rows_in_many_blocks(runtime).aiter_batches(batch_size=10))
    await anext(batches)
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            _ = group.create_task(batches.aclose())
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_cancelled_close_still_closes(runtime: str) -> None:
    batches = aiter(rows_in_many_blocks(runtime).aiter_batches(batch_size=10))
    await anext(batches)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await batches.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_entering_a_closed_iterator_is_refused(runtime: str) -> None:
    batches = aiter(rows_in_many_blocks(runtime).aiter_batches(batch_size=10))
    async with batches as same:
        assert same is batches
        await anext(batches)
    with pytest.raises(aiodata.ClosedError, match=r"aiter\(batches\)"):
        await batches.__aenter__()


async def test_async_generator_around_the_iterator_may_be_left_early(runtime: str) -> None:
    async def ids() -> AsyncIterator[int]:
        async with rows_in_many_blocks(runtime).aiter_batches(batch_size=10) as batches:
            async for batch in batches:
                for one in batch["id"].tolist():
                    yield one

    generator = ids()
    assert [await anext(generator) for _ in range(25)] == list(range(25))
    await generator.aclose()  # type: ignore[attr-defined]


async def one_batch(batches: aiodata.BatchIterator) -> list[int]:
    batch = await anext(batches)
    ids: list[int] = batch["id"].tolist()
    return ids


async def read_until_error(batches: Any) -> None:
    async with contextlib.aclosing(batches):
        async for _ in batches:
            raise KeyError("the real error")


async def test_what_is_iterated_can_be_closed_itself(runtime: str) -> None:
    ds = aiodata.range(1000, num_blocks=10).with_options(runtime=runtime)
    for batches in (ds.aiter_batches(batch_size=10), ds.aiter_rows(), ds.aiter_bundles()):
        await batches.aclose()  # Nothing runs.
        with pytest.raises(KeyError, match="the real error"):
            await read_until_error(batches)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "closing has waited for the run"
        iterator = aiter(batches)
        await anext(iterator)
        await batches.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)
        await batches.aclose()
        assert len([one async for one in batches]) >= 10, "it can be iterated again"


async def test_next_of_what_is_iterated_says_what_to_write(runtime: str) -> None:
    ds = aiodata.range(10).with_options(runtime=runtime)
    for batches in (ds.aiter_batches(), ds.aiter_rows(), ds.aiter_bundles()):
        with pytest.raises(TypeError, match=r"iterator = aiter\((batches|rows)\)"):
            await anext(batches)
