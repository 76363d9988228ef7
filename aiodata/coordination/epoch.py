"""EpochState: who has arrived, who gets what, who has finished or is lost; events in, answers out, no I/O."""

from __future__ import annotations

import enum
import heapq
from collections import deque
from collections.abc import Iterable, Sequence

from aiodata.bundle import RefBundle
from aiodata.coordination.lease import Lease, Ledger
from aiodata.errors import EpochError
from aiodata.options import MIB, OnSplitLost

# Bundles go together to a split until they have so many bytes: small ones cost less together, and large ones that
# wait with one consumer could be used by another.
DELIVERY_BYTES = 8 * MIB


class EpochPhase(enum.Enum):
    """An epoch's life: `GATHERING` until every split has arrived, `RUNNING`, `ENDED` when every split has finished."""

    GATHERING = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()


class EpochState:
    """One epoch over `num_splits` splits.

    Without `equal`, whoever asks first gets the next bundle. With it, whoever has the fewest rows does: a split gets
    whole bundles as long as it stays within its part of the rows that were seen, and narrowed ones where that is the
    only way. What an event costs does not depend on the number of splits.

    Args:
        epoch: The epoch's number, from 0.
        num_splits: The number of splits that share it.
        equal: Whether all splits get the same number of rows.
        on_split_lost: What becomes of a split whose consumer is lost.
        nodes: The node that each split's consumer is on, as far as known; a split gets bundles on its node first.
        max_calls: Deliveries that a consumer may ask for at once.
        delivery_bytes: Bytes from which on a delivery gets no further bundle.
        missing: Splits that the epoch does not wait for, since their consumers were lost before.

    Attributes:
        ledgers: What each split was given.
        leases: Who has each split, or had it last.
        failure: Why the epoch has failed, if it has.
        dropped_rows: Rows that nobody gets, so that all get the same number.
        missing: Splits that the epoch goes on without.
        live: Splits that have a consumer, or wait for one.
        is_exhausted: Whether there are no more bundles.
    """

    def __init__(
        self,
        epoch: int,
        num_splits: int,
        *,
        equal: bool = False,
        on_split_lost: OnSplitLost = "wait",
        nodes: Sequence[str | None] = (),
        max_calls: int = 1,
        delivery_bytes: int = DELIVERY_BYTES,
        missing: Iterable[int] = (),
    ) -> None:
        """Nobody has arrived."""
        self.epoch = epoch
        self.num_splits = num_splits
        self.on_split_lost = on_split_lost
        keeps = on_split_lost != "raise"
        self.ledgers = [Ledger(split, keeps=keeps, max_calls=max_calls) for split in range(num_splits)]
        self.leases: dict[int, Lease] = {}
        self.failure: Exception | None = None
        self.dropped_rows = 0
        self._equal = equal
        self._nodes = [*nodes, *[None] * (num_splits - len(nodes))]
        self.delivery_bytes = delivery_bytes
        self._is_started = False
        self._finished: set[int] = set()
        self._lost: set[int] = set()  # They wait for another consumer.
        self.missing = set(missing)
        self.live = set(range(num_splits)) - self.missing
        self._await_all_if_none()
        # Splits that were told that they get nothing more, and those whose users have asked for more than there is.
        self._told: set[int] = set()
        self._concluded: set[int] = set()
        # Splits that wait, and the number of their place; the places by rank, of which those that were left are stale.
        self._line: dict[int, int] = {}
        self._places: list[tuple[int, int, int]] = []
        self._num_places = 0
        # Bundles that nobody has yet, and the node that each is on.
        self._pool: deque[tuple[RefBundle, str | None]] = deque()
        self._pool_rows = 0
        # Rows that are to be shared equally, and of these those that splits had which are missing now, or which have
        # finished, with what was passed over for them.
        self._seen_rows = 0
        self._gone_rows = 0
        self._finished_rows = 0
        self.is_exhausted = False

    @property
    def phase(self) -> EpochPhase:
        """Where the epoch is in its life."""
        if not self._is_started:
            return EpochPhase.GATHERING
        return EpochPhase.RUNNING if self.live else EpochPhase.ENDED

    @property
    def absent(self) -> list[int]:
        """Splits that the epoch waits for."""
        return sorted(self.live - self.leases.keys())

    def is_live(self, lease: Lease) -> bool:
        """Whether a consumer has its split."""
        split = lease.split_index
        return split in self.live and split not in self._lost and self.leases.get(split) == lease

    def has_ended(self, split_index: int) -> bool:
        """Whether a split has had everything, and can be told so, or has said that it wants no more."""
        return split_index in self._finished or split_index in self._told

    def can_arrive(self, split_index: int) -> bool:
        """Whether a split has no consumer, and one can still join the epoch.

        Raises:
            EpochError: There is no such split.
        """
        if not 0 <= split_index < self.num_splits:
            raise EpochError(f"there is no split {split_index}; there are {self.num_splits}")
        return split_index in self._lost if self._is_started else split_index not in self.leases

    def arrive(self, lease: Lease) -> None:
        """Note that a split has a consumer; in a running epoch it goes on with what another has not acknowledged."""
        self.leases[lease.split_index] = lease
        self.live.add(lease.split_index)
        for splits in (self._lost, self.missing, self._told):
            splits.discard(lease.split_index)

    def start(self) -> None:
        """Note that the epoch has begun."""
        self._is_started = True

    def ask(self, split_index: int, sequence: int, max_bundles: int = 1) -> None:
        """Note that a split waits for delivery number `sequence`, of so many bundles at most.

        Raises:
            EpochError: It is neither one of the next deliveries nor one of the last.
        """
        self.ledgers[split_index].ask(sequence, max_bundles)
        self._line_up(split_index)

    def offer(self, bundle: RefBundle, node: str | None = None) -> None:
        """Take a bundle, which lies on that node, to be assigned."""
        self._seen_rows += bundle.num_rows
        self._pool_rows += bundle.num_rows
        self._pool.append((bundle, node))

    def exhaust(self) -> None:
        """Note that there are no more bundles."""
        self.is_exhausted = True
        # Perhaps nobody asks any more.
        self._pass_over()

    def assign(self) -> list[int]:
        """Give splits that wait what there is; return those that need wait no more."""
        if not self._line:
            return []
        self._pass_over()
        served: dict[int, None] = {}
        # Where the first in line can be given nothing, no other can.
        while (split := self._first_in_line()) is not None and (bundles := self._pick(split)):
            self._leave_line(split)
            self.ledgers[split].deliver(bundles)
            self._line_up(split)
            served[split] = None
        for split in self._at_end():
            self._leave_line(split)
            self._told.add(split)
            served[split] = None
        return list(served)

    @property
    def num_wanted(self) -> int:
        """Bundles that could be assigned at once if they were offered, more or less; 0: none."""
        first = self._first_in_line()
        if self.is_exhausted or first is None:
            return 0
        if self._equal:
            # Where nobody may have what there is, it takes no room from what they could have.
            return max(int(self._is_undivided), len(self.live) - len(self._pool))
        return max(1, self.ledgers[first].wanted + len(self._line) - 1 - len(self._pool))

    def conclude(self, split_index: int) -> None:
        """Note that a split's user is done with all it was given, and has asked for more; repeats are harmless."""
        if split_index in self.live:
            self._concluded.add(split_index)

    @property
    def is_concluded(self) -> bool:
        """Whether all who have not left are done with all they were given, so that no loss can leave a gap."""
        return len(self._concluded) == len(self.live)

    def acknowledge(self, split_index: int, acked_rows: int, prefetched_bytes: int) -> None:
        """Note what a split is done with, in rows, and what it holds ahead, in bytes.

        Raises:
            EpochError: It was given fewer rows.
        """
        self.ledgers[split_index].acknowledge(acked_rows)
        self.ledgers[split_index].prefetched_bytes = prefetched_bytes

    def finish(self, split_index: int) -> None:
        """Note that a split wants no more; what it held is dropped. Repeats are harmless.

        Before the start, the split only goes: the epoch waits for it to come again.
        """
        if not self._is_started:
            self.leases.pop(split_index, None)
        elif split_index in self.live:
            self._leave(split_index)
            self._finished.add(split_index)
            self._finished_rows += self.ledgers[split_index].rows
            self.ledgers[split_index].drop()
            self._pass_over()

    def lose(self, split_index: int, failure: Exception) -> None:
        """Note that a split's consumer is gone without a word; of one that has finished, that changes nothing.

        Args:
            split_index: The split.
            failure: What everybody is told, if everybody is.
        """
        if split_index not in self.live:
            return
        if self.on_split_lost == "raise":
            self.fail(failure)
        if self.on_split_lost == "redistribute":
            self._go_without(split_index)
        elif self.failure is not None:
            # Nobody gets anything more, so there is nothing to wait for.
            self.finish(split_index)
        elif self._is_started:
            self._leave_line(split_index)
            self._lost.add(split_index)
            self.ledgers[split_index].reserve()
        else:
            self.leases.pop(split_index, None)

    def fail(self, failure: Exception) -> None:
        """Note why nobody gets anything more; the first reason counts. No lost consumer is waited for any more."""
        self.failure = self.failure or failure
        self._clear_pool()
        for split in list(self._lost):
            self.finish(split)

    @property
    def left_rows(self) -> int:
        """Rows of lost splits that were nobody's when all others had been told of the end."""
        return self._pool_rows if self.is_exhausted and self.missing and not self._equal else 0

    def drop(self) -> None:
        """Let go of all bundles."""
        self._clear_pool()
        for ledger in self.ledgers:
            ledger.drop()

    def _go_without(self, split_index: int) -> None:
        """Give the others what a split has not acknowledged."""
        self._leave(split_index)
        self.missing.add(split_index)
        if not self._is_started:
            self.leases.pop(split_index, None)
            self._await_all_if_none()
        ledger = self.ledgers[split_index]
        returned = ledger.give_back()
        self._gone_rows += ledger.rows
        if self.failure is None:
            self._pool.extendleft((bundle, None) for bundle in reversed(returned))
            self._pool_rows += sum(bundle.num_rows for bundle in returned)

    def _await_all_if_none(self) -> None:
        """Where the consumers of all splits were lost, the epoch waits for new ones."""
        if not self.live:
            self.missing.clear()
            self.live.update(range(self.num_splits))

    def _leave(self, split_index: int) -> None:
        self._leave_line(split_index)
        for splits in (self.live, self._lost, self._told, self._concluded):
            splits.discard(split_index)

    def _line_up(self, split_index: int) -> None:
        """Put a split behind all who wait; before them if something is reserved for it, or if it has fewer rows."""
        ledger = self.ledgers[split_index]
        if not ledger.wanted or split_index in self._line or split_index in self._told:
            return
        rank = -1 if ledger.reserved else ledger.rows if self._equal else 0
        self._num_places += 1
        self._line[split_index] = self._num_places
        heapq.heappush(self._places, (rank, self._num_places, split_index))

    def _leave_line(self, split_index: int) -> None:
        self._line.pop(split_index, None)

    def _first_in_line(self) -> int | None:
        while self._places:
            _, place, split = self._places[0]
            if self._line.get(split) == place:
                return split
            heapq.heappop(self._places)
        return None

    def _at_end(self) -> list[int]:
        """Return those in line who can be told that they get nothing more; called when they have had what there is.

        What a lost one leaves may become another's. So with `redistribute` nobody goes before all have had everything,
        and the last one stays until the others have gone; with `equal` nobody can have more than the others, so that
        one need not stay.
        """
        if not self.is_exhausted:
            return []
        if self.on_split_lost != "redistribute":
            return list(self._line)
        if self._pool or len(self._line.keys() | self._told) < len(self.live):
            return []
        last = max(self.live)
        return [split for split in self._line if self._equal or split != last or len(self.live) == 1]

    def _pick(self, split_index: int) -> list[RefBundle]:
        """Take the next bundles of the first in line out of what there is, as far as they are its part."""
        ledger = self.ledgers[split_index]
        max_bundles = ledger.wanted
        if not ledger.reserved:
            # With several in line, each gets its part.
            max_bundles = min(max_bundles, -(-len(self._pool) // len(self._line)))
        picked: list[RefBundle] = []
        num_bytes = 0
        while len(picked) < max_bundles and (not picked or num_bytes < self.delivery_bytes):
            if ledger.reserved:
                bundle = ledger.reserved.popleft()
            elif self._pool and (drawn := self._draw(split_index)) is not None:
                bundle = drawn
                ledger.rows += bundle.num_rows
                self._pool_rows -= bundle.num_rows
            else:
                break
            picked.append(bundle)
            num_bytes += bundle.metadata.num_bytes
        return picked

    def _draw(self, split_index: int) -> RefBundle | None:
        if self._equal:
            return self._draw_part(split_index)
        nearest = self._nodes[split_index]
        index = next((at for at, (_, node) in enumerate(self._pool) if nearest is not None and node == nearest), 0)
        bundle, _ = self._pool[index]
        del self._pool[index]
        return bundle

    def _draw_part(self, split_index: int) -> RefBundle | None:
        """Take the first bundle if it is within a split's part; narrow it if waiting would not help."""
        allowed = self._allowed(split_index)
        bundle, node = self._pool[0]
        if bundle.num_rows <= allowed:
            self._pool.popleft()
            return bundle
        if not allowed or (not self.is_exhausted and len(self._pool) < len(self.live)):
            return None
        self._pool[0] = bundle.skip(allowed), node
        return bundle.head(allowed)

    @property
    def _part_rows(self) -> int:
        """Rows that each split is to have of those that were seen; never fewer than before."""
        return (self._seen_rows - self._gone_rows) // self._num_sharing

    @property
    def _num_sharing(self) -> int:
        return max(1, self.num_splits - len(self.missing))

    @property
    def _is_undivided(self) -> bool:
        """Whether all have their parts, so that what is left, if anything, are fewer rows than splits."""
        return self._pool_rows == (self._seen_rows - self._gone_rows) % self._num_sharing

    def _allowed(self, split_index: int) -> int:
        """Return how many rows of the pool a split may have, so that all get the same number."""
        return self._part_rows - self.ledgers[split_index].rows

    def _pass_over(self) -> None:
        """Let go of what nobody gets: the parts of splits that have finished, and rows that can not be divided."""
        if not self._equal:
            return
        self._finished_rows += self._discard(len(self._finished) * self._part_rows - self._finished_rows)
        if self.is_exhausted and self._is_undivided:
            self._seen_rows -= self._pool_rows
            self.dropped_rows += self._discard(self._pool_rows)

    def _discard(self, num_rows: int) -> int:
        """Drop rows of the pool, so many at most; return how many."""
        left = num_rows
        while left and self._pool:
            bundle, node = self._pool.popleft()
            if bundle.num_rows > left:
                self._pool.appendleft((bundle.skip(left), node))
            left -= min(left, bundle.num_rows)
        self._pool_rows -= num_rows - left
        return num_rows - left

    def _clear_pool(self) -> None:
        self._pool.clear()
        self._pool_rows = 0
