"""Measure how late an event loop serves a timer while something else runs on it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PERIOD_S = 0.005


class Ticker:
    """Want to run every 5 ms, and note how late each turn comes.

    Turns are due on a fixed schedule. When the loop is held for a second, the 200 turns that fell
    due meanwhile are all noted, each with its own lateness; noting only the one wake-up after it
    would hide the stall from every percentile.
    """

    def __init__(self) -> None:
        self.lags_s: list[float] = []
        self._due = time.perf_counter() + PERIOD_S

    def _note_due_turns(self) -> None:
        now = time.perf_counter()
        while self._due <= now:
            self.lags_s.append(now - self._due)
            self._due += PERIOD_S

    async def tick(self) -> None:
        """Run until cancelled."""
        while True:
            await asyncio.sleep(self._due - time.perf_counter())
            self._note_due_turns()


async def lags_beside(run_pass: Callable[[], Awaitable[None]], *, at_least_s: float) -> tuple[list[float], float]:
    """Make whole passes beside a ticker until the time is over.

    Args:
        run_pass: Makes one pass.
        at_least_s: Seconds after which no further pass is begun.

    Returns:
        The lateness of each turn, in seconds, and the seconds per pass.
    """
    ticker = Ticker()
    # The ticker starts at the first await of the first pass, as a user's own task would.
    task = asyncio.create_task(ticker.tick())
    started = time.perf_counter()
    num_passes = 0
    try:
        while time.perf_counter() - started < at_least_s:
            await run_pass()
            num_passes += 1
        ended = time.perf_counter()
        await asyncio.sleep(2 * PERIOD_S)
    finally:
        task.cancel()
    return ticker.lags_s, (ended - started) / num_passes
