"""The local runtime: tasks run in worker threads of this process, blocks are plain references.

A task is a generator that is stepped in a worker thread, one output block per step. Between steps it holds no thread,
so a consumer that is slow, or gone, holds up nobody. All runs of an event loop share one limit of as many threads as
there are CPUs; reading uses just its own thread, and so Arrow's pool adds none. The resources that a task or an actor
asks for change nothing here, nor where it is to run: each step takes one thread, and this process sees all GPUs.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from copy import copy
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.lowlevel
import pyarrow as pa

from aiodata.bundle import BlockRef, Charge, InlineBlock
from aiodata.concurrency import Wakeup, call_in_thread, cleared_frames, run_in_thread, start
from aiodata.errors import AiodataError, OptionError, is_failure
from aiodata.options import ExecutionOptions
from aiodata.plan.nodes import Resources
from aiodata.plan.transforms import Control, Stopped, Transform, build, close
from aiodata.plan.work import OutputMetadata, TaskEnd, Work, run_work
from aiodata.runtime.base import OnReady, Outcome, Pair
from aiodata.runtime.failures import as_failure
from aiodata.runtime.shared_memory import InputMemory

# Pairs of a task that may wait to be pulled before it pauses.
_MAX_WAITING_PAIRS = 2

# The memory that is assumed where the platform does not say, in bytes.
_ASSUMED_MEMORY_BYTES = 4 << 30

_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("aiodata_local_cpus")

T = TypeVar("T")
Chain = Sequence[Transform]
Blocks = Generator[tuple[pa.Table, OutputMetadata], None, TaskEnd]

# Gives a task the chain that it runs, for as long as it runs it.
Turn = Callable[[], AbstractAsyncContextManager[Chain]]


class LocalRuntime:
    """Runs tasks in worker threads, while its context is open; see the top of the file."""

    name = "local"

    def __init__(self, options: ExecutionOptions) -> None:
        """Prepare."""
        self.num_cpus = options.num_cpus or _cpu_count()
        self.store_bytes = _memory_bytes()
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

    def max_at_once(self, resources: Resources) -> int | None:
        """Return None: threads take nothing but CPUs."""
        return None

    async def stage(self, name: str, chain: Chain, resources: Resources) -> LocalStage:
        """Hold on to the chain: nothing has to be sent anywhere."""
        return LocalStage(self, name, chain)

    async def put(self, block: pa.Table) -> BlockRef:
        """Return the block as its own reference."""
        return InlineBlock(block)

    async def get(self, ref: BlockRef) -> pa.Table:
        """Return the block; nothing is copied."""
        return _table_of(ref)

    def fetch_ready(self, pairs: Sequence[Pair]) -> list[Outcome]:
        """Return the pairs' metadata, which they have with them."""
        return [pair.metadata for pair in pairs]

    async def fetch(self, pair: Pair) -> OutputMetadata | TaskEnd:
        """Return a pair's metadata, which it has with it."""
        metadata: OutputMetadata | TaskEnd = pair.metadata
        return metadata

    def size_of(self, ref: BlockRef) -> int | None:
        """Return a block's bytes."""
        return int(_table_of(ref).nbytes)

    def node_of(self, ref: BlockRef) -> str | None:
        """Return nothing: there is one node."""
        return None

    def on_release(self, ref: BlockRef, callback: Callable[[], None]) -> None:
        """Have the table tell when it is gone; slices that outlive it hold its buffers, and are not seen."""
        loop = asyncio.get_running_loop()
        weakref.finalize(_table_of(ref), _tell, loop, callback).atexit = False

    async def call(self, call: Callable[[], T]) -> T:
        """Run a call in a worker thread when a CPU is free; cancelled, wait for it for the close timeout."""
        async with self.limiter:
            return await call_in_thread(call, grace_s=self.close_timeout_s)


class LocalStage:
    """A chain of transforms as it was given.

    Args:
        runtime: Where its tasks run.
        name: The stage's name.
        chain: The transforms.
    """

    def __init__(self, runtime: LocalRuntime, name: str, chain: Chain) -> None:
        """Hold on to them."""
        self._runtime = runtime
        self._name = name
        self._chain = chain

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> LocalTask:
        """Start a task."""
        return LocalTask(self._runtime, self._name, work, refs, on_ready, lambda: nullcontext(self._chain))

    def start_actor(self) -> LocalActor:
        """Start an actor, which is no more than the state of the chain and an order of tasks."""
        return LocalActor(self._runtime, self._name, self._chain)


class LocalActor:
    """Keeps what `build` makes of a chain, and lets one task at a time use it.

    Args:
        runtime: Where its tasks run.
        name: The stage's name.
        chain: The transforms.
    """

    def __init__(self, runtime: LocalRuntime, name: str, chain: Chain) -> None:
        """Begin to build."""
        self._runtime = runtime
        self._name = name
        self._chain = chain
        self._error: AiodataError | None = None
        self._tasks: weakref.WeakSet[LocalTask] = weakref.WeakSet()
        self._free = anyio.Lock()
        self._has_begun = False
        self._begun = anyio.Event()
        # What is to be closed at the end; popping is atomic, so a state that is built too late is closed once, too.
        self._states: list[Chain] = []
        self._is_over = False
        self._built = anyio.Event()
        self._gone = anyio.Event()
        self._scope = anyio.CancelScope()
        start(runtime.group, self._run, name=f"local actor {name}")

    async def wait_begun(self) -> None:
        """Wait until a thread is free to build the chain."""
        await self._begun.wait()

    async def wait_ready(self) -> None:
        """Wait until the chain is built."""
        await self._built.wait()
        if self._error is not None:
            # One of its own for each: a traceback that is shared would have frames of others cleared.
            error = copy(self._error)
            error.__cause__ = self._error.__cause__
            raise error

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> LocalTask:
        """Start a task that waits for its turn."""
        task = LocalTask(self._runtime, self._name, work, refs, on_ready, self._turn)
        self._tasks.add(task)
        return task

    def stop(self) -> None:
        """Cancel its tasks, and let go of the state."""
        self._scope.cancel()
        for task in list(self._tasks):
            task.cancel()
        if not self._has_begun:  # And perhaps never will, where the loop ends.
            self._gone.set()

    async def wait_stopped(self) -> None:
        """Wait until its tasks have stopped and the state is closed."""
        await self._gone.wait()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[Chain]:
        async with self._free:
            await self.wait_ready()
            yield self._chain

    async def _run(self) -> None:
        self._has_begun = True
        try:
            with self._scope:
                await self._build()
                await anyio.sleep_forever()
        finally:
            self.stop()
            self._begun.set()
            if not self._built.is_set():
                self._error = AiodataError(f"an actor of {self._name} was stopped before its state was built")
                self._built.set()
            try:
                with anyio.move_on_after(self._runtime.close_timeout_s, shield=True):
                    for task in list(self._tasks):
                        await task.wait_stopped()
            finally:
                # Also where a loop that ends cancels each task once more, from which nothing shields.
                await self._close()

    async def _build(self) -> None:
        try:
            async with self._runtime.limiter:
                self._begun.set()
                grace_s = self._runtime.close_timeout_s
                self._chain = await call_in_thread(self._build_state, grace_s=grace_s)
        except BaseException as error:
            if not is_failure(error):
                raise
            self._error = as_failure(error)
            self._chain = ()
        self._built.set()

    def _build_state(self) -> Chain:
        """Build the state; called in a worker thread."""
        state = build(self._chain)
        self._states.append(state)
        if self._is_over:  # The thread was left behind.
            self._close_states()
        return state

    async def _close(self) -> None:
        """Let go of the state, and close it in a worker thread, which is waited for if this is not cancelled."""
        self._chain = ()
        self._is_over = True
        loop = asyncio.get_running_loop()

        def close_states() -> None:
            try:
                self._close_states()
            finally:
                _tell(loop, self._gone.set)

        run_in_thread(close_states)
        with anyio.move_on_after(self._runtime.close_timeout_s, shield=True):
            await self._gone.wait()
        self._gone.set()

    def _close_states(self) -> None:
        while self._states:
            with suppress(IndexError):
                close(self._states.pop())


class LocalTask:
    """Steps a generator of blocks in worker threads.

    Args:
        runtime: Where it runs.
        name: The name of its stage.
        work: What to do.
        refs: The blocks that the work's pieces stand for.
        on_ready: See `Stage.submit`.
        turn: What gives it the chain.
    """

    def __init__(
        self, runtime: LocalRuntime, name: str, work: Work, refs: Sequence[BlockRef], on_ready: OnReady, turn: Turn
    ) -> None:
        """Have the runtime's task group run it."""
        self._runtime = runtime
        self._on_ready = on_ready
        self._turn = turn
        self._control = Control()
        self._pairs: deque[Pair] = deque()
        # Blocks beyond the room that it had: how many it has made, and how many it may.
        self._num_beyond = 0
        self._max_beyond = 0
        self._may_go_on = Wakeup()
        self._scope = anyio.CancelScope()
        self._is_stepping = False
        self._has_begun = False
        self._ended = anyio.Event()
        blocks = [_table_of(ref) for ref in refs]
        self._input_charges = [ref.charge for ref in refs]
        self._memory: InputMemory | None = None
        start(runtime.group, self._run, work, blocks, name=f"local task {name}")

    def pull(self) -> list[Pair]:
        """Return what is there; the task goes on when all of it has been taken."""
        pairs = list(self._pairs)
        self._pairs.clear()
        self._may_go_on.set()
        return pairs

    def give_room(self, num_blocks: int) -> None:
        """Let it make so many blocks, in all, beyond those that there was room for."""
        self._max_beyond = num_blocks
        self._may_go_on.set()

    def cancel(self) -> None:
        """Stop before the next call of the user's code; a call that outlasts the close timeout is left behind."""
        self._control.stop()
        self._scope.cancel()
        if not self._has_begun:  # And perhaps never will, where the loop ends.
            self._ended.set()

    async def wait_stopped(self) -> None:
        """Wait until its thread has left the user's code; what it made and nobody has pulled is dropped."""
        await self._ended.wait()
        self._pairs.clear()

    async def _run(self, work: Work, tables: Sequence[pa.Table]) -> None:
        """Run the work when it is its turn, until it ends, fails or is cancelled."""
        self._has_begun = True
        end = TaskEnd()
        try:
            with self._scope, cleared_frames():
                async with self._turn() as chain:
                    end = await self._produce(run_work(work, chain, tables, self._control), tables)
        except BaseException as error:
            if not is_failure(error):
                raise
            end = TaskEnd(None, as_failure(error))
        finally:
            self._pairs.append(Pair(None, end))
            self._ended.set()
            self._on_ready(self)

    async def _produce(self, blocks: Blocks, inputs: Sequence[pa.Table]) -> TaskEnd:
        grace_s = self._runtime.close_timeout_s
        try:
            while True:
                output = await self._runtime.call(partial(self._step, blocks, inputs))
                if isinstance(output, TaskEnd):
                    return output
                self._pairs.append(output)
                self._num_beyond += output.metadata.needs_room
                del output
                self._on_ready(self)
                if self._has_to_wait():
                    await call_in_thread(self._control.settle, grace_s=grace_s)
                while self._has_to_wait():
                    await self._may_go_on.wait()
        finally:
            self._control.stop()
            # One that a thread was left behind in can not be closed.
            if not self._is_stepping:
                with anyio.move_on_after(grace_s, shield=True):
                    await call_in_thread(blocks.close, grace_s=grace_s)

    def _has_to_wait(self) -> bool:
        return len(self._pairs) >= _MAX_WAITING_PAIRS or self._num_beyond > self._max_beyond

    def _step(self, blocks: Blocks, inputs: Sequence[pa.Table]) -> Pair | TaskEnd:
        """Return the next output, or how the task ended; called in a worker thread."""
        self._is_stepping = True
        try:
            return self._pair(*next(blocks), inputs)
        except StopIteration as stop:
            end: TaskEnd = stop.value
            return end
        except Stopped:
            return TaskEnd()
        finally:
            self._is_stepping = False

    def _pair(self, table: pa.Table, metadata: OutputMetadata, inputs: Sequence[pa.Table]) -> Pair:
        charge = Charge()
        if metadata.needs_room:
            # The task keeps its last block while it waits, which is not to count when others have let go of it.
            table = table.slice()
        if not inputs:
            return Pair(InlineBlock(table, charge), metadata, charge)
        if self._memory is None:
            self._memory = InputMemory(inputs)
        shared = self._memory.shared_with(table)
        shares = tuple((self._input_charges[index], num_bytes) for index, num_bytes in shared.items())
        return Pair(InlineBlock(table, charge), metadata, charge, shares)


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # The loop is closed: nobody is waiting any more.
        loop.call_soon_threadsafe(callback)


def _table_of(ref: BlockRef) -> pa.Table:
    if not isinstance(ref, InlineBlock):
        raise OptionError("runtime='local' can not reach blocks in Ray's object store; use runtime='ray'")
    return ref.table


def _cpu_count() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not on this platform.
        return os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Not on this platform.
        return _ASSUMED_MEMORY_BYTES


def _shared_limiter() -> anyio.CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_cpu_count())
        _limiter.set(limiter)
        return limiter
