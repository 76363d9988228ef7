"""Whatever is behind the consumer, and wherever it is cancelled or left: no row is lost or doubled, nothing is left."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel
import pyarrow as pa
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

import aiodata
from tests.batching.feeds import FakeFeed, iterate, settle, without_gc
from tests.conftest import stored_bytes, threads, until
from tests.test_collate import Gate, at

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean")]

local_only = pytest.mark.parametrize("runtime", ["local"])

Batch = dict[str, Any]

NUM_ROWS = 60
BATCH_ROWS = 7


class Made:
    """What a function makes of a batch."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids


class Functions:
    """Functions for every part of the pipeline, and what is known of their calls and of the batches they saw.

    Args:
        turns: Turns of the loop that a coroutine function takes, at most.
        fail_at: The row whose batch they fail with, if any.

    Attributes:
        running: Calls in progress.
    """

    def __init__(self, *, turns: int = 3, fail_at: int | None = None) -> None:
        self.running: list[object] = []
        self._turns = turns
        self._fail_at = fail_at
        self._batches: list[weakref.ref[Any]] = []

    @property
    def num_alive(self) -> int:
        """Batches that were given or made, and are still referred to."""
        return sum(batch() is not None for batch in self._batches)

    def make(self, batch: Any) -> Made:
        """Make a batch of a batch; in a thread, or wherever."""
        with self._entered():
            made = Made(ids_of(batch))
            # A dict takes no weak references, its arrays do.
            self._batches += [weakref.ref(batch["id"] if isinstance(batch, dict) else batch), weakref.ref(made)]
            if self._fail_at in made.ids:
                raise ValueError("bad value")
            return made

    async def amake(self, batch: Any) -> Made:
        """Make a batch of a batch, in more turns of the loop the less its first row is."""
        with self._entered():
            for _ in range((NUM_ROWS - ids_of(batch)[0]) % (self._turns + 1)):
                await anyio.lowlevel.checkpoint()
            return self.make(batch)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        token = object()
        self.running.append(token)
        try:
            yield
        finally:
            self.running.remove(token)


# The stages behind the consumer, as options made of functions, and whether batches come in order.
Stages = Callable[[Functions], dict[str, Any]]

STAGES: dict[str, tuple[Stages, bool]] = {
    "plain": (lambda _: {}, True),
    "plain_bounded": (lambda _: {"max_prefetch_bytes": 1}, True),
    "blocks": (lambda _: {"batch_size": None}, True),
    "shuffle": (lambda _: {"local_shuffle_buffer_size": 15}, False),
    "collate": (lambda made: {"collate_fn": made.make}, False),
    "collate_in_order": (lambda made: {"collate_fn": made.make, "collate_workers": 3}, True),
    "acollate": (lambda made: {"collate_fn": made.amake, "collate_workers": 3}, False),
    "acollate_in_order": (lambda made: {"collate_fn": made.amake, "collate_workers": 3}, True),
    "finalize": (lambda made: {"finalize_fn": made.make, "prefetch_to_device": 0}, True),
    "afinalize": (lambda made: {"finalize_fn": made.amake, "prefetch_to_device": 2}, True),
    "collate_and_afinalize": (lambda made: {"collate_fn": made.make, "finalize_fn": made.amake}, False),
    "acollate_and_finalize_in_order": (lambda made: {"collate_fn": made.amake, "finalize_fn": made.make}, True),
    "all": (
        lambda made: {
            "local_shuffle_buffer_size": 15,
            "max_prefetch_bytes": 100,
            "collate_fn": made.amake,
            "finalize_fn": made.amake,
        },
        False,
    ),
}

FUNCTION_STAGES = [name for name, (stages, _) in STAGES.items() if "_fn" in str(stages(Functions()).keys())]


def ids_of(batch: Any) -> list[int]:
    ids: list[int] = batch.ids if isinstance(batch, Made) else batch["id"].tolist()
    return ids


async def dataset(runtime: str) -> aiodata.Dataset:
    """Blocks of ten rows: on Ray they are in the store, so each is fetched; locally tasks make them."""
    ds = aiodata.range(NUM_ROWS, num_blocks=6).with_options(runtime=runtime)
    ds = ds.map_batches(lambda batch: {"id": batch["id"] + 0}, batch_size=10)
    return await ds.materialize() if runtime == "ray" else ds


def batches_of(ds: aiodata.Dataset, name: str, functions: Functions) -> aiodata.Batches:
    stages, in_order = STAGES[name]
    return ds.with_options(preserve_order=in_order).aiter_batches(**{"batch_size": BATCH_ROWS, **stages(functions)})


def hold_the_loop(seconds: float) -> None:
    """What a consumer's own code may do."""
    time.sleep(seconds)


async def give_turns(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def next_ids(batches: aiodata.BatchIterator) -> list[int] | None:
    """The ids of the next batch, None at the end: a task can not raise StopAsyncIteration."""
    batch = await anext(batches, None)
    return None if batch is None else ids_of(batch)


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


# Ways to stop in the middle, after so many turns of the loop or so many batches.
Exit = Callable[[aiodata.Batches, int], Coroutine[Any, Any, None]]


async def close_while_waiting(batches: aiodata.Batches, turns: int) -> None:
    iterator = aiter(batches)
    waiting = asyncio.create_task(next_ids(iterator))
    await give_turns(turns)
    await iterator.aclose()
    assert {one for one in asyncio.all_tasks() if one is not waiting} == {asyncio.current_task()}
    with suppress(aiodata.TaskError):
        await waiting


async def cancel_consumer(batches: aiodata.Batches, turns: int) -> None:
    async def consume() -> None:
        async for _ in batches:
            pass

    task = asyncio.create_task(consume())
    await give_turns(turns)
    task.cancel()
    with suppress(asyncio.CancelledError, aiodata.TaskError):
        await task


async def drop_iterator(batches: aiodata.Batches, turns: int) -> None:
    iterator = aiter(batches)
    waiting = asyncio.create_task(next_ids(iterator))
    await give_turns(turns)
    waiting.cancel()
    with suppress(asyncio.CancelledError, aiodata.TaskError):
        await waiting


async def break_off(batches: aiodata.Batches, turns: int) -> None:
    with suppress(aiodata.TaskError):
        async for _ in batches:
            if not turns:
                break
            turns -= 1


async def raise_error(batches: aiodata.Batches, turns: int) -> None:
    with suppress(aiodata.TaskError, ZeroDivisionError):
        async for _ in batches:
            if not turns:
                raise ZeroDivisionError
            turns -= 1


async def leave_async_with(batches: aiodata.Batches, turns: int) -> None:
    with suppress(aiodata.TaskError):
        async with batches as iterator:
            for _ in range(turns):
                await next_ids(iterator)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# With how many turns, or batches, each is tried.
EARLY = (0, 1, 2, 3, 5, 8, 13, 21, 34)
EXITS: dict[Exit, tuple[int, ...]] = {
    close_while_waiting: EARLY,
    cancel_consumer: (*EARLY, 55, 90),
    drop_iterator: EARLY,
    break_off: (0, 2, 5),
    raise_error: (3,),
    leave_async_with: (0, 3),
}


async def test_leaving_at_any_time_leaves_no_task_thread_or_batch(runtime: str) -> None:
    ds = await dataset(runtime)
    threads_before = threads()
    with without_gc():
        for leave, turns, name in exits(runtime, STAGES):
            functions = Functions()
            note = f"{leave.__name__}, {name}, {turns} turns"
            await leave(batches_of(ds, name, functions), turns)
            await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, f"tasks are left: {note}")
            assert not functions.running, note
            assert threads() <= threads_before, note
            await until_dead(functions, note)


async def test_leaving_what_fails_leaves_no_task_thread_or_batch(runtime: str) -> None:
    ds = await dataset(runtime)
    threads_before = threads()
    notes: dict[str, Functions] = {}
    for leave, turns, name in exits(runtime, FUNCTION_STAGES):
        note = f"{leave.__name__}, {name}, {turns} turns"
        notes[note] = functions = Functions(fail_at=20)
        await leave(batches_of(ds, name, functions), turns)
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, f"tasks are left: {note}")
        assert not functions.running, note
        assert threads() <= threads_before, note
    # A failure's traceback refers to the batch that it is about, in a cycle.
    gc.collect()
    for note, functions in notes.items():
        await until_dead(functions, note)


async def test_closing_waits_for_the_call_in_progress(runtime: str) -> None:
    ds = await dataset(runtime)
    for part in ("collate_fn", "finalize_fn"):
        gate = Gate()
        iterator = aiter(ds.aiter_batches(batch_size=BATCH_ROWS, **at(part, gate.hold)))
        waiting = asyncio.create_task(next_ids(iterator))
        await gate.started.wait()
        closing = asyncio.create_task(iterator.aclose())
        # Whoever waits is told at once.
        assert await waiting is None
        await settle()
        assert not closing.done()
        gate.release()
        await closing
        assert not gate.running
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_does_not_wait_longer_than_its_timeout(runtime: str) -> None:
    ds = await dataset(runtime)
    for part in ("collate_fn", "finalize_fn"):
        gate = Gate()
        batches = ds.with_options(close_timeout_s=0.05).aiter_batches(batch_size=BATCH_ROWS, **at(part, gate.hold))
        async with batches as iterator:
            waiting = asyncio.create_task(next_ids(iterator))
            await gate.started.wait()
        assert gate.running
        assert await waiting is None
        gate.release()
        await until(lambda gate=gate: not gate.running, "the call goes on")  # type: ignore[misc]
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "tasks are left")


async def test_breaking_off_does_not_wait_for_the_call_in_progress(runtime: str) -> None:
    ds = await dataset(runtime)
    gate = Gate()

    def hold_all_but_the_first(batch: Batch) -> Batch:
        return batch if 0 in batch["id"] else gate.hold(batch)

    batches = ds.with_options(preserve_order=True).aiter_batches(
        batch_size=BATCH_ROWS, collate_fn=hold_all_but_the_first, collate_workers=2
    )
    async for batch in batches:
        assert ids_of(batch) == list(range(BATCH_ROWS))
        await gate.started.wait()
        break
    assert gate.running
    gate.release()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "tasks are left")
    assert not gate.running


async def test_call_that_is_not_begun_when_the_iterator_is_closed_is_not_begun_any_more(runtime: str) -> None:
    ds = await dataset(runtime)
    gate = Gate()
    gate.release()
    async with ds.aiter_batches(batch_size=1, collate_fn=gate.hold, collate_workers=4) as iterator:
        await anext(iterator)
    calls = gate.calls
    await settle()
    assert gate.calls == calls <= 1 + 2 * 4


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
            with anyio.fail_after(10), suppress(aiodata.AiodataError):
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


@local_only
@pytest.mark.parametrize("in_order", [True, False], ids=["in_order", "as_they_come"])
async def test_leaving_at_any_time_leaves_no_block(runtime: str, in_order: bool) -> None:
    blocks: list[weakref.ref[Any]] = []

    def make(batch: Batch) -> Batch:
        # The block has no memory of its own: it is alive if the array is.
        ids = batch["id"] + 0
        blocks.append(weakref.ref(ids))
        return {"id": ids}

    ds = aiodata.range(NUM_ROWS, num_blocks=6).with_options(runtime=runtime, preserve_order=in_order)
    ds = ds.map_batches(make, batch_size=5).with_options(target_block_bytes=40)
    with without_gc():
        for leave, turns, name in exits(runtime, ("plain", "shuffle", "collate")):
            blocks.clear()
            stages, _ = STAGES[name]
            await leave(ds.aiter_batches(**{"batch_size": BATCH_ROWS, **stages(Functions())}), turns)
            await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "tasks are left")
            note = f"blocks are left: {leave.__name__}, {name}, {turns} turns"
            await until(lambda: not any(block() is not None for block in blocks), note, within_s=1.0)


@pytest.mark.ray
@pytest.mark.parametrize("runtime", ["ray"])
@pytest.mark.usefixtures("ray_cluster")
async def test_leaving_gives_back_the_store_where_order_is_kept(runtime: str) -> None:
    ds = aiodata.range(1_000_000, num_blocks=40).with_options(runtime=runtime, preserve_order=True)
    ds = ds.map_batches(lambda batch: {"id": batch["id"] + 1})
    with without_gc():
        before = stored_bytes()
        for leave in (break_off, cancel_consumer, leave_async_with):
            for turns in (0, 3, 50):
                await leave(ds.aiter_batches(batch_size=10_000), turns)
                await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "tasks are left")
                await until(lambda: stored_bytes() <= before, f"blocks are left by {leave.__name__}", within_s=2.0)


async def take_into_plainly(taken: list[list[int]], batches: aiodata.Batches) -> None:
    async for batch in batches:
        taken.append(ids_of(batch))  # noqa: PERF401 - what there is until the failure.


def exits(runtime: str, names: Iterable[str]) -> Iterator[tuple[Exit, int, str]]:
    """The ways to stop, the turns or batches after which to do so, and the stages to do it at; fewer of them on Ray."""
    for leave, all_turns in EXITS.items():
        for turns in all_turns if runtime == "local" else all_turns[-1:]:
            yield from ((leave, turns, name) for name in names)


async def until_dead(functions: Functions, note: str) -> None:
    await until(lambda: not functions.num_alive, f"batches are left: {note}", within_s=1.0)
