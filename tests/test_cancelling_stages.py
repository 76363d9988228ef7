"""Whatever is behind the consumer, and wherever it is cancelled: no row is lost or doubled."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import anyio
import pyarrow as pa
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

import aiodata
from tests.batching.feeds import FakeFeed, iterate
from tests.conftest import PATIENCE_S, until
from tests.stages import (
    BATCH_ROWS,
    FUNCTION_STAGES,
    NUM_ROWS,
    STAGES,
    Batch,
    Functions,
    batches_of,
    dataset,
    give_turns,
    ids_of,
    local_only,
    next_ids,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean")]


def hold_the_loop(seconds: float) -> None:
    """What a consumer's own code may do."""
    time.sleep(seconds)


async def attempt(batches: aiodata.BatchIterator, turns: int) -> list[int] | None:
    """Ask for a batch, give up after so many turns of the loop, and ask again."""
    task = asyncio.create_task(next_ids(batches))
    await give_turns(turns)
    task.cancel()
    with suppress(asyncio.CancelledError):
        return await task
    return await next_ids(batches)


async def take_into(taken: list[list[int]], batches: aiodata.BatchIterator, turns: int) -> None:
    """Append the ids of all batches, up to the end or a failure."""
    while (ids := await attempt(batches, turns)) is not None:
        taken.append(ids)


async def take_all(batches: aiodata.BatchIterator, turns: Callable[[], int]) -> list[list[int]]:
    """The ids of all batches, each asked for again when it was given up."""
    taken: list[list[int]] = []
    while (ids := await attempt(batches, turns())) is not None:
        taken.append(ids)
    return taken


def check_all(taken: list[list[int]], *, in_order: bool, batch_size: int | None, note: str) -> None:
    """Check that the batches are those of ids that count up: once each, full but one, and in order if they have to."""
    ids = [one for batch in taken for one in batch]
    twice = {one: times for one, times in Counter(ids).items() if times > 1}
    assert not twice, f"doubled: {note}"
    assert sorted(ids) == list(range(len(ids))), f"lost: {note}"
    assert ids == sorted(ids) or not in_order, f"out of order: {note}"
    if batch_size is not None:
        sizes = Counter(map(len, taken))
        expected = Counter({batch_size: len(ids) // batch_size})
        expected += Counter([len(ids) % batch_size] if len(ids) % batch_size else [])
        assert sizes == expected, f"not full: {note}"


async def test_next_that_is_cancelled_after_any_number_of_turns_loses_no_batch(runtime: str) -> None:
    ds = await dataset(runtime)
    for name, (stages, in_order) in STAGES.items():
        for turns in (0, 1, 2, 3, 4, 6, 9, 14, 22) if runtime == "local" else (1, 3, 8):
            functions = Functions()
            async with batches_of(ds, name, functions) as batches:
                taken = await take_all(batches, lambda turns=turns: turns)  # type: ignore[misc]
            size = stages(functions).get("batch_size", BATCH_ROWS)
            check_all(taken, in_order=in_order, batch_size=size, note=f"{name}, {turns} turns")
            assert sum(map(len, taken)) == NUM_ROWS
            assert not functions.running


async def test_failure_is_raised_once_whenever_next_is_cancelled(runtime: str) -> None:
    ds = await dataset(runtime)
    for name in FUNCTION_STAGES:
        for turns in (0, 1, 2, 3, 4, 6, 9, 14, 22) if runtime == "local" else (1, 4):
            functions = Functions(fail_at=45)
            taken: list[list[int]] = []
            iterator = aiter(batches_of(ds, name, functions))
            with pytest.raises(aiodata.TaskError, match="bad value"):
                await take_into(taken, iterator, turns)
            ids = [one for batch in taken for one in batch]
            assert len(set(ids)) == len(ids), f"{name}, {turns} turns"
            assert 45 not in ids
            assert await next_ids(iterator) is None
            await iterator.aclose()
            assert not functions.running


@local_only
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_slow_fetches_and_slow_functions_change_nothing_of_that(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    # The law of the first test for blocks of any size, whose fetches end in any order and at any time.
    @settings(max_examples=150, deadline=None, database=None)
    @given(
        st.sampled_from(sorted(STAGES)),
        st.lists(st.integers(0, 20), max_size=8),
        st.none() | st.integers(1, 30),
        st.integers(0, 3),
        st.integers(0, 12),
        st.integers(0, 12),
        st.integers(0, 2**32),
    )
    def nothing_is_lost(
        name: str,
        sizes: list[int],
        batch_size: int | None,
        prefetch: int,
        fetch_turns: int,
        call_turns: int,
        seed: int,
    ) -> None:
        # Not drawn by hypothesis one by one: how many are needed depends on the threads.
        chance = random.Random(seed)
        functions = Functions(turns=call_turns)
        stages, in_order = STAGES[name]
        options = {"batch_size": batch_size, "prefetch_batches": prefetch, **stages(functions)}
        if options["batch_size"] is None:
            options.pop("local_shuffle_buffer_size", None)
        feed = FakeFeed(sizes)

        async def main() -> list[list[int]]:
            async with feed.conducted(chance, fetch_turns), iterate(feed, is_ordered=in_order, **options) as batches:
                return await take_all(batches, lambda: chance.randrange(25))

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            taken = runner.run(main())
        check_all(taken, in_order=in_order, batch_size=options["batch_size"], note=name)
        assert sum(map(len, taken)) == sum(sizes)
        assert not functions.running

    nothing_is_lost()


@local_only
async def test_run_that_is_cancelled_from_outside_never_looks_complete(runtime: str) -> None:
    ds = await dataset(runtime)
    for name in STAGES:
        for turns in range(1, 60, 5):
            taken: list[list[int]] = []
            consumer = asyncio.create_task(take_into_plainly(taken, batches_of(ds, name, Functions())))
            await give_turns(turns)
            # The tasks inside the run's groups are anyio's.
            inner = {task.id for task in anyio.get_running_tasks() if task.parent_id is not None}
            for task in asyncio.all_tasks() - {asyncio.current_task(), consumer}:
                if id(task) not in inner:
                    task.cancel()
            with anyio.fail_after(PATIENCE_S), suppress(aiodata.AiodataError):
                await consumer
                assert sum(map(len, taken)) == NUM_ROWS, f"rows are lost: {name}, {turns} turns"
            assert len({one for ids in taken for one in ids}) == sum(map(len, taken))
            await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "tasks are left")


@local_only
async def test_consumer_that_holds_the_loop_loses_nothing_and_leaves_nothing(runtime: str) -> None:
    def structs(batch: Batch) -> pa.Table:
        return pa.table({"id": batch["id"], "struct": pa.StructArray.from_arrays([pa.array(batch["id"])], ["id"])})

    # A thousand dicts take a fifth of a millisecond, so batches are cut ahead, in a thread, where the loop is held.
    num_rows, batch_rows = 60_000, 8000
    ds = aiodata.range(num_rows, num_blocks=7).map_batches(structs)
    batches = ds.with_options(runtime=runtime, preserve_order=True).aiter_batches(batch_size=batch_rows)
    for turns in (0, 1, 2, 3, 5, 8, 13, 21):
        taken: list[list[int]] = []
        async with batches as iterator:
            while (ids := await attempt(iterator, turns)) is not None:
                taken.append(ids)
                hold_the_loop(0.004)
        check_all(taken, in_order=True, batch_size=batch_rows, note=f"{turns} turns")
        assert sum(map(len, taken)) == num_rows
    for num_batches in range(5):
        batches_left = num_batches
        async for _ in batches:
            if not batches_left:
                break
            batches_left -= 1
            hold_the_loop(0.004)
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "tasks are left")


async def take_into_plainly(taken: list[list[int]], batches: aiodata.Batches) -> None:
    async for batch in batches:
        taken.append(ids_of(batch))  # noqa: PERF401 - what there is until the failure.
