"""Leaving splits is prompt: whichever way their consumers stop, the execution that they share stops, too."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import ray

import aiodata
from tests.conftest import until
from tests.splits import (
    BATCH_ROWS,
    Split,
    Worker,
    leave_async_with,
    leave_by_aclose,
    leave_by_break,
    leave_by_cancellation,
    leave_by_exception,
    leave_while_waiting,
    leave_without_closing,
    read_all,
    read_for_ever,
    return_inside_the_loop,
    stop_the_loop,
    together,
    until_stats,
)
from tests.test_exits import CallLog, slow

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("clean"), pytest.mark.loops("asyncio")]

Leave = Callable[[Split], Coroutine[Any, Any, list[int]]]

EXITS: list[Leave] = [
    leave_by_break,
    leave_by_exception,
    leave_by_aclose,
    leave_async_with,
    leave_by_cancellation,
    leave_while_waiting,
    leave_without_closing,
]


@pytest.fixture
def runtime(ray_cluster: None) -> str:
    return "ray"


@pytest.fixture(scope="module")
def workers(ray_cluster: None) -> Iterator[list[Any]]:
    workers = [Worker.remote() for _ in range(2)]
    yield workers
    for worker in workers:
        ray.kill(worker)


@pytest.fixture
def log(tmp_path: Path) -> CallLog:
    return CallLog(tmp_path / "calls")


def cpus_are_free() -> bool:
    return bool(ray.available_resources().get("CPU") == 2)


async def assert_stopped(log: CallLog) -> float:
    """Check that the execution has ended; return how long that took to be seen, in seconds."""
    left = time.time()
    delay_s = await until(cpus_are_free, "CPUs are not free")
    # Ray's word on its CPUs is a little old: tasks that had just been sent may have begun since.
    await log.check_stopped(left)
    assert cpus_are_free()
    assert log.times(), "nothing was called"
    return delay_s


@pytest.mark.parametrize("leave", EXITS, ids=lambda leave: leave.__name__)
async def test_execution_ends_when_both_have_left(workers: list[Any], log: CallLog, leave: Leave) -> None:
    splits = slow("ray", log).streaming_split(2)
    ids = await together(*[worker.run.remote(leave, split) for worker, split in zip(workers, splits, strict=True)])
    await assert_stopped(log)
    assert not set(ids[0]) & set(ids[1])


async def test_cpus_are_free_within_a_second_of_the_last_break(workers: list[Any], log: CallLog) -> None:
    splits = slow("ray", log).streaming_split(2)
    delays: list[float] = []
    # The quickest one counts, since the machine may be busy with something else.
    while min(delays, default=1.0) >= 1.0:
        assert len(delays) < 10, delays
        calls = [worker.run.remote(leave_by_break, split) for worker, split in zip(workers, splits, strict=True)]
        await together(*calls)
        delays.append(await assert_stopped(log))


async def test_cancelled_actor_calls_end_the_execution(workers: list[Any], log: CallLog) -> None:
    splits = slow("ray", log).streaming_split(2)
    calls = [worker.run.remote(read_for_ever, split) for worker, split in zip(workers, splits, strict=True)]
    await until(lambda: len(log.times()) > 4, "nothing has begun")
    for call in calls:
        ray.cancel(call)
    for call in calls:
        with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.RayTaskError)):
            await call
    await assert_stopped(log)


@pytest.mark.parametrize(
    "leave", [return_inside_the_loop, stop_the_loop], ids=["return_inside_the_loop", "stop_the_loop"]
)
async def test_tasks_that_return_without_closing_end_the_execution(log: CallLog, leave: Any) -> None:
    splits = slow("ray", log).streaming_split(2)
    ids = await together(*[leave.remote(split) for split in splits])
    await assert_stopped(log)
    assert [len(one) for one in ids] == [BATCH_ROWS, BATCH_ROWS]
    assert not set(ids[0]) & set(ids[1])


@pytest.mark.loops("asyncio", "uvloop")
async def test_consumer_that_is_cancelled_while_it_waits_for_the_others_leaves_the_barrier(workers: list[Any]) -> None:
    first, second = aiodata.range(100, num_blocks=4).with_options(runtime="ray").streaming_split(2)
    for _ in range(2):
        async with anyio.create_task_group() as group:
            group.start_soon(read_all, first)
            await until_stats(first, lambda stats: stats.absent == (1,))
            group.cancel_scope.cancel()
        await until_stats(first, lambda stats: stats.absent == (0, 1))
    ids = await together(workers[0].run.remote(read_all, first), workers[1].run.remote(read_all, second))
    assert sorted(ids[0] + ids[1]) == list(range(100))


@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_exception, leave_without_closing], ids=lambda one: one.__name__
)
async def test_other_split_gets_all_that_was_not_given_out(workers: list[Any], leave: Leave) -> None:
    ds = aiodata.range(400, num_blocks=40).with_options(runtime="ray")
    first, second = ds.streaming_split(2)
    left, read = await together(workers[0].run.remote(leave, first), workers[1].run.remote(read_all, second))
    assert not set(left) & set(read)
    stats = await second.stats()
    # What the first one was given ahead, and did not use, is gone with it.
    assert len(read) == 400 - stats.splits[0].rows
    assert stats.splits[0].rows <= 200
    assert len(set(read)) == len(read)


async def test_execution_goes_on_for_the_one_who_stays_and_ends_with_it(workers: list[Any], log: CallLog) -> None:
    first, second = slow("ray", log).limit(400).streaming_split(2)
    left, read = await together(workers[0].run.remote(leave_by_break, first), workers[1].run.remote(read_all, second))
    assert len(left) == BATCH_ROWS
    assert len(read) == 400 - (await second.stats()).splits[0].rows
    assert (await second.stats()).phase == "ended"
    await assert_stopped(log)


@pytest.mark.loops("asyncio", "uvloop")
async def test_consumers_in_the_driver_leave_like_others(log: CallLog) -> None:
    splits = slow("ray", log).streaming_split(2)
    for leave in EXITS:
        async with anyio.create_task_group() as group:
            for split in splits:
                group.start_soon(leave, split)
        await until(cpus_are_free, f"CPUs are not free after {leave}")
