"""A plain model of an epoch and its consumers, which checks each answer of the `EpochState` that it drives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from aiodata.bundle import BlockMetadata, RefBundle
from aiodata.coordination.epoch import EpochPhase, EpochState
from aiodata.coordination.lease import Lease
from aiodata.options import OnSplitLost

SCHEMA = pa.schema([("id", pa.int64())])


def bundle_of(ids: Sequence[int]) -> RefBundle:
    """A bundle of which nobody fetches the block: the rows are their own reference."""
    return RefBundle.whole(ids, BlockMetadata(len(ids), 8 * len(ids), SCHEMA, "memory"))


def ids_of(*bundles: RefBundle) -> list[int]:
    return [row for bundle in bundles for row in bundle.ref[bundle.start : bundle.stop]]


@dataclass(slots=True)
class Consumer:
    """What one consumer of a split has asked for and received, by its lease."""

    lease: Lease
    asked: int = 0
    deliveries: list[list[int]] = field(default_factory=list)
    acked: int = 0
    has_ended: bool = False

    @property
    def given(self) -> list[int]:
        return list(itertools.chain.from_iterable(self.deliveries))

    @property
    def waits(self) -> bool:
        return self.asked > len(self.deliveries) and not self.has_ended


class Model:
    """Keeps books of its own of who has which row, and looks after each event whether the state's agree.

    Args:
        num_splits: The number of splits.
        equal: Whether all get the same number of rows.
        mode: What becomes of a split whose consumer is lost.
        max_calls: Deliveries that a consumer asks for at once.
        delivery_bytes: Bytes from which on a delivery gets no further bundle.
    """

    def __init__(
        self, num_splits: int, *, equal: bool, mode: OnSplitLost, max_calls: int, delivery_bytes: int = 1 << 20
    ) -> None:
        self.num_splits = num_splits
        self.equal = equal
        self.mode = mode
        self.max_calls = max_calls
        self.state = EpochState(
            7, num_splits, equal=equal, on_split_lost=mode, max_calls=max_calls, delivery_bytes=delivery_bytes
        )
        self.consumers: dict[int, Consumer] = {}
        self.started = self.exhausted = False
        self.num_offered = 0
        self.num_leases = 0
        # Rows that are nobody's, those that wait for a split's next consumer, and those that are over.
        self.free: set[int] = set()
        self.owed: dict[int, list[int]] = {split: [] for split in range(num_splits)}
        self.over: dict[int, list[int]] = {split: [] for split in range(num_splits)}
        self.finished: set[int] = set()
        self.missing: set[int] = set()
        self.was_told_before_a_loss = False
        self.lost_rows = 0

    @property
    def splits(self) -> set[int]:
        """Splits that the epoch goes on with."""
        return set(range(self.num_splits)) - self.finished - self.missing

    @property
    def vacant(self) -> list[int]:
        """Splits that a consumer can come to."""
        if not self.started:
            return [split for split in range(self.num_splits) if split not in self.consumers]
        return sorted(self.splits - self.consumers.keys())

    @property
    def askers(self) -> list[int]:
        """Splits whose consumers can ask for one delivery more."""
        return [
            split
            for split, one in self.consumers.items()
            if not one.has_ended and one.asked < len(one.deliveries) + self.max_calls
        ]

    def arrive(self, split: int) -> None:
        assert self.state.can_arrive(split)
        self.num_leases += 1
        self.consumers[split] = Consumer(Lease(7, split, self.num_leases))
        self.missing.discard(split)
        self.state.arrive(self.consumers[split].lease)
        self.settle()

    def start(self) -> None:
        self.started = True
        self.state.start()

    def ask(self, split: int, max_bundles: int = 1) -> None:
        one = self.consumers[split]
        self.state.ask(split, one.asked, max_bundles)
        one.asked += 1
        self.settle()

    def repeat(self, split: int) -> None:
        one = self.consumers[split]
        self.state.ask(split, one.asked - 1)
        self.settle()

    def offer(self, num_rows: int) -> None:
        ids = range(self.num_offered, self.num_offered + num_rows)
        self.num_offered += num_rows
        self.free.update(ids)
        self.state.offer(bundle_of(ids))
        self.settle()

    def exhaust(self) -> None:
        self.exhausted = True
        self.state.exhaust()
        self.settle()

    def acknowledge(self, split: int, count: int) -> None:
        one = self.consumers[split]
        self.state.acknowledge(split, count, 0)
        one.acked = max(one.acked, count)

    def finish(self, split: int) -> None:
        one = self.consumers.pop(split, None)
        self.state.finish(split)
        if self.started:
            self.finished.add(split)
            self.over[split] += one.given if one else []
            self.over[split] += self.owed[split]
            self.owed[split] = []
        self.settle()

    def lose(self, split: int) -> None:
        one = self.consumers.pop(split)
        failure = RuntimeError(f"split {split}")
        self.state.lose(split, failure)
        if not self.started:
            if self.mode == "redistribute":
                self.missing.add(split)
                self.missing = self.missing if len(self.missing) < self.num_splits else set()
        elif self.mode == "raise":
            assert self.state.failure is not None
            self.finished.add(split)
            self.over[split] += one.given
        else:
            done, rest = one.given[: one.acked], one.given[one.acked :]
            self.over[split] += done
            self.was_told_before_a_loss |= any(other.has_ended for other in self.consumers.values())
            if self.mode == "wait":
                self.owed[split] = rest + self.owed[split]
            else:
                self.missing.add(split)
                self.free.update(rest)
                self.free.update(self.owed[split])
                self.owed[split] = []
        self.settle()

    def settle(self) -> None:
        """Have the state assign, take in what was delivered, and check that each row was there to be given."""
        waited = {split for split, one in self.consumers.items() if one.waits}
        served = set(self.state.assign())
        assert served <= waited
        for split, one in self.consumers.items():
            before = (len(one.deliveries), one.has_ended)
            while (bundles := self.state.ledgers[split].delivery(len(one.deliveries))) is not None:
                rows = ids_of(*bundles)
                assert rows
                owed = self.owed[split][: len(rows)]
                assert rows[: len(owed)] == owed, "what another had not acknowledged comes first, and in order"
                assert set(rows[len(owed) :]) <= self.free
                self.owed[split] = self.owed[split][len(owed) :]
                self.free -= set(rows)
                one.deliveries.append(rows)
            one.has_ended = self.state.has_ended(split)
            assert (split in served) == (before != (len(one.deliveries), one.has_ended))
        self.drop_what_nobody_gets()

    def drop_what_nobody_gets(self) -> None:
        """Take from the free rows what the state has let go of, and check that it may."""
        pool = ids_of(*(bundle for bundle, _ in self.state._pool))
        assert len(pool) == len(set(pool)) == self.state._pool_rows
        assert set(pool) <= self.free
        gone = self.free - set(pool)
        assert not gone or self.equal or self.state.failure
        self.free = set(pool)
        self.lost_rows += len(gone)

    def rows_of(self, split: int) -> int:
        """How many rows are a split's."""
        one = self.consumers.get(split)
        return len(self.over[split]) + len(self.owed[split]) + (len(one.given) if one else 0)

    def check(self) -> None:
        """Check what holds between any two events."""
        if not self.started:
            assert self.state.phase is EpochPhase.GATHERING
            assert self.state.absent == [one for one in self.vacant if one not in self.missing]
        else:
            assert self.state.phase is (EpochPhase.RUNNING if self.splits else EpochPhase.ENDED)
            assert self.state.missing == self.missing
        assert self.state.live == self.splits
        for split, one in self.consumers.items():
            assert self.state.is_live(one.lease)
            ledger = self.state.ledgers[split]
            assert (ledger.rows, ledger.unacked_rows) == (self.rows_of(split), len(one.given) - one.acked)
        self.check_waiting()
        self.check_equal()

    def check_waiting(self) -> None:
        """Nobody waits for what is there, and nobody is sent away who could get more."""
        waiting = [split for split, one in self.consumers.items() if one.waits]
        for split in waiting:
            assert not self.owed[split]
            if self.equal:
                assert not (self.exhausted and self.state._allowed(split))
            else:
                assert not self.free
            if not self.exhausted and not self.state.num_wanted:
                assert self.equal
                assert not self.state._allowed(split)
                assert any(self.state._allowed(other) for other in self.splits - set(waiting)), "it waits for others"
        if self.exhausted and self.mode != "redistribute":
            assert not waiting
        if not waiting:
            assert self.state.num_wanted == 0
        ended = [one for one in self.consumers.values() if one.has_ended]
        assert self.exhausted or not ended
        if self.mode == "redistribute" and waiting and ended and not self.equal:
            assert waiting == [max(self.splits)], "the last one stays"
        if self.mode == "redistribute" and not self.was_told_before_a_loss and ended:
            assert not self.free

    def check_equal(self) -> None:
        """No split has more than its part."""
        if self.equal and self.started and self.num_splits > len(self.missing):
            missing_rows = sum(self.rows_of(split) for split in self.missing)
            part = (self.num_offered - missing_rows) // (self.num_splits - len(self.missing))
            assert all(self.rows_of(split) <= part for split in self.splits | self.finished)

    def drain(self) -> None:
        """Have everybody ask to the end, and check that the epoch ends and that no row is left over."""
        for split in self.vacant:
            self.arrive(split)
        if not self.started:
            self.start()
        if not self.exhausted:
            self.exhaust()
        for split in self.vacant:
            self.arrive(split)
        stayed = dict(self.consumers)
        for _ in range(4 * (self.num_offered + self.num_splits)):
            if self.state.phase is EpochPhase.ENDED:
                break
            for split in self.askers:
                self.ask(split, 2)
            self.check()
            for split in [split for split, one in self.consumers.items() if one.has_ended]:
                self.finish(split)
                self.check()
        assert self.state.phase is EpochPhase.ENDED, "nobody waits for ever"
        rows = sorted(row for over in self.over.values() for row in over)
        assert len(rows) == len(set(rows)), "no row twice"
        if not self.was_told_before_a_loss and not (self.missing and not stayed):
            assert not self.free
            assert len(rows) + self.lost_rows == self.num_offered
        if self.equal and not self.missing:
            part = self.num_offered // self.num_splits
            assert all(len(self.over[split]) == part for split in stayed)
            assert self.state.dropped_rows == self.num_offered % self.num_splits
            assert all(len(over) <= part for over in self.over.values())
        elif self.equal and stayed and not self.was_told_before_a_loss:
            assert len({len(self.over[split]) for split in stayed}) == 1
