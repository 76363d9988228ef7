"""Lease: one consumer's hold on a split; Ledger: what it was given, and what of that it has acknowledged."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from aiodata.bundle import RefBundle
from aiodata.errors import EpochError, SplitLostError
from aiodata.stats import SplitStats


@dataclass(frozen=True, slots=True)
class Lease:
    """A consumer's hold on a split for one epoch, from its arrival until it finishes or is lost.

    Attributes:
        epoch: The epoch.
        split_index: The split.
        number: What tells it from other leases of the same split.
    """

    epoch: int
    split_index: int
    number: int

    def lost(self) -> SplitLostError:
        """Return what the others are told if its consumer is gone."""
        return SplitLostError(
            f"the consumer of split {self.split_index} is gone without a word in epoch {self.epoch}; see its process's "
            "logs, or use SplitOptions(on_split_lost='wait' or 'redistribute') to go on without it"
        )

    def taken_for_lost(self) -> SplitLostError:
        """Return what its consumer is told if it is there after all."""
        return SplitLostError(
            f"this consumer of split {self.split_index} was taken for lost in epoch {self.epoch}; iterate again to "
            "join the next one"
        )


@dataclass(frozen=True, slots=True)
class Delivery:
    """The answer to a split that asks for bundles.

    Attributes:
        bundles: The bundles; none at the end of the epoch.
        is_end: Whether the split's epoch has ended.
    """

    bundles: tuple[RefBundle, ...]
    is_end: bool = False


class Ledger:
    """The books of one split in one epoch: asked, delivered, acknowledged.

    A consumer asks with a sequence number that counts its deliveries, and gets the same answer when it repeats one; so
    a call that was cancelled or retried loses and doubles nothing.

    Args:
        split_index: The split.
        keeps: Whether what is not acknowledged is kept, to be given to somebody else.
        max_calls: Deliveries that the consumer may ask for at once; who asks for one has those before these.

    Attributes:
        rows: Rows that are the split's: delivered, or reserved for it.
        acked_rows: Rows that its consumers have acknowledged.
        bundles: Bundles that were delivered.
        bytes: Bytes of the rows that were delivered.
        wait_s: Seconds in which its consumers waited for bundles.
        prefetched_bytes: Bytes that its consumer holds ahead, as it reported last.
        reserved: Bundles that nobody else may get.
    """

    def __init__(self, split_index: int, *, keeps: bool, max_calls: int) -> None:
        """Nothing was asked for."""
        self.rows = 0
        self.acked_rows = 0
        self.bundles = 0
        self.bytes = 0
        self.wait_s = 0.0
        self.prefetched_bytes = 0
        self.reserved: deque[RefBundle] = deque()
        self._split_index = split_index
        self._keeps = keeps
        self._max_calls = max_calls
        self._unacked: deque[RefBundle] = deque()
        # Of the consumer that has the lease now.
        self._sequence = 0
        self._acked_by_lease = 0
        self._given_to_lease = 0
        self._asked: dict[int, int] = {}
        self._delivered: dict[int, tuple[RefBundle, ...]] = {}

    @property
    def wanted(self) -> int:
        """Bundles that the next delivery may have; 0: nobody waits for one."""
        return self._asked.get(self._sequence, 0)

    @property
    def unacked_rows(self) -> int:
        """Rows that were delivered and not acknowledged."""
        return self._given_to_lease - self._acked_by_lease

    def ask(self, sequence: int, max_bundles: int) -> None:
        """Note that the consumer waits for delivery number `sequence`.

        Raises:
            EpochError: It is neither one of the next deliveries nor one of the last.
        """
        is_next = self._sequence <= sequence < self._sequence + self._max_calls
        if not is_next and sequence not in self._delivered:
            raise EpochError(
                f"split {self._split_index} asked for delivery {sequence}; the next one is {self._sequence}"
            )
        for one in [one for one in self._delivered if one <= sequence - self._max_calls]:
            del self._delivered[one]
        if is_next:
            self._asked[sequence] = max(1, max_bundles)

    def is_next(self, sequence: int) -> bool:
        """Whether a delivery is the next one."""
        return sequence == self._sequence

    def deliver(self, bundles: Sequence[RefBundle]) -> None:
        """Make bundles, which are the split's already, its next delivery."""
        self._asked.pop(self._sequence, None)
        self._delivered[self._sequence] = tuple(bundles)
        self._sequence += 1
        self.bundles += len(bundles)
        self.bytes += sum(bundle.num_bytes for bundle in bundles)
        self._given_to_lease += sum(bundle.num_rows for bundle in bundles)
        if self._keeps:
            self._unacked.extend(bundles)

    def delivery(self, sequence: int) -> tuple[RefBundle, ...] | None:
        """Return delivery number `sequence`, if it has been made."""
        return self._delivered.get(sequence)

    def acknowledge(self, acked_rows: int) -> None:
        """Note that the consumer is done with so many rows since it has the lease; late words are harmless.

        Raises:
            EpochError: It was given fewer.
        """
        if acked_rows > self._given_to_lease:
            raise EpochError(
                f"split {self._split_index} acknowledged {acked_rows} rows; it was given {self._given_to_lease}"
            )
        rows = acked_rows - self._acked_by_lease
        if rows <= 0:
            return
        self._acked_by_lease = acked_rows
        self.acked_rows += rows
        if not self.unacked_rows:
            # It has them all, so it will not ask for them again.
            self._delivered.clear()
        while self._unacked and rows >= self._unacked[0].num_rows:
            rows -= self._unacked.popleft().num_rows
        if rows and self._unacked:
            self._unacked[0] = self._unacked[0].skip(rows)

    def reserve(self) -> None:
        """Keep what is not acknowledged for the next consumer, whose deliveries count from 0."""
        self.reserved.extendleft(reversed(self._unacked))
        self._end_lease()

    def give_back(self) -> list[RefBundle]:
        """Return what is not acknowledged, or reserved; it is the split's no more."""
        returned = [*self._unacked, *self.reserved]
        self.reserved.clear()
        self.rows -= sum(bundle.num_rows for bundle in returned)
        self._end_lease()
        return returned

    def drop(self) -> None:
        """Let go of all bundles."""
        self.reserved.clear()
        self._end_lease()

    def stats(self) -> SplitStats:
        """Return a snapshot."""
        return SplitStats(
            split_index=self._split_index,
            rows=self.rows,
            bundles=self.bundles,
            bytes=self.bytes,
            acked_rows=self.acked_rows,
            unacked_rows=self.unacked_rows,
            prefetched_bytes=self.prefetched_bytes,
            wait_s=self.wait_s,
        )

    def _end_lease(self) -> None:
        self._unacked.clear()
        self._asked.clear()
        self._delivered.clear()
        self.prefetched_bytes = 0
        self._sequence = self._acked_by_lease = self._given_to_lease = 0
