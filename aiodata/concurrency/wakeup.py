"""Wakeup: many reasons to look again, one waiter, one wake-up. News: the same for many waiters."""

from __future__ import annotations

import anyio


class Wakeup:
    """A flag that one task waits for and anyone in the loop sets; setting it many times wakes the waiter once.

    The waiter takes nothing: a cancelled `wait` leaves the flag as it was, so nothing is lost.

    Example:
        >>> async def main():
        ...     wakeup = Wakeup()
        ...     wakeup.set()
        ...     wakeup.set()
        ...     await wakeup.wait()
        >>> anyio.run(main)
    """

    def __init__(self) -> None:
        """Start unset."""
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake the waiter, or let its next wait return at once."""
        self._event.set()

    async def wait(self) -> None:
        """Wait until the flag is set, then clear it."""
        await self._event.wait()
        self._event = anyio.Event()


class News:
    """Wakes all who wait, at each change; whoever waits has looked before, in the same turn of the loop.

    Example:
        >>> async def main():
        ...     news = News()
        ...     async with anyio.create_task_group() as group:
        ...         group.start_soon(news.wait)
        ...         group.start_soon(news.wait)
        ...         await anyio.wait_all_tasks_blocked()
        ...         news.tell()
        >>> anyio.run(main)
    """

    def __init__(self) -> None:
        """Nothing has changed."""
        self._event = anyio.Event()

    def tell(self) -> None:
        """Wake all who wait."""
        event, self._event = self._event, anyio.Event()
        event.set()

    async def wait(self) -> None:
        """Wait until the next `tell`."""
        await self._event.wait()
