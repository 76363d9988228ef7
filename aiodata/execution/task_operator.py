"""The operator that runs tasks: on pieces of a source, or on the blocks that it is sent."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import anyio
import anyio.lowlevel
import pyarrow as pa

from aiodata.bundle import BlockRef, InlineBlock, RefBundle
from aiodata.concurrency import Turn, Wakeup, ask_in_thread, cleared_frames, receive, send, start
from aiodata.errors import AiodataError, TaskError
from aiodata.execution.budget import Expectation
from aiodata.execution.context import RunContext
from aiodata.execution.counters import OperatorCounters
from aiodata.execution.data_op_task import DataOpTask
from aiodata.execution.jobs import JobQueue
from aiodata.execution.learning import MAX_ROWS, SchemaLearning
from aiodata.execution.operators import Inputs, Output
from aiodata.execution.ordering import OutputOrder
from aiodata.execution.pacing import Pacing
from aiodata.execution.workers import Workers
from aiodata.plan.nodes import Resources
from aiodata.plan.optimize import MapStage, ReadStage
from aiodata.plan.source import Source, raise_it
from aiodata.plan.work import Cuts, OutputMetadata, Schemas, TaskEnd, Work
from aiodata.runtime.base import Task
from aiodata.schemas import SchemaError

# Pairs whose metadata is fetched together, at most.
_MAX_FETCHED_TOGETHER = 64

# Several blocks of together less than this are one job, whatever size blocks should have.
_MIN_JOB_BYTES = 4 << 20

# Blocks that wait to become jobs, at most: one for so many tasks that may run, and at least so many, since several
# small ones make a job.
_TASKS_PER_WAITING_BLOCK = 4
_MIN_WAITING_BLOCKS = 64

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
        starts_in_order: Whether the first rows that it sends are to be the first ones in the order of its input, since
            an operator after it learns from them.
    """

    def __init__(
        self,
        stage: ReadStage | MapStage,
        workers: Workers,
        run: RunContext,
        is_starving: Callable[[], bool],
        num_later: int,
        *,
        starts_in_order: bool,
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
        # What tasks have taken for granted that is not known to be true, and ends that wait for that, by job.
        self._claims: dict[int, tuple[DataOpTask, Schemas]] = {}
        self._ends: dict[int, tuple[DataOpTask, TaskEnd]] = {}
        # What has left the order, and waits for the schemas to be known.
        self._early: deque[RefBundle] = deque()
        # The schema that was learnt, and one of a block's that is like it.
        self._schema: pa.Schema | None = None
        self._same_schema: pa.Schema | None = None
        self._input_schema: pa.Schema | None = None
        in_order = run.options.preserve_order or starts_in_order or not self._learning.is_complete
        self._order = OutputOrder(preserve=in_order, max_jobs_ahead=workers.max_tasks)
        max_job_bytes = max(run.options.target_block_bytes, _MIN_JOB_BYTES)
        self._max_waiting_bytes = workers.max_tasks * max_job_bytes
        self._jobs = JobQueue(self._order, max_job_bytes, _batch_rows(stage))
        self._running: dict[Task, DataOpTask] = {}
        self._ready: deque[DataOpTask] = deque()
        self._outputs: deque[RefBundle] = deque()
        self._wakeup = Wakeup()
        self._room = Wakeup()
        self._warned = False
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
        return not (self._running or self._outputs or self._ends or has_job)

    async def run(self, inputs: Sequence[Inputs], output: Output) -> None:
        """Run tasks until the input is done; on the way out, whatever the reason, stop those that run."""
        resources = Resources() if isinstance(self._stage, ReadStage) else self._stage.resources
        stage = await self._run.runtime.stage(self._stage.name, self._stage.chain, resources)
        try:
            async with anyio.create_task_group() as group:
                self._workers.open(stage, group, self._wakeup.set)
                if isinstance(self._stage, ReadStage):
                    start(group, self._plan_source, self._stage.source)
                for one in inputs:
                    start(group, self._take_inputs, one)
                await self._drive(output)
                group.cancel_scope.cancel()
        finally:
            await self._stop()

    async def _plan_source(self, source: Source) -> None:
        """Divide the source's pieces into jobs."""
        num_tasks = self._workers.max_tasks
        errors: list[AiodataError] = []
        skip = errors.append if self._run.options.max_errored_blocks else raise_it
        pieces = await ask_in_thread(partial(source.pieces, num_tasks, skip))
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
            cuts = self._pacing.cuts(is_early=self.counters.tasks < self._run.runtime.num_cpus)
            expected_bytes = self._expectation.num_bytes
            if not self._run.budget.fits(expected_bytes + self._headroom_bytes) and not self._is_next():
                self._run.budget.refuse(self._wakeup.set)
                return
            self._start(cuts, expected_bytes)

    def _may_wait_for_more(self) -> bool:
        """Whether a few small blocks had better wait for others, since a task that runs will have it looked at again.

        After John Nagle's algorithm for small packets (RFC 896).
        """
        if not self._running or self._jobs.is_complete:
            return False
        return not self._jobs.is_worth_a_task(self._pacing.blocks_worth_a_task)

    def _is_next(self) -> bool:
        """Whether a task may start though the budget is spent: without it nothing would ever become free."""
        return not self._running and not self._outputs and self._is_starving()

    def _start(self, cuts: Cuts, expected_bytes: int) -> None:
        pacing = self._pacing
        job = self._jobs.take(self._workers.num_free, pacing.blocks_worth_a_task, pacing.blocks_per_job)
        task = DataOpTask(self, job, self._lane, self._run.runtime, self._run.budget, expected_bytes)
        work = Work(
            job.pieces,
            cuts,
            job.start,
            self._run.skipped.num_left,
            self._learning.schemas,
            self._learning.is_complete,
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
        if self._schema is None or bundle.schema is self._same_schema:
            return bundle
        conformed = bundle.conformed(self._schema)
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
        self._note_claims(task, metadata.learned)
        if task.is_void:
            return
        self.counters.add(metadata, task.job.number)
        if metadata.block.num_rows:
            self._order.add(task.job.number, RefBundle.whole(ref, metadata.block), self._released)
            self._leave_order()

    def on_lost(self, task: DataOpTask, error: Exception) -> None:
        """Skip a block that was dropped, if that may be."""
        lost = TaskError(self.counters.name, "a block that was lost", None, f"{type(error).__name__}: {error}")
        lost.__cause__ = error
        self._run.skipped.add(lost)

    def on_unknown_size(self) -> None:
        """Warn once: the byte budget lags behind."""
        if not self._warned:
            self._warned = True
            _logger.warning("%s: sizes of blocks are known only from their metadata", self.counters.name)

    def on_finished(self, task: DataOpTask, end: TaskEnd) -> None:
        """Let go of the task's worker; see to what follows as soon as what it took for granted is known to be true."""
        assert task.handle is not None, "it was started"
        del self._running[task.handle]
        self._workers.release(task.handle, is_lost=end.is_worker_lost)
        self._expectation.observe(task.produced_bytes)
        self._note_claims(task, end.learned)
        if task.is_void:
            self._jobs.add_rest(task.job)
        elif task.job.number in self._claims and not self._is_final(end):
            self._ends[task.job.number] = (task, end)
            self._settle()
        else:
            self._conclude(task, end)
        self._wakeup.set()

    def _is_final(self, end: TaskEnd) -> bool:
        """Whether a task has failed for a reason of its own, which ends the run."""
        if end.error is None or self._run.options.max_errored_blocks:
            return False
        return not isinstance(end.error.__cause__, SchemaError) and self._learning.num_functions == 1

    def _conclude(self, task: DataOpTask, end: TaskEnd) -> None:
        """Skip what failed, if that may be; then go on with what the task has left, or with the next job's outputs."""
        self._claims.pop(task.job.number, None)
        for error in (*end.errors, *([end.error] if end.error is not None else ())):
            self._run.skipped.add(error)
        self._pacing.observe_job(len(task.job.refs) if end.rest is None else end.rest.piece)
        if end.rest is not None:
            self._jobs.add_rest(task.job.rest(end.rest))
        else:
            self._order.finish(task.job.number, self._released)
            self._leave_order()

    def _note_claims(self, task: DataOpTask, learned: Schemas) -> None:
        """Take note of what a task takes for granted, which is void if it is known to be otherwise."""
        if task.is_void or not learned:
            return
        self._claims[task.job.number] = (task, learned)
        self._void_what_disagrees()
        self._settle()

    def _settle(self) -> None:
        """Learn from the head of the input, then see to the ends that have waited for that."""
        while not self._learning.is_complete and (claim := self._claims.get(self._order.head)) is not None:
            self._learning.adopt(claim[1])
            self._void_what_disagrees()
            if (ended := self._ends.pop(self._order.head, None)) is None:
                break
            self._conclude(*ended)
        while self._learning.is_complete and self._ends:
            self._conclude(*self._ends.pop(min(self._ends)))
        self._leave_order()

    def _void_what_disagrees(self) -> None:
        """Have jobs done again whose tasks took for granted what is known not to be true."""
        for number, (task, learned) in list(self._claims.items()):
            if not self._learning.agrees_with(learned):
                task.is_void = True
                del self._claims[number]
                self.counters.remove(self._order.drop(number))
                if self._ends.pop(number, None) is not None:
                    self._jobs.add_rest(task.job)

    @property
    def _released(self) -> deque[RefBundle]:
        """Where bundles go that may leave, as far as their order is concerned: behind those that have left it."""
        return self._early if self.is_learning or self._early else self._outputs

    def _leave_order(self) -> None:
        """Let go of what waited for the schemas, if they are known now; then of the order, if none is asked for."""
        if self.is_learning and sum(bundle.num_rows for bundle in self._early) >= MAX_ROWS:
            self._end_learning()
        if self._learning.num_functions and self._schema is None and not self.is_learning:
            self._schema = self._learning.output_schema()
        if self._early and not self.is_learning:
            self._outputs += self._early
            self._early.clear()
        may_leave = self._order.preserves and not self._run.options.preserve_order
        if may_leave and self._outputs and not self.is_learning:
            self._order.release(self._outputs)

    def _end_learning(self) -> None:
        """Leave unknown what is so far: columns of nulls alone."""
        self._learning.finish()
        self._settle()

    async def _stop(self) -> None:
        """Cancel the tasks that run, then wait until they have stopped: shielded, and bounded."""
        running = list(self._running)
        for task in self._running.values():
            task.abandon()
        for held in (self._running, self._ready, self._outputs, self._early, self._jobs, self._order, self._lane):
            held.clear()
        self._claims.clear()
        self._ends.clear()
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
