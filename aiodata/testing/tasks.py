"""Simulated tasks: steps that take virtual time, with blocks that come out of them, and what may go wrong."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType
from typing import Any, Protocol

import anyio

from aiodata.bundle import BlockRef
from aiodata.errors import AiodataError, TaskError
from aiodata.plan.pieces import Piece
from aiodata.plan.work import OutputMetadata, Position, TaskEnd, Work
from aiodata.runtime.base import OnReady, Pair
from aiodata.testing.agenda import Agenda
from aiodata.testing.blocks import BlockStore, RowRanges, SimulatedBlock
from aiodata.testing.counts import TaskCounts
from aiodata.testing.faults import FaultKind, FaultSchedule
from aiodata.testing.steps import Step
from aiodata.testing.workers import Workers

# One for all: tasks wait in tens of thousands, and each object of theirs costs every garbage collection.
_NO_STEPS: Iterator[Step] = iter(())
_NO_ERRORS: Mapping[int, AiodataError] = MappingProxyType({})
_DONE = TaskEnd()

# What is noted of each pair until it is pulled.
_NUM_FIELDS = 4

# What becomes of a step, once it is known.
_Settled = OutputMetadata | TaskEnd | Exception


@dataclass(frozen=True, slots=True)
class Late:
    """Metadata that is known from `known_at` on, in seconds of the loop's clock."""

    known_at: float
    outcome: _Settled


class TaskHost(Protocol):
    """What a task knows of its stage."""

    @property
    def name(self) -> str:
        """The operator."""

    @property
    def counts(self) -> TaskCounts:
        """What becomes of its tasks."""

    @property
    def agenda(self) -> Agenda:
        """The runtime's."""

    @property
    def store(self) -> BlockStore:
        """The runtime's."""

    @property
    def faults(self) -> FaultSchedule:
        """The runtime's."""

    @property
    def metadata_delay_s(self) -> float:
        """Virtual seconds from a pair's surfacing until its metadata is known."""

    @property
    def cancel_delay_s(self) -> float:
        """Virtual seconds from a cancellation until the task has stopped."""

    @property
    def task_max_retries(self) -> int:
        """How often a task whose worker died is run again."""

    def steps(self, pieces: Sequence[Piece], start: Position, refs: Sequence[BlockRef]) -> Iterator[Step]:
        """Return a task's steps."""

    def metadata(self, step: Step, seconds: float) -> OutputMetadata:
        """Return what is known of a step's output."""


class _State(enum.Enum):
    """A task's life: it may go back from running to waiting, when its worker dies."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    STOPPING = enum.auto()
    STOPPED = enum.auto()


class SimulatedTask:
    """Some work, done step by step on a simulated worker.

    There is one event of it on the agenda at most. Those that a cancellation leaves there do nothing.
    """

    __slots__ = (
        "_cuts",
        "_deaths",
        "_errors",
        "_host",
        "_index",
        "_is_asked",
        "_is_held",
        "_max_beyond",
        "_max_errors",
        "_num_beyond",
        "_num_settled",
        "_number",
        "_on_ready",
        "_pieces",
        "_produced_bytes",
        "_refs",
        "_slowness",
        "_start",
        "_state",
        "_step",
        "_steps",
        "_stopped",
        "_surfaced",
        "_workers",
    )

    def __init__(
        self, host: TaskHost, workers: Workers, work: Work, refs: Sequence[BlockRef], on_ready: OnReady
    ) -> None:
        """Wait for a worker."""
        self._host = host
        self._workers = workers
        # Not the work itself: what it refers to is there anyway.
        self._pieces = work.pieces
        self._start = work.start
        self._cuts = work.cuts
        self._max_errors = work.max_errors
        self._refs = refs
        self._on_ready = on_ready
        self._number = host.counts.started
        self._state = _State.WAITING
        # Of each pair the rows, or None of the end, their number, the bytes and the outcome. Blocks and pairs are made
        # when they are pulled.
        self._surfaced: list[Any] | tuple[()] = ()
        self._is_asked = True
        self._steps = _NO_STEPS
        self._step: Step | None = None
        self._index = 0
        self._num_settled = 0
        self._produced_bytes = 0
        # Blocks beyond the room that it had: how many it has made, how many it may, and whether it waits for that.
        self._num_beyond = 0
        self._max_beyond = 0
        self._is_held = False
        self._slowness = 1.0
        self._deaths = 0
        # By the index of the step that failed; these were skipped.
        self._errors = _NO_ERRORS
        self._stopped: anyio.Event | None = None
        host.counts.started += 1
        workers.request(self)

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for a worker."""
        return self._state is _State.WAITING

    @property
    def is_stopped(self) -> bool:
        """Whether it has ended, or was cancelled and has stopped."""
        return self._state is _State.STOPPED

    def pull(self) -> list[Pair]:
        """Return the pairs that have surfaced."""
        if not self._surfaced:
            self._is_asked = True
            return []
        store, fields = self._host.store, iter(self._surfaced)
        self._surfaced = ()
        return [
            Pair(None if rows is None else SimulatedBlock(store, rows, num_rows, num_bytes), outcome)
            for rows, num_rows, num_bytes, outcome in zip(fields, fields, fields, fields, strict=True)
        ]

    def give_room(self, num_blocks: int) -> None:
        """Let it make so many blocks, in all, beyond those that there was room for."""
        self._max_beyond = num_blocks
        if self._is_held and self._num_beyond <= num_blocks and self._step is not None:
            self._take_worker_back()
            self._begin(self._step.seconds * self._slowness)

    def cancel(self) -> None:
        """Stop, after the runtime's `cancel_delay_s` if it runs; what it has produced and nobody pulled is dropped."""
        for num_bytes in self._surfaced[2::_NUM_FIELDS]:
            self._host.store.release(num_bytes, None)
        self._surfaced = ()
        if self._state not in (_State.WAITING, _State.RUNNING):
            return
        was_running = self._state is _State.RUNNING
        self._take_worker_back()
        self._state = _State.STOPPING
        self._host.counts.cancelled += 1
        self._host.counts.running -= was_running
        self._let_go()
        delay_s = self._host.cancel_delay_s
        if was_running and delay_s:
            self._host.agenda.after(delay_s, SimulatedTask._give_up_worker, self)
        elif was_running:
            self._give_up_worker()
        else:
            self._stop()

    def lose(self) -> None:
        """End at once, since the worker is lost for good: what was not done by now is not done any more."""
        if self._state not in (_State.WAITING, _State.RUNNING):
            return
        host = self._host
        self._take_worker_back()
        rows = [step.inputs for index, step in enumerate(self._all_steps()) if index >= self._num_settled]
        host.faults.note(FaultKind.KILL, host.name, self._number, self._index, tuple(chain.from_iterable(rows)))
        what = f"died {self._deaths} times" if self._deaths else "is lost with what waited for it"
        error = AiodataError(f"a worker of {host.name} {what}")
        host.counts.finished += 1
        host.counts.running -= self._state is _State.RUNNING
        self._add_end(TaskEnd(None, error, tuple(self._errors.values()), is_worker_lost=True))
        self._let_go()
        self._stop()
        self._tell()

    async def wait_stopped(self) -> None:
        """Wait until it runs no more."""
        if self._state is not _State.STOPPED:
            if self._stopped is None:
                self._stopped = anyio.Event()
            await self._stopped.wait()

    def start(self) -> None:
        """Begin with the first step, on a worker."""
        host = self._host
        self._state = _State.RUNNING
        host.counts.running += 1
        self._index = 0
        self._produced_bytes = 0
        self._num_beyond = 0
        self._steps = self._all_steps()
        self._slowness = 1.0
        if host.faults.draw_for_task() is FaultKind.SLOW:
            self._slowness = host.faults.faults.slow_factor
            host.faults.note(FaultKind.SLOW, host.name, self._number, 0)
        step = self._step = next(self._steps, None)
        if step is None:
            # Not at once: whoever has started it may be about to start others.
            host.agenda.after(0.0, SimulatedTask._end_empty, self)
        else:
            self._begin(step.seconds * self._slowness)

    def _all_steps(self) -> Iterator[Step]:
        return self._host.steps(self._pieces, self._start, self._refs)

    def _end_empty(self) -> None:
        if self._state is _State.RUNNING:
            self._end()
            self._tell()

    def _go_on(self, done: Step, step: Step | None) -> None:
        """Begin the next step, unless the work or the allotment is done, or there is no room."""
        self._step = step
        if step is None:
            self._end()
        elif self._is_spent() and step.position != done.position:
            self._end(step.position)
        elif self._num_beyond > self._max_beyond:
            self._is_held = True
            self._workers.lend()
        else:
            self._begin(step.seconds * self._slowness)

    def _take_worker_back(self) -> None:
        if self._is_held:
            self._is_held = False
            self._workers.take_back()

    def _begin(self, seconds: float) -> None:
        host = self._host
        match fault := host.faults.draw_for_block():
            case None:
                host.agenda.after(seconds, SimulatedTask._surface, self)
            case FaultKind.KILL:
                host.agenda.after(seconds / 2, SimulatedTask._die, self)
            case FaultKind.STALL:
                host.faults.note(fault, host.name, self._number, self._index)
                host.agenda.after(seconds + host.faults.faults.stall_s, SimulatedTask._surface, self)
            case FaultKind.FAIL if self._index >= self._num_settled:
                host.agenda.after(seconds, SimulatedTask._fail, self)
            case FaultKind.LOSE if self._index >= self._num_settled:
                host.agenda.after(seconds, SimulatedTask._surface_and_lose, self)
            case _:  # What went well the first time does so again.
                host.agenda.after(seconds, SimulatedTask._surface, self)

    def _is_spent(self) -> bool:
        # Each step of a map is a call, and a task that only reads makes none.
        calls = self._index if self._step is not None and self._step.calls else 0
        return self._cuts.are_spent(self._produced_bytes, calls)

    def _surface(self) -> None:
        self._finish_step(None)

    def _surface_and_lose(self) -> None:
        self._finish_step(AiodataError("the block's metadata is lost, as a simulated fault"))

    def _finish_step(self, lost: Exception | None) -> None:
        step = self._step
        if self._state is not _State.RUNNING or step is None:
            return
        host = self._host
        following = next(self._steps, None)
        if self._index not in self._errors:
            self._produced_bytes += step.num_bytes
        is_in_call = following is not None and following.position == step.position
        needs_room = is_in_call and self._produced_bytes > self._cuts.room_bytes
        self._num_beyond += needs_room
        # A task that is run again has its outputs matched by index: what has surfaced, or failed, does not do so again.
        is_new = self._index >= self._num_settled
        if is_new:
            if lost is not None:
                host.faults.note(FaultKind.LOSE, host.name, self._number, self._index, step.inputs)
            self._num_settled += 1
            host.store.add(step.num_bytes)
            outcome = lost or host.metadata(step, step.seconds * self._slowness)
            if needs_room and isinstance(outcome, OutputMetadata):
                outcome = replace(outcome, needs_room=True)
            self._add(step.rows, step.num_rows, step.num_bytes, outcome)
        self._index += 1
        self._go_on(step, following)
        if is_new:
            self._tell()

    def _fail(self) -> None:
        """Fail as a user's function does that raises; go on without its rows as long as errors are allowed."""
        step = self._step
        if self._state is not _State.RUNNING or step is None:
            return
        host = self._host
        host.faults.note(FaultKind.FAIL, host.name, self._number, self._index, step.inputs)
        span = (step.inputs[0][0], step.inputs[-1][1]) if step.inputs else None
        error = TaskError(host.name, "simulated rows", span, "a simulated fault")
        if self._max_errors < 0 or len(self._errors) < self._max_errors:
            self._errors = {**self._errors, self._index: error}
            self._num_settled += 1
            self._index += 1
            self._go_on(step, next(self._steps, None))
        else:
            rest = next((other.position for other in self._steps if other.position != step.position), None)
            self._end(rest, error)
        self._tell()

    def _die(self) -> None:
        """Lose the worker; wait for another, unless it has been run often enough."""
        if self._state is not _State.RUNNING:
            return
        host = self._host
        self._deaths += 1
        if self._deaths > host.task_max_retries:
            self.lose()
            self._workers.lose()
            return
        host.faults.note(FaultKind.KILL, host.name, self._number, self._index)
        self._state = _State.WAITING
        host.counts.running -= 1
        self._workers.release()
        host.agenda.after(host.faults.faults.restart_s, SimulatedTask._try_again, self)

    def _try_again(self) -> None:
        if self._state is _State.WAITING:
            self._workers.request(self)

    def _end(self, rest: Position | None = None, error: AiodataError | None = None) -> None:
        """Add the last pair, and make room for others."""
        self._host.counts.finished += 1
        self._host.counts.running -= 1
        is_done = rest is None and error is None and not self._errors
        self._add_end(_DONE if is_done else TaskEnd(rest, error, tuple(self._errors.values())))
        self._let_go()
        self._give_up_worker()

    def _add_end(self, end: TaskEnd) -> None:
        self._add(None, 0, 0, end)

    def _add(self, rows: RowRanges | None, num_rows: int, num_bytes: int, outcome: _Settled) -> None:
        """Have a pair surface."""
        what: _Settled | Late = outcome
        if self._host.metadata_delay_s or isinstance(outcome, Exception):
            what = Late(self._host.agenda.now + self._host.metadata_delay_s, outcome)
        if self._surfaced:
            self._surfaced += (rows, num_rows, num_bytes, what)
        else:
            self._surfaced = [rows, num_rows, num_bytes, what]

    def _tell(self) -> None:
        if self._is_asked and self._surfaced:
            self._is_asked = False
            self._on_ready(self)

    def _let_go(self) -> None:
        """Hold no blocks any more."""
        self._steps = _NO_STEPS
        self._step = None
        self._refs = ()

    def _give_up_worker(self) -> None:
        self._stop()
        self._workers.release()

    def _stop(self) -> None:
        self._state = _State.STOPPED
        if self._stopped is not None:
            self._stopped.set()
