"""Wait until something has come to rest, and say since when."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QUIET_S = 0.25
GIVE_UP_S = 2.0
_POLL_S = 0.002


@dataclass(slots=True)
class _Watch:
    """Follow one condition, and remember since when it has held without a break."""

    holds: Callable[[], bool]
    rest_began: float | None = None

    def look(self, now: float) -> None:
        """Ask the condition."""
        if not self.holds():
            self.rest_began = None
        elif self.rest_began is None:
            self.rest_began = now

    def has_rested(self, now: float, quiet_s: float) -> bool:
        """Say whether the condition has held for long enough."""
        return self.rest_began is not None and now - self.rest_began >= quiet_s


async def seconds_until_rest(
    conditions: Sequence[Callable[[], bool]], *, since: float, quiet_s: float = QUIET_S
) -> list[float]:
    """Return, for each condition, how long it took until it began to hold for good.

    Resources may look free between two tasks, so rest counts only when it lasts.

    Args:
        conditions: Each says whether there is rest right now; called every 2 ms.
        since: A time of `time.perf_counter()`.
        quiet_s: Seconds that the rest has to last.

    Returns:
        Seconds from `since` to the beginning of the rest; the time waited for a condition that
        does not hold when 2 s are over.
    """
    watches = [_Watch(condition) for condition in conditions]
    give_up_at = time.perf_counter() + GIVE_UP_S + quiet_s
    while True:
        now = time.perf_counter()
        for watch in watches:
            watch.look(now)
        if now > give_up_at or all(watch.has_rested(now, quiet_s) for watch in watches):
            return [(now if watch.rest_began is None else watch.rest_began) - since for watch in watches]
        await asyncio.sleep(_POLL_S)
