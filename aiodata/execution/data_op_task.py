"""DataOpTask: a running task, as its operator sees it."""

from __future__ import annotations

import enum
from collections import deque
from functools import partial
from typing import Protocol

from aiodata.bundle import BlockRef
from aiodata.execution.budget import ByteBudget
from aiodata.execution.jobs import Job
from aiodata.execution.metadata import Lane
from aiodata.plan.work import OutputMetadata, TaskEnd
from aiodata.runtime.base import Outcome, Pair, Runtime, Task


class DataOpTaskState(enum.Enum):
    """A task's life.

    `ACTIVE`: pairs may surface. `DRAINED`: its end has surfaced, while pairs before it wait for their metadata.
    `FINISHED`: all of them have been emitted.
    """

    ACTIVE = enum.auto()
    DRAINED = enum.auto()
    FINISHED = enum.auto()


# One for all tasks that have no pair waiting; it stays empty.
_NOTHING_CHARGED: deque[int | None] = deque(maxlen=0)


class TaskOwner(Protocol):
    """The operator that a task belongs to."""

    def on_output(self, task: DataOpTask, ref: BlockRef, metadata: OutputMetadata) -> None:
        """Take a block."""

    def on_pull_again(self, task: DataOpTask) -> None:
        """Take note that the task has no pairs waiting any more, and may be pulled again."""

    def on_needs_room(self, task: DataOpTask) -> None:
        """Take note that the task waits until it is given room."""

    def on_lost(self, task: DataOpTask, error: Exception) -> None:
        """Take note that a block's metadata can not be had, so that the block was dropped."""

    def on_unknown_size(self) -> None:
        """Take note that a block's size was not known when it surfaced."""

    def on_finished(self, task: DataOpTask, end: TaskEnd) -> None:
        """See to the end of the task; called once, after its last block has been emitted."""


class DataOpTask:
    """Pulls a task's pairs, has their metadata fetched, and counts their bytes.

    Args:
        owner: Who gets its outputs.
        job: What it does.
        lane: Where its pairs wait for their metadata.
        runtime: Where it runs.
        budget: What its bytes are counted in.
        expected_bytes: How many bytes it is expected to produce.

    Attributes:
        began_at_head: Whether its job was at the head of the input when it began.
        is_void: Whether its outputs are dropped, and its job is done again.
        produced_bytes: What it has produced.
        largest_block_bytes: The size of its largest block.
    """

    __slots__ = (
        "_budget",
        "_charged",
        "_expected_bytes",
        "_lane",
        "_max_beyond",
        "_num_beyond",
        "_num_waiting",
        "_owner",
        "_runtime",
        "began_at_head",
        "handle",
        "is_void",
        "job",
        "largest_block_bytes",
        "produced_bytes",
        "state",
    )

    def __init__(
        self, owner: TaskOwner, job: Job, lane: Lane, runtime: Runtime, budget: ByteBudget, expected_bytes: int
    ) -> None:
        """Count what is expected of it."""
        self.job = job
        self.began_at_head = False
        self.is_void = False
        self.state = DataOpTaskState.ACTIVE
        self.produced_bytes = 0
        self.largest_block_bytes = 0
        self.handle: Task | None = None
        self._owner = owner
        self._lane = lane
        self._runtime = runtime
        self._budget = budget
        self._num_waiting = 0
        # Blocks beyond the room that it had: how many it has made, and how many it may.
        self._num_beyond = 0
        self._max_beyond = 0
        self._charged: deque[int | None] = _NOTHING_CHARGED
        self._expected_bytes = expected_bytes
        budget.expect(expected_bytes)

    def pull(self) -> None:
        """Submit every pair that has surfaced; nothing, while pairs of this task wait for their metadata."""
        if self._num_waiting or self.state is not DataOpTaskState.ACTIVE or self.handle is None:
            return
        pairs = self.handle.pull()
        if not pairs:
            return
        self._num_waiting = len(pairs)
        self._charged = deque()
        for pair in pairs:
            self._charge(self._size_of(pair))
            self._lane.submit(self, pair)

    def emit(self, pair: Pair, outcome: Outcome) -> None:
        """Take a pair and what became of its metadata; what comes after the end stands for nothing."""
        if self.state is DataOpTaskState.FINISHED:
            return
        self._num_waiting -= 1
        num_bytes = self._charged.popleft()
        if isinstance(outcome, OutputMetadata):
            if num_bytes is None:
                num_bytes = outcome.block.num_bytes
                self._owner.on_unknown_size()
                self._count(num_bytes)
            self.largest_block_bytes = max(outcome.block.num_bytes, self.largest_block_bytes)
            self._follow(pair, num_bytes)
            self._owner.on_output(self, pair.ref, outcome)
            if outcome.needs_room:
                self._note_needs_room()
        else:
            self._uncharge(num_bytes)
            if isinstance(outcome, TaskEnd):
                self.abandon()
                self.state = DataOpTaskState.FINISHED
                self._owner.on_finished(self, outcome)
                return
            assert outcome is not None, "a pair is emitted when it has an outcome"
            self._owner.on_lost(self, outcome)
            # What it said may have been just that.
            if self._max_beyond or not self._expected_bytes:
                self._note_needs_room()
        if not self._num_waiting:
            self._charged = _NOTHING_CHARGED
            self._owner.on_pull_again(self)

    def _follow(self, pair: Pair, num_bytes: int) -> None:
        """Have a block counted as long as something refers to it."""
        if pair.charge is None:
            self._runtime.on_release(pair.ref, self._budget.remover(num_bytes))
            return
        pair.charge.num_bytes += num_bytes
        self._budget.take_over(pair.charge, pair.shared)
        self._runtime.on_release(pair.ref, partial(self._budget.settle, pair.charge))

    def give_room(self, num_blocks: int) -> None:
        """Let it make so many more blocks; each is expected to be as large as the largest so far."""
        if self.handle is None or self.state is not DataOpTaskState.ACTIVE:
            return
        num_bytes = num_blocks * self.largest_block_bytes
        self._expected_bytes += num_bytes
        self._budget.expect(num_bytes)
        self._max_beyond += num_blocks
        self.handle.give_room(self._max_beyond)

    def _note_needs_room(self) -> None:
        """Expect nothing of it while it waits."""
        self._num_beyond += 1
        if self._num_beyond > self._max_beyond:
            self._expect_nothing()
            self.give_room(0)
            self._owner.on_needs_room(self)

    def _expect_nothing(self) -> None:
        self._budget.expect(-self._expected_bytes)
        self._expected_bytes = 0

    def drain(self) -> None:
        """Expect nothing more of it: its end has surfaced."""
        if self.state is DataOpTaskState.ACTIVE:
            self.state = DataOpTaskState.DRAINED
            self._expect_nothing()

    def abandon(self) -> None:
        """Count nothing of it any more that was not emitted: nobody will take it."""
        self.drain()
        while self._charged:
            self._uncharge(self._charged.popleft())

    def _size_of(self, pair: Pair) -> int | None:
        if pair.ref is None:  # The end has no block.
            return 0
        # Where the metadata is there already, it need not be worked out again.
        known = pair.metadata
        if isinstance(known, OutputMetadata):
            return max(0, known.block.num_bytes - sum(num_bytes for _, num_bytes in pair.shared))
        return self._runtime.size_of(pair.ref)

    def _charge(self, num_bytes: int | None) -> None:
        """Count a block's bytes; they are not expected any more. None: its metadata will say how many they are."""
        self._charged.append(num_bytes)
        if num_bytes is not None:
            self._count(num_bytes)

    def _count(self, num_bytes: int) -> None:
        self.produced_bytes += num_bytes
        self._budget.add(num_bytes)
        was_expected = min(num_bytes, self._expected_bytes)
        self._expected_bytes -= was_expected
        self._budget.expected_bytes -= was_expected

    def _uncharge(self, num_bytes: int | None) -> None:
        if num_bytes is not None:
            self.produced_bytes -= num_bytes
            self._budget.remove(num_bytes)
