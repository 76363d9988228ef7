"""Gate: where tasks wait that have no room left, in the middle of a call, until their driver gives them some.

A driver cannot call a task, so both call an actor: the driver says how many blocks a task may make, and the task waits
for that. One that waits for Ray gives its CPU back meanwhile, to other stages, or to another run that its slow consumer
has begun. The actor takes no CPU. It is started when a task first waits, and ends with the run.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayError

from aiodata.concurrency import run_in_thread
from aiodata.plan.transforms import Control
from aiodata.runtime.ray.session import NAMESPACE, Session

# How often a task that waits looks whether it was cancelled, in seconds: most often it is woken up before.
_LOOK_EVERY_S = 0.1

# How often it looks whether the actor is there, in seconds: its driver starts it when it sees that the task waits.
_FIND_EVERY_S = 0.02

# Tasks that may wait at a time.
_MAX_WAITING = 100_000


class GateActor:
    """Knows how many blocks each task may make beyond the room that it had, in all."""

    def __init__(self) -> None:
        """None may make any."""
        self._max_blocks: defaultdict[int, int] = defaultdict(int)
        self._given: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)

    async def give(self, number: int, num_blocks: int) -> None:
        """Let a task make so many."""
        self._max_blocks[number] = max(self._max_blocks[number], num_blocks)
        self._given.pop(number, asyncio.Event()).set()

    async def wait(self, number: int, num_blocks: int) -> int:
        """Wait until a task may make so many, or more; return how many.

        A task that is run again after its worker died asks anew, and has at once what was given before.
        """
        while self._max_blocks[number] < num_blocks:
            await self._given[number].wait()
        return self._max_blocks[number]


_gate_actor = ray.remote(num_cpus=0, max_concurrency=_MAX_WAITING)(GateActor)


class Gate:
    """The gate of a run, as its driver sees it.

    Args:
        session: The run's connection to Ray.
    """

    def __init__(self, session: Session) -> None:
        """Start nothing yet."""
        self._name = f"aiodata gate {uuid4().hex}"
        self._session = session
        self._num_tickets = 0
        self._actor: Any = None
        self._is_opening = False
        self._is_closed = False
        # What the actor is to be told when it is there.
        self._given: dict[int, int] = {}

    def new_ticket(self) -> Ticket:
        """Return what a task that is submitted waits with."""
        self._num_tickets += 1
        return Ticket(self._name, self._num_tickets)

    def give(self, to: Ticket, num_blocks: int) -> None:
        """Let a task make so many blocks, in all, beyond the room that it had; 0: have the actor ready."""
        if self._is_closed or self._session.is_down:
            return
        if self._actor is not None:
            self._tell(to.number, num_blocks)
            return
        self._given[to.number] = num_blocks
        if not self._is_opening:
            self._is_opening = True
            # To name an actor is a call that waits.
            run_in_thread(self._open)

    def close(self) -> None:
        """End the actor."""
        self._is_closed = True
        if self._actor is not None and not self._session.is_down:
            ray.kill(self._actor)
        self._actor = None

    def _open(self) -> None:
        if not self._session.is_down:
            actor = _gate_actor.options(name=self._name, namespace=NAMESPACE).remote()
            self._session.call_soon(partial(self._take, actor))

    def _take(self, actor: Any) -> None:
        self._actor = actor
        if self._is_closed:
            self.close()
            return
        for number, num_blocks in self._given.items():
            self._tell(number, num_blocks)
        self._given.clear()

    def _tell(self, number: int, num_blocks: int) -> None:
        if num_blocks:
            self._actor.give.options(num_returns=0).remote(number, num_blocks)


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a task knows of the gate: its name, and its own number there."""

    gate: str
    number: int


class Waiter:
    """A task's way to the gate, in its worker.

    Args:
        task: What the task waits with.
        control: What stops it.
    """

    def __init__(self, task: Ticket, control: Control) -> None:
        """Ask nothing yet."""
        self._ticket = task
        self._control = control
        self._max_blocks = 0

    def wait(self, num_blocks: int) -> None:
        """Wait until the task may make so many blocks beyond the room that it had.

        Raises:
            Stopped: It was cancelled.
        """
        if num_blocks <= self._max_blocks:
            return
        self._control.settle()
        answer = self._find().wait.remote(self._ticket.number, num_blocks)
        while not ray.wait([answer], timeout=_LOOK_EVERY_S)[0]:
            self._look()
        try:
            self._max_blocks = ray.get(answer)
        except RayError:
            # A cancellation cancels the question, too. And without a gate a run keeps no bound, but comes to its end.
            self._look()
            self._max_blocks = sys.maxsize

    def _find(self) -> Any:
        while True:
            self._look()
            try:
                return ray.get_actor(self._ticket.gate, NAMESPACE)
            except ValueError:
                time.sleep(_FIND_EVERY_S)

    def _look(self) -> None:
        if ray.get_runtime_context().is_canceled():
            self._control.stop()
        self._control.checkpoint()
