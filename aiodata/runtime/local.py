"""The local runtime: tasks run in worker threads of this process, blocks are plain references.

A task is a generator that is stepped in a worker thread, one output block per step. Between steps it holds no thread,
so a consumer that is slow, or gone, holds up nobody. All runs of an event loop share one limit of as many threads as
there are CPUs; reading uses just its own thread, and so Arrow's pool adds none.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel
import pyarrow as pa

from aiodata.bundle import BlockRef, InlineBlock
from aiodata.concurrency import Wakeup, call_in_thread, cleared_frames
from aiodata.errors import OptionError
from aiodata.options import ExecutionOptions
from aiodata.plan.transforms import Transform
from aiodata.plan.work import OutputMetadata, Work, run_work
from aiodata.runtime.base import Task, TaskOutput, TaskState

# Outputs of a task that may wait to be pulled before it pauses.
_MAX_WAITING_OUTPUTS = 2

_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("aiodata_local_cpus")


Blocks = Generator[tuple[pa.Table, OutputMetadata], None, None]


class _Stopped(BaseException):
    """Raised in a worker thread to stop a task between two calls of the user's code."""


class LocalRuntime:
    """Runs tasks in worker threads, while its context is open; see the top of the file."""

    name = "local"

    def __init__(self, options: ExecutionOptions) -> None:
        """Prepare."""
        self.num_cpus = options.num_cpus or _cpu_count()
        self.limiter = _shared_limiter() if options.num_cpus is None else anyio.CapacityLimiter(options.num_cpus)
        self.close_timeout_s = options.close_timeout_s
        self.group = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        """Open the task group that tasks run in."""
        await self.group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Stop what runs, and close the task group."""
        self.group.cancel_scope.cancel()
        return await self.group.__aexit__(kind, error, traceback)

    async def stage(self, name: str, chain: Sequence[Transform]) -> _LocalStage:
        """Hold on to the chain: nothing has to be sent anywhere."""
        return _LocalStage(self, name, chain)

    async def put(self, block: pa.Table) -> BlockRef:
        """Return the block as its own reference."""
        return InlineBlock(block)

    async def get(self, ref: BlockRef) -> pa.Table:
        """Return the block; nothing is copied."""
        return _table_of(ref)


class _LocalStage:
    def __init__(self, runtime: LocalRuntime, name: str, chain: Sequence[Transform]) -> None:
        self._runtime = runtime
        self._name = name
        self._chain = chain

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: Callable[[Task], None]) -> LocalTask:
        task = LocalTask(self._runtime, on_ready)
        blocks = [_table_of(ref) for ref in refs]
        self._runtime.group.start_soon(
            task.run, run_work(work, self._chain, blocks, task.checkpoint), name=f"local task {self._name}"
        )
        return task


class LocalTask:
    """Steps a generator of blocks in worker threads."""

    def __init__(self, runtime: LocalRuntime, on_ready: Callable[[Task], None]) -> None:
        """Prepare; the runtime's task group runs it."""
        self.state = TaskState.ACTIVE
        self._runtime = runtime
        self._on_ready = on_ready
        self._outputs: deque[TaskOutput] = deque()
        self._room = Wakeup()
        self._scope = anyio.CancelScope()
        self._is_stepping = False
        self._ended = anyio.Event()
        self._stop = False
        self._error: Exception | None = None

    def pull(self) -> list[TaskOutput]:
        """Return what is ready; the task goes on when all of it has been taken."""
        outputs = list(self._outputs)
        self._outputs.clear()
        self._room.set()
        if self._ended.is_set() and not outputs:
            self.state = TaskState.FINISHED
            if self._error is not None:
                raise self._error
        return outputs

    def cancel(self) -> None:
        """Stop before the next call of the user's code; a call that outlasts the close timeout is left behind."""
        if not self._stop:
            self._stop = True
            self._scope.cancel()

    async def wait_stopped(self) -> None:
        """Wait until its thread has left the user's code; what it made and nobody has pulled is dropped."""
        await self._ended.wait()
        self._outputs.clear()

    def checkpoint(self) -> None:
        """Raise in the worker thread if the task was cancelled."""
        if self._stop:
            raise _Stopped

    async def run(self, blocks: Blocks) -> None:
        """Step the generator until it ends, fails or is cancelled."""
        try:
            with self._scope, cleared_frames():
                await self._produce(blocks)
        except Exception as error:  # noqa: BLE001 - whoever pulls gets it.
            self._error = error
        finally:
            self._ended.set()
            self._on_ready(self)

    async def _produce(self, blocks: Blocks) -> None:
        grace_s = self._runtime.close_timeout_s
        try:
            while True:
                async with self._runtime.limiter:
                    output = await call_in_thread(partial(self._step, blocks), grace_s=grace_s)
                if output is None:
                    return
                self._outputs.append(TaskOutput(InlineBlock(output[0]), output[1]))
                del output
                self._on_ready(self)
                while len(self._outputs) >= _MAX_WAITING_OUTPUTS:
                    await self._room.wait()
        finally:
            self._stop = True
            # One that a thread was left behind in can not be closed.
            if not self._is_stepping:
                with anyio.move_on_after(grace_s, shield=True):
                    await call_in_thread(blocks.close, grace_s=grace_s)

    def _step(self, blocks: Blocks) -> tuple[pa.Table, OutputMetadata] | None:
        """Return the next output, None at the end and where the task was cancelled; called in a worker thread."""
        self._is_stepping = True
        try:
            return next(blocks, None)
        except _Stopped:
            return None
        finally:
            self._is_stepping = False


def _table_of(ref: BlockRef) -> pa.Table:
    if not isinstance(ref, InlineBlock):
        raise OptionError("runtime='local' can not reach blocks in Ray's object store; use runtime='ray'")
    return ref.table


def _cpu_count() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not on this platform.
        return os.cpu_count() or 1


def _shared_limiter() -> anyio.CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_cpu_count())
        _limiter.set(limiter)
        return limiter
