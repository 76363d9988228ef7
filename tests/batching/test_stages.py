"""Collating and finalizing: how many calls at a time and ahead, in what order, and what a failure does."""

from __future__ import annotations

import asyncio
import enum
import functools
import random
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata import TaskError
from aiodata.batching import cutter
from aiodata.batching.stages import Outlet
from aiodata.iterator import BatchIterator
from tests.batching.feeds import FakeFeed, at, do_nothing, drain, iterate, settle, without_gc
from tests.conftest import until

SIZE = 10

BOTH_KINDS = pytest.mark.parametrize("is_async", [False, True], ids=["thread", "loop"])
BOTH_ORDERS = pytest.mark.parametrize("is_ordered", [False, True], ids=["as_they_come", "in_order"])
BOTH_PARTS = pytest.mark.parametrize("part", ["collate_fn", "finalize_fn"])


class Calls:
    """A user's function with handles: it notes its calls, and waits, returns or raises what it is told to.

    A call is known by its batch's number; each batch is one block.
    """

    def __init__(self, *, is_async: bool = False, held: bool = False) -> None:
        self.begun: list[int] = []
        self.running: set[int] = set()
        self.peak_running = 0
        self.threads: set[int] = set()
        self.errors: dict[int, BaseException] = {}
        self.results: dict[int, Any] = {}
        self.on_error: Callable[[], object] = do_nothing
        self.function: Callable[[Any], Any] = self._call_on_loop if is_async else self._call_in_thread
        self._held = held
        self._thread_gates: dict[int, threading.Event] = {}
        self._loop_gates: dict[int, anyio.Event] = {}

    def release(self, *numbers: int) -> None:
        for number in numbers:
            self._thread_gates.setdefault(number, threading.Event()).set()
            self._loop_gates.setdefault(number, anyio.Event()).set()

    def release_all(self) -> None:
        self._held = False
        self.release(*self._thread_gates, *self._loop_gates)

    def _begin(self, batch: Any) -> int:
        number = int(batch["id"][0]) // SIZE
        self.begun.append(number)
        self.running.add(number)
        self.peak_running = max(self.peak_running, len(self.running))
        self.threads.add(threading.get_ident())
        return number

    def _end(self, number: int) -> Any:
        self.running.remove(number)
        if number in self.errors:
            self.on_error()
            raise self.errors[number]
        return self.results.get(number, number)

    def _call_in_thread(self, batch: Any) -> Any:
        number = self._begin(batch)
        if self._held:
            assert self._thread_gates.setdefault(number, threading.Event()).wait(10)
        return self._end(number)

    async def _call_on_loop(self, batch: Any) -> Any:
        number = self._begin(batch)
        if self._held:
            await self._loop_gates.setdefault(number, anyio.Event()).wait()
        return self._end(number)


def blocks(count: int) -> FakeFeed:
    return FakeFeed([SIZE] * count)


async def begun(calls: Calls, count: int) -> None:
    """Wait until so many calls have begun, and all that can happen then has happened."""
    await until(lambda: len(calls.begun) >= count, f"not {count} calls have begun")
    await settle()


async def rest_of(batches: BatchIterator, first: Awaitable[Any]) -> list[Any]:
    """All batches that are left, of which the first is being waited for."""
    return [await first, *await drain(batches)]


def collating(calls: Calls, feed: FakeFeed, *, workers: int = 1, is_ordered: bool = False) -> BatchIterator:
    return iterate(
        feed, is_ordered=is_ordered, batch_size=SIZE, collate_fn=calls.function, collate_workers=workers, grace_s=2
    )


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
    with anyio.fail_after(5):
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
    with anyio.fail_after(10):
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


def cancel_later(scope: anyio.CancelScope, turns: int) -> None:
    """Cancel a scope after so many turns of the loop."""
    if turns:
        asyncio.get_running_loop().call_soon(cancel_later, scope, turns - 1)
    else:
        scope.cancel()


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
    with anyio.fail_after(5), suppress(StopAsyncIteration):
        while True:
            with anyio.CancelScope() as scope:
                cancel_later(scope, chance.randrange(30))
                got.append(await anext(batches))
            given_up += scope.cancelled_caught
    assert sorted(got) == list(range(0, 600, 10))
    assert not is_ordered or got == sorted(got)
    assert given_up > 5


class Signal(enum.Enum):
    """Looks like what stages tell each other."""

    PENDING = enum.auto()
    END = enum.auto()


class Hostile:
    """Can neither be compared nor be asked whether it is true: only `is` tells what it is."""

    def __eq__(self, other: object) -> bool:
        raise TypeError

    def __bool__(self) -> bool:
        raise TypeError

    def __len__(self) -> int:
        raise TypeError

    __hash__ = None  # type: ignore[assignment]


VALUES: list[Any] = [
    None,
    False,
    (),
    Ellipsis,
    NotImplemented,
    ValueError("a value"),
    StopAsyncIteration(),
    asyncio.CancelledError(),
    TaskError("no", "failure", None, "at all"),
    StopIteration,
    Signal.PENDING,
    Signal.END,
    Hostile(),
    lambda: None,
    (one for one in range(3)),
]


@BOTH_PARTS
@BOTH_ORDERS
@BOTH_KINDS
async def test_any_value_passes_unharmed(is_async: bool, is_ordered: bool, part: str) -> None:
    calls = Calls(is_async=is_async)
    calls.results = dict(enumerate(VALUES))
    batches = iterate(blocks(len(VALUES)), is_ordered=is_ordered, batch_size=SIZE, **at(part, calls.function))
    got = await drain(batches)
    assert sorted(map(id, got)) == sorted(map(id, VALUES))


async def double(batch: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return batch["id"].tolist() * 2


async def scale(times: int, batch: Any) -> Any:
    return batch["id"].tolist() * times


class Doubler:
    """Its objects are called asynchronously; so is its method."""

    async def __call__(self, batch: Any) -> Any:
        return await double(batch)

    async def run(self, batch: Any) -> Any:
        return await double(batch)


ASYNC_FUNCTIONS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "function": double,
    "partial": functools.partial(scale, 2),
    "partial of partial": functools.partial(functools.partial(scale), 2),
    "object": Doubler(),
    "method": Doubler().run,
    "partial of object": functools.partial(Doubler()),
    "lambda": lambda batch: double(batch),
}


@BOTH_PARTS
@pytest.mark.parametrize("name", ASYNC_FUNCTIONS)
async def test_whatever_is_async_is_awaited_on_the_loop(name: str, part: str) -> None:
    function = ASYNC_FUNCTIONS[name]
    assert await drain(iterate(FakeFeed([2]), **at(part, function))) == [[0, 1, 0, 1]]


class Wrapped:
    """Made of a batch; that its objects can be called, and asynchronously, is another matter."""

    def __init__(self, batch: Any) -> None:
        self.ids = batch["id"].tolist()

    async def __call__(self) -> None:
        raise NotImplementedError


@BOTH_PARTS
async def test_class_is_called_for_an_object_even_if_its_objects_are_async(part: str) -> None:
    [value] = await drain(iterate(FakeFeed([2]), **at(part, Wrapped)))
    assert isinstance(value, Wrapped)
    assert value.ids == [0, 1]


@BOTH_PARTS
async def test_async_function_runs_on_the_loop_and_another_in_threads(part: str) -> None:
    here = threading.get_ident()
    for is_async in (True, False):
        calls = Calls(is_async=is_async)
        assert len(await drain(iterate(blocks(5), batch_size=SIZE, **at(part, calls.function)))) == 5
        assert (here in calls.threads) == is_async
        assert len(calls.threads) == 1 or not is_async


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
    with anyio.fail_after(5), pytest.raises(TaskError, match=f"^{part} failed on batch 2 .*{kind.__name__}") as caught:
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
    # Neither the calls that go on are waited for, nor, with 2 s, what closing may take.
    with anyio.fail_after(1), pytest.raises(TaskError) as caught:
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
        await until(lambda: feed.memory.live == 0, "blocks are held", within_s=0.5)


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
    with anyio.fail_after(5), pytest.raises(OSError, match="no such block"):
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
    with anyio.fail_after(2):
        await batches.aclose()
        assert await waiting is None
    assert calls.running
    calls.release_all()
    await until(lambda: not calls.running, "the calls do not end")


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
    with anyio.fail_after(1):
        assert await outlet.next() is cutter.Signal.END
