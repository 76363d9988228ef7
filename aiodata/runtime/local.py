"""The local runtime: tasks run in worker threads of this process, blocks are plain references.

A task is a generator that is stepped in a worker thread, one output block per step. Between steps it holds no thread,
so a consumer that is slow, or gone, holds up nobody. All runs of an event loop share one limit of as many threads as
there are CPUs; reading uses just its own thread, and so Arrow's pool adds none.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel
import anyio.to_thread
import pyarrow as pa

from aiodata.bundle import BlockRef, InlineBlock
from aiodata.concurrency import Wakeup, cleared_frames
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
        table: pa.Table = ref.table
        return table


class _LocalStage:
    def __init__(self, runtime: LocalRuntime, name: str, chain: Sequence[Transform]) -> None:
        self._runtime = runtime
        self._name = name
        self._chain = chain

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: Callable[[Task], None]) -> LocalTask:
        task = LocalTask(self._runtime, on_ready)
        blocks = [ref.table for ref in refs]
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
        self._in_thread = anyio.CancelScope(shield=True)
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
            self._in_thread.deadline = anyio.current_time() + self._runtime.close_timeout_s

    async def wait_stopped(self) -> None:
        """Wait until its thread has left the user's code."""
        await self._ended.wait()

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
        running = False
        try:
            while True:
                async with self._runtime.limiter:
                    running, output = True, None
                    with self._in_thread:
                        output = await _run_in_thread(_advance, blocks)
                    if self._in_thread.cancelled_caught:
                        return
                    running = False
                if output is None:
                    return
                self._outputs.append(TaskOutput(InlineBlock(output[0]), output[1]))
                self._on_ready(self)
                while len(self._outputs) >= _MAX_WAITING_OUTPUTS:
                    await self._room.wait()
                self._in_thread = anyio.CancelScope(shield=True)
        finally:
            self._stop = True
            if not running:
                with anyio.move_on_after(self._runtime.close_timeout_s, shield=True):
                    await _run_in_thread(blocks.close)


def _advance(blocks: Blocks) -> tuple[pa.Table, OutputMetadata] | None:
    """Return the next output, None at the end and where the task was cancelled."""
    try:
        return next(blocks, None)
    except _Stopped:
        return None


async def _run_in_thread(call: Callable[..., Any], *args: Any) -> Any:
    """Run a call in a worker thread that it was admitted to by other means than anyio's limit."""
    return await anyio.to_thread.run_sync(call, *args, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(math.inf))


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
