"""The seam to where work runs: everything above talks to a `Runtime`, and to nothing else of Ray or threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from aiodata.bundle import BlockRef, Charge
from aiodata.plan.nodes import Resources
from aiodata.plan.transforms import Transform
from aiodata.plan.work import OutputMetadata, TaskEnd, Work

# What stands for a pair's metadata until it is fetched: a runtime's own reference, or the metadata itself.
MetadataRef = Any

# What becomes of a pair's metadata: what is known of the block; or that the pair is none, but the end of its task; or
# why it can not be had. None: it is still under way.
Outcome = OutputMetadata | TaskEnd | Exception | None


@dataclass(frozen=True, slots=True)
class Pair:
    """A block that a task has produced, and what stands for its metadata.

    Attributes:
        ref: The block.
        metadata: What stands for its metadata.
        charge: What it counts in the byte budget, where blocks may share memory; else None.
        shared: Bytes of it that are memory of the task's inputs, each with what that input counts.
    """

    ref: BlockRef
    metadata: MetadataRef
    charge: Charge | None = None
    shared: tuple[tuple[Charge | None, int], ...] = ()


class Task(Protocol):
    """Some work that was submitted. One of its last pairs is its end; those after that stand for nothing."""

    def pull(self) -> list[Pair]:
        """Return the pairs that are there, without waiting and without fetching; none: none for now, or never again."""

    def cancel(self) -> None:
        """Ask the task to stop; returns at once, idempotent."""

    def give_room(self, num_blocks: int) -> None:
        """Let it make so many blocks, in all, beyond those that there was room for when it was submitted.

        After each of these (`OutputMetadata.needs_room`) it waits until it may make one more, and holds no CPU then.
        0: it has to wait; the runtime prepares to tell it when that is over.
        """

    async def wait_stopped(self) -> None:
        """After `cancel`: wait until it runs no more."""


OnReady = Callable[[Task], None]


class Actor(Protocol):
    """A worker that has built the state of a stage's transforms once, and keeps it."""

    async def wait_begun(self) -> None:
        """Wait until it begins to build the state, or has been stopped before that."""

    async def wait_ready(self) -> None:
        """Wait until the state is built.

        Raises:
            TaskError: A constructor failed.
        """

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> Task:
        """Start a task on this actor; one runs at a time, others wait for it there. See `Stage.submit`."""

    def stop(self) -> None:
        """End it, and what runs on it, at once; idempotent."""

    async def wait_stopped(self) -> None:
        """After `stop`: wait until it is gone."""


class Stage(Protocol):
    """A chain of transforms that a runtime has been told of, once per run."""

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> Task:
        """Start a task.

        Args:
            work: What to do.
            refs: The blocks that the work's pieces stand for.
            on_ready: Called in the event loop whenever `pull` may have something new, after it gave nothing.
        """

    def start_actor(self) -> Actor:
        """Start an actor; returns at once."""


class Runtime(Protocol):
    """A place where tasks run; opened once per run."""

    @property
    def name(self) -> str:
        """`"local"`, `"ray"` or `"simulated"`."""

    @property
    def num_cpus(self) -> int:
        """CPUs that tasks of this run may use at a time."""

    @property
    def store_bytes(self) -> int:
        """Bytes of memory that blocks can be kept in."""

    def max_at_once(self, resources: Resources) -> int | None:
        """Return how many tasks, or actors, that take so much can run at a time, at least 1; None: as CPUs allow."""

    async def stage(self, name: str, chain: Sequence[Transform], resources: Resources) -> Stage:
        """Tell the runtime of a chain of transforms.

        Raises:
            OptionError: A function in the chain can not be sent to a worker.
        """

    async def put(self, block: pa.Table) -> BlockRef:
        """Store a block where tasks can get at it."""

    async def get(self, ref: BlockRef) -> pa.Table:
        """Return a block; what a cancelled call was to return can be asked for again.

        Raises:
            AiodataError: The block is lost.
        """

    def fetch_ready(self, pairs: Sequence[Pair]) -> list[Outcome]:
        """Return the metadata of pairs as far as it is there, without waiting."""

    async def fetch(self, pair: Pair) -> OutputMetadata | TaskEnd:
        """Return a pair's metadata, waiting for it.

        Raises:
            Exception: It can not be had.
        """

    def size_of(self, ref: BlockRef) -> int | None:
        """Return a block's bytes, if that is known here without asking anybody."""

    def node_of(self, ref: BlockRef) -> str | None:
        """Return the node that a block lies on, if that is known here without asking anybody."""

    def on_release(self, ref: BlockRef, callback: Callable[[], None]) -> None:
        """Call `callback` once, in the event loop, when the last reference to a block is gone everywhere."""


# Opens a runtime for one run; leaving the context stops all that runs in it.
OpenRuntime = Callable[[], AbstractAsyncContextManager[Runtime]]
