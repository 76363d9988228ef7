"""A Ray actor that keeps the state of a stage's transforms, as its driver sees it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RuntimeEnvSetupError

from aiodata.bundle import BlockRef
from aiodata.errors import TaskError
from aiodata.plan.work import Work
from aiodata.runtime.base import OnReady
from aiodata.runtime.ray.compat import when_settled
from aiodata.runtime.ray.fetching import look_after
from aiodata.runtime.ray.gate import Gate
from aiodata.runtime.ray.session import Session
from aiodata.runtime.ray.starts import Start
from aiodata.runtime.ray.tasks import RayTask, max_held_bytes
from aiodata.runtime.ray.worker import report_size, unpack_error


class RayActor:
    """An actor, the calls on it, and its end.

    Args:
        name: What errors call it.
        handle: Ray's handle of the actor; see `worker.StageActor`.
        session: The run's connection to Ray.
        gate: Where its tasks wait for room.
        start: Where its start is noted.
    """

    def __init__(self, name: str, handle: Any, session: Session, gate: Gate, start: Start) -> None:
        """Have the actor build its state, which may take long, and say before that it is there."""
        self._start = start
        self._name = name
        self._handle = handle
        self._session = session
        self._gate = gate
        # Those that Ray is not done with.
        self._tasks: set[RayTask] = set()
        self._is_there = self._probe()
        when_settled(self._is_there, lambda: session.call_soon(start.note_started))
        self._prepared = self._prepare()
        self._is_stopped = False
        self._is_killed = False

    async def wait_begun(self) -> None:
        """Wait until Ray has started the actor."""
        with suppress(RayError):  # It can not be started, which `wait_ready` says.
            await self._is_there

    async def wait_ready(self) -> None:
        """Wait until the actor has built its state."""
        try:
            packed = await self._built()
        except RayError as error:
            reason = f"{type(error).__name__}: {error}"
            raise TaskError(self._name, "an actor that could not be started", None, reason) from error
        if packed is not None:
            raise unpack_error(packed)

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> RayTask:
        """Call the actor; Ray queues the call there."""
        in_groups = work.cuts.in_groups
        method = self._handle.run_in_groups if in_groups else self._handle.run
        look_after(refs)
        ticket = self._gate.new_ticket()
        generator = method.remote(work, ticket, *refs)
        held_bytes = max_held_bytes(work, refs, self._session)
        size = report_size(in_groups=in_groups)
        give_room = partial(self._gate.give, ticket)
        task = RayTask(self._name, generator, size, self._session, on_ready, held_bytes, give_room)
        self._tasks.add(task)
        task.when_complete(lambda: self._note_complete(task))
        return task

    def stop(self) -> None:
        """Kill the actor's process: at once, or milliseconds later, when a call that has said goodbye is complete.

        Ray would announce that it tries the calls again. So others are cancelled first; those must not be any more.
        """
        if self._is_stopped:
            return
        self._is_stopped = True
        self._start.note_ended()
        for task in self._tasks:
            task.cancel()
        self._kill()

    async def wait_stopped(self) -> None:
        """Call the actor until Ray says that it is dead, which it does as the process ends and its CPUs are free."""
        with suppress(ActorDiedError, RuntimeEnvSetupError):  # With the latter, it has never been there.
            while not self._session.is_down:
                with suppress(ActorUnavailableError):
                    await self._probe()

    def _note_complete(self, task: RayTask) -> None:
        self._tasks.discard(task)
        if self._is_stopped:
            self._kill()

    def _kill(self) -> None:
        if self._session.is_down or self._is_killed or any(not task.is_cancelled for task in self._tasks):
            return
        self._is_killed = True
        ray.kill(self._handle, no_restart=True)

    def _probe(self) -> Any:
        return self._handle.probe.options(max_task_retries=0).remote()

    def _prepare(self) -> Any:
        """Call the actor to build its state; Ray is not to announce that it tries that again after `stop`."""
        return self._handle.prepare.options(max_task_retries=0).remote()

    async def _built(self) -> bytes | None:
        while True:
            try:
                packed: bytes | None = await self._prepared
            except ActorUnavailableError:  # It is being started again.
                self._prepared = self._prepare()
            else:
                return packed
