"""Reminders of a wait that takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Users are to hear of a wait within ten seconds, also where the event loop is late.
FIRST_S = 7.0


@contextmanager
def reminding(tell: Callable[[float], object], *, first_s: float = FIRST_S, is_repeated: bool = True) -> Iterator[None]:
    """Call `tell` with the seconds that the body has taken: after `first_s`, and whenever they have doubled since.

    It is a timer of the event loop, neither a task nor a thread.

    Example:
        >>> async def main():
        ...     with reminding(lambda waited_s: print(f"still waiting after {waited_s:.1f} s"), first_s=0.1):
        ...         await asyncio.sleep(0.15)
        >>> asyncio.run(main())
        still waiting after 0.1 s
    """
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    timers: list[asyncio.TimerHandle] = []
    # Emptied at the end: `remind` refers to itself, and must not keep what `tell` refers to until it is collected.
    tells = [tell]

    def remind(next_s: float) -> None:
        if is_repeated:
            timers[:] = [loop.call_later(next_s, remind, 2 * next_s)]
        tells[0](loop.time() - began_s)

    timers.append(loop.call_later(first_s, remind, first_s))
    try:
        yield
    finally:
        timers.pop().cancel()
        tells.clear()
