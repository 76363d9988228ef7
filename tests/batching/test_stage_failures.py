"""What ends collating and finalizing: a failure, a fetch's failure, the consumer's leaving."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import anyio
import pytest

from aiodata import TaskError
from tests.batching.calls import BOTH_KINDS, BOTH_ORDERS, BOTH_PARTS, SIZE, Calls, begun, blocks, collating, rest_of
from tests.batching.feeds import FakeFeed, at, drain, iterate, settle, without_gc
from tests.conftest import PATIENCE_S, until

# What an exception's type may mean to a loop, a thread or a future, rather than that the function failed.
ERRORS_IN_THREADS = [KeyError, StopIteration, StopAsyncIteration, GeneratorExit, SystemExit, asyncio.CancelledError]
ERRORS_ON_THE_LOOP = [KeyError, StopAsyncIteration, TimeoutError, asyncio.CancelledError]


@BOTH_PARTS
@pytest.mark.parametrize(
    ("is_async", "kind"),
    [*((False, kind) for kind in ERRORS_IN_THREADS), *((True, kind) for kind in ERRORS_ON_THE_LOOP)],
)
async def test_whatever_the_function_raises_is_a_failure_of_the_batch(
    kind: type[BaseException], is_async: bool, part: str
) -> None:
    calls = Calls(is_async=is_async)
    error = calls.errors[2] = kind("text")
    batches = iterate(blocks(9), batch_size=SIZE, **at(part, calls.function))
    with (
        anyio.fail_after(PATIENCE_S),
        pytest.raises(TaskError, match=f"^{part} failed on batch 2 .*{kind.__name__}") as caught,
    ):
        await drain(batches)
    assert batches.stats().batches <= 2
    assert caught.value.__cause__ is error
    assert (caught.value.operator, caught.value.source, caught.value.rows) == (part, "batch 2 (block 2)", (20, 30))
    with pytest.raises(StopAsyncIteration):
        await anext(batches)
    await batches.aclose()


async def test_failure_of_a_coroutine_that_a_plain_function_returns_is_one_of_the_batch() -> None:
    calls = Calls(is_async=True)
    calls.errors[0] = ZeroDivisionError()
    with pytest.raises(TaskError, match=r"collate_fn failed on batch 0 .*ZeroDivisionError"):
        await anext(iterate(blocks(1), batch_size=SIZE, collate_fn=lambda batch: calls.function(batch)))


async def test_failure_names_all_of_a_few_blocks_of_a_batch() -> None:
    calls = Calls()
    calls.errors[2] = ZeroDivisionError()
    with pytest.raises(TaskError, match=r"batch 1 \(block 1, block 2\), rows 20-34: ZeroDivisionError"):
        await drain(iterate(FakeFeed([15, 15, 5]), batch_size=20, collate_fn=calls.function))


async def test_failure_names_the_first_and_the_last_of_many_blocks_and_counts_them() -> None:
    calls = Calls()
    calls.errors[6] = ZeroDivisionError()
    with pytest.raises(TaskError, match=r"batch 1 \(12 sources, from block 12 to block 23\), rows 60-119: Zero"):
        await drain(iterate(FakeFeed([5] * 30), batch_size=60, collate_fn=calls.function))


@BOTH_ORDERS
async def test_failure_is_seen_at_once_though_another_call_blocks_its_thread(is_ordered: bool) -> None:
    calls = Calls(held=True)
    error = calls.errors[1] = ZeroDivisionError()
    batches = collating(calls, blocks(20), workers=3, is_ordered=is_ordered)
    waiting = asyncio.ensure_future(anext(batches))
    await begun(calls, 3)
    calls.release(1)
    # Neither the calls that go on are waited for, nor, with twice as long, what closing may take.
    with anyio.fail_after(PATIENCE_S), pytest.raises(TaskError) as caught:
        await waiting
    assert caught.value.__cause__ is error
    assert calls.running == {0, 2}
    assert batches.stats().prefetched_bytes == 0
    calls.release_all()
    await batches.aclose()
    assert sorted(calls.begun) == [0, 1, 2]


@BOTH_KINDS
async def test_no_call_begins_once_a_failure_is_seen(is_async: bool) -> None:
    calls = Calls(is_async=is_async, held=True)
    calls.errors[1] = ZeroDivisionError()
    batches = collating(calls, blocks(20), workers=3)
    waiting = asyncio.ensure_future(anext(batches))
    await begun(calls, 3)
    calls.release(1)
    with pytest.raises(TaskError):
        await waiting
    calls.release_all()
    await batches.aclose()
    assert sorted(calls.begun) == [0, 1, 2]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["room first", "failure first"])
async def test_no_call_begins_on_the_loop_after_one_has_failed_though_there_was_room_for_it(
    order: tuple[int, int],
) -> None:
    calls = Calls(is_async=True, held=True)
    calls.errors[1] = ZeroDivisionError()
    begun_before: list[int] = []
    calls.on_error = lambda: begun_before.extend(calls.begun)
    batches = collating(calls, blocks(20), workers=2)
    waiting = asyncio.ensure_future(anext(batches))
    await begun(calls, 2)
    # In one turn of the loop, a call ends, which makes room for the next one, and another one fails.
    calls.release(*order)
    with pytest.raises(TaskError):
        await rest_of(batches, waiting)
    await batches.aclose()
    assert begun_before
    assert calls.begun == begun_before


@BOTH_PARTS
@BOTH_KINDS
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
async def test_failed_pass_holds_no_block_once_its_error_is_handled(keep: bool, is_async: bool, part: str) -> None:
    calls = Calls(is_async=is_async)
    calls.errors[3] = ZeroDivisionError()
    feed = blocks(20)
    batches = iterate(feed, batch_size=SIZE, **at(part, calls.function))
    with without_gc():
        with suppress(TaskError):
            await drain(batches)
        calls.errors.clear()
        await batches.aclose()
        if not keep:
            del batches
        await until(lambda: feed.memory.live == 0, "blocks are held")


async def test_failed_fetch_is_raised_beside_calls_that_go_on() -> None:
    calls = Calls(held=True)
    feed = FakeFeed([SIZE] * 20, held=True)
    feed.errors[1] = OSError("no such block")
    batches = collating(calls, feed, workers=2)
    waiting = asyncio.ensure_future(anext(batches))
    await settle()
    feed.gates[0].set()
    await begun(calls, 1)
    feed.gates[1].set()
    await settle()
    calls.release_all()
    with anyio.fail_after(PATIENCE_S), pytest.raises(OSError, match="no such block"):
        await rest_of(batches, waiting)
    await batches.aclose()
    assert calls.running == set()


@BOTH_PARTS
async def test_closing_waits_for_the_call_that_runs_and_begins_no_other(part: str) -> None:
    calls = Calls(held=True)
    calls.release(0)
    batches = iterate(blocks(20), batch_size=SIZE, **at(part, calls.function))
    assert await anext(batches) == 0
    await begun(calls, 2)
    closing = asyncio.create_task(batches.aclose())
    await settle()
    assert not closing.done()
    begun_before = len(calls.begun)
    calls.release_all()
    await closing
    assert calls.running == set()
    assert len(calls.begun) == begun_before


@BOTH_PARTS
async def test_call_that_outlasts_its_grace_is_left_behind(part: str) -> None:
    calls = Calls(held=True)
    batches = iterate(blocks(20), batch_size=SIZE, grace_s=0.05, **at(part, calls.function))
    waiting = asyncio.ensure_future(anext(batches, None))
    await begun(calls, 1)
    with anyio.fail_after(PATIENCE_S):
        await batches.aclose()
        assert await waiting is None
    assert calls.running
    calls.release_all()
    await until(lambda: not calls.running, "the calls do not end")
