"""TaskSet holds its tasks, closes them all, and lets no failure pass in silence."""

from __future__ import annotations

import asyncio
import gc
import inspect
import weakref
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aiodata import ClosedError
from aiodata.concurrency import TaskSet


def watch_loop() -> list[dict[str, Any]]:
    """Collect what reaches the running loop's exception handler."""
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    return contexts


async def test_dropped_set_finishes_its_tasks() -> None:
    contexts = watch_loop()
    finished = anyio.Event()
    futures: list[weakref.ref[asyncio.Future[None]]] = []

    async def wait_for_what_only_it_refers_to() -> None:
        future = asyncio.get_running_loop().create_future()
        futures.append(weakref.ref(future))
        await future
        finished.set()

    tasks = TaskSet()
    _ = tasks.create(wait_for_what_only_it_refers_to(), name="alone")
    await anyio.wait_all_tasks_blocked()
    del tasks
    gc.collect()
    future = futures[0]()
    assert future is not None, "the task was collected while it ran"
    future.set_result(None)
    await finished.wait()
    assert contexts == []


async def test_dropped_set_is_forgotten_when_its_tasks_are_done() -> None:
    tasks = TaskSet()
    dropped = weakref.ref(tasks)
    task = tasks.create(anyio.lowlevel.checkpoint(), name="short")
    del tasks
    await task
    await anyio.lowlevel.checkpoint()
    del task
    gc.collect()
    assert dropped() is None


async def test_length_counts_tasks_that_are_not_done() -> None:
    release = anyio.Event()
    tasks = TaskSet()
    first, second = (tasks.create(release.wait(), name=str(one)) for one in range(2))
    assert len(tasks) == 2
    release.set()
    await asyncio.wait([first, second])
    assert len(tasks) == 0


async def test_failure_reaches_the_loops_handler_with_the_tasks_name() -> None:
    contexts = watch_loop()
    error = ZeroDivisionError("oops")

    async def fail() -> None:
        raise error

    async with TaskSet() as tasks:
        task = tasks.create(fail(), name="divider")
        await asyncio.wait([task])
    [context] = contexts
    assert context["exception"] is error
    assert context["task"] is task
    assert context["message"] == "task 'divider' failed"


async def test_group_of_errors_and_cancellations_is_a_failure_too() -> None:
    contexts = watch_loop()
    error = BaseExceptionGroup("several", [asyncio.CancelledError()])

    async def fail() -> None:
        raise error

    async with TaskSet() as tasks:
        await asyncio.wait([tasks.create(fail(), name="group")])
    assert [context["exception"] for context in contexts] == [error]


def test_task_of_a_closed_loop_can_be_forgotten() -> None:
    loop = asyncio.SelectorEventLoop()
    tasks = TaskSet(loop)
    pending = tasks.create(asyncio.Event().wait(), name="sleeper")
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    dropped = weakref.ref(tasks)
    tasks.forget()
    assert len(tasks) == 0
    del tasks, loop, pending
    gc.collect()
    assert dropped() is None


def test_coroutine_that_a_closed_loop_does_not_run_is_closed() -> None:
    loop = asyncio.SelectorEventLoop()
    loop.close()
    coroutine = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="closed"):
        _ = TaskSet(loop).create(coroutine, name="late")
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


async def test_cancellation_is_no_failure() -> None:
    contexts = watch_loop()
    async with TaskSet() as tasks:
        task = tasks.create(anyio.sleep_forever(), name="sleeper")
        await anyio.wait_all_tasks_blocked()
    assert task.cancelled()
    assert contexts == []


async def test_aclose_cancels_all_and_waits_for_their_cleanup() -> None:
    cleaned: list[int] = []

    async def clean_up_slowly(index: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned.append(index)

    tasks = TaskSet()
    for index in range(3):
        _ = tasks.create(clean_up_slowly(index), name=f"cleaner {index}")
    await anyio.wait_all_tasks_blocked()
    await tasks.aclose()
    assert sorted(cleaned) == [0, 1, 2]
    assert len(tasks) == 0
    await tasks.aclose()


async def test_task_may_close_its_own_set() -> None:
    tasks = TaskSet()
    sleeper = tasks.create(anyio.sleep_forever(), name="sleeper")
    await tasks.create(tasks.aclose(), name="closer")
    assert sleeper.cancelled()


async def test_failure_during_close_reaches_the_loops_handler() -> None:
    contexts = watch_loop()

    async def fail_on_cancel() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ZeroDivisionError

    tasks = TaskSet()
    _ = tasks.create(fail_on_cancel(), name="sore loser")
    await anyio.wait_all_tasks_blocked()
    await tasks.aclose()
    assert [type(context["exception"]) for context in contexts] == [ZeroDivisionError]


async def test_closed_set_starts_nothing() -> None:
    tasks = TaskSet()
    await tasks.aclose()
    coroutine = anyio.sleep_forever()
    with pytest.raises(ClosedError, match="make a new one"):
        _ = tasks.create(coroutine, name="late")
    with pytest.raises(RuntimeError, match="cannot reuse"):
        coroutine.send(None)
