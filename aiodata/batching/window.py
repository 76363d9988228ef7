"""FetchWindow: brings blocks to the consumer just ahead of need, in order, within a number of bytes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import pyarrow as pa

from aiodata.batching.feed import BundleSource
from aiodata.batching.finished import FinishedReport
from aiodata.bundle import BlockRef, RefBundle
from aiodata.concurrency import Wakeup, cleared_frames, close_and_drop, start

# Blocks ahead of the consumer, whatever their size.
_MAX_BLOCKS_AHEAD = 16


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A block that counts as held.

    Attributes:
        num_bytes: Its size.
        is_whole: Whether all its rows were asked for.
        source: Where its rows came from, for error messages.
        ref: The reference to it, which keeps it counted in the run's byte budget.
    """

    num_bytes: int
    is_whole: bool
    source: str
    ref: BlockRef = None


@dataclass(frozen=True, slots=True, eq=False)
class Fetched:
    """Rows that have been fetched, and the block that they are a part of, and so keep alive."""

    rows: pa.Table
    held: Held


class FetchWindow:
    """Fetches blocks concurrently until enough is ahead of the consumer, and hands them on in order.

    At least one block is ahead of the one in use, so that the consumer does not wait at each block's end, unless
    `max_bytes` forbids it. A block counts from the start of its fetch until `release`. What is held never exceeds
    `max_bytes` plus the block in use; a block larger than `max_bytes` is fetched when nothing else is held.

    Args:
        rows_ahead: Rows that are to be ahead of the consumer.
        min_blocks_ahead: Blocks that are to be ahead however many rows they have.
        max_bytes: Bytes that may be held beside the block in use; None: no limit.

    Attributes:
        report: Told to tell whenever a block is released, and before a bundle is asked for.
    """

    def __init__(self, rows_ahead: int, min_blocks_ahead: int, max_bytes: int | None) -> None:
        """Nothing is ahead yet."""
        self._rows_wanted = rows_ahead
        self._min_blocks_ahead = min(max(1, min_blocks_ahead), _MAX_BLOCKS_AHEAD)
        self._max_bytes = max_bytes
        self._send, self._receive = anyio.create_memory_object_stream[Fetched](_MAX_BLOCKS_AHEAD)
        self._arrived = Wakeup()
        self._changed = Wakeup()
        self._rows_ahead = 0
        self._in_use: Held | None = None
        self._is_closed = False
        self.report = FinishedReport()
        self.is_complete = False
        self.blocks_ahead = 0
        self.held_bytes = 0
        self.peak_held_bytes = 0
        self.blocks_fetched = 0
        self.bytes_fetched = 0

    def take(self) -> Fetched | None:
        """Take the next block into use, if it is there.

        Raises:
            anyio.EndOfStream: There is none, nor will there be.
        """
        try:
            fetched = self._receive.receive_nowait()
        except anyio.WouldBlock:
            return None
        except anyio.ClosedResourceError:
            raise anyio.EndOfStream from None
        self.blocks_ahead -= 1
        self._rows_ahead -= fetched.rows.num_rows
        self._in_use = fetched.held
        self._changed.set()
        return fetched

    async def wait(self) -> None:
        """Wait until `take` may have something to say; cancelled, it takes nothing."""
        await self._arrived.wait()

    def release(self, held: Held) -> None:
        """Note that a block is not held any more."""
        if self._in_use is held:
            self._in_use = None
        self.add(-held.num_bytes)
        self.report.tell()

    def add(self, num_bytes: int) -> None:
        """Count bytes that are held beside the blocks, or, below zero, count them no more."""
        if self._is_closed:
            return
        self.held_bytes += num_bytes
        self.peak_held_bytes = max(self.peak_held_bytes, self.held_bytes)
        if num_bytes <= 0:
            self._changed.set()

    def end(self) -> None:
        """Say that no block follows, for whatever reason; what has arrived can still be taken."""
        self._send.close()
        self._arrived.set()

    def close(self) -> None:
        """Let go of what has arrived and was not taken."""
        self._is_closed = True
        self._in_use = None
        self.held_bytes = 0
        close_and_drop(self._receive)
        self.end()

    async def run(self, bundles: BundleSource) -> None:
        """Fetch until the end of the bundles.

        Raises:
            ExceptionGroup: A fetch failed.
        """
        limits = [limit for limit in (self._max_bytes, bundles.max_held_bytes) if limit is not None]
        self._max_bytes = min(limits)
        with cleared_frames():
            await self._run(bundles)

    async def _run(self, bundles: BundleSource) -> None:
        async with anyio.create_task_group() as group:
            previous = anyio.Event()
            previous.set()
            while True:
                while not self._has_room():
                    await self._changed.wait()
                self.report.tell()
                if (bundle := await bundles.next_bundle(self.held_bytes)) is None:
                    break
                while not self._fits(bundle.metadata.num_bytes):
                    await self._changed.wait()
                if self._is_closed:
                    return
                self._hold(bundle)
                done = anyio.Event()
                start(group, self._fetch_one, bundles.fetch, bundle, previous, done)
                previous = done
                del bundle
        # A task that is cancelled from outside ends its group as if all were well.
        self.is_complete = not group.cancel_scope.cancel_called
        self.end()

    async def _fetch_one(
        self,
        fetch: Callable[[RefBundle], Awaitable[pa.Table]],
        bundle: RefBundle,
        previous: anyio.Event,
        done: anyio.Event,
    ) -> None:
        with cleared_frames():
            try:
                await self._hand_on(fetch, bundle, previous)
            finally:
                del bundle  # A cancellation's traceback keeps this frame.
        self._arrived.set()
        done.set()

    async def _hand_on(
        self, fetch: Callable[[RefBundle], Awaitable[pa.Table]], bundle: RefBundle, previous: anyio.Event
    ) -> None:
        rows = await fetch(bundle)
        await previous.wait()
        self.blocks_fetched += 1
        self.bytes_fetched += bundle.metadata.num_bytes
        metadata = bundle.metadata
        is_whole = bundle.num_rows == metadata.num_rows
        await self._send.send(Fetched(rows, Held(metadata.num_bytes, is_whole, metadata.source, bundle.ref)))

    def _hold(self, bundle: RefBundle) -> None:
        self.blocks_ahead += 1
        self._rows_ahead += bundle.num_rows
        self.add(bundle.metadata.num_bytes)

    def _has_room(self) -> bool:
        enough = self._rows_ahead >= self._rows_wanted or self.blocks_ahead >= _MAX_BLOCKS_AHEAD
        return self.blocks_ahead < self._min_blocks_ahead or not enough

    def _fits(self, num_bytes: int) -> bool:
        if self._max_bytes is None or not self.held_bytes:
            return True
        in_use = self._in_use.num_bytes if self._in_use is not None else 0
        return self.held_bytes - in_use + num_bytes <= self._max_bytes
