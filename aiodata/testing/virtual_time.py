"""Virtual time: an event loop in which an hour of waiting takes no time at all."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Generator, Mapping
from typing import Any, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still while something runs, and jumps to the next timer when nothing does.

    So `anyio.sleep`, deadlines and timers take their exact time on the loop's clock, and none on yours. What waits for
    something outside of the loop:

    - While one of anyio's worker threads is busy (`anyio.to_thread.run_sync` with the default limiter), timers wait
      for real, so that a call in a thread takes no virtual time and a short deadline does not overtake it.
    - A socket or signal is waited for only where there is no timer: with one, time jumps.
    - With no timer either, the loop waits for real, for ever if need be. So give what may stand still a deadline: it
      comes at once then.

    `time.perf_counter` and its kin go on as they do.

    Args:
        start_s: What the clock shows first, in seconds.

    Example:
        >>> async def nap() -> float:
        ...     started = anyio.current_time()
        ...     await anyio.sleep(3600)
        ...     return anyio.current_time() - started
        >>> with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        ...     runner.run(nap())
        3600.0

        For a test suite with pytest-asyncio, in `conftest.py`:

            def pytest_asyncio_loop_factories(config):
                return {"virtual": VirtualTimeLoop}
    """

    def __init__(self, start_s: float = 0.0) -> None:
        """Make the loop; `asyncio.Runner`, or whoever runs it, closes it."""
        self._clock = _Clock(start_s)
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self._clock.now_s

    def run_until_complete(self, future: Generator[Any, None, T] | Any) -> T:
        """Run until the future is done; see `asyncio.loop.run_until_complete`."""
        if self._clock.threads is None:
            # Which limiter is the loop's can be asked for only in one of its tasks.
            self._clock.threads = super().run_until_complete(_default_limiter())
        result: T = super().run_until_complete(future)
        return result


class _Clock(selectors.BaseSelector):
    """Does a selector's work, and turns waiting into a change of the time.

    Attributes:
        now_s: The time, in seconds.
        threads: What anyio's busy worker threads hold tokens of.
    """

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s
        self.threads: anyio.CapacityLimiter | None = None
        self._selector = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = self._selector.select(0)
        if events or timeout == 0:
            return events
        if timeout is None or (self.threads is not None and self.threads.borrowed_tokens):
            events = self._selector.select(timeout)
        if timeout is not None and not events:
            self.now_s += timeout
        return events

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._selector.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._selector.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._selector.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._selector.get_map()

    def close(self) -> None:
        self._selector.close()


async def _default_limiter() -> anyio.CapacityLimiter:
    return anyio.to_thread.current_default_thread_limiter()
