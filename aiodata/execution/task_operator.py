"""The operator that runs tasks: on pieces of a source, or on the blocks that it is sent."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import anyio
import anyio.lowlevel
import pyarrow as pa

from aiodata.bundle import BlockRef, InlineBlock, RefBundle
from aiodata.concurrency import Turn, Wakeup, ask_in_thread, cleared_frames, receive, reminding, send, start
from aiodata.errors import AiodataError, TaskError
from aiodata.execution.budget import Expectation
from aiodata.execution.claims import Claims
from aiodata.execution.context import RunContext
from aiodata.execution.counters import OperatorCounters
from aiodata.execution.data_op_task import DataOpTask
from aiodata.execution.jobs import JobQueue
from aiodata.execution.learning import SchemaLearning
from aiodata.execution.operators import Inputs, Output
from aiodata.execution.ordering import OutputOrder
from aiodata.execution.pacing import Pacing
from aiodata.execution.workers import Workers
from aiodata.plan.control import FailedRows
from aiodata.plan.optimize import MapStage, ReadStage
from aiodata.plan.passes import BlockShuffle
from aiodata.plan.pieces import Piece
from aiodata.plan.source import Source, raise_it
from aiodata.plan.work import OutputMetadata, TaskEnd, Work
from aiodata.runtime.base import Task

# Pairs whose metadata is fetched together, at most.
_MAX_FETCHED_TOGETHER = 64

# Several blocks of together less than this are one job, whatever size blocks should have.
_MIN_JOB_BYTES = 4 << 20

# Blocks that wait to become jobs, at most: one for so many tasks that may run, and at least so many, since several
# small ones make a job.
_TASKS_PER_WAITING_BLOCK = 4
_MIN_WAITING_BLOCKS = 64

# Blocks that a task that waits for room is given room for at a time, at most: the next ones may be larger.
_MAX_BLOCKS_GIVEN = 64
# Tasks of which nothing has come for so long are worth a word, in seconds: calls that take long are no fault.
_SILENT_S = 30.0

_logger = logging.getLogger("aiodata")


class TaskOperator:
    """Runs a stage's tasks and sends on their blocks, as they come or in order.

    New tasks start only while the outputs of those that run are taken and the run's byte budget has room, and a task
    ends when its allotment is spent; so what is produced ahead of a slow consumer is bounded, and nobody holds a CPU
    to wait for it.

    Args:
        stage: What its tasks do.
        workers: What its tasks run on.
        run: What it shares with the other operators of the run.
        is_starving: Whether everything that comes after it has nothing to do.
        num_later: How many operators of this kind come after it.
        is_learnt_from: Whether an operator after it finds out its schema by what it is sent, so that this is to come
            in the order of the input.
    """

    def __init__(
        self,
        stage: ReadStage | MapStage,
        workers: Workers,
        run: RunContext,
        is_starving: Callable[[], bool],
        num_later: int,
        is_learnt_from: Callable[[], bool],
    ) -> None:
        """Prepare."""
        self.counters = OperatorCounters(stage.name)
        self.num_sent = 0
        self._stage = stage
        self._workers = workers
        self._run = run
        self._is_starving = is_starving
        self._pacing = Pacing(
            run.options.target_block_bytes,
            run.budget.limit_bytes,
            calls_user_code=any(transform.calls_user_code for transform in stage.chain),
            calls_in_flight=max((transform.calls_in_flight for transform in stage.chain), default=1),
        )
        self._expectation = Expectation(self._pacing.max_output_bytes)
        # Room that is left for the tasks of later operators: these must not have to wait for more to become free.
        self._headroom_bytes = min(num_later * self._pacing.max_output_bytes, run.budget.limit_bytes // 2)
        self._learning = SchemaLearning(stage.chain)
        # What has left the order, and waits for the schemas to be known.
        self._early: deque[RefBundle] = deque()
        # The schema that was learnt, if one was to be, and one of a block's that is like it.
        self._had_to_learn = self.is_learning
        self._learnt_schema: pa.Schema | None = None
        self._same_schema: pa.Schema | None = None
        self._input_schema: pa.Schema | None = None
        self._is_learnt_from = is_learnt_from
        self._order = OutputOrder(preserve=self._must_be_in_order, max_jobs_ahead=workers.max_tasks)
        self._claims = Claims(self._learning, self._order)
        max_job_bytes = max(run.options.target_block_bytes, _MIN_JOB_BYTES)
        self._max_waiting_bytes = workers.max_tasks * max_job_bytes
        self._jobs = JobQueue(self._order, max_job_bytes, _batch_rows(stage))
        self._running: dict[Task, DataOpTask] = {}
        # Of those the ones that wait for room, in the middle of a call.
        self._waiting: dict[Task, DataOpTask] = {}
        self._ready: deque[DataOpTask] = deque()
        self._outputs: deque[RefBundle] = deque()
        self._wakeup = Wakeup()
        self._room = Wakeup()
        self._warned = False
        self._warned_of_silence = False
        self._lane = run.prefetcher.lane(self._wakeup.set)
        # Tens of thousands of tasks may refer to it: one object for all.
        self._tell = self._on_ready

    @property
    def is_learning(self) -> bool:
        """Whether the schema of its outputs is to be found out by running it."""
        return not self._learning.is_complete

    @property
    def is_idle(self) -> bool:
        """Whether it has no job, no task, and no output that its receiver has not taken.

        A few rows that wait for others, to be a full batch, do not count: whoever brings those must not wait for these.
        """
        has_job = bool(self._jobs) and not self._jobs.is_short_of_rows
        return not (self._running or self._outputs or self._claims or has_job)

    @property
    def _must_be_in_order(self) -> bool:
        return self._run.options.preserve_order or self.is_learning or self._is_learnt_from()

    async def run(self, inputs: Sequence[Inputs], output: Output) -> None:
        """Run tasks until the input is done; on the way out, whatever the reason, stop those that run."""
        resources = self._run.resources(self._stage)
        stage = await self._run.runtime.stage(self._stage.name, self._stage.chain, resources)
        try:
            async with anyio.create_task_group() as group:
                self._workers.open(stage, group, self._wakeup.set)
                if isinstance(self._stage, ReadStage):
                    start(group, self._plan_source, self._stage.source, self._stage.shuffle)
                for one in inputs:
                    start(group, self._take_inputs, one)
                await self._drive(output)
                group.cancel_scope.cancel()
        finally:
            await self._stop()

    async def _plan_source(self, source: Source, shuffle: BlockShuffle | None) -> None:
        """Divide the source's pieces into jobs."""
        num_tasks = self._workers.max_tasks
        errors: list[AiodataError] = []
        skip = errors.append if self._run.options.max_errored_blocks else raise_it

        def pieces_of() -> Sequence[Piece]:
            if shuffle is None:
                return source.pieces(num_tasks, skip)
            return shuffle.shuffled(source.blocks(skip), self._run.this_pass)

        pieces = await ask_in_thread(pieces_of)
        for error in errors:
            self._run.skipped.add(error)
        self._jobs.add_pieces(pieces, num_tasks)
        self._jobs.is_complete = True
        self._wakeup.set()

    async def _take_inputs(self, inputs: Inputs) -> None:
        """Take blocks, not many more than there is room to run."""
        with cleared_frames(), suppress(anyio.EndOfStream):
            while True:
                bundle = await receive(inputs.stream)
                self._input_schema = bundle.conform_to or self._input_schema
                self._jobs.add_bundle(await self._store(bundle) if isinstance(bundle.ref, InlineBlock) else bundle)
                del bundle
                inputs.num_taken += 1
                self._wakeup.set()
                while self._has_enough_waiting():
                    await self._room.wait()
        self._jobs.is_complete = True
        self._wakeup.set()

    def _has_enough_waiting(self) -> bool:
        if self._jobs.is_short_of_rows:
            return False
        has_many = self._jobs.num_bundles >= max(
            self._workers.max_tasks // _TASKS_PER_WAITING_BLOCK, _MIN_WAITING_BLOCKS
        )
        return has_many or self._jobs.num_bundle_bytes >= self._max_waiting_bytes

    async def _store(self, bundle: RefBundle) -> RefBundle:
        """Bring a block of this process to where tasks can get at it."""
        ref = await self._run.runtime.put(bundle.ref.table)
        if isinstance(ref, InlineBlock):  # It is there already, and counted if it counts.
            return bundle
        num_bytes = bundle.metadata.num_bytes
        self._run.budget.add(num_bytes)
        self._run.runtime.on_release(ref, self._run.budget.remover(num_bytes))
        return replace(bundle, ref=ref)

    async def _drive(self, output: Output) -> None:
        """Start tasks, and send on what they produce, until there is nothing left to do."""
        while True:
            self._launch()
            if self.is_idle:
                # An operator before it may be next now.
                self._run.budget.tell_refused()
                if self._jobs.is_complete:
                    if self.is_learning:
                        self._end_learning()
                        await self._send_outputs(output)
                    return
            with reminding(self._warn_of_silence, first_s=_SILENT_S, is_repeated=False):
                await self._wakeup.wait()
            turn = Turn()
            while self._ready:
                self._ready.popleft().pull()
                is_over = turn.is_over()
                if self._ready and self._lane.num_new < _MAX_FETCHED_TOGETHER and not is_over:
                    continue
                await self._lane.flush()
                await self._send_outputs(output)
                if is_over:
                    self._launch()
                    await anyio.lowlevel.checkpoint()
                    turn = Turn()
            await self._send_outputs(output)

    def _launch(self) -> None:
        """Give room to tasks that wait for it, and start others, as far as the byte budget has room."""
        self._give_room()
        self._start_tasks()
        self._let_first_go_on()

    def _give_room(self) -> None:
        """Have tasks that wait in the middle of a call go on, by the order of the input, before others start."""
        for task in sorted(self._waiting.values(), key=lambda task: task.job.number):
            num_blocks = self._num_fitting(task.largest_block_bytes)
            if not num_blocks:
                self._run.budget.refuse(self._wakeup.set)
                return
            self._let_go_on(task, num_blocks)

    def _num_fitting(self, block_bytes: int) -> int:
        """Return how many blocks there is room for, up to what a task is allotted."""
        num_blocks = min(max(1, self._pacing.max_output_bytes // max(1, block_bytes)), _MAX_BLOCKS_GIVEN)
        while num_blocks and not self._run.budget.fits(num_blocks * block_bytes + self._headroom_bytes):
            num_blocks //= 2
        return num_blocks

    def _let_first_go_on(self) -> None:
        """Have one task go on though the budget is spent, where nothing would ever become free without it."""
        if not self._waiting or self._outputs or not self._is_starving():
            return
        first = min(self._waiting.values(), key=lambda task: task.job.number)
        # All others have to wait for the job at the head, which may be under way.
        if self._order.preserves and first.job.number != self._order.head and not self._workers.all_wait(self._waiting):
            return
        self._let_go_on(first, 1)

    def _let_go_on(self, task: DataOpTask, num_blocks: int) -> None:
        assert task.handle is not None, "it was started"
        del self._waiting[task.handle]
        task.give_room(num_blocks)

    def _start_tasks(self) -> None:
        """Start tasks as long as there are jobs, workers and room in the byte budget."""
        turn = Turn()
        while self._jobs.may_take():
            if not self._workers.num_free:
                self._workers.want_more()
                return
            if self._may_wait_for_more():
                return
            if turn.is_over():
                self._wakeup.set()
                return
            room_bytes = self._find_room()
            if room_bytes is None:
                self._run.budget.refuse(self._wakeup.set)
                return
            self._start(room_bytes)

    def _find_room(self) -> int | None:
        """Return how many bytes a task may produce: as much as it will, or else what it needs to begin with."""
        budget, most, least = self._run.budget, self._expectation.num_bytes, self._expectation.least_bytes
        if not self._waiting:
            # If it has room for all, it need not ask; but others are to find room, too.
            if budget.fits(most + max(self._headroom_bytes, budget.limit_bytes // 2)):
                return most
            if budget.fits(least + self._headroom_bytes):
                return least
        return least if self._is_next() else None

    def _may_wait_for_more(self) -> bool:
        """Whether a few small blocks had better wait for others, since a task that runs will have it looked at again.

        After John Nagle's algorithm for small packets (RFC 896).
        """
        if not self._running or self._jobs.is_complete:
            return False
        return not self._jobs.is_worth_a_task(self._pacing.blocks_worth_a_task)

    def _is_next(self) -> bool:
        """Whether a task may start though the budget is spent: without it nothing would ever become free."""
        if self._outputs or not self._is_starving():
            return False
        return not self._running or (self._jobs.is_head_waiting and self._workers.all_wait(self._waiting))

    def _start(self, room_bytes: int) -> None:
        pacing = self._pacing
        cuts = pacing.cuts(is_early=self.counters.tasks < self._run.runtime.num_cpus, room_bytes=room_bytes)
        job = self._jobs.take(self._workers.num_free, pacing.blocks_worth_a_task, pacing.blocks_per_job)
        task = DataOpTask(self, job, self._lane, self._run.runtime, self._run.budget, room_bytes)
        task.began_at_head = job.number == self._order.head
        work = Work(
            job.pieces,
            cuts,
            job.start,
            self._run.skipped.num_left,
            self._learning.schemas,
            self._learning.is_complete,
            # How many rows came before is known of the job at the head alone.
            self._learning.max_unknown_rows if task.began_at_head else None,
            self._input_schema,
        )
        task.handle = self._workers.submit(work, job.refs, self._tell)
        self._running[task.handle] = task
        self.counters.tasks += 1
        self._room.set()

    async def _send_outputs(self, output: Output) -> None:
        if not self._outputs:
            return
        while self._outputs:
            self._outputs[0] = bundle = self._conformed(self._outputs[0])
            if not self.num_sent:
                self.counters.schema = bundle.schema
            self.num_sent += 1
            del bundle  # The receiver alone is to keep it.
            await send(output, self._outputs[0])
            self._outputs.popleft()
        self._run.budget.tell_refused()

    def _conformed(self, bundle: RefBundle) -> RefBundle:
        """Return a bundle with the schema that was learnt, which a task that began earlier did not know."""
        if not self._had_to_learn or bundle.schema is self._same_schema:
            return bundle
        if self._learnt_schema is None:
            self._learnt_schema = self._learning.output_schema()
        assert self._learnt_schema is not None, "there are rows"
        conformed = bundle.conformed(self._learnt_schema)
        if conformed is bundle:
            self._same_schema = bundle.schema
        return conformed

    def _on_ready(self, handle: Task) -> None:
        if (task := self._running.get(handle)) is not None:
            self.on_pull_again(task)

    def on_pull_again(self, task: DataOpTask) -> None:
        """Pull a task in its turn."""
        self._ready.append(task)
        self._wakeup.set()

    def on_output(self, task: DataOpTask, ref: BlockRef, metadata: OutputMetadata) -> None:
        """Take a block; it is sent on in its turn."""
        self._pacing.observe(metadata)
        if task.is_void:
            return
        if (claim := self._claims.hold(task, metadata.learned)) is not None:
            claim.outputs.append((ref, metadata))
            self._settle()
        else:
            self._pass_on(task, ref, metadata)
            self._leave_order()

    def _pass_on(self, task: DataOpTask, ref: BlockRef, metadata: OutputMetadata) -> None:
        self.counters.add(metadata, task.job.number)
        if metadata.block.num_rows:
            self._order.add(task.job.number, RefBundle.whole(ref, metadata.block), self._released())
        self._skip(metadata.errors, metadata.failed_rows)

    def _skip(self, errors: Sequence[AiodataError], failed_rows: FailedRows | None) -> None:
        """Note what a task went on after, if that may be."""
        if failed_rows is not None:
            self._run.skipped.add_rows(failed_rows)
        for error in errors:
            self._run.skipped.add(error)

    def on_needs_room(self, task: DataOpTask) -> None:
        """Have the task wait for its turn to be given room."""
        assert task.handle is not None, "it was started"
        self._waiting[task.handle] = task
        self._wakeup.set()

    def on_lost(self, task: DataOpTask, error: Exception) -> None:
        """Skip a block that was dropped, if that may be; one of a void task's is made again."""
        if task.is_void:
            return
        lost = TaskError(self.counters.name, "a block that was lost", None, f"{type(error).__name__}: {error}")
        lost.__cause__ = error
        self._run.skipped.add(lost)

    def on_unknown_size(self) -> None:
        """Warn once: the byte budget lags behind."""
        if not self._warned:
            self._warned = True
            _logger.warning("%s: sizes of blocks are known only from their metadata", self.counters.name)

    def _warn_of_silence(self, waited_s: float) -> None:
        """Say, once, that tasks have given nothing for long: a call of a user's function may never return."""
        if not self._warned_of_silence and self._running:
            self._warned_of_silence = True
            _logger.warning(
                "%s: nothing has come of its %d tasks for %.0f s. A call may take so long, which this says once; if it "
                "never returns, give what it waits for a timeout",
                self.counters.name,
                len(self._running),
                waited_s,
            )

    def on_finished(self, task: DataOpTask, end: TaskEnd) -> None:
        """Let go of the task's worker; see to what follows as soon as what it took for granted is known to be true."""
        assert task.handle is not None, "it was started"
        del self._running[task.handle]
        self._waiting.pop(task.handle, None)
        self._workers.release(task.handle, is_lost=end.is_worker_lost)
        self._expectation.observe(task.produced_bytes, task.largest_block_bytes)
        if task.is_void:
            self._jobs.add_rest(task.job)
        elif (claim := self._claims.hold(task, end.learned)) is not None:
            claim.end = end
            self._settle()
        else:
            self._conclude(task, end)
            self._leave_order()
        self._wakeup.set()

    def _conclude(self, task: DataOpTask, end: TaskEnd) -> None:
        """Skip what failed, if that may be; then go on with what the task has left, or with the next job's outputs."""
        self._skip((*end.errors, *([end.error] if end.error is not None else ())), end.failed_rows)
        self._pacing.observe_job(len(task.job.refs) if end.rest is None else end.rest.piece)
        if end.rest is not None:
            self._jobs.add_rest(task.job.rest(end.rest))
        else:
            self._order.finish(task.job.number, self._released())

    def _settle(self) -> None:
        """See to what tasks have taken for granted, as far as it is known to be true, or not to be."""
        for claim in self._claims.settled():
            if claim.task.is_void:
                if claim.end is not None:
                    self._jobs.add_rest(claim.task.job)
                continue
            for ref, metadata in claim.outputs:
                self._pass_on(claim.task, ref, metadata)
            claim.outputs.clear()
            if claim.end is not None:
                self._conclude(claim.task, claim.end)
        self._leave_order()

    def _released(self) -> deque[RefBundle]:
        """Return where bundles go that may leave, as far as their order is concerned."""
        if self.is_learning:
            return self._early
        self._outputs += self._early
        self._early.clear()
        return self._outputs

    def _leave_order(self) -> None:
        """Let go of what waited for the schemas, if they are known now; then of the order, if none is needed."""
        released = self._released()
        if self._order.preserves and not self._must_be_in_order:
            self._order.release(released)

    def _end_learning(self) -> None:
        """Leave unknown what is so far: columns of nulls alone."""
        self._learning.finish()
        self._settle()

    async def _stop(self) -> None:
        """Cancel the tasks that run, then wait until they have stopped: shielded, and bounded."""
        running = list(self._running)
        for task in self._running.values():
            task.abandon()
        for held in (self._running, self._waiting, self._ready, self._outputs, self._early, self._claims, self._jobs):
            held.clear()
        self._order.clear()
        self._lane.clear()
        self._run.budget.tell_refused()
        for handle in running:
            handle.cancel()
        with anyio.move_on_after(self._run.options.close_timeout_s, shield=True):
            async with anyio.create_task_group() as group:
                start(group, self._workers.close)
                while running:
                    start(group, running.pop().wait_stopped)


def _batch_rows(stage: ReadStage | MapStage) -> int | None:
    """Return how many rows the first function of a stage is called with, if they are rows of its input."""
    for transform in stage.chain:
        if transform.calls_user_code:
            return transform.batch_size
        if not transform.keeps_num_rows:
            break
    return None
