"""Consumer: one pass over a dataset, from the run behind it to the batch in hand.

The handle that users hold (`BatchIterator`) refers to the consumer; the run's tasks refer to the consumer too, but
never to the handle. So dropping the handle is noticed at once, and ends the run.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import anyio
import anyio.lowlevel
import pyarrow as pa

from aiodata.batcher import Batcher
from aiodata.batching.window import FetchWindow
from aiodata.bundle import RefBundle
from aiodata.concurrency import Supervisor, Wakeup, close_and_drop
from aiodata.coordination import Coordinator
from aiodata.errors import AiodataError, BusyError, TaskError
from aiodata.execution.counters import OperatorCounters
from aiodata.execution.executor import StreamingExecutor
from aiodata.formats import get_format
from aiodata.options import ExecutionOptions, at_least, true_or_false
from aiodata.plan.nodes import Plan
from aiodata.runtime import choose_runtime
from aiodata.runtime.base import Runtime
from aiodata.stats import IterationStats

# A consumer that never waits lets the loop run this often, in seconds.
_YIELD_EVERY_S = 0.0005

# Blocks that may wait for the consumer; the fetch window lets through no more.
_MAX_WAITING_BLOCKS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """How bundles become batches; see `Dataset.aiter_batches`."""

    batch_size: int | None = 256
    batch_format: str = "numpy"
    prefetch_batches: int = 2
    drop_last: bool = False

    def __post_init__(self) -> None:
        """Validate every field once.

        Raises:
            OptionError: A value that can not work.
        """
        at_least("batch_size", self.batch_size, 1, optional=True)
        at_least("prefetch_batches", self.prefetch_batches, 0)
        true_or_false("drop_last", self.drop_last)
        get_format(self.batch_format)


class Phase(enum.Enum):
    """A pass's life: `NEW` until the first batch is asked for, `RUNNING`, `CLOSED` at its end, whatever the reason."""

    NEW = "new"
    RUNNING = "running"
    CLOSED = "closed"


class Consumer:
    """Runs one pass: hosts its coordinator and execution, fetches blocks ahead, cuts batches when asked.

    Args:
        plan: What to iterate.
        execution: How to run it.
        batching: How to cut it.
    """

    def __init__(self, plan: Plan, execution: ExecutionOptions, batching: BatchOptions) -> None:
        """Prepare; the run starts with the first batch that is asked for."""
        self._plan = plan
        self._execution = execution
        self._batching = batching
        self._phase = Phase.NEW
        self._waiting = False
        self._batcher = self._new_batcher()
        self._blocks_in, self._blocks = anyio.create_memory_object_stream[pa.Table](_MAX_WAITING_BLOCKS)
        self._arrived = Wakeup()
        rows_ahead = (batching.batch_size or 0) * batching.prefetch_batches
        blocks_ahead = batching.prefetch_batches if batching.batch_size is None else 1
        self._window = FetchWindow(self._blocks_in, rows_ahead, blocks_ahead)
        self._supervisor = Supervisor(self._run, name="aiodata run", on_end=self._on_run_end)
        self._loops: list[asyncio.AbstractEventLoop] = []
        self._is_complete = False
        self._runtime_name = ""
        self._counters: Sequence[OperatorCounters] = ()
        # Until then, a batch that is ready is returned without a look at anything else.
        self._fast_until = 0.0
        self._times = _Times()

    @property
    def closed(self) -> bool:
        """Whether the pass is over."""
        return self._phase is Phase.CLOSED

    def ready_batch(self) -> Any:
        """Return the next batch if it takes only slicing, and the loop has had its turn lately; else None."""
        now = perf_counter()
        if now >= self._fast_until:
            return None
        batch = self._cut()
        if batch is not None:
            self._times.on_ready_batch(now)
        return batch

    async def next_batch(self) -> Any:
        """Return the next batch, waiting for it; cancelled, it takes nothing.

        Raises:
            StopAsyncIteration: The pass is over.
            BusyError: Another task is in here.
        """
        if self._waiting:
            raise BusyError("two tasks wait for a batch of one BatchIterator; give each its own: aiter(batches)")
        if self._phase is Phase.CLOSED:
            raise StopAsyncIteration
        self._waiting = True
        self._fast_until = 0.0
        self._times.on_ask()
        try:
            if self._phase is Phase.NEW:
                self._start()
            await anyio.lowlevel.checkpoint()
            while (batch := self._cut_checked()) is None:
                await self._refill()
            self._times.on_batch()
            return batch
        finally:
            self._waiting = False
            if self._phase is Phase.RUNNING and not self._supervisor.error:
                self._fast_until = perf_counter() + _YIELD_EVERY_S

    async def aclose(self) -> None:
        """End the run and wait for that, shielded and bounded; idempotent."""
        started = perf_counter()
        was_running = self._phase is Phase.RUNNING
        self._close()
        if was_running or self._loops:
            self._supervisor.cancel()
            with anyio.move_on_after(self._execution.close_timeout_s, shield=True):
                await self._supervisor.wait()
        if was_running:
            self._times.closing_s = perf_counter() - started

    def abandon(self) -> None:
        """Ask the loop to end the run; for a handle that is dropped, from any thread."""
        self._close()
        if not self._loops or self._supervisor.ended:
            return
        with suppress(RuntimeError):  # The loop is closed, and with it every task of the run.
            self._loops[0].call_soon_threadsafe(self._supervisor.cancel)

    def stats(self) -> IterationStats:
        """Return a snapshot."""
        times = self._times
        return IterationStats(
            runtime=self._runtime_name,
            rows=times.rows + self._batcher.rows,
            batches=times.batches,
            bytes=self._window.bytes_fetched,
            blocks=self._window.blocks_fetched,
            first_batch_s=times.first_batch_s,
            elapsed_s=times.elapsed_s,
            closing_s=times.closing_s,
            wait_s=times.wait_s,
            format_s=times.format_s,
            user_s=times.user_s,
            errors=(),
            operators=tuple(counters.snapshot() for counters in self._counters),
        )

    def describe(self) -> str:
        """Describe the state in a few words, for `repr`."""
        return f"{self._phase.value} batches={self._times.batches} blocks_ahead={self._window.blocks_ahead}"

    def _new_batcher(self) -> Batcher:
        batching = self._batching
        return Batcher(get_format(batching.batch_format), batching.batch_size, drop_last=batching.drop_last)

    def _start(self) -> None:
        self._phase = Phase.RUNNING
        self._loops.append(asyncio.get_running_loop())
        self._supervisor.start()

    def _cut(self) -> Any:
        """Cut the next batch, if the blocks that are there suffice; one that can not be cut ends the pass."""
        try:
            return self._batcher.next()
        except Exception as error:
            self._end()
            raise TaskError("aiter_batches", "the blocks of a batch", None, str(error)) from error

    def _cut_checked(self) -> Any:
        """Cut the next batch; raise what ended the run, as soon as it is known."""
        if self._phase is Phase.CLOSED:
            raise StopAsyncIteration
        if self._supervisor.error is not None:
            self._fail(self._supervisor.error)
        return self._cut()

    async def _refill(self) -> None:
        """Take the next block into use, waiting for it.

        Raises:
            StopAsyncIteration: There is none, and no rows are left.
        """
        while True:
            try:
                block = self._blocks.receive_nowait()
            except anyio.WouldBlock:
                await self._arrived.wait()
                continue
            except (anyio.EndOfStream, anyio.ClosedResourceError):
                break
            self._window.take(block)
            try:
                self._batcher.push(block)
            except ValueError as error:
                self._fail(TaskError("aiter_batches", "a block", None, str(error)))
            return
        await self._supervisor.wait()
        if self._phase is Phase.CLOSED:
            raise StopAsyncIteration
        if self._supervisor.error is not None:
            self._fail(self._supervisor.error)
        if not self._is_complete:
            self._fail(AiodataError("the run was cancelled from outside before its data came to an end"))
        if not self._batcher.finish():
            self._close()
            raise StopAsyncIteration

    def _fail(self, error: Exception) -> None:
        """Raise what ended the run, without the frames that would keep the run's references alive."""
        self._end()
        if isinstance(error, AiodataError):
            error.__context__ = None
            raise error.with_traceback(None)
        raise error

    def _end(self) -> None:
        """End the pass, and the run if it goes on."""
        self._close()
        self._supervisor.cancel()

    def _close(self) -> None:
        """End the pass on this side: let go of every block."""
        if self._phase is Phase.CLOSED:
            return
        self._times.on_close(self._batcher.rows)
        self._phase = Phase.CLOSED
        self._fast_until = 0.0
        self._batcher = self._new_batcher()
        close_and_drop(self._blocks)
        if not self._loops:
            self._blocks_in.close()
        self._arrived.set()

    async def _run(self) -> None:
        """Run the pass; the supervisor's task is where its task groups live."""
        async with choose_runtime(self._execution)() as runtime:
            executor = StreamingExecutor(self._plan, runtime, self._execution)
            self._runtime_name, self._counters = runtime.name, executor.counters
            coordinator = Coordinator(executor.run)
            async with anyio.create_task_group() as group:
                group.start_soon(coordinator.serve, 1)
                await self._fetch_epoch(coordinator, runtime)
        # A cancellation from outside that hits the run's tasks would else look like the end of the data.
        self._is_complete = True

    def _on_run_end(self) -> None:
        """Let a waiting consumer see that the run has ended."""
        self._blocks_in.close()
        self._arrived.set()
        self._fast_until = 0.0

    async def _fetch_epoch(self, coordinator: Coordinator, runtime: Runtime) -> None:
        """Fetch what split 0, the only one, is given; tell the coordinator at the end, whatever the reason."""
        epoch = await coordinator.start_epoch(0)
        sequence = 0

        async def next_bundle() -> RefBundle | None:
            nonlocal sequence
            delivery = await coordinator.next_bundles(epoch, 0, sequence)
            sequence += 1
            return None if delivery.is_end else delivery.bundles[0]

        async def fetch(bundle: RefBundle) -> pa.Table:
            block = await runtime.get(bundle.ref)
            return block if bundle.num_rows == block.num_rows else block.slice(bundle.start, bundle.num_rows)

        try:
            await self._window.run(next_bundle, fetch, self._arrived.set)
        finally:
            coordinator.notify_split_finished(epoch, 0)


class _Times:
    """Where the time of a pass goes, in seconds."""

    def __init__(self) -> None:
        self.rows = 0
        self.batches = 0
        self.first_batch_s: float | None = None
        self.wait_s = self.format_s = self.user_s = self.closing_s = 0.0
        self._started = 0.0
        self._asked = 0.0
        self._returned = 0.0
        self._closed = 0.0

    @property
    def elapsed_s(self) -> float:
        return (self._closed or perf_counter()) - self._started if self._started else 0.0

    def on_ready_batch(self, asked: float) -> None:
        """Note a batch that was asked for at `asked` and took only cutting."""
        self.batches += 1
        self.user_s += asked - self._returned
        self._returned = now = perf_counter()
        self.format_s += now - asked

    def on_ask(self) -> None:
        """Note that a batch is waited for."""
        self._asked = now = perf_counter()
        if self._started:
            self.user_s += now - self._returned
        else:
            self._started = now
        self._returned = now

    def on_batch(self) -> None:
        """Note that the batch that was waited for is there."""
        self.batches += 1
        self._returned = now = perf_counter()
        self.wait_s += now - self._asked
        if self.first_batch_s is None:
            self.first_batch_s = now - self._started

    def on_close(self, rows: int) -> None:
        """Note the end of the pass, at which `rows` rows had been handed out."""
        self.rows += rows
        if self._started:
            self._closed = perf_counter()
