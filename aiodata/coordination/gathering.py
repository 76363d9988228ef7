"""Gathering: an epoch that is to come, and its barrier."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from aiodata.concurrency import News
from aiodata.coordination.epoch import EpochState
from aiodata.coordination.lease import Lease

# Absent splits that a message names.
_MAX_NAMES = 20


class Gathering:
    """Where splits wait for an epoch to begin.

    Args:
        state: The epoch.

    Attributes:
        state: The epoch.
    """

    def __init__(self, state: EpochState) -> None:
        """Nobody has arrived."""
        self.state = state
        self._arrived_at: dict[int, float] = {}
        self._opened = anyio.Event()

    def arrive(self, lease: Lease) -> None:
        """Note that a split has a consumer."""
        self.state.arrive(lease)
        self._arrived_at[lease.split_index] = anyio.current_time()

    def open(self) -> None:
        """Let the epoch begin."""
        self.state.start()
        self._opened.set()

    def fail(self, failure: Exception) -> None:
        """Say why it never begins."""
        self.state.failure = failure
        self._opened.set()

    async def wait(self, split_index: int, within_s: float, timeout_s: float | None, left: News) -> bool:
        """Wait until the epoch begins, or never will, or until time is up; return whether the split is too late.

        Args:
            split_index: The split that waits.
            within_s: How long to wait now, in seconds.
            timeout_s: How long it may wait since it has arrived, in seconds; None: for as long as it takes.
            left: Tells when splits leave, and when epochs end.
        """
        late_at = float("inf") if timeout_s is None else self._arrived_at[split_index] + timeout_s
        with anyio.move_on_at(min(anyio.current_time() + within_s, late_at)):
            await self._opened.wait()
        # Where all have arrived, only the end of the epoch before is waited for, which does not take long.
        while not (self._opened.is_set() or self.state.absent):
            await left.wait()
        return anyio.current_time() >= late_at


def describe_splits(splits: Sequence[int]) -> str:
    """Name splits, not too many of them."""
    names = ", ".join(map(str, splits[:_MAX_NAMES])) + (", ..." if len(splits) > _MAX_NAMES else "")
    return f"split {names}" if len(splits) == 1 else f"{len(splits)} splits ({names})"
