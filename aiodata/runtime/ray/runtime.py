"""The Ray runtime: tasks are streaming Ray tasks, blocks stay in the object store until a consumer asks for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.to_thread
import pyarrow as pa
import ray
from ray import cloudpickle
from ray.exceptions import RayError

from aiodata.bundle import BlockRef, InlineBlock
from aiodata.errors import AiodataError, OptionError, TaskError
from aiodata.options import ExecutionOptions
from aiodata.plan.transforms import Transform
from aiodata.plan.work import Work
from aiodata.runtime.base import Task, TaskOutput, TaskState
from aiodata.runtime.ray.compat import pair_stream, streaming_function, when_settled
from aiodata.runtime.ray.start import ensure_ray
from aiodata.runtime.ray.worker import Goodbye, run_packed_work, unpack_error

# A chain of transforms up to this size travels with each task; a larger one is stored once per run.
_INLINE_CHAIN_BYTES = 64 * 1024

# How long a cancelled task may take to stop of its own accord before its worker process is killed, in seconds.
_FORCE_AFTER_S = 0.5

_run_in_worker = streaming_function(run_packed_work)


class RayRuntime:
    """Runs tasks on a Ray cluster; see the top of the file."""

    name = "ray"

    def __init__(self, options: ExecutionOptions, num_cpus: int) -> None:
        """Prepare; `open_ray` is what callers use."""
        self.num_cpus = num_cpus
        self._options = options
        self._ready = _ReadyQueue()

    async def stage(self, name: str, chain: Sequence[Transform]) -> _RayStage:
        """Pickle the chain once; store it once if it is large."""
        try:
            packed: Any = await anyio.to_thread.run_sync(cloudpickle.dumps, tuple(chain))
        except Exception as error:
            raise OptionError(
                f"{name} can not be sent to a worker: {error}. Use a function that pickles, or runtime='local'."
            ) from error
        if len(packed) > _INLINE_CHAIN_BYTES:
            packed = await anyio.to_thread.run_sync(ray.put, packed)
        return _RayStage(name, packed, self._ready, self._options)

    async def put(self, block: pa.Table) -> BlockRef:
        """Copy the block into the object store, in a worker thread."""
        return await anyio.to_thread.run_sync(ray.put, block)

    async def get(self, ref: BlockRef) -> pa.Table:
        """Return the block, zero-copy from this node's object store; it is brought there first if need be."""
        if isinstance(ref, InlineBlock):
            return ref.table
        return await ref


@asynccontextmanager
async def open_ray(options: ExecutionOptions) -> AsyncIterator[RayRuntime]:
    """Open Ray for one run, starting or joining it first if need be."""
    await ensure_ray()
    cluster_cpus = int((await anyio.to_thread.run_sync(ray.cluster_resources)).get("CPU", 1))
    yield RayRuntime(options, min(options.num_cpus or cluster_cpus, cluster_cpus) or 1)


class _ReadyQueue:
    """Brings readiness from Ray's threads into the event loop: many callbacks, one wake-up."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def call_soon(self, call: Callable[[], None]) -> None:
        """Have `call` run in the event loop; from any thread."""
        self._calls.append(call)
        if not self._scheduled:
            self._scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._run)
            except RuntimeError:  # The loop is closed: nobody is waiting any more.
                self._calls.clear()

    def _run(self) -> None:
        self._scheduled = False
        while self._calls:
            self._calls.popleft()()


class _RayStage:
    def __init__(self, name: str, chain: Any, ready: _ReadyQueue, options: ExecutionOptions) -> None:
        self._function = _run_in_worker.options(name=f"aiodata {name}", max_retries=options.task_max_retries)
        self._force_after_s = min(_FORCE_AFTER_S, options.close_timeout_s / 2)
        self._name = name
        self._chain = chain
        self._ready = ready

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: Callable[[Task], None]) -> RayTask:
        generator = self._function.remote(self._chain, work, *refs)
        return RayTask(self._name, generator, self._ready, on_ready, self._force_after_s)


class RayTask:
    """Reads a task's `(block, metadata)` pairs as they become ready, up to its goodbye."""

    def __init__(
        self, name: str, generator: Any, ready: _ReadyQueue, on_ready: Callable[[Task], None], force_after_s: float
    ) -> None:
        """Start to listen for the first pair."""
        self._name = name
        self._force_after_s = force_after_s
        self.state = TaskState.ACTIVE
        self._generator = generator
        self._pairs = pair_stream(generator)
        self._ready = ready
        self._on_ready = on_ready
        self._ended = False
        self._error: AiodataError | None = None
        self._listen()

    def pull(self) -> list[TaskOutput]:
        """Return all pairs that are ready; if there is none, listen for the next one, or raise what ended the task."""
        outputs: list[TaskOutput] = []
        while not self._ended:
            try:
                pair = self._pairs.take()
            except (RayError, EOFError) as error:
                self._ended = True
                reason = f"{type(error).__name__}: {error}"
                self._error = TaskError(self._name, "a Ray worker that did not finish", None, reason)
                self._error.__cause__ = error
                break
            if pair is None:
                break
            block, metadata = pair
            if isinstance(metadata, Goodbye):
                self._ended = True
                self._error = None if metadata.error is None else unpack_error(metadata.error)
            else:
                outputs.append(TaskOutput(block, metadata))
        if outputs:
            return outputs
        if not self._ended:
            self._listen()
            return outputs
        self.state = TaskState.FINISHED
        if self._error is not None:
            raise self._error
        return outputs

    def cancel(self) -> None:
        """Ask Ray to stop the task, unless it has said goodbye; to drop its generator would not stop it."""
        if not ray.is_initialized():  # Ray was shut down under the run, and the task with it.
            self._ended = True
            return
        self._drain()
        if not self._ended:
            ray.cancel(self._generator)

    async def wait_stopped(self) -> None:
        """Wait until the task runs no more; a call that takes long loses its worker process."""
        if self._ended:
            return
        stopped = anyio.Event()
        ended = self._generator.completed()
        when_settled(ended, lambda: self._ready.call_soon(stopped.set))
        with anyio.move_on_after(self._force_after_s):
            await stopped.wait()
            return
        self._drain()
        if not self._ended:
            ray.cancel(self._generator, force=True)
            await stopped.wait()

    def _drain(self) -> None:
        """Read up to the goodbye, if it is there."""
        with suppress(AiodataError):
            while self.pull():
                pass

    def _listen(self) -> None:
        self._pairs.arm(lambda: self._ready.call_soon(self._tell))

    def _tell(self) -> None:
        self._on_ready(self)
