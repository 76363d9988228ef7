"""Consumer: one pass over a dataset, from the run behind it to the batch in hand.

The handle that users hold (`BatchIterator`) refers to the consumer; the run's tasks refer to the consumer too, but
never to the handle. So dropping the handle is noticed at once, and ends the run.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Any, NoReturn

import anyio
import anyio.lowlevel

from aiodata.batching.cutter import Signal
from aiodata.batching.feed import BundleSource, Feed
from aiodata.batching.pipeline import Pipeline
from aiodata.batching.times import PassTimes
from aiodata.concurrency import LoopLagMonitor, Supervisor
from aiodata.errors import AiodataError, BusyError, ClosedError
from aiodata.options import ExecutionOptions
from aiodata.stats import IterationStats

# A consumer that never waits lets the loop run this often, in seconds.
YIELD_EVERY_S = 0.0005

# A consumer that holds the loop for so long between two batches, in seconds, lets it have so many turns for the next
# one: what is behind it then goes on as far as it can. A turn in which nothing happens costs some microseconds.
_LONG_HOLD_S = 0.002
_TURNS_AFTER_HOLD = 20


# How long a run may take to end before the consumer is told all the same that it is over, in seconds.
_ENDING_RUN_S = 0.1


class Phase(enum.Enum):
    """A pass's life: `NEW` until the first batch is asked for, `RUNNING`, `CLOSED` at its end, whatever the reason."""

    NEW = "new"
    RUNNING = "running"
    CLOSED = "closed"


class Consumer:
    """Runs one pass: hosts its supply and its pipeline in a supervised task, and hands out what they make.

    Args:
        feed: Where the bundles come from.
        pipeline: What becomes of them.
        options: How long closing may take, and whether the loop's lag is measured.
        epoch: The pass's number, from 0.
    """

    def __init__(self, feed: Feed, pipeline: Pipeline, options: ExecutionOptions, epoch: int = 0) -> None:
        """Prepare; the run starts with the first batch that is asked for."""
        self._feed = feed
        self._pipeline = pipeline
        self._options = options
        self._epoch = epoch
        self._phase = Phase.NEW
        self._waiting = False
        self._supervisor = Supervisor(self._run, name="aiodata run", on_end=self._on_run_end)
        self._loops: list[asyncio.AbstractEventLoop] = []
        # Who waits in other event loops for the end of the run.
        self._on_ended: list[Callable[[], None]] = []
        self._error: Exception | None = None
        # Until then, a batch that is ready is returned without a look at anything else.
        self._fast_until = 0.0
        self._times = PassTimes()
        # Whether the loop has had a turn since the last batch that was waited for.
        self._loop_has_turned = True
        self._lag = LoopLagMonitor() if options.measure_loop_lag else None

    @property
    def closed(self) -> bool:
        """Whether the pass is over."""
        return self._phase is Phase.CLOSED

    def ready_batch(self) -> Any:
        """Return the next batch if it takes no wait, and the loop has had its turn lately; else a `Signal`."""
        now = perf_counter()
        if now >= self._fast_until:
            return Signal.PENDING
        try:
            batch = self._pipeline.take()
        except AiodataError as error:
            self._error = error
            return Signal.PENDING
        if type(batch) is not Signal:
            self._times.on_ready_batch(now)
        return batch

    async def next_batch(self) -> Any:
        """Return the next batch, waiting for it; cancelled, it takes nothing.

        Raises:
            StopAsyncIteration: The pass is over.
            BusyError: Another task is in here.
            ClosedError: It was started in another event loop.
        """
        if self._waiting:
            raise BusyError("two tasks wait for a batch of one BatchIterator; give each its own: aiter(batches)")
        if self._phase is Phase.CLOSED:
            raise StopAsyncIteration
        if self._loops and self._loops[0] is not asyncio.get_running_loop():
            self.abandon()
            raise ClosedError("this iterator was started in another event loop; get a new one in each: aiter(batches)")
        self._waiting = True
        self._fast_until = 0.0
        held = self._times.on_ask() >= _LONG_HOLD_S and not self._loop_has_turned
        try:
            if self._phase is Phase.NEW:
                self._start()
            await anyio.lowlevel.checkpoint()
            if held:
                await self._catch_up()
            await self._check()
            try:
                batch = await self._pipeline.next()
            except AiodataError as error:
                await self._fail(error)
            if batch is Signal.END:
                await self._finish()
            self._loop_has_turned = False
            self._loops[0].call_soon(self._note_turn)
            self._times.on_batch()
            return batch
        finally:
            self._waiting = False
            if self._phase is Phase.RUNNING and not self._supervisor.error:
                self._fast_until = perf_counter() + YIELD_EVERY_S

    async def aclose(self) -> None:
        """End the run and wait for that, shielded and bounded; idempotent, from any task of any event loop."""
        if self._loops and self._loops[0] is not asyncio.get_running_loop():
            await self._close_in_its_loop(self._loops[0])
            return
        started = perf_counter()
        was_running = self._phase is Phase.RUNNING
        self._close()
        if was_running or self._loops:
            self._supervisor.cancel()
            with anyio.move_on_after(self._options.close_timeout_s, shield=True):
                await self._supervisor.wait()
        if was_running:
            self._times.closing_s = perf_counter() - started

    async def _close_in_its_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have another event loop end the run; wait for that while the loop runs, and for the close timeout at most."""
        if not loop.is_running():
            self.abandon()
            return
        here, ended = asyncio.get_running_loop(), anyio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # The loop is closed: nobody is waiting any more.
                here.call_soon_threadsafe(ended.set)

        def end() -> None:
            self._end()
            if self._supervisor.ended:
                tell()
            else:
                self._on_ended.append(tell)

        with suppress(RuntimeError):  # That loop was closed just now.
            loop.call_soon_threadsafe(end)
            with anyio.move_on_after(self._options.close_timeout_s, shield=True):
                await ended.wait()
        if not loop.is_running():  # It has stopped meanwhile, perhaps before it came to this.
            self.abandon()

    def abandon(self) -> None:
        """Ask the loop to end the run; for a handle that is dropped, from any thread."""
        if not self._loops or self._phase is Phase.CLOSED:
            self._close()
            return
        loop = self._loops[0]
        if not loop.is_running():  # Perhaps it never will be again.
            self._feed.leave()
            self._close()
        try:
            loop.call_soon_threadsafe(self._end)
        except RuntimeError:  # The loop is closed, and with it every task of the run.
            self._close()

    def stats(self) -> IterationStats:
        """Return a snapshot."""
        times, window, run = self._times, self._pipeline.window, self._feed.stats()
        return IterationStats(
            runtime=run.runtime,
            epoch=self._epoch,
            rows=self._pipeline.rows,
            batches=times.batches,
            bytes=window.bytes_fetched if window else 0,
            blocks=window.blocks_fetched if window else 0,
            prefetched_bytes=window.held_bytes if window else 0,
            peak_prefetched_bytes=window.peak_held_bytes if window else 0,
            first_batch_s=times.first_batch_s,
            elapsed_s=times.elapsed_s,
            closing_s=times.closing_s,
            wait_s=times.wait_s,
            format_s=times.format_s,
            user_s=times.user_s,
            loop_lag=self._lag.snapshot() if self._lag else None,
            budget=run.budget,
            errors=run.errors,
            operators=run.operators,
            errored_blocks=run.errored_blocks,
            errored_rows=run.errored_rows,
        )

    def describe(self) -> str:
        """Describe the state in a few words, for `repr`."""
        window = self._pipeline.window
        ahead = f" blocks_ahead={window.blocks_ahead}" if window else ""
        return f"epoch={self._epoch} {self._phase.value} batches={self._times.batches}{ahead}"

    def _start(self) -> None:
        self._phase = Phase.RUNNING
        self._loops.append(asyncio.get_running_loop())
        if self._lag is not None:
            self._lag.start()
        self._supervisor.start()

    async def _catch_up(self) -> None:
        """Let go on what had to wait while the consumer held the loop."""
        self._pipeline.note_hold()
        for _ in range(_TURNS_AFTER_HOLD):
            await anyio.lowlevel.checkpoint()

    def _note_turn(self) -> None:
        self._loop_has_turned = True

    async def _check(self) -> None:
        """Raise what ended the pass, as soon as it is known."""
        if self._phase is Phase.CLOSED:
            raise StopAsyncIteration
        if (error := self._error or self._pipeline.failure or self._supervisor.error) is not None:
            try:
                await self._fail(error)
            finally:
                del error

    async def _finish(self) -> None:
        """End the pass: its data, or its run, has come to an end.

        Raises:
            StopAsyncIteration: It was the data.
        """
        await self._check()
        if not self._pipeline.is_complete:
            await self._supervisor.wait()
            await self._check()
            await self._fail(AiodataError("the run was cancelled from outside before its data came to an end"))
        if self._feed.ends_together:
            await self._supervisor.wait()
            await self._check()
        with anyio.move_on_after(_ENDING_RUN_S, shield=True):
            await self._supervisor.wait()
        # Calls of user functions that nobody needs any more, behind a limit for example, may go on for a while.
        self._end()
        raise StopAsyncIteration

    async def _fail(self, error: Exception) -> NoReturn:
        """End the run and raise what was the reason, without the frames that would keep the run's references alive."""
        # Where this is cancelled, the next call comes here again.
        self._error = error
        await self._end_soon()
        self._error = None
        try:
            if isinstance(error, AiodataError):
                error.__context__ = None
                raise error.with_traceback(None)
            raise error
        finally:
            # With it, the error, its traceback and this frame would be a cycle that holds all that they refer to.
            del error

    async def _end_soon(self) -> None:
        """End the run, giving it a moment for that: a program that ends now would interrupt its cleanup."""
        self._supervisor.cancel()
        with anyio.move_on_after(_ENDING_RUN_S, shield=True):
            await self._supervisor.wait()
        self._close()

    def _end(self) -> None:
        """End the pass, and the run if it goes on."""
        self._close()
        self._supervisor.cancel()

    def _close(self) -> None:
        """End the pass on this side: let go of every batch and block."""
        if self._phase is Phase.CLOSED:
            return
        self._times.on_close()
        self._phase = Phase.CLOSED
        self._fast_until = 0.0
        if self._lag is not None:
            self._lag.stop()
        self._pipeline.close()

    async def _run(self) -> None:
        """Run the pass; the supervisor's task is where its task groups live."""
        await self._feed.run(self._consume)

    async def _consume(self, bundles: BundleSource) -> None:
        await self._pipeline.run(bundles)

    def _on_run_end(self) -> None:
        """Let a waiting consumer see that the run has ended."""
        self._pipeline.end()
        self._fast_until = 0.0
        while self._on_ended:
            self._on_ended.pop()()
