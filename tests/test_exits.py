"""Leaving is prompt: whichever way a consumer stops, all that is behind it stops, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

import aiodata
from aiodata.batching.consumer import Consumer
from aiodata.concurrency import Supervisor
from aiodata.execution.task_operator import TaskOperator
from aiodata.runtime.local import LocalTask
from tests.conftest import PATIENCE_S, stored_bytes, threads, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean")]

# Each call of the worker function takes this long; 600 of them on 2 CPUs would take 30 s.
CALL_S = 0.1
NUM_CALLS = 600

Exit = Callable[[aiodata.Dataset], Coroutine[Any, Any, None]]


class CallLog:
    """Calls of a worker function, as seen from outside: it appends to a file, from any process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def times(self) -> list[float]:
        return [float(line) for line in self.path.read_text().split()] if self.path.exists() else []

    async def check_stopped(self, left: float, call_s: float = CALL_S) -> None:
        """Check that calls have come to an end soon after a time: by their number, as a busy machine makes fewer."""
        # What a worker had just been sent may begin yet. A pipeline that went on would call some ten more times.
        await until(lambda: time.time() - max([left, *self.times()]) > 5 * call_s, "functions are still called")
        after = [one for one in self.times() if one > left]
        assert len(after) < NUM_CALLS / 6, [round(one - left, 3) for one in after]


@pytest.fixture
def log(tmp_path: Path) -> CallLog:
    return CallLog(tmp_path / "calls")


def slow(runtime: str, log: CallLog) -> aiodata.Dataset:
    path = str(log.path)

    def call(batch: dict[str, Any]) -> dict[str, Any]:
        with open(path, "a") as file:
            file.write(f"{time.time()}\n")
        time.sleep(CALL_S)  # The work of a user's function; it is what is to be stopped.
        return batch

    ds = aiodata.range(10 * NUM_CALLS).with_options(runtime=runtime)
    return ds.map_batches(call, batch_size=10)


async def leave_by_break(ds: aiodata.Dataset) -> None:
    async for _ in ds.aiter_batches(batch_size=10):
        break


async def leave_by_exception(ds: aiodata.Dataset) -> None:
    async def fail() -> None:
        async for _ in ds.aiter_batches(batch_size=10):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()


async def leave_by_aclose(ds: aiodata.Dataset) -> None:
    batches = aiter(ds.aiter_batches(batch_size=10))
    await anext(batches)
    await batches.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def leave_async_with(ds: aiodata.Dataset) -> None:
    async with ds.aiter_batches(batch_size=10) as batches:
        async for _ in batches:
            break


async def leave_by_limit(ds: aiodata.Dataset) -> None:
    rows = 0
    async for batch in ds.limit(15).aiter_batches(batch_size=10):
        rows += len(batch["id"])
    assert rows == 15


async def leave_by_cancellation(ds: aiodata.Dataset) -> None:
    got_one = anyio.Event()

    async def consume() -> None:
        async for _ in ds.aiter_batches(batch_size=10):
            got_one.set()

    task = asyncio.create_task(consume())
    await got_one.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def leave_by_timeout(ds: aiodata.Dataset) -> None:
    async def consume() -> None:
        async with asyncio.timeout(None) as timeout:
            async for _ in ds.aiter_batches(batch_size=10):
                timeout.reschedule(timeout.when() or asyncio.get_running_loop().time() + 3 * CALL_S)

    with pytest.raises(TimeoutError):
        await consume()


async def leave_by_timeout_around_next(ds: aiodata.Dataset) -> None:
    batches = aiter(ds.aiter_batches(batch_size=1000))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(batches), 3 * CALL_S)


async def leave_by_anyio_cancel_scope(ds: aiodata.Dataset) -> None:
    with anyio.CancelScope() as scope:
        async for _ in ds.aiter_batches(batch_size=10):
            scope.deadline = min(scope.deadline, anyio.current_time() + 3 * CALL_S)
    assert scope.cancelled_caught


EXITS: list[Exit] = [
    leave_by_break,
    leave_by_exception,
    leave_by_aclose,
    leave_async_with,
    leave_by_limit,
    leave_by_cancellation,
    leave_by_timeout,
    leave_by_timeout_around_next,
    leave_by_anyio_cancel_scope,
]


@pytest.mark.parametrize("leave", EXITS, ids=lambda leave: leave.__name__)
async def test_worker_functions_stop_being_called_and_cpus_are_free(
    runtime: str, log: CallLog, leave: Exit, capfd: pytest.CaptureFixture[str]
) -> None:
    threads_before = threads()
    tasks_before = asyncio.all_tasks()
    await leave(slow(runtime, log))
    left = time.time()

    await until(lambda: not (asyncio.all_tasks() - tasks_before), "tasks are left")
    if runtime == "ray":
        await until(lambda: ray.available_resources().get("CPU") == 2, "CPUs are not free")
    await log.check_stopped(left)
    assert threads() <= threads_before
    assert capfd.readouterr() == ("", "")


async def test_end_of_data_leaves_nothing(runtime: str) -> None:
    rows = 0
    tasks_before = asyncio.all_tasks()
    async for batch in aiodata.range(1000).with_options(runtime=runtime).aiter_batches(batch_size=7):
        rows += len(batch["id"])
    assert rows == 1000
    assert asyncio.all_tasks() == tasks_before


async def test_two_hundred_breaks_leave_nothing(runtime: str, parquet_dir: Path) -> None:
    ds = aiodata.read_parquet(parquet_dir).with_options(runtime=runtime)
    threads_before = threads()
    for _ in range(200):
        async for batch in ds.aiter_batches(batch_size=10):
            assert len(batch["id"]) == 10
            break
    del batch
    await until(lambda: len(asyncio.all_tasks()) == 1, "tasks are left")
    assert threads() <= threads_before

    def nothing_is_left() -> bool:
        gc.collect()
        # Not isinstance, which would ask every object of every library in the process for its class.
        kinds = {Consumer, Supervisor, TaskOperator, LocalTask}
        return not any(type(one) in kinds for one in gc.get_objects())

    # A thread may just be about to let go of what it was called with.
    await until(nothing_is_left, "parts of a run are left")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
async def test_break_gives_back_the_store_without_a_garbage_collection(tmp_path: Path, stored_before: int) -> None:
    ids = list(range(500_000))
    for index in range(4):
        pq.write_table(pa.table({"id": ids}), tmp_path / f"{index}.parquet", row_group_size=100_000)
    ds = aiodata.read_parquet(tmp_path).with_options(runtime="ray", target_block_bytes=1 << 20)
    gc.collect()
    gc.disable()
    try:
        for leave in (leave_by_break, leave_async_with, leave_by_exception, leave_by_aclose):
            await leave(ds)
            note = f"blocks are left in the store by {leave.__name__}"
            await until(lambda: stored_bytes() <= stored_before, note)
    finally:
        gc.enable()


async def test_iterator_that_is_never_started_needs_no_closing(runtime: str) -> None:
    batches = aiter(aiodata.range(10).with_options(runtime=runtime).aiter_batches())
    await batches.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_call_that_outlasts_the_close_timeout_does_not_hold_up_closing(runtime: str, tmp_path: Path) -> None:
    begun, may_end, ended = (tmp_path / name for name in ("begun", "may_end", "ended"))

    def first_fast_then_slow(batch: dict[str, Any]) -> dict[str, Any]:
        if batch["id"][0] > 0:
            begun.touch()
            while not may_end.exists():  # A call that nothing can interrupt, in a thread.
                time.sleep(0.01)
            ended.touch()
        return batch

    ds = aiodata.range(100, num_blocks=1).map_batches(first_fast_then_slow, batch_size=10)
    batches = aiter(ds.with_options(runtime=runtime, close_timeout_s=0.2).aiter_batches(batch_size=10))
    await anext(batches)
    await until(begun.exists, "the call does not begin")
    with anyio.fail_after(PATIENCE_S):
        await batches.aclose()
    assert not ended.exists()
    may_end.touch()


def test_ending_the_loop_right_after_a_break_leaves_nothing(
    runtime: str, log: CallLog, capfd: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(leave_by_break(slow(runtime, log)))
    asyncio.run(log.check_stopped(time.time()))
    assert capfd.readouterr() == ("", "")


async def test_early_break_inside_a_training_loop_never_starves_either(runtime: str, log: CallLog) -> None:
    """Both pipelines want both CPUs: validation is left early in each step of a training pass."""
    train = slow(runtime, log).limit(200)
    validate = slow(runtime, log)
    trained, validated = 0, 0
    with anyio.fail_after(PATIENCE_S):
        async for batch in train.aiter_batches(batch_size=20):
            trained += len(batch["id"])
            async for held_out in validate.aiter_batches(batch_size=10):
                validated += len(held_out["id"])
                break
    assert (trained, validated) == (200, 100)


async def test_paused_training_holds_no_cpu(runtime: str, log: CallLog) -> None:
    train = slow(runtime, log)
    async with train.aiter_batches(batch_size=10) as batches:
        await anext(batches)
        # Nobody takes more of it: what it may produce ahead is bounded, so its calls come to an end.
        await until(lambda: time.time() - log.times()[-1] > 4 * CALL_S, "calls go on")
        if runtime == "ray":
            await until(lambda: ray.available_resources().get("CPU") == 2, "CPUs are held")
        assert len(log.times()) < NUM_CALLS / 4
        rows = 10
        async for batch in batches:
            rows += len(batch["id"])
            if rows >= 500:
                break
