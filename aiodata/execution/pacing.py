"""Pacing: how large blocks and tasks of a stage should be, learnt from its outputs; no I/O.

A task's cuts must not depend on time, or a task that is run again would cut differently. So the time is looked at
here, between tasks, and each task is given fixed numbers. The first tasks of a run of user code are short, like the
first packets of a TCP connection (slow start); then a block is about `_BLOCK_S` of calls and a task about `_TASK_S`.
"""

from __future__ import annotations

from aiodata.plan.work import Cuts, OutputMetadata

# The first block of a run is about this large, so that the first batch comes early; a block costs about the same
# whatever its size, so they grow fast, and tasks that start later start with large ones.
_FIRST_BLOCK_BYTES = 1 << 20
_GROWTH = 8

# What a task may produce before it makes way for others: so many blocks of the target size, and at least so much.
_TASK_BLOCKS = 4
_TASK_BYTES = 64 << 20

# Seconds of user code per block and per task: a slow function's rows arrive this often, and its CPU is free for
# another run this often.
_BLOCK_S = 0.1
_TASK_S = 1.0

# To start a task takes about 20 ms in all, and the driver works a millisecond of them, for each of all workers: what
# takes less than so many seconds is not worth a task of its own.
_START_S = 0.05

# Seconds of work that a task of several blocks is given: few enough that at the end of a run none is waited for long.
_JOB_S = 0.5

# No task's output is larger than this part of the run's byte budget; so no block is, either.
_TASKS_PER_BUDGET = 8

# The part of a task's room that it is not given: one of so many.
_SPARE_PARTS = 8

# Blocks of the target size that a task produces as long as the speed is unknown.
_FIRST_TASK_BLOCKS = 16

# Blocks are handed over in groups if on average they come faster than one in so many seconds and are smaller than so
# many bytes. What is said of a group stays small: its end could not be looked for without waiting if it were stored.
_GROUPED_BLOCK_S = 2e-3
_GROUPED_BLOCK_BYTES = 64 << 10
_GROUPED_BLOCK_COLUMNS = 256

# Calls of a first task, whose speed is unknown, for each that may be in flight.
_FIRST_TASK_CALLS = 8
_MAX_CALLS = 1 << 20


class Pacing:
    """Learns the speed of a stage's user code and sizes its tasks accordingly.

    Args:
        target_block_bytes: The size that blocks grow to.
        budget_bytes: The bytes of blocks that the run may keep.
        calls_user_code: Whether the stage runs functions of the user's at all.
        calls_in_flight: How many calls of them a task makes at a time.

    Attributes:
        max_output_bytes: What a task produces at most, if no call of a user's function returns more than a block.
    """

    def __init__(
        self, target_block_bytes: int, budget_bytes: int, *, calls_user_code: bool, calls_in_flight: int = 1
    ) -> None:
        """Know nothing yet."""
        share_bytes = budget_bytes // _TASKS_PER_BUDGET
        # A block ends with the row that fills it, and so is somewhat larger than it should be.
        fitting_bytes = max(1, share_bytes - share_bytes // _SPARE_PARTS)
        self._target_block_bytes = min(target_block_bytes, fitting_bytes)
        self._task_bytes = min(max(_TASK_BLOCKS * target_block_bytes, _TASK_BYTES), fitting_bytes)
        self.max_output_bytes = self._task_bytes + self._task_bytes // (_SPARE_PARTS - 1)
        self._calls_user_code = calls_user_code
        self._calls_in_flight = calls_in_flight
        self._calls = 0
        self._seconds = 0.0
        self._bytes = 0
        self._blocks = 0
        self._max_columns = 0
        self._blocks_done = 0
        # Numbers that are as before are the same object: thousands of tasks refer to it.
        self._latest: Cuts | None = None

    def observe(self, output: OutputMetadata) -> None:
        """Learn from an output."""
        self._calls += output.calls
        self._seconds += output.task_s
        self._bytes += output.block.num_bytes
        self._blocks += 1
        self._max_columns = max(self._max_columns, len(output.block.schema))

    def observe_job(self, num_blocks: int) -> None:
        """Learn that a task is done with so many blocks that it was given."""
        self._blocks_done += num_blocks

    @property
    def blocks_per_job(self) -> int:
        """How many blocks a task should be given, at most; one, as long as nothing is known."""
        return self._blocks_in(_JOB_S)

    @property
    def blocks_worth_a_task(self) -> int:
        """How many blocks a task should be given, at least, if others are running meanwhile."""
        return self._blocks_in(_START_S)

    def _come_fast_and_small(self) -> bool:
        are_fast = self._seconds < self._blocks * _GROUPED_BLOCK_S
        are_small = self._bytes < self._blocks * _GROUPED_BLOCK_BYTES
        return are_fast and are_small and self._max_columns <= _GROUPED_BLOCK_COLUMNS

    def _blocks_in(self, seconds: float) -> int:
        return _clamp(seconds * self._blocks_done / max(self._seconds, 1e-7)) if self._blocks_done else 1

    def cuts(self, *, is_early: bool, room_bytes: int) -> Cuts:
        """Return the numbers for the next task.

        Args:
            is_early: Whether it is among the first of its run, whose blocks are waited for.
            room_bytes: How many output bytes there is room for.
        """
        target = self._target_block_bytes
        first_block_calls, calls_per_block, task_calls = 1, _FIRST_TASK_CALLS, _FIRST_TASK_CALLS * self._calls_in_flight
        if not self._calls_user_code:
            calls_per_block = task_calls = _MAX_CALLS
        elif self._calls:
            seconds_per_call = max(self._seconds / self._calls, 1e-7)
            # Whether its bytes are spent is looked at by a task after so many calls.
            fitting = target * self._calls / max(1, self._bytes)
            calls_per_block = first_block_calls = _clamp(min(_BLOCK_S / seconds_per_call, fitting))
            task_calls = _clamp(_TASK_S / seconds_per_call)
        cuts = Cuts(
            first_block_bytes=min(_FIRST_BLOCK_BYTES, target) if is_early else target,
            target_block_bytes=target,
            growth=_GROWTH,
            first_block_calls=first_block_calls,
            calls_per_block=calls_per_block,
            task_bytes=self._task_bytes if self._blocks else min(self._task_bytes, _FIRST_TASK_BLOCKS * target),
            task_calls=task_calls,
            in_groups=self._come_fast_and_small(),
            room_bytes=room_bytes,
        )
        if cuts != self._latest:
            self._latest = cuts
        return self._latest


def _clamp(calls: float) -> int:
    return max(1, min(int(calls), _MAX_CALLS))
