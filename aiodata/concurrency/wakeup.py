"""Wakeup: many reasons to look again, one waiter, one wake-up."""

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
