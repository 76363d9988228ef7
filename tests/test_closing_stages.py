"""Whatever is behind the consumer, and wherever it is left: no task, thread or batch is left behind."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import aiodata
from tests.batching.feeds import settle, without_gc
from tests.conftest import stored_bytes, threads, until
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
from tests.test_collate import Gate, at

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean")]


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
            await until(lambda: not any(block() is not None for block in blocks), note)


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
                await until(lambda: stored_bytes() <= before, f"blocks are left by {leave.__name__}")


def exits(runtime: str, names: Iterable[str]) -> Iterator[tuple[Exit, int, str]]:
    """The ways to stop, the turns or batches after which to do so, and the stages to do it at; fewer of them on Ray."""
    for leave, all_turns in EXITS.items():
        for turns in all_turns if runtime == "local" else all_turns[-1:]:
            yield from ((leave, turns, name) for name in names)


async def until_dead(functions: Functions, note: str) -> None:
    await until(lambda: not functions.num_alive, f"batches are left: {note}")
