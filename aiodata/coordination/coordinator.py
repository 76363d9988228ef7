"""Coordinator: hosts an execution and hands its bundles to the splits that ask.

A plain async class; `streaming_split` hosts it in an actor that consumers in other processes call. Nothing in its
protocol needs shared memory.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import anyio

from aiodata.bundle import BlockRef
from aiodata.concurrency import News, Wakeup, cleared_frames, start
from aiodata.concurrency.supervise import unwrap
from aiodata.coordination.distribution import Distribution, OpenRun
from aiodata.coordination.epoch import DELIVERY_BYTES, EpochPhase, EpochState
from aiodata.coordination.gathering import Gathering, describe_splits
from aiodata.coordination.lease import Delivery, Lease
from aiodata.errors import BarrierTimeoutError, EpochError, SplitBusyError
from aiodata.options import SplitOptions
from aiodata.stats import CoordinatorStats, RunStats

# Returns what a consumer keeps for as long as it is there; the function is called when it is gone. See
# `aiodata.runtime.hosting`.
NewToken = Callable[[Callable[[], None]], Any]

_logger = logging.getLogger("aiodata")

# How long a consumer waits for the one before it to leave, in seconds: one that has died is noticed within that time.
_BUSY_AFTER_S = 4.0

# A consumer that leaves in good order says so, and lets go of its token; the two go different ways. So long is waited
# for the word, in seconds.
_GRACE_S = 0.2


# Consumers that were taken for lost and are remembered, should they ask all the same.
_MAX_LOST = 1_000


_END = Delivery((), is_end=True)


class Coordinator:
    """Runs one execution per epoch and shares it among `num_splits` splits.

    `serve` has to run beside the calls. An epoch starts when every split has arrived, and its execution is shut down
    when every split has finished.

    Args:
        open_run: Prepares one execution; called once per epoch.
        num_splits: The number of splits.
        options: What happens where splits are late or lost.
        equal: Whether all splits get the same number of rows.
        nodes: The node that each split's consumer is on, as far as known.
        node_of: Returns the node that a block lies on.
        max_calls: Deliveries that a consumer may ask for at once.
        delivery_bytes: Bytes from which on a delivery gets no further bundle.
        new_token: See `NewToken`; without it, consumers that are lost are not noticed.
    """

    def __init__(
        self,
        open_run: OpenRun,
        num_splits: int,
        *,
        options: SplitOptions | None = None,
        equal: bool = False,
        nodes: Sequence[str | None] = (),
        node_of: Callable[[BlockRef], str | None] = lambda _: None,
        max_calls: int = 1,
        delivery_bytes: int = DELIVERY_BYTES,
        new_token: NewToken | None = None,
    ) -> None:
        """Prepare epoch 0."""
        self._open_run = open_run
        self._num_splits = num_splits
        self._options = options or SplitOptions()
        self._equal = equal
        self._nodes = tuple(nodes)
        self._node_of = node_of
        self._max_calls = max_calls
        self._delivery_bytes = delivery_bytes
        self._new_token = new_token
        self._running: EpochState | None = None
        self._latest: EpochState | None = None
        self._gathering = self._gather(0, set())
        # The latest one that did not come about, for those who have not heard of that.
        self._failed: Gathering | None = None
        self._num_leases = 0
        # Numbers of the latest leases whose consumers were lost.
        self._lost: deque[int] = deque(maxlen=_MAX_LOST)
        self._changed = Wakeup()
        self._answered = [News() for _ in range(num_splits)]
        self._concluded = News()  # That all are done with what they were given, or that the epoch is over.
        self.left = News()  # Of splits that have left, and executions that have been shut down.
        self._scope = anyio.CancelScope()
        self._watchers: anyio.abc.TaskGroup | None = None
        self._overhead_s = 0.0

    @property
    def phase(self) -> EpochPhase:
        """Where the latest epoch is in its life; `ENDED` while its execution is being shut down."""
        return self._running.phase if self._running is not None else EpochPhase.GATHERING

    @property
    def epoch(self) -> int:
        """The number of the latest epoch that has begun."""
        return self._latest.epoch if self._latest is not None else 0

    async def serve(self) -> None:
        """Run epochs, one after the other, until cancelled."""
        try:
            async with anyio.create_task_group() as self._watchers:
                while True:
                    while self._gathering.state.absent:
                        await self._changed.wait()
                    await self._serve_epoch()
        finally:
            self._watchers = None

    async def join(self, split_index: int) -> tuple[Lease, Any]:
        """Take a split, for the next epoch or for the rest of one whose consumer was lost.

        Where it has a consumer, that one is given some seconds to leave.

        Returns:
            The lease, and a token: the split counts as lost when nobody holds it any more.

        Raises:
            EpochError: There is no such split.
            SplitBusyError: It has a live consumer.
        """
        with anyio.move_on_after(_BUSY_AFTER_S):
            while (state := self._open_to(split_index)) is None:
                await self.left.wait()
            self._num_leases += 1
            lease = Lease(state.epoch, split_index, self._num_leases)
            token = self._new_token and self._new_token(lambda: self._on_released(lease))
            if state is self._gathering.state:
                self._gathering.arrive(lease)
            else:
                state.arrive(lease)
            self._changed.set()
            self._settle(state)
            return lease, token
        raise SplitBusyError(
            f"split {split_index} has a live consumer already; each split is for one consumer at a time: close the "
            "other one's iterator, or use another split"
        )

    async def start_epoch(self, lease: Lease, within_s: float = float("inf")) -> tuple[int, ...]:
        """Wait until the epoch of a lease begins; return the splits that are absent: none, unless time is up.

        Args:
            lease: What `join` returned.
            within_s: How long to wait, in seconds.

        Raises:
            BarrierTimeoutError: Not all splits arrived in time; the lease has ended.
            SplitLostError: A split was lost, and all are to be told; or this one was taken for lost.
        """
        gathering = self._gathering_of(lease)
        if gathering is self._gathering:
            self._check_held(lease)
        if lease.epoch != gathering.state.epoch:
            return ()
        if gathering.state.leases.get(lease.split_index) != lease:
            raise EpochError(f"this consumer of split {lease.split_index} has left epoch {lease.epoch}; iterate again")
        is_late = await gathering.wait(lease.split_index, within_s, self._options.barrier_timeout_s, self.left)
        if gathering.state.failure is not None:
            raise gathering.state.failure.with_traceback(None)
        absent = tuple(gathering.state.absent)
        if absent and is_late:
            self.notify_split_finished(lease)
            raise BarrierTimeoutError(
                f"epoch {lease.epoch} did not begin within {self._options.barrier_timeout_s:g} s: "
                f"{describe_splits(absent)} of {self._num_splits} did not arrive; every split needs a consumer"
            )
        self._check_held(lease)
        return absent

    async def next_bundles(
        self,
        lease: Lease,
        sequence: int,
        *,
        max_bundles: int = 1,
        acked_rows: int = 0,
        prefetched_bytes: int = 0,
    ) -> Delivery:
        """Return a split's next bundles, waiting for them.

        Asking again with the same number gives the same answer, until the next one is asked for.

        Args:
            lease: What `join` returned.
            sequence: How many deliveries it had before this one.
            max_bundles: How many bundles to return at most.
            acked_rows: Rows that the consumer is done with.
            prefetched_bytes: Bytes of blocks that it holds ahead.

        Raises:
            EpochError: The epoch has not begun, or `sequence` is not among the next deliveries or the last.
            SplitLostError: A split was lost, and all are to be told; or this one was taken for lost.
            Exception: The execution has failed.
        """
        if not self._is_current(lease) or (state := self._running) is None:
            return _END
        state.acknowledge(lease.split_index, acked_rows, prefetched_bytes)
        state.ask(lease.split_index, sequence, max_bundles)
        self._changed.set()
        self._settle(state)
        ledger = state.ledgers[lease.split_index]
        while self._is_current(lease):
            if (bundles := ledger.delivery(sequence)) is not None:
                return Delivery(bundles)
            if state.has_ended(lease.split_index):
                break
            # Of several calls, the first one's wait is the consumer's.
            started, counts = anyio.current_time(), ledger.is_next(sequence)
            await self._answered[lease.split_index].wait()
            ledger.wait_s += (anyio.current_time() - started) * counts
        return _END

    async def conclude(self, lease: Lease) -> None:
        """Say that a split's user has asked for more than there is; wait until all have, or have left.

        Who returns from here knows that nobody can be lost any more with rows that nobody was done with.

        Raises:
            SplitLostError: A split was lost, and all are to be told; or this one was taken for lost.
            Exception: The execution has failed.
        """
        while self._is_current(lease) and (state := self._running) is not None:
            state.conclude(lease.split_index)
            if state.is_concluded:
                self._concluded.tell()
                return
            await self._concluded.wait()

    def acknowledge(self, lease: Lease, acked_rows: int, prefetched_bytes: int = 0) -> None:
        """Note what a consumer is done with, in rows, and what it holds ahead, in bytes; late words are harmless."""
        if self._running is not None and self._running.is_live(lease):
            self._running.acknowledge(lease.split_index, acked_rows, prefetched_bytes)

    def notify_split_finished(self, lease: Lease) -> None:
        """Say that a split wants no more of an epoch; stale leases and repeats are harmless.

        What it held is dropped at once; when all splits have finished, the execution is shut down.
        """
        for state in (self._running, self._gathering.state):
            if state is not None and state.leases.get(lease.split_index) == lease:
                state.finish(lease.split_index)
                self._note_left(state, lease.split_index)

    def fail(self, error: Exception) -> None:
        """Have the consumers of the running epoch raise an error."""
        if self._running is not None:
            self._running.fail(error)
            self._scope.cancel()
            self._tell_all()

    def stats(self, run: RunStats) -> CoordinatorStats:
        """Return a snapshot.

        Args:
            run: What the run behind it has done.
        """
        state = self._latest or self._gathering.state
        return CoordinatorStats(
            epoch=state.epoch,
            phase=state.phase.name.lower(),
            absent=tuple(self._gathering.state.absent),
            splits=tuple(ledger.stats() for ledger in state.ledgers),
            dropped_rows=state.dropped_rows,
            overhead_s=self._overhead_s,
            run=run,
        )

    def _gather(self, epoch: int, missing: set[int]) -> Gathering:
        state = EpochState(
            epoch,
            self._num_splits,
            equal=self._equal,
            on_split_lost=self._options.on_split_lost,
            nodes=self._nodes,
            max_calls=self._max_calls,
            delivery_bytes=self._delivery_bytes,
            missing=missing,
        )
        return Gathering(state)

    async def _serve_epoch(self) -> None:
        """Run the epoch that all have arrived at, up to its end."""
        begun = self._gathering
        self._running = self._latest = state = begun.state
        self._gathering = self._gather(state.epoch + 1, state.missing)
        begun.open()
        self.left.tell()
        try:
            try:
                with anyio.CancelScope() as self._scope, cleared_frames():
                    await Distribution(state, self._node_of, self._changed, self._settle).run(self._open_run)
            except Exception as error:  # noqa: BLE001 - whatever it is, whoever iterates raises it.
                self.fail(unwrap(error))
            while state.phase is not EpochPhase.ENDED:
                await self._changed.wait()
        finally:
            self._warn_of_left_rows(state)
            state.drop()
        self._running = None
        self._tell_all()

    def _warn_of_left_rows(self, state: EpochState) -> None:
        if state.left_rows:
            _logger.warning("epoch %d: %d rows of a lost consumer went to nobody", state.epoch, state.left_rows)

    def _open_to(self, split_index: int) -> EpochState | None:
        """Return the epoch that a new consumer of a split can join, if there is one."""
        running, gathering = self._running, self._gathering.state
        if running is not None:
            if running.can_arrive(split_index):
                return running
            lease = running.leases.get(split_index)
            if lease is not None and running.is_live(lease):
                return None
        return gathering if gathering.can_arrive(split_index) else None

    def _gathering_of(self, lease: Lease) -> Gathering:
        """Return what a lease waits for; the epoch that is to come, where it waits for nothing."""
        failed = self._failed
        return failed if failed is not None and failed.state.leases.get(lease.split_index) == lease else self._gathering

    def _is_current(self, lease: Lease) -> bool:
        """Whether a lease is of the running epoch, and goes on.

        Raises:
            EpochError: Its epoch has not begun.
            SplitLostError: Its consumer was taken for lost.
            Exception: The epoch has failed.
        """
        self._check_held(lease)
        state = self._running
        if lease.epoch > (state.epoch if state is not None else self._gathering.state.epoch - 1):
            raise EpochError(f"epoch {lease.epoch} has not started; wait for it with start_epoch")
        if state is None or lease.epoch < state.epoch:
            return False
        if state.failure is not None:
            raise state.failure.with_traceback(None)
        return state.is_live(lease)

    def _check_held(self, lease: Lease) -> None:
        """Raise `SplitLostError` if somebody was taken for lost who asks all the same."""
        if lease.number in self._lost:
            raise lease.taken_for_lost()

    def _on_released(self, lease: Lease) -> None:
        states = (self._running, self._gathering.state)
        if self._watchers is not None and any(state is not None and state.is_live(lease) for state in states):
            start(self._watchers, self._lose_soon, lease)

    async def _lose_soon(self, lease: Lease) -> None:
        """Note that a consumer is gone, unless it says that it leaves in good order."""
        await anyio.sleep(_GRACE_S)
        split = lease.split_index
        failure = lease.lost()
        gathering = self._gathering
        if self._running is not None and self._running.is_live(lease):
            self._lost.append(lease.number)
            self._running.lose(split, failure)
            if self._running.failure is failure:
                self._scope.cancel()
                self._tell_all()
                # Who has had its part of this epoch already waits for the next one, to which nobody may come.
                self._fail_gathering(failure)
            if split in self._running.missing and gathering.state.can_arrive(split):
                gathering.state.lose(split, failure)
            self._note_left(self._running, split)
        elif gathering.state.is_live(lease):
            self._lost.append(lease.number)
            gathering.state.lose(split, failure)
            if gathering.state.failure is not None:
                self._fail_gathering(failure)
            self._note_left(gathering.state, split)

    def _fail_gathering(self, failure: Exception) -> None:
        """Have those who wait for the next epoch raise an error; others may gather for it."""
        self._failed = self._gathering
        self._gathering = self._gather(self._failed.state.epoch, self._failed.state.missing)
        self._failed.fail(failure)

    def _note_left(self, state: EpochState, split_index: int) -> None:
        self._answered[split_index].tell()
        self.left.tell()
        if state.is_concluded:
            self._concluded.tell()
        self._settle(state)
        self._changed.set()
        if state.phase is EpochPhase.ENDED:
            self._scope.cancel()

    def _settle(self, state: EpochState) -> None:
        """Assign what there is, and answer those who got something."""
        started = perf_counter()
        for split in state.assign():
            self._answered[split].tell()
        self._overhead_s += perf_counter() - started

    def _tell_all(self) -> None:
        for answered in self._answered:
            answered.tell()
        self._concluded.tell()
        self.left.tell()
        self._changed.set()
