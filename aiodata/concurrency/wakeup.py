"""Wakeup: many reasons to look again, one waiter, one wake-up. News: the same for many waiters."""

from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel


class Wakeup:
    """A flag that one task waits for and anyone in the loop sets; setting it many times wakes the waiter once.

    The waiter takes nothing: a cancelled `wait` leaves the flag as it was, so nothing is lost. It is set several times
    for each block, mostly in vain; an event of anyio, made anew for each wait, costs several times as much.

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
        self._is_set = False
        self._waiters: list[asyncio.Future[None]] = []

    def set(self) -> None:
        """Wake the waiter, or let its next wait return at once."""
        if self._is_set:
            return
        self._is_set = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until the flag is set, then clear it."""
        if self._is_set:
            await anyio.lowlevel.checkpoint()
        else:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                self._waiters.remove(waiter)
        self._is_set = False


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
