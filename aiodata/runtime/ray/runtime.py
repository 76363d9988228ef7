"""The Ray runtime: tasks are streaming Ray tasks, blocks stay in the object store until a consumer asks for them."""

from __future__ import annotations

import math
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray import cloudpickle
from ray.exceptions import RayError

from aiodata.bundle import BlockRef, InlineBlock
from aiodata.concurrency import ask_in_thread, call_in_thread
from aiodata.errors import OptionError
from aiodata.options import ExecutionOptions
from aiodata.plan.naming import short_name
from aiodata.plan.nodes import Resources
from aiodata.plan.transforms import Transform
from aiodata.plan.work import OutputMetadata, TaskEnd, Work
from aiodata.runtime.base import OnReady, Outcome, Pair
from aiodata.runtime.ray import compat
from aiodata.runtime.ray.actors import RayActor
from aiodata.runtime.ray.outcomes import lost, outcome, ready_outcomes
from aiodata.runtime.ray.session import Session
from aiodata.runtime.ray.start import ensure_ray
from aiodata.runtime.ray.starts import Starts
from aiodata.runtime.ray.tasks import RayTask, max_held_bytes
from aiodata.runtime.ray.worker import StageActor, report_size, run_packed_work

# A chain of transforms up to this size travels with each task; a larger one is stored once per run.
_INLINE_CHAIN_BYTES = 64 * 1024

_run_one_by_one = compat.streaming_function(run_packed_work, report_size(in_groups=False))
_run_in_groups = compat.streaming_function(run_packed_work, report_size(in_groups=True))
_actor_class = compat.actor_class(
    StageActor, {"run": report_size(in_groups=False), "run_in_groups": report_size(in_groups=True)}
)


class RayRuntime:
    """Runs tasks on a Ray cluster; see the top of the file.

    Args:
        options: The run's options.
        num_cpus: CPUs that its tasks may use at a time.
        store_bytes: Memory of the cluster's object stores, in bytes.
        session: Its connection to Ray.
        free: What of the cluster's resources is free.
    """

    name = "ray"

    def __init__(
        self, options: ExecutionOptions, num_cpus: int, store_bytes: int, session: Session, free: dict[str, float]
    ) -> None:
        """Prepare; `open_ray` is what callers use."""
        self.num_cpus = num_cpus
        self.store_bytes = store_bytes
        self._options = options
        self._session = session
        self._stages: list[RayStage] = []
        self._starts = Starts(lambda: session.is_down, free)

    async def stage(self, name: str, chain: Sequence[Transform], resources: Resources) -> RayStage:
        """Pickle the chain once; store it once if it is large."""
        try:
            packed: Any = await ask_in_thread(partial(cloudpickle.dumps, tuple(chain)))
        except Exception as error:
            raise OptionError(
                f"{name} can not be sent to a worker: {error}. Use a function that pickles, or runtime='local'."
            ) from error
        if len(packed) > _INLINE_CHAIN_BYTES:
            packed = await self.put(packed)
        stage = RayStage(name, packed, resources, self._session, self._options, self._starts)
        self._stages.append(stage)
        return stage

    def close(self) -> None:
        """Let go of the chains that were stored: what is left of a run may wait for the cyclic garbage collection."""
        self._starts.stop()
        while self._stages:
            self._stages.pop().close()

    async def put(self, block: pa.Table) -> BlockRef:
        """Copy the block into the object store, in a worker thread."""
        ref = await call_in_thread(partial(ray.put, block), grace_s=math.inf)
        self._session.note_from_put(ref)
        return ref

    async def get(self, ref: BlockRef) -> pa.Table:
        """Return the block, zero-copy from this node's object store; it is brought there first if need be."""
        if isinstance(ref, InlineBlock):
            return ref.table
        try:
            return await ref
        except RayError as error:
            raise lost("a block", error) from error

    def fetch_ready(self, pairs: Sequence[Pair]) -> list[Outcome]:
        """Return what is there of pairs' metadata, in one call."""
        return [None] * len(pairs) if self._session.is_down else ready_outcomes(pairs)

    async def fetch(self, pair: Pair) -> OutputMetadata | TaskEnd:
        """Return a pair's metadata, or its task's end."""
        return await outcome(pair)

    def size_of(self, ref: BlockRef) -> int | None:
        """Return a block's bytes in the object store, once it is there."""
        if isinstance(ref, InlineBlock):
            return int(ref.table.nbytes)
        return None if self._session.is_down else compat.size_of(ref)

    def node_of(self, ref: BlockRef) -> str | None:
        """Return the id of the node that holds a block."""
        return None if isinstance(ref, InlineBlock) or self._session.is_down else compat.node_of(ref)

    def on_release(self, ref: BlockRef, callback: Callable[[], None]) -> None:
        """Have Ray tell when nobody, on any node, refers to the block any more."""
        session = self._session
        if isinstance(ref, InlineBlock):
            weakref.finalize(ref.table, session.call_soon, callback).atexit = False
        elif not session.is_down:
            compat.when_released(ref, lambda: session.call_soon(callback))


@asynccontextmanager
async def open_ray(options: ExecutionOptions) -> AsyncIterator[RayRuntime]:
    """Open Ray for one run, starting or joining it first if need be.

    Raises:
        RuntimeUnavailableError: Ray can not be started or reached, or it was shut down under the run.
    """
    await ensure_ray()
    session = Session()
    with session.watched():
        # Waited for in any case: it must not go on while Ray is shut down.
        resources, free = await call_in_thread(_resources, grace_s=math.inf)
        cluster_cpus = int(resources.get("CPU", 1))
        num_cpus = min(options.num_cpus or cluster_cpus, cluster_cpus) or 1
        runtime = RayRuntime(options, num_cpus, int(resources.get("object_store_memory", 0)), session, free)
        try:
            yield runtime
        finally:
            runtime.close()


def _resources() -> tuple[dict[str, float], dict[str, float]]:
    """Return what the cluster has, and what of that is free."""
    return ray.cluster_resources(), ray.available_resources()


class RayStage:
    """A chain that Ray's workers can be sent.

    Args:
        name: The stage's name.
        chain: The pickled chain, or the reference to it.
        resources: What each task or actor takes.
        session: The run's connection to Ray.
        options: The run's options.
        starts: Where it is noted which tasks have started.
    """

    def __init__(
        self,
        name: str,
        chain: Any,
        resources: Resources,
        session: Session,
        options: ExecutionOptions,
        starts: Starts,
    ) -> None:
        """Bind what all tasks and actors of the stage share."""
        retries = options.task_max_retries
        given = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}
        shared = {key: value for key, value in given.items() if value is not None}
        self._functions = {
            in_groups: function.options(name=short_name(f"aiodata {name}"), max_retries=retries, **shared)
            for in_groups, function in ((False, _run_one_by_one), (True, _run_in_groups))
        }
        self._actor_class = _actor_class.options(max_restarts=retries, max_task_retries=retries, **shared)
        self._name = name
        self._chain = chain
        self._session = session
        self._starts = starts.stage(resources)

    def close(self) -> None:
        """Let go of the chain; nothing can be submitted any more."""
        self._chain = None

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> RayTask:
        """Start a streaming Ray task."""
        in_groups = work.cuts.in_groups
        start = self._starts.submit()
        generator = self._functions[in_groups].remote(self._chain, work, start.announces, *refs)
        held_bytes = max_held_bytes(work, [self._chain, *refs], self._session)
        size = report_size(in_groups=in_groups)
        return RayTask(self._name, generator, size, self._session, on_ready, held_bytes, start)

    def start_actor(self) -> RayActor:
        """Start a Ray actor, which Ray starts again with its calls if it dies."""
        handle = self._actor_class.remote(self._chain)
        return RayActor(self._name, handle, self._session, self._starts.submit(is_actor=True))
