"""Calls in worker threads, which nothing can interrupt.

The threads are this module's own, and daemons: anyio's end with the loop's first task, so a loop that is stopped and
never closed, as `sys.exit` in it leaves it, would have the interpreter wait for them for ever.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from time import monotonic
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from aiodata.concurrency.loop import running_loop

T = TypeVar("T")

Job = Callable[[], None]

THREAD_NAME = "aiodata worker thread"

# How long a thread waits for another call before it ends, in seconds.
_IDLE_S = 10.0

# How long the interpreter's end waits for calls that are under way, in seconds: a thread that is stopped inside a
# library, as daemons are, may bring the process down.
_EXIT_S = 1.0


async def call_in_thread(call: Callable[[], T], *, grace_s: float) -> T:
    """Run a blocking call in a worker thread; who calls bounds how many there are at a time.

    A thread can not be interrupted. Cancelled, this waits until the call has ended, for `grace_s` seconds at most;
    one that outlasts that is left behind, and its result dropped. A call that has not begun is not begun any more.

    Example:
        >>> anyio.run(lambda: call_in_thread(lambda: 6 * 7, grace_s=1.0))
        42
    """
    await anyio.lowlevel.checkpoint()
    loop = running_loop("this call")
    ended = anyio.Event()
    # Popping is atomic, so that just one side decides whether the call begins. And as call and result pass through
    # lists, a thread that lags behind holds neither.
    calls = [call]
    del call
    outcomes: list[tuple[T | None, BaseException | None]] = []
    context = copy_context()

    def run() -> None:
        try:
            outcomes.append((context.run(calls.pop()), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's task, if it still waits.
            outcomes.append((None, error))
        finally:
            with suppress(RuntimeError):  # The loop is closed: the call was left behind.
                loop.call_soon_threadsafe(ended.set)

    run_in_thread(run)
    try:
        await ended.wait()
    except anyio.get_cancelled_exc_class():
        try:
            calls.pop()
        except IndexError:
            with anyio.move_on_after(grace_s, shield=True):
                await ended.wait()
        outcomes.clear()
        raise
    result, error = outcomes.pop()
    if error is not None:
        try:
            raise error
        finally:
            # With it, the error, its traceback and this frame would be a cycle that holds what was called. For the same
            # reason it did not travel as the exception of a future.
            del error
    return result  # type: ignore[return-value]  # None only beside an error.


async def ask_in_thread(question: Callable[[], T]) -> T:
    """Ask what may block; cancelled, the answer is not waited for.

    It counts among anyio's calls in threads, so that there are not too many, and virtual time stands still meanwhile.
    """
    async with anyio.to_thread.current_default_thread_limiter():
        return await call_in_thread(question, grace_s=0.0)


class _Worker:
    """A thread that makes one call after the other, and ends when there is none for a while."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._jobs = queue.SimpleQueue[Job]()
        threading.Thread(target=self._run, name=THREAD_NAME, daemon=True).start()

    def give(self, job: Job) -> None:
        self._jobs.put(job)

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE_S)
            except queue.Empty:
                try:
                    self._pool.idle.remove(self)
                except ValueError:  # It was chosen just now: its job is on the way.
                    continue
                return
            try:
                job()
            except BaseException:
                self._pool.forget(self)
                raise
            # What it called must not be kept while it waits for the next call.
            del job
            self._pool.note_idle(self)


class _Pool:
    """The threads of this process; each operation on its lists is atomic, so that it needs no lock."""

    def __init__(self) -> None:
        # The last one to become idle is the first to be given a call: the others may end.
        self.idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._call_ended = threading.Event()

    def run(self, job: Job) -> None:
        try:
            worker = self.idle.pop()
        except IndexError:
            worker = _Worker(self)
        self._busy.add(worker)
        worker.give(job)

    def forget(self, worker: _Worker) -> None:
        self._busy.discard(worker)

    def note_idle(self, worker: _Worker) -> None:
        self._busy.discard(worker)
        self.idle.append(worker)
        self._call_ended.set()

    def wait(self) -> None:
        """Wait for calls that are under way, for a while."""
        until = monotonic() + _EXIT_S
        while self._busy and (left_s := until - monotonic()) > 0:
            self._call_ended.wait(left_s)
            self._call_ended.clear()


_pools = [_Pool()]


def run_in_thread(job: Job) -> None:
    """Have a job done that nobody waits for; what it raises is printed."""
    _pools[0].run(job)


def _renew() -> None:
    """Begin anew in a process that was forked: threads stay behind."""
    _pools[:] = [_Pool()]


atexit.register(lambda: _pools[0].wait())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
