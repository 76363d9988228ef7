"""Calls in worker threads, which nothing can interrupt."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
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
    # Popping it is atomic, so that just one side decides whether the call begins.
    turns = [None]

    def run() -> T | None:
        try:
            turns.pop()
        except IndexError:
            return None
        try:
            return call()
        finally:
            loop.call_soon_threadsafe(ended.set)

    # A limiter of its own: a full default limiter, which others share, would hold up a run.
    limiter = anyio.CapacityLimiter(math.inf)
    try:
        result = await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=limiter)
    except anyio.get_cancelled_exc_class():
        if not turns:
            with anyio.move_on_after(grace_s, shield=True):
                await ended.wait()
        turns.clear()
        raise
    return result  # type: ignore[return-value]  # None only where the call was not begun, which is cancelled.
