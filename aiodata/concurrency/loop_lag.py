"""LoopLagMonitor: how late the running event loop serves a timer, which is how long it was held."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Self

from aiodata.concurrency.loop import running_loop
from aiodata.errors import OptionError
from aiodata.options import is_number, shown
from aiodata.stats import LoopLag

# Twenty seconds of turns at the default interval, in 130 KiB.
MAX_KEPT_SAMPLES = 4096

# uvloop rounds a timer to whole milliseconds: one below half of that would run in every turn of the loop.
MIN_INTERVAL_S = 0.001


class LoopLagMonitor:
    """Measures how late the running event loop serves a timer that is due at fixed times.

    Each turn of the timer is one sample. When the loop is held for a second, the 200 turns that fall due meanwhile
    are all noted, each with its own lateness; noting only the one wake-up after it would hide the hold from every
    percentile. A hold is noted when the loop runs again, or by `stop`.

    The last 4,096 samples are kept for the percentiles, beside the number and the maximum of all. The monitor is a
    timer of the loop, neither a task nor a thread; the loop holds it until `stop`. It is not thread-safe.

    What is measured is no finer than the loop's timers: an idle asyncio loop is late by 0.1 to 1 ms, and uvloop
    rounds each timer to 1 ms. A turn that comes early counts as on time.

    A turn takes about 4 µs of a loop that is busy; to wake one that would have slept takes about 0.1 ms of CPU time,
    which at the default interval is 2 % of one CPU (measured on two virtual CPUs, both loops alike).

    Args:
        interval_s: Seconds from one turn to the next, at least 0.001.

    Raises:
        OptionError: The interval is too short, or no number.

    Example:
        >>> async def main():
        ...     async with LoopLagMonitor() as lag:
        ...         while lag.snapshot().samples < 3:
        ...             await asyncio.sleep(0.01)
        ...     return lag.snapshot().max_s < 1.0
        >>> asyncio.run(main())
        True
    """

    def __init__(self, interval_s: float = 0.005) -> None:
        """Prepare; nothing is measured before `start`."""
        if not is_number(interval_s) or not MIN_INTERVAL_S <= interval_s < math.inf:
            raise OptionError(
                f"interval_s={shown(interval_s)} must be a number of seconds of at least {MIN_INTERVAL_S}"
            )
        self._interval_s = float(interval_s)
        self._kept_s = deque[float](maxlen=MAX_KEPT_SAMPLES)
        self._num_samples = 0
        self._max_s = 0.0
        self._due_s = 0.0
        # Both are None while nothing is measured.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "stopped" if self._loop is None else "running"
        return f"<LoopLagMonitor interval_s={self._interval_s} {state} samples={self._num_samples}>"

    def start(self) -> None:
        """Start to measure the running loop, in addition to what was measured before; idempotent.

        Raises:
            RuntimeError: No event loop is running in this thread, or another loop is being measured.
        """
        loop = running_loop("LoopLagMonitor.start()")
        if self._loop is loop:
            return
        # A loop that ended before `stop` was called took the timer with it.
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("this LoopLagMonitor measures another event loop: stop it there, or make a new one")
        self._loop = loop
        self._due_s = time.perf_counter() + self._interval_s
        self._timer = loop.call_later(self._interval_s, self._turn)

    def stop(self) -> None:
        """Stop to measure, and leave nothing on the loop; idempotent.

        The turns that are due by now are noted first: the loop may have been held up to this call.
        """
        loop, timer = self._loop, self._timer
        self._loop = self._timer = None
        if loop is None or timer is None or loop.is_closed():
            return
        timer.cancel()
        # A loop that merely stands still is not held by anything, so it is not late.
        if loop.is_running():
            self._note_due_turns(time.perf_counter())

    def snapshot(self) -> LoopLag:
        """Return what was measured so far; sorts the kept samples, so it takes up to a millisecond."""
        kept_s = sorted(self._kept_s)
        return LoopLag(self._num_samples, _percentile(kept_s, 50), _percentile(kept_s, 99), self._max_s)

    async def __aenter__(self) -> Self:
        """Start."""
        self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop."""
        self.stop()

    def _turn(self) -> None:
        now_s = time.perf_counter()
        # The timer may be early by what the loop rounds off; the turn is served all the same, so none is served twice.
        self._note_due_turns(max(now_s, self._due_s))
        self._timer = asyncio.get_running_loop().call_later(self._due_s - now_s, self._turn)

    def _note_due_turns(self, now_s: float) -> None:
        """Note every turn that is due, oldest first, and move on to the first that is not."""
        late_s = now_s - self._due_s
        if late_s < 0:
            return
        num_due = 1 + int(late_s / self._interval_s)
        self._num_samples += num_due
        self._max_s = max(self._max_s, late_s)
        # Turns that would be pushed out again at once are only counted, which bounds the work after a very long hold.
        for index in range(max(0, num_due - MAX_KEPT_SAMPLES), num_due):
            self._kept_s.append(max(0.0, late_s - index * self._interval_s))
        self._due_s += num_due * self._interval_s


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest value that is not below `percent` of all (nearest rank); 0 of none."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else 0.0
