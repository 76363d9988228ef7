"""Agenda: what happens at which time, for thousands of events with a single timer of the loop."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

# What is noted of an event: a callback and its argument.
_NUM_FIELDS = 2

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
        # Each time that something is planned for, in a heap, and what: a callback, its argument, and so on.
        self._times: list[float] = []
        self._events: dict[float, list[Any]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self.last_event_s = loop.time()

    @property
    def now(self) -> float:
        """The loop's time, in seconds."""
        return self._loop.time()

    def after(self, delay_s: float, callback: Callable[[T], object], argument: T) -> None:
        """Call `callback` with `argument` after so many seconds, never before this call returns."""
        when = self._loop.time() + delay_s
        events = self._events.get(when)
        if events is None:
            self._events[when] = [callback, argument]
            heapq.heappush(self._times, when)
            if when < self._timer_at:
                self._set_timer()
        else:
            events += (callback, argument)

    def close(self) -> None:
        """Forget what is planned."""
        for events in self._events.values():
            events.clear()
        self._times.clear()
        self._events.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._times[0]
        self._timer = self._loop.call_at(self._timer_at, self._on_time)

    def _on_time(self) -> None:
        # The loop may be early by its clock's resolution.
        now = max(self._loop.time(), self._timer_at)
        self._timer = None
        self.last_event_s = now
        # Callbacks plan further events: the timer is set once, after them.
        self._timer_at = -math.inf
        num_left = _MAX_EVENTS_PER_TURN
        try:
            while num_left > 0 and self._times and self._times[0] <= now:
                num_left -= self._call_back(heapq.heappop(self._times), num_left)
        finally:
            self._timer_at = math.inf
            if self._times:
                self._set_timer()

    def _call_back(self, when: float, max_events: int) -> int:
        """Call what is planned for a time, so much at most; return how much it was."""
        events = self._events[when]
        num_called = 0
        try:
            while num_called < max_events and _NUM_FIELDS * num_called < len(events):
                place = _NUM_FIELDS * num_called
                num_called += 1
                events[place](events[place + 1])
        finally:
            del events[: _NUM_FIELDS * num_called]
            if events:
                heapq.heappush(self._times, when)
            else:
                self._events.pop(when, None)
        return num_called
