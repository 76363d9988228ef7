"""Pipeline: what is between a supply of bundles and the consumer's hands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import anyio

from aiodata.batching.cutter import Cutter, Item, Signal
from aiodata.batching.feed import BundleSource
from aiodata.batching.finished import FinishedReport, FinishedRows
from aiodata.batching.options import BatchOptions
from aiodata.batching.stages import AheadStage, Caller, CollateStage, NextItem, Stage
from aiodata.batching.window import FetchWindow
from aiodata.bundle import RefBundle
from aiodata.concurrency import Wakeup, cleared_frames, close_and_drop, send, start
from aiodata.errors import TaskError

# Cutting a batch takes long from here on, in seconds.
_LONG_CUT_S = 0.001

# Bundles that may wait for whoever iterates over them; a bundle is a reference.
_MAX_WAITING_BUNDLES = 16


class Pipeline(Protocol):
    """Turns bundles into what the user iterates over."""

    @property
    def rows(self) -> int:
        """Rows handed out."""

    @property
    def finished_rows(self) -> int:
        """Rows of the supply, from its first on, that were all in batches before the one in the user's hands."""

    @property
    def window(self) -> FetchWindow | None:
        """What fetches the blocks, if something does."""

    @property
    def is_complete(self) -> bool:
        """Whether the end, when it comes, is that of the data."""

    @property
    def failure(self) -> TaskError | None:
        """What the user's function failed with, known before the run has ended."""

    async def run(self, bundles: BundleSource) -> None:
        """Work beside whoever calls `next`, until the last batch has been taken and another one was asked for.

        A supply that goes on for as long as this is told of the last rows too.
        """

    def take(self) -> Any:
        """Return the next batch if that takes no wait, else `PENDING`."""

    async def next(self) -> Any:
        """Return the next batch, or `END`; cancelled, it takes nothing."""

    def note_hold(self) -> None:
        """Note that the consumer has held the loop since the last batch."""

    def end(self) -> None:
        """Note that the run has ended: nothing more comes."""

    def close(self) -> None:
        """Let go of everything."""


class DirectPipeline:
    """Batches that only have to be cut are cut when they are asked for: nothing is faster.

    Unless cutting takes long and the consumer holds the loop between two batches: then they are cut ahead.

    Args:
        options: How bundles become batches.
        epoch: The pass's number.
        grace_s: Seconds that a cancelled call in a thread is waited for.
    """

    def __init__(self, options: BatchOptions, *, epoch: int, grace_s: float) -> None:
        """Prepare."""
        self.window = _make_window(options)
        self._cutter = Cutter(options, self.window, epoch=epoch, grace_s=grace_s, is_direct=True)
        cut_in_thread = partial(self._cutter.next_item, in_thread=True)
        self._ahead = AheadStage(cut_in_thread, None, self._fail, max_ahead=max(1, options.prefetch_batches))
        self._is_ahead = False
        self._decided = anyio.Event()
        self._is_used_up = anyio.Event()
        self._cutting_s = 0.0
        self._rows_ahead = 0
        # Without a batch size, every batch is waited for, and `next` says that the one before is finished.
        self._batch_rows = options.batch_size or sys.maxsize
        self._finished = FinishedRows()
        self.failure: TaskError | None = None
        self.take: Callable[[], Any] = self._cutter.take

    @property
    def rows(self) -> int:
        """Rows handed out."""
        return self._rows_ahead if self._is_ahead else self._cutter.rows

    @property
    def finished_rows(self) -> int:
        """Rows of the supply, from its first on, that were all in batches before the one in the user's hands."""
        rows = self._finished.rows
        if not self._is_ahead:
            # A batch that takes no wait is not noted: that would cost each one time.
            rows = max(rows, self._cutter.rows - self._batch_rows)
        return self._cutter.rows_supplied(rows)

    @property
    def is_complete(self) -> bool:
        """Whether every block has come, and been cut if that is done ahead."""
        return self.window.is_complete and (self._ahead.is_complete or not self._is_ahead)

    async def run(self, bundles: BundleSource) -> None:
        """Fetch blocks, until all are cut; cut them, if that is to be done ahead."""
        await self._cutter.prepare()
        with self.window.report.to(bundles, lambda: self.finished_rows):
            async with anyio.create_task_group() as group:
                start(group, self.window.run, bundles)
                await self._decided.wait()
                if self._is_ahead:
                    await self._ahead.run()
                    await self._is_used_up.wait()

    async def next(self) -> Any:
        """Return the next batch, or `END`; cancelled, it takes nothing."""
        if self._is_ahead:
            self._finished.ask()
        else:
            self._finished.reach(self._cutter.rows)
        self.window.report.tell()
        if self._is_ahead:
            item = await self._ahead.next()
            if isinstance(item, Item):
                return self._hand_over(item)
            self._is_used_up.set()
            return item
        self._cutting_s = -self._cutter.cutting_s
        batch = await self._cutter.next()
        self._cutting_s += self._cutter.cutting_s
        if batch is Signal.END:
            self._decided.set()
        return batch

    def note_hold(self) -> None:
        """Note that the consumer has held the loop; if the last batch took long to cut, cut ahead from now on."""
        if self._is_ahead or self._decided.is_set() or self._cutting_s < _LONG_CUT_S:
            return
        self._rows_ahead = self._cutter.rows
        self._finished.reach(self._cutter.rows)
        self._cutter.leave_direct()
        self.take = self._take_ahead
        self._is_ahead = True
        self._decided.set()

    def end(self) -> None:
        """Note that the run has ended: nothing more comes."""
        self.window.end()
        self._ahead.end()

    def close(self) -> None:
        """Let go of everything."""
        self.failure = None
        self._decided.set()
        self._is_used_up.set()
        self._ahead.close()
        self._cutter.close()

    def _take_ahead(self) -> Any:
        item = self._ahead.take()
        return item if isinstance(item, Signal) else self._hand_over(item)

    def _hand_over(self, item: Item) -> Any:
        self._finished.hand_over(item.start, item.stop)
        self._cutter.hand_over(item)
        self._rows_ahead += item.stop - item.start
        return item.value

    def _fail(self, error: TaskError) -> None:
        self.failure = error.with_traceback(None)
        self._is_used_up.set()
        self._ahead.end()


class StagedPipeline:
    """Batches that are collated or finalized are made ahead, by tasks of the run.

    Args:
        options: How bundles become batches; there is a `collate_fn` or a `finalize_fn`.
        epoch: The pass's number.
        is_ordered: Whether batches come in order.
        grace_s: Seconds that a cancelled call in a thread is waited for.
    """

    def __init__(self, options: BatchOptions, *, epoch: int, is_ordered: bool, grace_s: float) -> None:
        """Prepare."""
        self.window = _make_window(options)
        self._cutter = Cutter(options, self.window, epoch=epoch, grace_s=grace_s, is_direct=False)
        self._stages = self._make_stages(options, is_ordered=is_ordered, grace_s=grace_s)
        self._scope = anyio.CancelScope()
        self._is_used_up = anyio.Event()
        self._last = self._stages[-1]
        self._finished = FinishedRows()
        self.failure: TaskError | None = None
        self.rows = 0

    @property
    def finished_rows(self) -> int:
        """Rows of the supply, from its first on, that were all in batches before the one in the user's hands."""
        return self._cutter.rows_supplied(self._finished.rows)

    @property
    def is_complete(self) -> bool:
        """Whether every batch has been made."""
        return self.window.is_complete and all(stage.is_complete for stage in self._stages)

    async def run(self, bundles: BundleSource) -> None:
        """Fetch, cut, collate and finalize, until the user has every batch and asks for another one."""
        await self._cutter.prepare()
        with self._scope, self.window.report.to(bundles, lambda: self.finished_rows):
            async with anyio.create_task_group() as group:
                start(group, self.window.run, bundles)
                for stage in self._stages:
                    start(group, stage.run)
                await self._is_used_up.wait()

    def take(self) -> Any:
        """Return the next batch if it is ready, else `PENDING`."""
        item = self._last.take()
        return item if isinstance(item, Signal) else self._hand_over(item)

    async def next(self) -> Any:
        """Return the next batch, or `END`; cancelled, it takes nothing."""
        self._finished.ask()
        self.window.report.tell()
        item = await self._last.next()
        if isinstance(item, Item):
            return self._hand_over(item)
        self._is_used_up.set()
        return item

    def note_hold(self) -> None:
        """Go on as before: all is done ahead already."""

    def end(self) -> None:
        """Note that the run has ended: nothing more comes."""
        self.window.end()
        for stage in self._stages:
            stage.end()

    def close(self) -> None:
        """Let go of everything."""
        self.failure = None
        self._is_used_up.set()
        for stage in self._stages:
            stage.close()
        self._cutter.close()

    def _make_stages(self, options: BatchOptions, *, is_ordered: bool, grace_s: float) -> Sequence[Stage]:
        stages: list[Stage] = []
        next_item: NextItem = self._cutter.next_item
        if options.collate_fn is not None:
            call = Caller("collate_fn", options.collate_fn, self._cutter, grace_s=grace_s)
            stages.append(CollateStage(next_item, call, self._fail, workers=options.workers, is_ordered=is_ordered))
            next_item = stages[-1].next
        if options.finalize_fn is not None:
            call = Caller("finalize_fn", options.finalize_fn, self._cutter, grace_s=grace_s)
            stages.append(AheadStage(next_item, call, self._fail, max_ahead=options.prefetch_to_device))
        return stages

    def _fail(self, error: TaskError) -> None:
        """End the run for the first failure; the consumer need not wait until calls in threads have ended, too."""
        self.failure = self.failure or error.with_traceback(None)
        self._scope.cancel()
        self._last.end()

    def _hand_over(self, item: Item) -> Any:
        self._finished.hand_over(item.start, item.stop)
        self._cutter.hand_over(item)
        self.rows += item.stop - item.start
        return item.value


class BundlePipeline:
    """Hands on the bundles themselves; nothing is fetched."""

    window = None
    failure = None

    def __init__(self) -> None:
        """Prepare."""
        self._send, self._receive = anyio.create_memory_object_stream[RefBundle](_MAX_WAITING_BUNDLES)
        self._arrived = Wakeup()
        self._report = FinishedReport()
        self._is_used_up = anyio.Event()
        self.rows = 0
        self.finished_rows = 0
        self.is_complete = False

    async def run(self, bundles: BundleSource) -> None:
        """Hand on bundles, until the user has all and asks for another one."""
        with cleared_frames(), self._report.to(bundles, lambda: self.finished_rows):
            await self._run(bundles)

    async def _run(self, bundles: BundleSource) -> None:
        self._report.tell()
        while (bundle := await bundles.next_bundle(0)) is not None:
            await send(self._send, bundle)
            self._arrived.set()
            del bundle
            self._report.tell()
        self.is_complete = True
        self.end()
        await self._is_used_up.wait()

    def take(self) -> Any:
        """Return the next bundle if it is there, else `PENDING`."""
        self.finished_rows = self.rows
        try:
            bundle = self._receive.receive_nowait()
        except anyio.WouldBlock:
            return Signal.PENDING
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self._report.tell()
            self._is_used_up.set()
            return Signal.END
        self.rows += bundle.num_rows
        return bundle

    async def next(self) -> Any:
        """Return the next bundle, or `END`; cancelled, it takes nothing."""
        while (bundle := self.take()) is Signal.PENDING:
            self._report.tell()
            await self._arrived.wait()
        return bundle

    def note_hold(self) -> None:
        """Go on as before: there is nothing to do to a bundle."""

    def end(self) -> None:
        """Note that the run has ended: nothing more comes."""
        self._send.close()
        self._arrived.set()

    def close(self) -> None:
        """Let go of the bundles that wait."""
        self._is_used_up.set()
        close_and_drop(self._receive)
        self.end()


def make_pipeline(options: BatchOptions, *, epoch: int, is_ordered: bool, grace_s: float) -> Pipeline:
    """Return the pipeline that makes batches as `options` say."""
    if options.collate_fn is None and options.finalize_fn is None:
        return DirectPipeline(options, epoch=epoch, grace_s=grace_s)
    return StagedPipeline(options, epoch=epoch, is_ordered=is_ordered, grace_s=grace_s)


def _make_window(options: BatchOptions) -> FetchWindow:
    rows_ahead = (options.batch_size or 0) * options.prefetch_batches
    blocks_ahead = options.prefetch_batches if options.batch_size is None else 1
    return FetchWindow(rows_ahead, blocks_ahead, options.max_prefetch_bytes)
