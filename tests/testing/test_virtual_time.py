"""VirtualTimeLoop: waiting takes no time, threads and callbacks from outside still do."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from aiodata.testing import VirtualTimeLoop

T = TypeVar("T")


def run(main: Callable[[], Awaitable[T]]) -> T:
    async def call() -> T:
        return await main()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(call())


def test_a_day_of_sleep_takes_exactly_that_and_no_time() -> None:
    async def main() -> float:
        before = anyio.current_time()
        await anyio.sleep(86_400)
        return anyio.current_time() - before

    started = time.perf_counter()
    assert run(main) == 86_400
    assert time.perf_counter() - started < 60


def test_sleepers_wake_in_the_order_of_their_times() -> None:
    async def main() -> list[float]:
        woken: list[float] = []

        async def sleeper(seconds: float) -> None:
            await anyio.sleep(seconds)
            woken.append(anyio.current_time())

        async with anyio.create_task_group() as group:
            for seconds in (30, 10, 20, 10):
                group.start_soon(sleeper, seconds)
        return woken

    assert run(main) == [10, 10, 20, 30]


def test_a_deadline_cancels_at_its_time() -> None:
    async def main() -> tuple[bool, float]:
        with anyio.move_on_after(5) as scope:
            await anyio.sleep(100)
        return scope.cancelled_caught, anyio.current_time()

    assert run(main) == (True, 5)


def test_a_call_in_a_thread_takes_no_virtual_time_and_no_deadline_overtakes_it() -> None:
    done = threading.Event()

    async def main() -> tuple[bool, float]:
        with anyio.fail_after(60):
            result = await anyio.to_thread.run_sync(done.wait)
        return result, anyio.current_time()

    timer = threading.Timer(0.05, done.set)
    timer.start()
    assert run(main) == (True, 0)
    timer.join()


def test_a_thread_that_waits_for_the_loop_does_not_stop_the_time() -> None:
    async def main() -> float:
        await anyio.to_thread.run_sync(anyio.from_thread.run, anyio.sleep, 0.02)
        return anyio.current_time()

    assert run(main) == 0.02


def test_a_loop_without_timers_waits_for_a_foreign_thread() -> None:
    async def main() -> float:
        event = asyncio.Event()
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(event.set,))
        thread.start()
        await event.wait()
        thread.join()
        return anyio.current_time()

    assert run(main) == 0


def test_the_clock_starts_where_it_is_told_to() -> None:
    loop = VirtualTimeLoop(start_s=100)
    try:
        loop.run_until_complete(asyncio.sleep(2.5))
        assert loop.time() == 102.5
    finally:
        loop.close()
