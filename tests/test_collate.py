"""Collate and finalize functions: whatever they do and return, it is the same on both runtimes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pyarrow as pa
import pytest

import aiodata
from tests.conftest import PATIENCE_S

pytestmark = pytest.mark.usefixtures("clean")

local_only = pytest.mark.parametrize("runtime", ["local"])

Batch = dict[str, Any]

NUM_ROWS = 60

# Neither None, nor an exception, nor what does not pickle is a special batch.
OBJECTS: list[Any] = [
    None,
    0,
    ValueError("a value, not a failure"),
    StopAsyncIteration(),
    ValueError,
    (np.arange(3), "label"),
    object(),
    (one for one in range(3)),
    threading.Lock(),
]

FAILURES: list[BaseException] = [
    ValueError("bad value"),
    KeyError("x"),
    TimeoutError(),
    StopAsyncIteration("x"),
    ExceptionGroup("two", [OSError(2, "gone")]),
    aiodata.OptionError("of the user's own"),
]

# What means something else than a failure where it comes out of a thread or a future.
STOPS: list[BaseException] = [StopIteration(5), asyncio.CancelledError("x"), GeneratorExit("x"), SystemExit(3)]


class Gate:
    """Holds calls, in worker threads or on the loop, until they are released.

    Attributes:
        started: Set when the first call has begun.
        running: Calls in progress.
        most: The most that there were at a time.
        calls: All calls.
    """

    def __init__(self) -> None:
        self.started = anyio.Event()
        self.running = self.most = self.calls = 0
        self._loop = asyncio.get_running_loop()
        self._released = threading.Event()
        self._released_on_loop = anyio.Event()
        self._counting = threading.Lock()

    def hold(self, batch: Any) -> Any:
        """Wait in a worker thread."""
        with self._entered():
            assert self._released.wait(PATIENCE_S), "the call holds the loop, or nobody releases it"
            return batch

    async def ahold(self, batch: Any) -> Any:
        """Wait on the loop."""
        with self._entered():
            await self._released_on_loop.wait()
            return batch

    def release(self) -> None:
        """Let all calls go on, those to come too."""
        self._released.set()
        self._released_on_loop.set()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        with self._counting:
            self.calls += 1
            self.running += 1
            self.most = max(self.most, self.running)
        self._loop.call_soon_threadsafe(self.started.set)
        try:
            yield
        finally:
            with self._counting:
                self.running -= 1


def counted(runtime: str, *, preserve_order: bool = True) -> aiodata.Dataset:
    return aiodata.range(NUM_ROWS, num_blocks=4).with_options(runtime=runtime, preserve_order=preserve_order)


def at_once(*, preserve_order: bool = True) -> aiodata.Dataset:
    """All is on the loop: when all tasks wait, nothing more happens."""
    table = pa.table({"id": range(NUM_ROWS)})
    return aiodata.from_arrow(table).with_options(runtime="local", preserve_order=preserve_order)


def at(part: str, function: Callable[[Any], Any]) -> dict[str, Any]:
    """The argument that makes a function that part of the pipeline."""
    return {part: function}


def ids(batch: Any) -> list[int]:
    listed: list[int] = batch["id"].tolist()
    return listed


async def aids(batch: Any) -> list[int]:
    await anyio.lowlevel.checkpoint()
    return ids(batch)


@pytest.mark.parametrize("preserve_order", [True, False], ids=["in_order", "as_they_come"])
@pytest.mark.parametrize("part", ["collate_fn", "finalize_fn"])
async def test_every_batch_is_given_once(runtime: str, part: str, preserve_order: bool) -> None:
    ds = counted(runtime, preserve_order=preserve_order)
    for function in (ids, aids):
        made = [one async for one in ds.aiter_batches(batch_size=7, **at(part, function))]
        assert [len(one) for one in made if len(one) != 7] == [NUM_ROWS % 7]
        flat = [one for batch in made for one in batch]
        assert (flat if preserve_order else sorted(flat)) == list(range(NUM_ROWS))


async def test_any_object_may_be_a_batch(runtime: str) -> None:
    def collate(batch: Batch) -> Any:
        return OBJECTS[int(batch["id"][0])]

    async def finalize(given: Any) -> Any:
        return given

    ds = counted(runtime).limit(len(OBJECTS))
    made = [one async for one in ds.aiter_batches(batch_size=1, collate_fn=collate, finalize_fn=finalize)]
    assert list(map(id, made)) == list(map(id, OBJECTS))


@local_only
@pytest.mark.parametrize(
    ("batch_format", "kind"), [("numpy", dict), ("pyarrow", pa.Table), ("pandas", "DataFrame"), ("polars", "DataFrame")]
)
async def test_function_is_given_the_format_asked_for(batch_format: str, kind: Any) -> None:
    names = {
        made async for made in at_once().aiter_batches(batch_format=batch_format, collate_fn=lambda one: type(one))
    }
    assert {name if isinstance(kind, type) else name.__name__ for name in names} == {kind}


async def test_finalize_is_given_what_collate_returned(runtime: str) -> None:
    batches = counted(runtime).aiter_batches(batch_size=25, collate_fn=ids, finalize_fn=lambda made: ("final", made))
    made = [one async for one in batches]
    assert made == [("final", list(range(25))), ("final", list(range(25, 50))), ("final", list(range(50, 60)))]


async def test_function_runs_off_the_loop_and_coroutine_function_on_it(runtime: str) -> None:
    loop_thread = threading.get_ident()

    def in_thread(_: Batch) -> bool:
        return threading.get_ident() != loop_thread

    async def on_loop(was_in_thread: bool) -> tuple[bool, bool]:
        return was_in_thread, threading.get_ident() == loop_thread

    batches = counted(runtime).aiter_batches(batch_size=20, collate_fn=in_thread, finalize_fn=on_loop)
    assert [made async for made in batches] == [(True, True)] * 3


@pytest.mark.parametrize("part", ["collate_fn", "finalize_fn"])
async def test_function_that_blocks_does_not_hold_the_loop(runtime: str, part: str) -> None:
    gate = Gate()
    async with counted(runtime).aiter_batches(batch_size=20, **at(part, gate.hold)) as batches:
        waiting = asyncio.create_task(anext(batches))
        await gate.started.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done()
        gate.release()
        assert ids(await waiting) == list(range(20))


class Summing:
    """An object whose call is async."""

    async def __call__(self, batch: Batch) -> int:
        await asyncio.sleep(0)
        return int(batch["id"].sum())


@pytest.mark.parametrize(
    "function", [Summing(), lambda batch: Summing()(batch)], ids=["async_call", "returns_coroutine"]
)
async def test_whatever_makes_a_coroutine_is_awaited(runtime: str, function: Callable[[Any], Any]) -> None:
    batches = counted(runtime).aiter_batches(batch_size=30, collate_fn=function)
    assert [made async for made in batches] == [sum(range(30)), sum(range(30, 60))]


@local_only
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("part", ["collate_fn", "finalize_fn"])
async def test_failure_names_the_batch_its_rows_and_source(part: str, is_async: bool, error: Exception) -> None:
    def fail(batch: Batch) -> Batch:
        if 25 in batch["id"]:
            raise error
        return batch

    async def afail(batch: Batch) -> Batch:
        return fail(batch)

    function = at(part, afail if is_async else fail)
    failure = await failure_of(counted("local").aiter_batches(batch_size=7, **function))
    assert failure.operator == part
    assert failure.rows == (21, 28)
    # Blocks begin at 0, 15, 30 and 45.
    assert failure.source == "batch 3 (range, block at 15)"
    assert str(failure).startswith(f"{part} failed on batch 3 (range, block at 15), rows 21-27: {type(error).__name__}")
    # A coroutine that raises StopAsyncIteration is Python's RuntimeError.
    assert (failure.__cause__ if type(failure.__cause__) is type(error) else failure.__cause__.__cause__) is error  # type: ignore[union-attr]


async def test_failure_on_rows_of_several_files_names_them_all(runtime: str, parquet_dir: Path) -> None:
    def fail(batch: Batch) -> Batch:
        if 0 in batch["id"]:
            raise ValueError("bad rows")
        return batch

    ds = aiodata.read_parquet(parquet_dir).with_options(runtime=runtime, preserve_order=True)
    failure = await failure_of(ds.aiter_batches(batch_size=3000, collate_fn=fail))
    assert "part-0.parquet" in failure.source
    assert "part-1.parquet" in failure.source
    assert failure.source.startswith("batch 0 (")
    assert str(failure).endswith("rows 0-2999: ValueError: bad rows")


@pytest.mark.parametrize("part", ["collate_fn", "finalize_fn"])
async def test_what_would_stop_a_thread_or_a_future_is_a_failure_too(runtime: str, part: str) -> None:
    for stop in STOPS:

        def fail(_: Batch, stop: BaseException = stop) -> Batch:
            raise stop

        failure = await failure_of(counted(runtime).aiter_batches(batch_size=20, **at(part, fail)))
        assert failure.__cause__ is stop
        assert type(stop).__name__ in str(failure)


@local_only
@pytest.mark.parametrize("preserve_order", [True, False], ids=["in_order", "as_they_come"])
@pytest.mark.parametrize("part", ["collate_fn", "finalize_fn"])
async def test_coroutine_function_that_awaits_what_is_cancelled_fails_and_loses_no_rows(
    part: str, preserve_order: bool
) -> None:
    async def await_what_is_cancelled(batch: Batch) -> Batch:
        if 25 in batch["id"]:
            task = asyncio.create_task(asyncio.sleep(10))
            task.cancel()
            await task
        return batch

    ds = at_once(preserve_order=preserve_order)
    with anyio.fail_after(PATIENCE_S):
        failure = await failure_of(ds.aiter_batches(batch_size=7, **at(part, await_what_is_cancelled)))
    assert isinstance(failure.__cause__, asyncio.CancelledError)


@pytest.mark.parametrize("part", ["collate_fn", "finalize_fn"])
async def test_iteration_is_over_after_a_failure(runtime: str, part: str) -> None:
    def fail(_: Batch) -> Batch:
        raise ValueError("bad value")

    async with counted(runtime).aiter_batches(batch_size=7, **at(part, fail)) as batches:
        with pytest.raises(aiodata.TaskError, match="bad value"):
            await anext(batches)
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(batches)


async def test_failure_is_raised_while_another_call_goes_on(runtime: str) -> None:
    gate = Gate()
    is_held = threading.Event()

    def hold_or_fail(batch: Batch) -> Batch:
        if 0 in batch["id"]:
            is_held.set()
            gate.hold(batch)
        assert is_held.wait(PATIENCE_S)
        raise ValueError("bad value")

    batches = aiter(counted(runtime).aiter_batches(batch_size=7, collate_fn=hold_or_fail, collate_workers=2))
    with pytest.raises(aiodata.TaskError, match="bad value"):
        await anext(batches)
    await gate.started.wait()
    assert gate.running == 1
    gate.release()
    await batches.aclose()
    assert gate.running == 0


async def test_finished_batch_passes_a_slower_one(runtime: str) -> None:
    gate = Gate()

    async def hold_the_first(batch: Batch) -> list[int]:
        return ids(await gate.ahold(batch) if 0 in batch["id"] else batch)

    ds = aiodata.from_arrow(pa.table({"id": range(NUM_ROWS)})).with_options(runtime=runtime)
    async with ds.aiter_batches(batch_size=10, collate_fn=hold_the_first, collate_workers=2) as batches:
        made = [await anext(batches) for _ in range(NUM_ROWS // 10 - 1)]
        assert made == [list(range(start, start + 10)) for start in range(10, NUM_ROWS, 10)]
        gate.release()
        assert await anext(batches) == list(range(10))
        with pytest.raises(StopAsyncIteration):
            await anext(batches)


async def test_slow_batch_is_waited_for_where_order_is_asked_for(runtime: str) -> None:
    gate = Gate()
    others_made = anyio.Event()
    made: list[int] = []

    async def hold_the_first(batch: Batch) -> list[int]:
        if 0 in batch["id"]:
            await gate.ahold(batch)
        made.append(batch["id"][0])
        if len(made) == 3:
            others_made.set()
        return ids(batch)

    async with counted(runtime).aiter_batches(batch_size=10, collate_fn=hold_the_first, collate_workers=2) as batches:
        waiting = asyncio.create_task(anext(batches))
        await others_made.wait()
        await anyio.wait_all_tasks_blocked()
        assert not waiting.done()
        # Two workers have four batches in flight: with the first one, three wait.
        assert made == [10, 20, 30]
        gate.release()
        assert await waiting == list(range(10))
        assert [one async for batch in batches for one in batch] == list(range(10, NUM_ROWS))


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_order_is_kept_however_calls_finish(runtime: str, is_async: bool) -> None:
    # The calls of each pair finish in the wrong order: every even batch waits for the odd one after it.
    loop = asyncio.get_running_loop()
    ended = {number: anyio.Event() for number in range(1, NUM_ROWS // 5, 2)}

    async def make(batch: Batch) -> int:
        number = int(batch["id"][0]) // 5
        if number % 2:
            ended[number].set()
        else:
            await ended[number + 1].wait()
        return number

    def make_in_thread(batch: Batch) -> int:
        return asyncio.run_coroutine_threadsafe(make(batch), loop).result(20)

    function = make if is_async else make_in_thread
    batches = counted(runtime).aiter_batches(batch_size=5, collate_fn=function, collate_workers=2)
    assert [made async for made in batches] == list(range(NUM_ROWS // 5))


@local_only
@pytest.mark.parametrize(
    ("options", "workers"),
    [
        ({"collate_workers": 3}, 3),
        ({"collate_workers": 1, "prefetch_batches": 4}, 1),
        ({"collate_workers": 2, "prefetch_batches": 0}, 2),
        ({"prefetch_batches": 0}, 1),
        ({}, 2),
        ({"prefetch_batches": 100}, 4),
    ],
    ids=str,
)
async def test_so_many_calls_run_at_a_time(options: dict[str, Any], workers: int) -> None:
    gate = Gate()
    async with at_once().aiter_batches(batch_size=1, collate_fn=gate.ahold, **options) as batches:
        waiting = asyncio.create_task(anext(batches))
        await anyio.wait_all_tasks_blocked()
        assert gate.running == gate.most == workers
        gate.release()
        await anyio.wait_all_tasks_blocked()
        assert ids(await waiting) == [0]
        assert [one async for batch in batches for one in ids(batch)] == list(range(1, NUM_ROWS))
    assert gate.most == workers


@local_only
@pytest.mark.parametrize("preserve_order", [True, False], ids=["in_order", "as_they_come"])
async def test_no_more_than_twice_as_many_batches_as_workers_are_in_flight(preserve_order: bool) -> None:
    gate = Gate()
    gate.release()
    ds = at_once(preserve_order=preserve_order)
    async with ds.aiter_batches(batch_size=1, collate_fn=gate.ahold, collate_workers=3) as batches:
        for number in range(1, 4):
            await anext(batches)
            await anyio.wait_all_tasks_blocked()
            assert gate.calls <= number + 6


@local_only
@pytest.mark.parametrize("ahead", [0, 1, 3])
async def test_so_many_finalized_batches_wait_beside_the_one_in_use(ahead: int) -> None:
    gate = Gate()
    gate.release()
    async with at_once().aiter_batches(batch_size=1, finalize_fn=gate.ahold, prefetch_to_device=ahead) as batches:
        for number in range(1, 4):
            await anext(batches)
            await anyio.wait_all_tasks_blocked()
            assert gate.calls == number + ahead
    assert gate.most == 1


async def test_one_worker_calls_in_order_though_batches_may_come_in_any(runtime: str) -> None:
    numbers = count()

    def number(batch: Batch) -> tuple[int, int]:
        return next(numbers), len(batch["id"])

    ds = counted(runtime, preserve_order=False)
    batches = ds.aiter_batches(batch_size=7, collate_fn=number, collate_workers=1)
    assert [made async for made in batches] == [(one, 7) for one in range(8)] + [(8, 4)]


async def test_function_needs_not_pickle_and_may_keep_state(runtime: str) -> None:
    lock = threading.Lock()
    seen: set[int] = set()

    def states() -> Iterator[int]:
        while True:
            yield len(seen)

    state = states()

    def note(batch: Batch) -> int:
        with lock:
            seen.update(ids(batch))
            return next(state)

    assert sorted([made async for made in counted(runtime).aiter_batches(batch_size=15, collate_fn=note)]) == [
        15,
        30,
        45,
        60,
    ]


async def test_functions_are_not_called_where_there_are_no_rows(runtime: str) -> None:
    def fail(_: Any) -> Any:
        raise AssertionError("called")

    empty = counted(runtime)
    for ds in (empty.limit(0), empty.map_batches(lambda batch: {"id": batch["id"][:0]})):
        for batch_size in (5, None):
            batches = ds.aiter_batches(batch_size=batch_size, collate_fn=fail, finalize_fn=fail)
            assert [made async for made in batches] == []


async def test_short_last_batch_that_is_dropped_is_not_given(runtime: str) -> None:
    given: list[int] = []

    def note(batch: Batch) -> int:
        given.append(len(batch["id"]))
        return len(given)

    async with counted(runtime).aiter_batches(
        batch_size=25, drop_last=True, collate_fn=note, collate_workers=1
    ) as batches:
        assert [made async for made in batches] == [1, 2]
    assert given == [25, 25]
    assert batches.stats().rows == 50


async def test_whole_blocks_are_given_without_a_batch_size(runtime: str) -> None:
    batches = counted(runtime).aiter_batches(batch_size=None, collate_fn=ids)
    assert [made async for made in batches] == [list(range(start, start + 15)) for start in range(0, NUM_ROWS, 15)]


async def test_statistics_count_what_was_handed_over(runtime: str) -> None:
    async with counted(runtime).aiter_batches(batch_size=10, collate_fn=ids, finalize_fn=len) as batches:
        for number in range(1, 4):
            assert await anext(batches) == 10
            stats = batches.stats()
            assert (stats.rows, stats.batches) == (10 * number, number)


@local_only
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        *(({"collate_fn": dict, "collate_workers": value}, "at least 1 or None") for value in (0, -1, True, 1.5, "2")),
        *(({"finalize_fn": dict, "prefetch_to_device": value}, "at least 0") for value in (-1, True, None, 1.5)),
        ({"collate_workers": 2}, "collate_workers=2 needs a collate_fn"),
        ({"collate_fn": 5}, "collate_fn=5 must be a function of a batch"),
        ({"finalize_fn": "ids"}, "finalize_fn='ids' must be a function of a batch"),
    ],
    ids=str,
)
async def test_options_that_can_not_work_are_refused_at_once(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(aiodata.OptionError, match=complaint) as caught:
        aiodata.range(3).aiter_batches(**options)
    assert repr([*options.values()][-1]) in str(caught.value)


async def failure_of(batches: aiodata.Batches) -> aiodata.TaskError:
    with pytest.raises(aiodata.TaskError) as caught:
        async for _ in batches:
            pass
    return caught.value
