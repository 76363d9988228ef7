"""The seam to where work runs: everything above talks to a `Runtime`, and to nothing else of Ray or threads."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from aiodata.bundle import BlockRef
from aiodata.plan.transforms import Transform
from aiodata.plan.work import OutputMetadata, Work


class TaskState(enum.Enum):
    """A task's life, as its owner sees it.

    `ACTIVE`: outputs may come. `FINISHED`: the last output has been pulled, or it failed.
    """

    ACTIVE = enum.auto()
    FINISHED = enum.auto()


@dataclass(frozen=True, slots=True)
class TaskOutput:
    """A block that a task has produced: a reference, and what is known of it."""

    ref: BlockRef
    metadata: OutputMetadata


class Task(Protocol):
    """Some work that was submitted."""

    @property
    def state(self) -> TaskState:
        """Where the task is in its life."""

    def pull(self) -> list[TaskOutput]:
        """Return outputs that are ready, without waiting; none: there are no more for now, or ever if `FINISHED`.

        Raises:
            TaskError: A transform failed.
            SourceError: A file is missing, corrupt or unreadable.
        """

    def cancel(self) -> None:
        """Ask the task to stop; returns at once, idempotent."""

    async def wait_stopped(self) -> None:
        """After `cancel`: wait until it runs no more."""


class Stage(Protocol):
    """A chain of transforms that a runtime has been told of, once per run."""

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: Callable[[Task], None]) -> Task:
        """Start a task.

        Args:
            work: What to do.
            refs: The blocks that the work's pieces stand for.
            on_ready: Called in the event loop whenever `pull` may have something new.
        """


class Runtime(Protocol):
    """A place where tasks run; opened once per run."""

    @property
    def name(self) -> str:
        """`"local"` or `"ray"`."""

    @property
    def num_cpus(self) -> int:
        """CPUs that tasks of this run may use at a time."""

    async def stage(self, name: str, chain: Sequence[Transform]) -> Stage:
        """Tell the runtime of a chain of transforms.

        Raises:
            OptionError: A function in the chain can not be sent to a worker.
        """

    async def put(self, block: pa.Table) -> BlockRef:
        """Store a block where tasks can get at it."""

    async def get(self, ref: BlockRef) -> pa.Table:
        """Return a block; what a cancelled call was to return can be asked for again."""


# Opens a runtime for one run; leaving the context stops all that runs in it.
OpenRuntime = Callable[[], AbstractAsyncContextManager[Runtime]]
