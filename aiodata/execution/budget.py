"""ByteBudget: how many bytes of blocks a run may keep alive; no I/O.

Counted are the blocks that are there, until their last reference anywhere is gone, and what running tasks are expected
to add. A task may start if both stay within the limit together with what it is expected to produce itself. Whoever is
refused is told when something has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from aiodata.bundle import Charge
from aiodata.stats import BudgetStats

# Distinct sizes whose `remover` is kept.
_MAX_REMOVERS = 1024

# An expectation falls by this factor from task to task, so that one large task does not count for ever.
_DECAY = 0.9


class ByteBudget:
    """Counts the bytes of a run's blocks.

    Args:
        limit_bytes: How many there may be.
    """

    def __init__(self, limit_bytes: int) -> None:
        """Nothing is there."""
        self.limit_bytes = limit_bytes
        self.live_bytes = 0
        self.peak_live_bytes = 0
        self.expected_bytes = 0
        self._removers: dict[int, Callable[[], None]] = {}
        self._refused: dict[Callable[[], None], None] = {}

    def fits(self, num_bytes: int) -> bool:
        """Whether there is room for so many bytes more."""
        return self.live_bytes + self.expected_bytes + num_bytes <= self.limit_bytes

    def expect(self, num_bytes: int) -> None:
        """Count bytes that a task is expected to produce, or, below zero, count them no more."""
        self.expected_bytes += num_bytes
        if num_bytes < 0:
            self.tell_refused()

    def add(self, num_bytes: int) -> None:
        """Count a block that is there."""
        self.live_bytes += num_bytes
        if self.live_bytes > self.peak_live_bytes:
            self.peak_live_bytes = self.live_bytes

    def remove(self, num_bytes: int) -> None:
        """Count a block no more: its last reference is gone."""
        self.live_bytes -= num_bytes
        self.tell_refused()

    def remover(self, num_bytes: int) -> Callable[[], None]:
        """Return what counts a block of so many bytes no more.

        Blocks of one size share it: there may be tens of thousands, and each object is one more for the garbage
        collections to go through.
        """
        remover = self._removers.get(num_bytes)
        if remover is None:
            if len(self._removers) >= _MAX_REMOVERS:
                self._removers.clear()
            remover = self._removers[num_bytes] = partial(self.remove, num_bytes)
        return remover

    def settle(self, charge: Charge) -> None:
        """Count a block no more that may have shared memory with others: its last reference is gone."""
        charge.is_over = True
        self.remove(charge.num_bytes)
        charge.num_bytes = 0

    def take_over(self, charge: Charge, shared: Iterable[tuple[Charge | None, int]]) -> None:
        """Count the memory that a block shares with others for that block: it is what lives longest, most often.

        Args:
            charge: The block's.
            shared: Bytes that it shares, with the charges of those that they are shared with; None: those do not count.
        """
        for other, num_bytes in shared:
            if other is None:
                continue
            if other.is_over:
                moved = num_bytes
                self.add(num_bytes)
            else:
                moved = min(num_bytes, other.num_bytes)
                other.num_bytes -= moved
            charge.num_bytes += moved

    def refuse(self, tell: Callable[[], None]) -> None:
        """Remember whom to tell, once, when it may be worth asking again."""
        self._refused[tell] = None

    def tell_refused(self) -> None:
        """Have all who were refused ask again."""
        if self._refused:
            refused, self._refused = self._refused, {}
            for tell in refused:
                tell()

    def stats(self) -> BudgetStats:
        """Return a snapshot."""
        return BudgetStats(self.limit_bytes, self.live_bytes, self.peak_live_bytes)


class Expectation:
    """How many bytes an operator's next task will produce: what it is allotted, or more if its tasks produce more.

    More is what a user's function returns or yields from one batch, which nobody knows beforehand. A moving maximum of
    what tasks have produced is expected then: a mean would be exceeded by every other task.
    """

    def __init__(self, allotted_bytes: int) -> None:
        """Expect what is allotted."""
        self._allotted_bytes = allotted_bytes
        self._largest_bytes = 0.0
        self._largest_block_bytes = 0.0

    @property
    def num_bytes(self) -> int:
        """What it will produce in all."""
        return max(self._allotted_bytes, int(self._largest_bytes))

    @property
    def least_bytes(self) -> int:
        """What it is to have room for at least; for more it can ask."""
        return max(self._allotted_bytes, int(self._largest_block_bytes))

    def observe(self, num_bytes: int, largest_block_bytes: int) -> None:
        """Learn from a task that has ended."""
        self._largest_bytes = max(num_bytes, _DECAY * self._largest_bytes)
        self._largest_block_bytes = max(largest_block_bytes, _DECAY * self._largest_block_bytes)
