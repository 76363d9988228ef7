"""EpochState: who has arrived, who gets what, who has finished; events in, answers out, no I/O."""

from __future__ import annotations

import enum
from collections import deque

from aiodata.bundle import RefBundle
from aiodata.errors import EpochError


class EpochPhase(enum.Enum):
    """An epoch's life: `GATHERING` until every split has arrived, `RUNNING`, `ENDED` when every split has finished."""

    GATHERING = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()


class EpochState:
    """One epoch over `num_splits` splits.

    A split asks with a sequence number that counts its deliveries, and gets the same answer each time it repeats one,
    until it asks for the next; so a call that was cancelled or retried loses and doubles nothing.

    Args:
        epoch: The epoch's number, from 0.
        num_splits: The number of splits that share it.
    """

    def __init__(self, epoch: int, num_splits: int) -> None:
        """Nobody has arrived."""
        self.epoch = epoch
        self.num_splits = num_splits
        self._arrived: set[int] = set()
        self._finished: set[int] = set()
        self._asking: deque[int] = deque()
        self._sequences = [0] * num_splits
        self._delivered: dict[int, tuple[int, RefBundle]] = {}
        self._prefetched_bytes = [0] * num_splits
        self._exhausted = False

    @property
    def phase(self) -> EpochPhase:
        """Where the epoch is in its life."""
        if len(self._finished) == self.num_splits:
            return EpochPhase.ENDED
        return EpochPhase.RUNNING if len(self._arrived) == self.num_splits else EpochPhase.GATHERING

    @property
    def absent(self) -> list[int]:
        """Splits that have not arrived."""
        return [split for split in range(self.num_splits) if split not in self._arrived]

    @property
    def wants_bundle(self) -> bool:
        """Whether some split is waiting for a bundle."""
        return bool(self._asking)

    @property
    def prefetched_bytes(self) -> int:
        """Bytes that the splits hold ahead, as they reported them last."""
        return sum(self._prefetched_bytes)

    def arrive(self, split_index: int) -> None:
        """Note that a split is there; repeats are harmless."""
        self._check(split_index)
        self._arrived.add(split_index)

    def ask(self, split_index: int, sequence: int, prefetched_bytes: int = 0) -> None:
        """Note that a split waits for delivery number `sequence`, and what it holds ahead, in bytes.

        Raises:
            EpochError: It is neither the next delivery nor the last one.
        """
        self._check(split_index)
        expected = self._sequences[split_index]
        if sequence not in {expected, expected - 1} or sequence < 0:
            raise EpochError(f"split {split_index} asked for delivery {sequence}; the next one is {expected}")
        self._prefetched_bytes[split_index] = prefetched_bytes
        if sequence == expected:  # It has what it was given before.
            self._delivered.pop(split_index, None)
        if sequence == expected and not self.is_at_end(split_index) and split_index not in self._asking:
            self._asking.append(split_index)

    def assign(self, bundle: RefBundle) -> int:
        """Give a bundle to the split that has waited longest; return its index."""
        split_index = self._asking.popleft()
        self._delivered[split_index] = (self._sequences[split_index], bundle)
        self._sequences[split_index] += 1
        return split_index

    def delivery(self, split_index: int, sequence: int) -> RefBundle | None:
        """Return delivery number `sequence` of a split, if it has been assigned and is the last one."""
        number, bundle = self._delivered.get(split_index, (-1, None))
        return bundle if number == sequence else None

    def exhaust(self) -> None:
        """Note that there are no more bundles."""
        self._exhausted = True
        self._asking.clear()

    def finish(self, split_index: int) -> None:
        """Note that a split wants no more; what it held is dropped. Repeats are harmless."""
        self._check(split_index)
        self._arrived.add(split_index)
        self._finished.add(split_index)
        self._delivered.pop(split_index, None)
        self._prefetched_bytes[split_index] = 0
        if split_index in self._asking:
            self._asking.remove(split_index)

    def has_finished(self, split_index: int) -> bool:
        """Whether a split has said that it wants no more."""
        return split_index in self._finished

    def is_at_end(self, split_index: int) -> bool:
        """Whether a split gets nothing more."""
        return self._exhausted or split_index in self._finished

    def _check(self, split_index: int) -> None:
        if not 0 <= split_index < self.num_splits:
            raise EpochError(f"there is no split {split_index}; there are {self.num_splits}")
