"""Simulated actors: workers that take time to start, and then run one task after the other."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence

import anyio

from aiodata.bundle import BlockRef
from aiodata.errors import ClosedError, TaskError
from aiodata.plan.work import Work
from aiodata.runtime.base import OnReady
from aiodata.testing.tasks import SimulatedTask, TaskHost
from aiodata.testing.workers import Share, Waiter


class _State(enum.Enum):
    """An actor's life."""

    WAITING = enum.auto()
    STARTING = enum.auto()
    READY = enum.auto()
    LOST = enum.auto()
    STOPPED = enum.auto()


class SimulatedActor:
    """A worker of its own for a stage's tasks.

    A task whose worker dies waits there for the actor to be started anew, which takes the fault's `restart_s`. With a
    worker that has died too often for one of its tasks, the actor is lost: so are all that wait there, and all that are
    submitted later.

    Args:
        host: The stage.
        share: What it takes of the runtime's pool, from when it begins to start until it is lost or stopped.
        start_s: Virtual seconds that it takes to start.
        constructor_fails: Whether its state can not be built.
    """

    def __init__(self, host: TaskHost, share: Share, start_s: float, *, constructor_fails: bool) -> None:
        """Wait for room."""
        self._host = host
        self._share = share
        self._start_s = start_s
        self._constructor_fails = constructor_fails
        self._state = _State.WAITING
        self._ready = anyio.Event()
        self._waiting: deque[Waiter] = deque()
        self._is_busy = False
        # A dict serves as an ordered set.
        self._tasks: dict[SimulatedTask, None] = {}
        share.request(self)

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for room."""
        return self._state is _State.WAITING

    async def wait_begun(self) -> None:
        """Wait until it has started: to build its state takes no time."""
        await self._ready.wait()

    async def wait_ready(self) -> None:
        """Wait until it has started.

        Raises:
            ClosedError: It was stopped.
            TaskError: The constructor failed.
        """
        await self._ready.wait()
        if self._state is _State.STOPPED:
            raise ClosedError("this actor was stopped")
        if self._constructor_fails:
            raise TaskError(self._host.name, "its constructor", None, "a simulated fault")

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> SimulatedTask:
        """Start a task when those before it have ended.

        Raises:
            ClosedError: It was stopped.
        """
        if self._state is _State.STOPPED:
            raise ClosedError("this actor was stopped; start another")
        task = SimulatedTask(self._host, self, work, refs, on_ready)
        if self._state is _State.LOST:
            # Not at once: whoever submits it does not know it yet.
            self._host.agenda.after(0.0, SimulatedTask.lose, task)
        else:
            self._tasks[task] = None
        return task

    def stop(self) -> None:
        """Cancel its tasks and give back what it takes."""
        if self._state is _State.STOPPED:
            return
        has_share = self._state not in (_State.WAITING, _State.LOST)
        self._state = _State.STOPPED
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        self._waiting.clear()
        self._ready.set()
        if has_share:
            self._share.release()

    async def wait_stopped(self) -> None:
        """Return at once: stopping takes no time."""

    def start(self) -> None:
        """Begin to start: there is room."""
        self._state = _State.STARTING
        self._host.agenda.after(self._start_s, SimulatedActor._on_started, self)

    def request(self, waiter: Waiter) -> None:
        """Have a task wait for its turn."""
        self._waiting.append(waiter)
        self._start_next()

    def release(self) -> None:
        """Take note that the task that ran runs no more."""
        self._is_busy = False
        self._tasks = {task: None for task in self._tasks if not task.is_stopped}
        self._start_next()

    def lend(self) -> None:
        """Do nothing: the actor cannot run another task in the middle of a call."""

    def take_back(self) -> None:
        """Do nothing."""

    def lose(self) -> None:
        """Take note that its worker is lost for good: nothing runs here any more."""
        self._state = _State.LOST
        self._waiting.clear()
        tasks, self._tasks = self._tasks, {}
        for task in tasks:
            task.lose()
        self._share.release()

    def _on_started(self) -> None:
        if self._state is _State.STARTING:
            if not self._constructor_fails:
                self._state = _State.READY
            self._ready.set()
            self._start_next()

    def _start_next(self) -> None:
        while self._waiting and not self._is_busy and self._state is _State.READY:
            waiter = self._waiting.popleft()
            if waiter.is_waiting:
                self._is_busy = True
                waiter.start()
