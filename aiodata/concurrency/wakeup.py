"""Wakeup: many reasons to look again, one waiter, one wake-up."""

from __future__ import annotations

import asyncio

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
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake the waiter, or let its next wait return at once."""
        if self._is_set:
            return
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until the flag is set, then clear it."""
        if self._is_set:
            await anyio.lowlevel.checkpoint()
        else:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_set = False
