"""Workers: what an operator's tasks run on, either whatever the runtime has free, or a pool of actors."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from aiodata.bundle import BlockRef
from aiodata.concurrency import reminding, start
from aiodata.plan.work import Work
from aiodata.runtime.base import Actor, OnReady, Stage, Task

# Tasks in flight per CPU, and per actor: while one computes, another's output is copied or its start is under way.
TASKS_PER_CPU = 2
_TASKS_PER_ACTOR = 2

# How long an actor beyond the least number may have nothing to do before it is stopped, in seconds.
_IDLE_S = 5.0

# After a warning of slow constructors, the next one is of those that have taken so many times as long.
_QUIET_FACTOR = 1.5

_logger = logging.getLogger("aiodata")


class Workers(Protocol):
    """Where an operator's tasks run."""

    @property
    def max_tasks(self) -> int:
        """Tasks in flight, at most."""

    @property
    def num_free(self) -> int:
        """Tasks that can be submitted now."""

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> Task:
        """Start a task, where `num_free` is not 0."""

    def release(self, task: Task, *, is_lost: bool = False) -> None:
        """Take note that a task has ended, maybe because its worker is lost."""

    def want_more(self) -> None:
        """Take note that more tasks could be started than there are workers."""

    def all_wait(self, waiting: Collection[Task]) -> bool:
        """Whether each of its tasks is one of those that wait for room, or waits for the worker of one."""

    def open(self, stage: Stage, group: TaskGroup, on_change: Callable[[], None]) -> None:
        """Prepare; `on_change` is called when tasks can be submitted that could not before."""

    async def close(self) -> None:
        """Stop what was started."""


class SharedSlots:
    """How many tasks all operators of a run have in flight together, in tasks of one CPU.

    More would only wait in the runtime, and thousands of waiting tasks cost memory and garbage collections.

    Args:
        total: How many.
    """

    def __init__(self, total: float) -> None:
        """All are free."""
        self.num_free = total
        self._refused: dict[Callable[[], None], None] = {}

    def take(self, weight: float) -> None:
        """Take a slot; there may be none, where an operator takes one that it is guaranteed."""
        self.num_free -= weight

    def give_back(self, weight: float) -> None:
        """Give a slot back, and have all who were refused ask again."""
        self.num_free += weight
        if self._refused:
            refused, self._refused = self._refused, {}
            for tell in refused:
                tell()

    def refuse(self, tell: Callable[[], None]) -> None:
        """Remember whom to tell, once, when a slot is given back."""
        self._refused[tell] = None


class TaskWorkers:
    """Tasks that the runtime starts where it has room.

    Args:
        max_tasks: How many may be in flight.
        num_guaranteed: How many of them need no slot: each operator can go on whatever the others do.
        slots: What it shares with the other operators.
        weight: What a task takes of a slot.
    """

    def __init__(self, max_tasks: int, num_guaranteed: int, slots: SharedSlots, weight: float) -> None:
        """Nothing runs."""
        self._opened: list[_Opened] = []
        self._num_running = 0
        self._num_guaranteed = num_guaranteed
        self._slots = slots
        self._weight = weight
        self.max_tasks = max_tasks

    @property
    def num_free(self) -> int:
        """Tasks that can be submitted now."""
        shared = int(self._slots.num_free / self._weight) if self._weight else self.max_tasks
        return min(self.max_tasks - self._num_running, max(shared, self._num_guaranteed - self._num_running, 0))

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> Task:
        """Start a task."""
        self._num_running += 1
        self._slots.take(self._weight)
        return self._opened[0].stage.submit(work, refs, on_ready)

    def release(self, task: Task, *, is_lost: bool = False) -> None:
        """Take note that a task has ended."""
        self._num_running -= 1
        self._slots.give_back(self._weight)

    def want_more(self) -> None:
        """Be told when other operators' tasks end."""
        self._slots.refuse(self._opened[0].on_change)

    def all_wait(self, waiting: Collection[Task]) -> bool:
        """Whether each of its tasks is one of those that wait for room; none keeps a worker while it does."""
        return len(waiting) == self._num_running

    def open(self, stage: Stage, group: TaskGroup, on_change: Callable[[], None]) -> None:
        """Take the stage that starts them."""
        self._opened.append(_Opened(stage, group, on_change))

    async def close(self) -> None:
        """Give all slots back; the operator has cancelled its tasks."""
        self._slots.give_back(self._num_running * self._weight)
        self._num_running = 0


@dataclass(frozen=True, slots=True)
class _Opened:
    stage: Stage
    group: TaskGroup
    on_change: Callable[[], None]


class ActorPool:
    """Actors, between a least and a greatest number; each task goes to the one with the fewest.

    Args:
        name: The operator's name, for warnings.
        least: How many are started at once.
        most: How many there may be.
        close_timeout_s: How long closing may take, in seconds.
    """

    def __init__(self, name: str, least: int, most: int, close_timeout_s: float) -> None:
        """Start nothing yet."""
        self._name = name
        # Constructors that have taken less are not worth another warning, in seconds.
        self._next_warning_s = 0.0
        self._least = least
        self._most = most
        self._close_timeout_s = close_timeout_s
        # Actors that can take a task, by the number that they have: always the fewest first, without a search.
        self._by_load: list[OrderedDict[Actor, None]] = [OrderedDict() for _ in range(_TASKS_PER_ACTOR)]
        self._loads: dict[Actor, int] = {}
        self._actors: dict[Task, Actor] = {}
        self._starting: set[Actor] = set()
        self._idle_since: dict[Actor, float] = {}
        self._watched: set[Actor] = set()
        # Actors that were lost, by the number of tasks that have not ended.
        self._lost: dict[Actor, int] = {}
        self._stopped: list[Actor] = []
        self._opened: _Opened | None = None
        self.max_tasks = most * _TASKS_PER_ACTOR

    @property
    def num_actors(self) -> int:
        """Actors that run or are starting."""
        return len(self._loads) + len(self._starting)

    @property
    def num_free(self) -> int:
        """Tasks that can be submitted now."""
        return sum(len(actors) * (_TASKS_PER_ACTOR - load) for load, actors in enumerate(self._by_load))

    def open(self, stage: Stage, group: TaskGroup, on_change: Callable[[], None]) -> None:
        """Start the least number; they are taken into use as they become ready."""
        self._opened = _Opened(stage, group, on_change)
        for _ in range(self._least):
            self._start()

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> Task:
        """Start a task on the actor that has the fewest."""
        load, actors = next((load, actors) for load, actors in enumerate(self._by_load) if actors)
        actor, _ = actors.popitem(last=False)
        task = actor.submit(work, refs, on_ready)
        self._actors[task] = actor
        self._idle_since.pop(actor, None)
        self._put(actor, load + 1)
        return task

    def release(self, task: Task, *, is_lost: bool = False) -> None:
        """Take note that a task has ended; a lost actor is replaced."""
        actor = self._actors.pop(task, None)
        if actor is None:
            return
        if actor in self._lost:
            self._count_down(actor)
            return
        load = self._loads[actor]
        if load < _TASKS_PER_ACTOR:
            del self._by_load[load][actor]
        if is_lost:
            self._lost[actor] = self._loads.pop(actor)
            self._count_down(actor)
            self._start()
            return
        self._put(actor, load - 1)
        if load == 1:
            self._watch(actor)

    def want_more(self) -> None:
        """Start one more, unless one is starting or there are as many as there may be."""
        if not self._starting and self.num_actors < self._most:
            self._start()

    def all_wait(self, waiting: Collection[Task]) -> bool:
        """Whether each of its tasks is one of those that wait for room, or waits for the actor of one."""
        held = {self._actors[task] for task in waiting}
        return all(actor in held for actor in self._actors.values())

    async def close(self) -> None:
        """Stop all actors, and wait until they are gone: shielded, and bounded."""
        for actor in [*self._starting, *self._loads, *self._lost]:
            self._drop(actor)
        self._actors.clear()
        with anyio.move_on_after(self._close_timeout_s, shield=True):
            async with anyio.create_task_group() as group:
                while self._stopped:
                    start(group, self._stopped.pop().wait_stopped)

    def _start(self) -> None:
        assert self._opened is not None, "the pool is open"
        actor = self._opened.stage.start_actor()
        self._starting.add(actor)
        start(self._opened.group, self._take_into_use, actor, self._opened.on_change)

    async def _take_into_use(self, actor: Actor, on_change: Callable[[], None]) -> None:
        await actor.wait_begun()
        with reminding(self._warn_of_constructor):
            await actor.wait_ready()
        if actor in self._starting:
            self._starting.remove(actor)
            self._put(actor, 0)
            self._watch(actor)
            on_change()

    def _warn_of_constructor(self, waited_s: float) -> None:
        """Say that a constructor has not returned; of several that began together, once."""
        if waited_s >= self._next_warning_s:
            self._next_warning_s = _QUIET_FACTOR * waited_s
            _logger.warning(
                "%s: a constructor has not returned for %.0f s, and its actor gets no rows before. A large model may "
                "take so long; else see where it hangs with `py-spy dump --pid` of its process, and give what it calls "
                "a timeout",
                self._name,
                waited_s,
            )

    def _put(self, actor: Actor, load: int) -> None:
        self._loads[actor] = load
        if load < _TASKS_PER_ACTOR:
            self._by_load[load][actor] = None

    def _count_down(self, actor: Actor) -> None:
        """Stop a lost actor after its last task has ended: its other tasks could not tell their ends any more."""
        self._lost[actor] -= 1
        if not self._lost[actor]:
            self._drop(actor)

    def _drop(self, actor: Actor) -> None:
        self._starting.discard(actor)
        self._lost.pop(actor, None)
        load = self._loads.pop(actor, None)
        if load is not None and load < _TASKS_PER_ACTOR:
            self._by_load[load].pop(actor, None)
        self._idle_since.pop(actor, None)
        actor.stop()
        self._stopped.append(actor)

    def _watch(self, actor: Actor) -> None:
        """Note that an actor has nothing to do; one that is not needed is stopped in a while."""
        if self.num_actors <= self._least or self._opened is None:
            return
        self._idle_since[actor] = anyio.current_time()
        if actor not in self._watched:
            self._watched.add(actor)
            start(self._opened.group, self._stop_if_idle, actor)

    async def _stop_if_idle(self, actor: Actor) -> None:
        """Wait until an actor has been idle for long, or is in use again."""
        while (since := self._idle_since.get(actor)) is not None:
            await anyio.sleep(max(0.0, since + _IDLE_S - anyio.current_time()))
            if self._idle_since.get(actor) != since:
                continue
            if self.num_actors > self._least:
                self._drop(actor)
            break
        self._watched.discard(actor)
