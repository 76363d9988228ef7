"""The simulated runtime: any number of workers, in virtual time, on blocks without data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Self

import anyio
import pyarrow as pa

from aiodata.bundle import BlockMetadata, BlockRef
from aiodata.errors import ClosedError, OptionError
from aiodata.options import amount, at_least, instance_of
from aiodata.plan.nodes import Resources
from aiodata.plan.pieces import Piece
from aiodata.plan.transforms import Transform
from aiodata.plan.work import OutputMetadata, Position, TaskEnd, Work
from aiodata.runtime.base import OnReady, Outcome, Pair
from aiodata.testing.actors import SimulatedActor
from aiodata.testing.agenda import Agenda
from aiodata.testing.blocks import SIMULATED_SCHEMA, BlockStore, SimulatedBlock
from aiodata.testing.counts import TaskCounts
from aiodata.testing.faults import Fault, Faults, FaultSchedule
from aiodata.testing.models import SimulatedMap, check_seconds
from aiodata.testing.steps import Step, check_chain, make_steps
from aiodata.testing.tasks import Late, SimulatedTask
from aiodata.testing.workers import Pool

_STORE_BYTES_PER_WORKER = 1 << 30

# Kinds of blocks whose metadata is made once; most models have one.
_MAX_CACHED_METADATA = 4096


class SimulatedRuntime:
    """Runs `SimulatedSource` and `SimulatedMap` on workers that are but a number, while its context is open.

    Its clock is the event loop's: on a `VirtualTimeLoop` a run takes just the CPU time of what happens in it. A task
    takes one worker and an actor none, unless their resources say otherwise, and those that find none wait in line.
    Like a task on Ray, it produces on its own, stops when its allotment is spent, and is run again from its start when
    its worker dies, its outputs matched by their place.

    Args:
        num_workers: CPUs.
        num_gpus: GPUs.
        store_bytes: Bytes that blocks may take, for whoever asks; a GiB per worker by default. Nothing stops more.
        metadata_delay_s: Virtual seconds from a block's surfacing until its metadata is known.
        cancel_delay_s: Virtual seconds from a cancellation until the task has stopped.
        actor_start_s: Virtual seconds that an actor takes to start, from when there is room for it.
        task_max_retries: How often a task whose worker died is run again.
        faults: What goes wrong; None: nothing.

    Raises:
        OptionError: A value that can not work.

    Example:
        >>> async def main():
        ...     async with SimulatedRuntime(5000) as runtime:
        ...         return runtime.num_cpus
        >>> anyio.run(main)
        5000
    """

    name = "simulated"

    def __init__(
        self,
        num_workers: int,
        *,
        num_gpus: float = 0,
        store_bytes: int | None = None,
        metadata_delay_s: float = 0.0,
        cancel_delay_s: float = 0.0,
        actor_start_s: float = 1.0,
        task_max_retries: int = 3,
        faults: Faults | None = None,
    ) -> None:
        """Prepare; nothing runs before its context is open."""
        num_workers = at_least("num_workers", num_workers, 1)
        amount("num_gpus", num_gpus)
        store_bytes = at_least("store_bytes", store_bytes, 1, optional=True)
        task_max_retries = at_least("task_max_retries", task_max_retries, 0)
        if faults is not None:
            instance_of("faults", faults, Faults)
        delays = (metadata_delay_s, cancel_delay_s, actor_start_s)
        for name, delay_s in zip(("metadata_delay_s", "cancel_delay_s", "actor_start_s"), delays, strict=True):
            check_seconds(name, delay_s)
        self.num_cpus = num_workers
        self.store_bytes = num_workers * _STORE_BYTES_PER_WORKER if store_bytes is None else store_bytes
        self.metadata_delay_s = metadata_delay_s
        self.cancel_delay_s = cancel_delay_s
        self.actor_start_s = actor_start_s
        self.task_max_retries = task_max_retries
        self.tasks: list[TaskCounts] = []
        self._pool = Pool(num_workers, num_gpus)
        self._faults = faults
        self._opened: list[tuple[Agenda, BlockStore, FaultSchedule]] = []

    @property
    def live_bytes(self) -> int:
        """Bytes of the blocks that something refers to."""
        return self._parts()[1].live_bytes

    @property
    def peak_live_bytes(self) -> int:
        """The most that there have been."""
        return self._parts()[1].peak_live_bytes

    @property
    def last_event_s(self) -> float:
        """When a task or an actor last did anything, in seconds of the loop's clock."""
        return self._parts()[0].last_event_s

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What has gone wrong so far."""
        return tuple(self._parts()[2].happened)

    async def __aenter__(self) -> Self:
        """Take the event loop's clock."""
        loop = asyncio.get_running_loop()
        agenda = Agenda(loop)
        self._opened = [(agenda, BlockStore(loop), FaultSchedule(self._faults, lambda: agenda.now))]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop the clock for all that runs."""
        self._parts()[0].close()

    def max_at_once(self, resources: Resources) -> int | None:
        """Return how many the GPUs are enough for: there is nothing else than these and CPUs."""
        return max(1, int(self._pool.num_gpus / resources.num_gpus)) if resources.num_gpus else None

    async def stage(self, name: str, chain: Sequence[Transform], resources: Resources) -> SimulatedStage:
        """Take note of a chain of models.

        Raises:
            OptionError: A transform is no `SimulatedMap`, or the resources are more than there are.
        """
        check_chain(chain)
        counts = TaskCounts(name)
        self.tasks.append(counts)
        return SimulatedStage(self, counts, chain, self._pool, resources, *self._parts())

    async def put(self, block: pa.Table) -> BlockRef:
        """Store a table; its rows are numbered on from those of the last one."""
        return self._parts()[1].put(block)

    async def get(self, ref: BlockRef) -> pa.Table:
        """Return the table that was put, or for a block of a task a table of its rows' ids, as the column `id`."""
        return _block(ref).to_table()

    def fetch_ready(self, pairs: Sequence[Pair]) -> list[Outcome]:
        """Return what is known by now."""
        now = self._parts()[0].now
        return [
            metadata
            if type(metadata := pair.metadata) is not Late
            # The clock may be off by what an addition loses.
            else metadata.outcome
            if metadata.known_at <= now + 1e-9
            else None
            for pair in pairs
        ]

    async def fetch(self, pair: Pair) -> OutputMetadata | TaskEnd:
        """Return a pair's metadata when it is known.

        Raises:
            AiodataError: A fault has lost it.
        """
        [outcome] = self.fetch_ready([pair])
        if outcome is None:
            await anyio.sleep(pair.metadata.known_at - self._parts()[0].now)
            outcome = pair.metadata.outcome
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None, "it is known by now"
        return outcome

    def size_of(self, ref: BlockRef) -> int | None:
        """Return a block's bytes."""
        return ref.num_bytes if isinstance(ref, SimulatedBlock) else None

    def node_of(self, ref: BlockRef) -> str | None:
        """Return nothing: there is one node."""
        return None

    def on_release(self, ref: BlockRef, callback: Callable[[], None]) -> None:
        """Call `callback` once, in the event loop, when nothing refers to a block any more."""
        block = _block(ref)
        earlier = block.on_released
        block.on_released = callback if earlier is None else partial(_call_both, earlier, callback)

    def _parts(self) -> tuple[Agenda, BlockStore, FaultSchedule]:
        if not self._opened:
            raise ClosedError("a SimulatedRuntime is opened with `async with` before it is used")
        return self._opened[0]


class SimulatedStage:
    """A chain of models, and the accounts of its tasks."""

    def __init__(
        self,
        runtime: SimulatedRuntime,
        counts: TaskCounts,
        chain: Sequence[Transform],
        pool: Pool,
        resources: Resources,
        agenda: Agenda,
        store: BlockStore,
        faults: FaultSchedule,
    ) -> None:
        """Prepare."""
        self.name = counts.name
        self.counts = counts
        self.agenda = agenda
        self.store = store
        self.faults = faults
        self.metadata_delay_s = runtime.metadata_delay_s
        self.cancel_delay_s = runtime.cancel_delay_s
        self.task_max_retries = runtime.task_max_retries
        self._actor_start_s = runtime.actor_start_s
        self._constructor_fails = any(isinstance(one, SimulatedMap) and one.constructor_fails for one in chain)
        self._chain = chain
        # Like on Ray, where an actor takes no CPU unless it is told to.
        self._actor_share = pool.share(resources, default_cpus=0.0)
        self._share = pool.share(resources, default_cpus=1.0)
        self._metadata = lru_cache(_MAX_CACHED_METADATA)(_make_metadata)

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> SimulatedTask:
        """Start a task as soon as there is a worker for it."""
        return SimulatedTask(self, self._share, work, refs, on_ready)

    def start_actor(self) -> SimulatedActor:
        """Start an actor as soon as there is room for it."""
        return SimulatedActor(self, self._actor_share, self._actor_start_s, constructor_fails=self._constructor_fails)

    def steps(self, pieces: Sequence[Piece], start: Position, refs: Sequence[BlockRef]) -> Iterator[Step]:
        """Return a task's steps."""
        return make_steps(pieces, start, self._chain, refs)

    def metadata(self, step: Step, seconds: float) -> OutputMetadata:
        """Return what is known of a step's output."""
        return self._metadata(step.num_rows, step.num_bytes, step.calls, seconds)


def _make_metadata(num_rows: int, num_bytes: int, calls: int, seconds: float) -> OutputMetadata:
    return OutputMetadata(BlockMetadata(num_rows, num_bytes, SIMULATED_SCHEMA, "simulated rows"), calls, seconds)


def _block(ref: BlockRef) -> SimulatedBlock:
    if not isinstance(ref, SimulatedBlock):
        raise OptionError(f"a simulated runtime has no block {type(ref).__name__}; put it there first")
    return ref


def _call_both(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()
