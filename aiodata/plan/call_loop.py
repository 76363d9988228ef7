"""CallLoop: an event loop that a worker runs while it waits for calls of async functions, and no longer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

from aiodata.concurrency.interrupts import held_interrupts, interrupts_wake
from aiodata.concurrency.taskset import TaskSet
from aiodata.errors import ClosedError

T = TypeVar("T")

# Modules that run a loop. An interrupt that cuts one of them off may lose a task, or leave the loop running for ever.
_OWN_CODE = ("aiodata.", "asyncio.", "contextlib", "selectors", "signal", "socket")

# How long cancelled calls may take to end, in seconds; a coroutine that outlasts it is not run any further.
_CLOSE_S = 1.0


class CallLoop:
    """An event loop of its own, for calls of async functions; it runs only inside of this class's methods.

    All async functions of a task share one, so that the calls of all go on while one of them is waited for. The
    methods may be called from different threads, one at a time; `interrupt`, `cancel` and `close` at any time.

    Attributes:
        is_settling: Whether no new call should start.
    """

    def __init__(self) -> None:
        """Open the loop; plain asyncio, whatever the policy, as it is run a little at a time."""
        self.is_settling = False
        self._loop = asyncio.SelectorEventLoop()
        # Who runs the loop takes this, and so does, for good, who closes it; popping is atomic.
        self._turns = [True]
        self._tasks = TaskSet(self._loop)
        self._interrupts_wake = interrupts_wake(self._loop)
        self._busy = 0
        self._is_ready: Callable[[], bool] | None = None
        self._may_leave = False
        self._is_closing = False

    def start(self, call: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Start a call; it counts as busy until it is done, except while it parks."""
        with held_interrupts():
            task = self._tasks.create(call(), name="aiodata call")
            self._busy += 1
            task.add_done_callback(self._on_done)
        return task

    def notify(self) -> None:
        """Say, from inside of the loop, that something has happened that `run_until` may wait for."""
        if self._is_ready is not None and self._is_ready():
            self._loop.stop()

    async def park(self, event: asyncio.Event) -> None:
        """Wait, in a call, for something that does not come from the loop."""
        self._busy -= 1
        self.notify()
        try:
            await event.wait()
        finally:
            self._busy += 1

    def turn(self) -> None:
        """Let the calls do what they can without waiting."""
        self.interrupt()
        self._run()

    def run_until(self, is_ready: Callable[[], bool], checkpoint: Callable[[], None]) -> None:
        """Run until a condition holds; `checkpoint` may raise to leave, and is asked after each `interrupt`."""
        self._is_ready = is_ready
        try:
            while True:
                checkpoint()
                if is_ready():
                    return
                self._run()
        finally:
            self._is_ready = None

    def settle(self, checkpoint: Callable[[], None]) -> None:
        """Run until every call is done or parked; start none."""
        self.is_settling = True
        try:
            self.run_until(lambda: not self._busy, checkpoint)
        finally:
            self.is_settling = False

    def interrupt(self) -> None:
        """Have `run_until` ask its checkpoint; from any thread."""
        with suppress(RuntimeError):  # The loop is closed.
            self._loop.call_soon_threadsafe(self._leave)

    def call(self, function: Callable[[], T]) -> T:
        """Call a function inside of the loop, and return what it returns."""

        async def run() -> T:
            return function()

        return _call_outside_of_loops(lambda: self._loop.run_until_complete(run()))

    def cancel(self, calls: list[asyncio.Task[None]]) -> None:
        """Cancel calls and wait until they are done, for a second at most; where the loop is being closed, they are."""
        if calls:
            with held_interrupts(), suppress(ClosedError):
                self._is_ready = None  # An interrupt may have left it.
                self._run_in_turn(lambda: self._loop.run_until_complete(_cancel(calls)))

    def close(self) -> None:
        """Cancel all that runs in the loop, close its async generators, wait for both, and close it; idempotent.

        If another thread runs the loop, since it was left behind, that thread closes it when it leaves it.
        """
        self._is_closing = True
        with held_interrupts(), suppress(ClosedError):
            self._run_in_turn(_do_nothing)

    def _close(self) -> None:
        try:
            self._turns.pop()
        except IndexError:  # Another thread is at it.
            return
        self._is_ready = None
        try:
            _call_outside_of_loops(lambda: self._loop.run_until_complete(self._shut_down()))
        finally:
            # What is not done by now, since it takes too long or an interrupt has cut it off, never will be.
            self._loop.set_exception_handler(_do_nothing)
            for task in asyncio.all_tasks(self._loop):
                coroutine = task.get_coro()
                if inspect.iscoroutine(coroutine) and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                    coroutine.close()
            self._interrupts_wake.close()
            self._loop.close()
            self._tasks.forget()

    async def _shut_down(self) -> None:
        # Not only calls: a user's function may have started tasks of its own.
        await _cancel([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])
        closing = self._tasks.create(self._loop.shutdown_asyncgens(), name="aiodata closing of generators")
        await asyncio.wait([closing], timeout=_CLOSE_S)

    def _run(self) -> None:
        def run() -> None:
            self._may_leave = True
            with self._interrupts_wake:
                self._loop.run_forever()

        with held_interrupts(self._holds):
            self._run_in_turn(run)

    def _run_in_turn(self, run: Callable[[], object]) -> None:
        """Call what runs the loop, if no other thread does; close it afterwards if it is to be closed.

        Raises:
            ClosedError: Another thread runs it, or it is closed.
        """
        try:
            self._turns.pop()
        except IndexError:
            raise ClosedError("this CallLoop is closed, or another thread runs it") from None
        try:
            _call_outside_of_loops(run)
        finally:
            self._may_leave = False
            self._turns.append(True)
            if self._is_closing:
                self._close()

    def _holds(self, frame: FrameType | None) -> bool:
        """Return whether an interrupt comes in the loop's own code, which then leaves first, and not in the user's."""
        while frame is not None and frame.f_code is not CallLoop._run.__code__:
            if not frame.f_globals.get("__name__", "").startswith(_OWN_CODE):
                return False
            frame = frame.f_back
        self.interrupt()
        return True

    def _leave(self) -> None:
        # One that comes late must not stop the loop while it closes.
        if self._may_leave:
            self._loop.stop()

    def _on_done(self, _: object) -> None:
        self._busy -= 1
        self.notify()


def _do_nothing(*_: object) -> None:
    pass


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel("the work is over")
    if tasks:
        await asyncio.wait(tasks, timeout=_CLOSE_S)


def _call_outside_of_loops(function: Callable[[], T]) -> T:
    """Call a function where no event loop runs: a task may be closed in the thread of one, by garbage collection."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()
