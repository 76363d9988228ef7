"""Calls in worker threads, which nothing can interrupt."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")


async def call_in_thread(call: Callable[[], T], *, grace_s: float) -> T:
    """Run a blocking call in one of anyio's worker threads; who calls bounds how many there are at a time.

    A thread can not be interrupted. Cancelled, this waits until the call has ended, for `grace_s` seconds at most;
    one that outlasts that is left behind, and its result dropped. A call that has not begun is not begun any more.

    Example:
        >>> anyio.run(lambda: call_in_thread(lambda: 6 * 7, grace_s=1.0))
        42
    """
    loop = asyncio.get_running_loop()
    ended = anyio.Event()
    # Popping is atomic, so that just one side decides whether the call begins. And as call and result pass through
    # lists, a thread that lags behind holds neither.
    calls = [call]
    del call
    outcomes: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            outcomes.append((calls.pop()(), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's task, if it still waits.
            outcomes.append((None, error))
        finally:
            with suppress(RuntimeError):  # The loop is closed: the call was left behind.
                loop.call_soon_threadsafe(ended.set)

    # A limiter of its own: a full default limiter, which others share, would hold up a run.
    limiter = anyio.CapacityLimiter(math.inf)
    try:
        await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=limiter)
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
