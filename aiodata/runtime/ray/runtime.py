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
from aiodata.runtime.ray.fetching import fetch, look_after
from aiodata.runtime.ray.fitting import check_fits
from aiodata.runtime.ray.gate import Gate
from aiodata.runtime.ray.outcomes import lost, outcome, ready_outcomes
from aiodata.runtime.ray.placement import Placement, look, refusals
from aiodata.runtime.ray.session import Session
from aiodata.runtime.ray.start import ensure_ray
from aiodata.runtime.ray.starts import StageStarts, Starts
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
        session: Its connection to Ray.
        placement: Where its tasks and actors run.
    """

    name = "ray"

    def __init__(self, options: ExecutionOptions, session: Session, placement: Placement) -> None:
        """Prepare; `open_ray` is what callers use."""
        of_run = Resources(scheduling_strategy=options.scheduling_strategy)
        all_cpus = int(placement.room(of_run).get("CPU", 1))
        self.num_cpus = min(options.num_cpus or all_cpus, all_cpus) or 1
        self.store_bytes = int(placement.total.get("object_store_memory", 0))
        self._options = options
        self._session = session
        self._stages: list[RayStage] = []
        self._placement = placement
        self._starts = Starts(lambda: session.is_down)
        self._gate = Gate(session)

    def max_at_once(self, resources: Resources) -> int | None:
        """Return how many there is room for, on the cluster or in the placement group that they run in."""
        return self._placement.max_at_once(resources)

    async def stage(self, name: str, chain: Sequence[Transform], resources: Resources) -> RayStage:
        """Pickle the chain once; store it once if it is large.

        Raises:
            OptionError: It can not be pickled, or asks for more than any node has.
            RuntimeUnavailableError: No node has a CPU.
        """
        await check_fits(name, resources, self._placement.nodes)
        try:
            packed: Any = await ask_in_thread(partial(cloudpickle.dumps, tuple(chain)))
        except Exception as error:
            raise OptionError(
                f"{name} can not be sent to a worker: {error}. Use a function that pickles, or runtime='local'."
            ) from error
        if len(packed) > _INLINE_CHAIN_BYTES:
            packed = await self.put(packed)
        asked = _asked(resources, self._placement.strategy(resources))
        stage = RayStage(name, packed, asked, self._session, self._options, self._gate, self._starts.stage(resources))
        self._stages.append(stage)
        return stage

    def close(self) -> None:
        """Let go of the chains that were stored: what is left of a run may wait for the cyclic garbage collection."""
        self._starts.stop()
        self._gate.close()
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
            return await fetch(ref, "block")
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
        runtime = RayRuntime(options, session, await look())
        try:
            yield runtime
        finally:
            runtime.close()


def _asked(resources: Resources, strategy: Any) -> dict[str, Any]:
    """Return what is asked of Ray, in its words."""
    asked = {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "memory": resources.memory,
        "resources": dict(resources.custom) or None,
        "scheduling_strategy": strategy,
        "runtime_env": resources.runtime_env,
    }
    return {name: value for name, value in asked.items() if value is not None}


class RayStage:
    """A chain that Ray's workers can be sent.

    Args:
        name: The stage's name.
        chain: The pickled chain, or the reference to it.
        asked: What each task or actor asks of Ray.
        session: The run's connection to Ray.
        options: The run's options.
        gate: Where tasks wait for room.
        starts: Where it is noted which tasks have started.

    Raises:
        OptionError: Ray refuses what is asked.
    """

    def __init__(
        self,
        name: str,
        chain: Any,
        asked: dict[str, Any],
        session: Session,
        options: ExecutionOptions,
        gate: Gate,
        starts: StageStarts,
    ) -> None:
        """Bind what all tasks and actors of the stage share."""
        retries = options.task_max_retries
        with refusals(name, asked):
            self._functions = {
                in_groups: function.options(name=short_name(f"aiodata {name}"), max_retries=retries, **asked)
                for in_groups, function in ((False, _run_one_by_one), (True, _run_in_groups))
            }
            self._actor_class = _actor_class.options(max_restarts=retries, max_task_retries=retries, **asked)
        self._asked = asked
        self._name = name
        self._chain = chain
        self._session = session
        self._gate = gate
        self._starts = starts

    def close(self) -> None:
        """Let go of the chain; nothing can be submitted any more."""
        self._chain = None

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> RayTask:
        """Start a streaming Ray task."""
        in_groups = work.cuts.in_groups
        start = self._starts.submit()
        look_after(refs)
        ticket = self._gate.new_ticket()
        with refusals(self._name, self._asked):
            generator = self._functions[in_groups].remote(self._chain, work, ticket, start.announces, *refs)
        held_bytes = max_held_bytes(work, [self._chain, *refs], self._session)
        size = report_size(in_groups=in_groups)
        give_room = partial(self._gate.give, ticket)
        return RayTask(self._name, generator, size, self._session, on_ready, held_bytes, give_room, start)

    def start_actor(self) -> RayActor:
        """Start a Ray actor, which Ray starts again with its calls if it dies."""
        with refusals(self._name, self._asked):
            handle = self._actor_class.remote(self._chain)
        return RayActor(self._name, handle, self._session, self._gate, self._starts.submit(is_actor=True))
