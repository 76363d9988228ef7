"""The operator that runs tasks: on pieces of a source, or on the blocks that it is sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import anyio
import anyio.to_thread

from aiodata.bundle import BlockRef, InlineBlock, RefBundle
from aiodata.concurrency import Wakeup
from aiodata.execution.counters import OperatorCounters
from aiodata.execution.operators import Inputs, Output
from aiodata.execution.ordering import OutputOrder
from aiodata.execution.pacing import Pacing
from aiodata.options import ExecutionOptions
from aiodata.plan.nodes import Source
from aiodata.plan.pieces import BlockPiece, Piece
from aiodata.plan.transforms import Transform
from aiodata.plan.work import Position, Work
from aiodata.runtime.base import Runtime, Stage, Task, TaskState

# Tasks in flight per CPU: while one computes, another's output is copied or its start is under way.
_TASKS_PER_CPU = 2

# Bytes of files that one task is given to read, at most; a single piece may have more.
_MAX_JOB_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """Pieces that wait for a task.

    Attributes:
        number: Its place in the order of the input.
        pieces: What to read.
        refs: The blocks that pieces stand for.
        start: Where in the pieces to start.
        is_rest: Whether an earlier task stopped before its end and left this.
    """

    number: int
    pieces: tuple[Piece, ...]
    refs: tuple[BlockRef, ...] = ()
    start: Position = Position()
    is_rest: bool = False

    def rest(self, position: Position) -> Job:
        """Return what is left from `position` on."""
        start = replace(position, piece=0)
        return Job(self.number, self.pieces[position.piece :], self.refs, start, is_rest=True)


class TaskOperator:
    """Runs a stage's tasks on the runtime and sends on their blocks, as they come or in order.

    New tasks start only while the outputs of those that run are taken, and a task ends when its allotment is spent;
    so what is produced ahead of a slow consumer is bounded, and nobody holds a CPU to wait for it.

    Args:
        name: The stage's name.
        chain: What its tasks do with rows.
        source: What its tasks read; None: the blocks that it is sent.
        runtime: Where its tasks run.
        options: The run's options.
    """

    def __init__(
        self, name: str, chain: Sequence[Transform], source: Source | None, runtime: Runtime, options: ExecutionOptions
    ) -> None:
        """Prepare."""
        self.counters = OperatorCounters(name)
        self._chain = chain
        self._source = source
        self._runtime = runtime
        self._close_timeout_s = options.close_timeout_s
        self._max_tasks = _TASKS_PER_CPU * runtime.num_cpus
        self._pacing = Pacing(
            options.target_block_bytes, calls_user_code=any(transform.calls_user_code for transform in chain)
        )
        self._order = OutputOrder(preserve=options.preserve_order, max_jobs_ahead=self._max_tasks)
        self._jobs: deque[Job] = deque()
        self._jobs_complete = False
        self._running: dict[Task, Job] = {}
        self._rests: dict[Task, Position] = {}
        # A dict serves as an ordered set: tasks are looked at in the order in which they became ready.
        self._ready: dict[Task, None] = {}
        self._wakeup = Wakeup()
        self._room = Wakeup()

    async def run(self, inputs: Inputs | None, output: Output) -> None:
        """Run tasks until the input is done; on the way out, whatever the reason, stop those that run."""
        stage = await self._runtime.stage(self.counters.name, self._chain)
        try:
            async with anyio.create_task_group() as group:
                if self._source is not None:
                    group.start_soon(self._plan_source, self._source)
                elif inputs is not None:
                    group.start_soon(self._take_inputs, inputs)
                await self._drive(stage, output)
        finally:
            await self._stop_tasks()

    async def _plan_source(self, source: Source) -> None:
        """Divide the source's pieces into jobs."""
        num_tasks = self._max_tasks
        pieces = await anyio.to_thread.run_sync(source.pieces, num_tasks, abandon_on_cancel=True)
        for number, job in enumerate(divide(pieces, num_tasks)):
            self._jobs.append(Job(number, job))
        self._jobs_complete = True
        self._wakeup.set()

    async def _take_inputs(self, inputs: Inputs) -> None:
        """Make each bundle a job, not many more than there is room to run."""
        number = 0
        async for bundle in inputs:
            ref = bundle.ref
            if isinstance(ref, InlineBlock):
                ref = await self._runtime.put(ref.table)
            piece = BlockPiece(0, bundle.start, bundle.stop, bundle.metadata.num_bytes, bundle.metadata.source)
            self._jobs.append(Job(number, (piece,), (ref,)))
            number += 1
            self._wakeup.set()
            while len(self._jobs) >= self._max_tasks:
                await self._room.wait()
        self._jobs_complete = True
        self._wakeup.set()

    async def _drive(self, stage: Stage, output: Output) -> None:
        """Start tasks, and send on what they produce, until there is nothing left to do."""
        while True:
            self._launch(stage)
            if self._jobs_complete and not self._running and not self._jobs:
                return
            await self._wakeup.wait()
            while self._ready:
                task = next(iter(self._ready))
                del self._ready[task]
                if task in self._running:
                    await self._send_outputs(task, output)

    def _launch(self, stage: Stage) -> None:
        while len(self._running) < self._max_tasks and (job := self._next_job()) is not None:
            cuts = self._pacing.cuts(is_early=self.counters.tasks < self._runtime.num_cpus)
            work = Work(job.pieces, cuts, job.start)
            self._running[stage.submit(work, job.refs, self._on_ready)] = job
            self.counters.tasks += 1
            self._room.set()

    def _next_job(self) -> Job | None:
        for index, job in enumerate(self._jobs):
            if self._order.may_start(job.number, is_rest=job.is_rest):
                del self._jobs[index]
                return job
            if not job.is_rest:
                return None
        return None

    def _on_ready(self, task: Task) -> None:
        if task in self._running:
            self._ready[task] = None
            self._wakeup.set()

    async def _send_outputs(self, task: Task, output: Output) -> None:
        """Send on all that a task has ready, and see to its end if it has ended."""
        number = self._running[task].number
        while outputs := task.pull():
            for ref, metadata in ((one.ref, one.metadata) for one in outputs):
                self._pacing.observe(metadata)
                self.counters.add(metadata)
                if metadata.rest is not None:
                    self._rests[task] = metadata.rest
                if metadata.block.num_rows:
                    for bundle in self._order.add(number, RefBundle.whole(ref, metadata.block)):
                        await output.send(bundle)
        if task.state is TaskState.FINISHED:
            job = self._running.pop(task)
            rest = self._rests.pop(task, None)
            if rest is not None:
                self._jobs.appendleft(job.rest(rest))
                return
            for bundle in self._order.finish(number):
                await output.send(bundle)

    async def _stop_tasks(self) -> None:
        """Cancel the tasks that run, then wait until they have stopped: shielded, and bounded."""
        running = list(self._running)
        for held in (self._running, self._rests, self._ready, self._jobs):
            held.clear()
        self._order.clear()
        if not running:
            return
        for task in running:
            task.cancel()
        with anyio.move_on_after(self._close_timeout_s, shield=True):
            async with anyio.create_task_group() as group:
                while running:
                    group.start_soon(running.pop().wait_stopped)


def divide(pieces: Sequence[Piece], num_tasks: int) -> list[tuple[Piece, ...]]:
    """Divide pieces, in order, into jobs of about equal weight: at least `num_tasks`, if there are as many pieces.

    Example:
        Eight pieces of one weight and four tasks give four jobs of two pieces.
    """
    total = sum(piece.weight for piece in pieces)
    target = min(total / num_tasks, _MAX_JOB_BYTES)
    jobs: list[tuple[Piece, ...]] = []
    job: list[Piece] = []
    weight = 0
    for index, piece in enumerate(pieces):
        job.append(piece)
        weight += piece.weight
        must_leave_enough = len(pieces) - index - 1 <= num_tasks - len(jobs) - 1
        if weight >= target or must_leave_enough:
            jobs.append(tuple(job))
            job, weight = [], 0
    if job:
        jobs.append(tuple(job))
    return jobs
