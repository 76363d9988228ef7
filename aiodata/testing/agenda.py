"""Agenda: what happens at which time, for thousands of events with a single timer of the loop."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable

# Events of one turn of the loop, at most, so that a crowd of them does not hold the loop.
_MAX_EVENTS_PER_TURN = 64


class Agenda:
    """Calls callbacks at their times, those of one time in the order in which they were noted.

    A loop's own timers cost several times as much: they are compared in Python. And those that were cancelled stay in
    its queue.

    Args:
        loop: Whose time counts.

    Attributes:
        last_event_s: When an event was last due.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Nothing is planned."""
        self._loop = loop
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_noted = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self.last_event_s = loop.time()

    @property
    def now(self) -> float:
        """The loop's time, in seconds."""
        return self._loop.time()

    def after(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call `callback` after so many seconds, never before this call returns."""
        when = self._loop.time() + delay_s
        self._num_noted += 1
        heapq.heappush(self._events, (when, self._num_noted, callback))
        if when < self._timer_at:
            self._set_timer()

    def close(self) -> None:
        """Forget what is planned."""
        self._events.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._events[0][0]
        self._timer = self._loop.call_at(self._timer_at, self._on_time)

    def _on_time(self) -> None:
        # The loop may be early by its clock's resolution.
        now = max(self._loop.time(), self._timer_at)
        self._timer = None
        self.last_event_s = now
        # Callbacks plan further events: the timer is set once, after them.
        self._timer_at = -math.inf
        events = self._events
        num_left = _MAX_EVENTS_PER_TURN
        try:
            while events and events[0][0] <= now and num_left:
                num_left -= 1
                heapq.heappop(events)[2]()
        finally:
            self._timer_at = math.inf
            if events:
                self._set_timer()
