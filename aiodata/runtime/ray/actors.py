"""A Ray actor that keeps the state of a stage's transforms, as its driver sees it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from aiodata.bundle import BlockRef
from aiodata.errors import TaskError
from aiodata.plan.work import Work
from aiodata.runtime.base import OnReady
from aiodata.runtime.ray.session import Session
from aiodata.runtime.ray.tasks import RayTask
from aiodata.runtime.ray.worker import unpack_error


class RayActor:
    """An actor, the calls on it, and its end.

    Args:
        name: What errors call it.
        handle: Ray's handle of the actor; see `worker.StageActor`.
        session: The run's connection to Ray.
    """

    def __init__(self, name: str, handle: Any, session: Session) -> None:
        """Have the actor build its state."""
        self._name = name
        self._handle = handle
        self._session = session
        self._tasks: weakref.WeakSet[RayTask] = weakref.WeakSet()
        self._prepared = handle.prepare.remote()
        self._is_stopped = False

    async def wait_ready(self) -> None:
        """Wait until the actor has built its state."""
        try:
            packed = await self._prepared
        except RayError as error:
            reason = f"{type(error).__name__}: {error}"
            raise TaskError(self._name, "an actor that could not be started", None, reason) from error
        if packed is not None:
            raise unpack_error(packed)

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> RayTask:
        """Call the actor; Ray queues the call there."""
        generator = self._handle.run.remote(work, *refs)
        task = RayTask(self._name, generator, self._session, on_ready, None)
        self._tasks.add(task)
        return task

    def stop(self) -> None:
        """Kill the actor's process. Calls are cancelled first, or Ray would announce that it tries them again."""
        if self._is_stopped or self._session.is_down:
            return
        self._is_stopped = True
        for task in list(self._tasks):
            task.cancel()
        ray.kill(self._handle, no_restart=True)

    async def wait_stopped(self) -> None:
        """Call the actor until Ray says that it is dead, which it does as the process ends and its CPUs are free."""
        with suppress(ActorDiedError):
            while not self._session.is_down:
                with suppress(ActorUnavailableError):
                    await self._handle.probe.options(max_task_retries=0).remote()
