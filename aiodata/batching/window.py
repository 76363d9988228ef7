"""FetchWindow: brings blocks to the consumer just ahead of need, in order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pyarrow as pa
from anyio.streams.memory import MemoryObjectSendStream

from aiodata.bundle import RefBundle
from aiodata.concurrency import Wakeup, cleared_frames

# Blocks ahead of the consumer, whatever their size.
_MAX_BLOCKS_AHEAD = 16


class FetchWindow:
    """Fetches blocks concurrently until enough rows are ahead of the consumer, and hands them on in order.

    At least one block is ahead of the one in use, so that the consumer does not wait at each block's end.

    Args:
        output: Takes the blocks, in order.
        rows_ahead: Rows that are to be ahead of the consumer.
        min_blocks_ahead: Blocks that are to be ahead however many rows they have.
    """

    def __init__(self, output: MemoryObjectSendStream[pa.Table], rows_ahead: int, min_blocks_ahead: int) -> None:
        """Nothing is ahead yet."""
        self._output = output
        self._rows_ahead = rows_ahead
        self._min_blocks_ahead = min(max(1, min_blocks_ahead), _MAX_BLOCKS_AHEAD)
        self._rows = 0
        self._taken = Wakeup()
        self.blocks_ahead = 0
        self.blocks_fetched = 0
        self.bytes_fetched = 0

    def take(self, block: pa.Table) -> None:
        """Note that the consumer has taken a block into use."""
        self.blocks_ahead -= 1
        self._rows -= block.num_rows
        self._taken.set()

    async def run(
        self,
        next_bundle: Callable[[], Awaitable[RefBundle | None]],
        fetch: Callable[[RefBundle], Awaitable[pa.Table]],
        on_arrival: Callable[[], None],
    ) -> None:
        """Fetch until the end of the bundles.

        Args:
            next_bundle: Returns the next bundle, None at the end.
            fetch: Returns a bundle's rows.
            on_arrival: Called when a block has been handed on.

        Raises:
            ExceptionGroup: A fetch failed.
        """

        async def fetch_one(bundle: RefBundle, previous: anyio.Event, done: anyio.Event) -> None:
            with cleared_frames():
                await hand_on(bundle, previous)
            on_arrival()
            done.set()

        async def hand_on(bundle: RefBundle, previous: anyio.Event) -> None:
            block = await fetch(bundle)
            await previous.wait()
            self.blocks_fetched += 1
            self.bytes_fetched += bundle.metadata.num_bytes
            await self._output.send(block)

        async with anyio.create_task_group() as group:
            previous = anyio.Event()
            previous.set()
            while (bundle := await next_bundle()) is not None:
                self.blocks_ahead += 1
                self._rows += bundle.num_rows
                done = anyio.Event()
                group.start_soon(fetch_one, bundle, previous, done)
                previous = done
                while not self._has_room():
                    await self._taken.wait()

    def _has_room(self) -> bool:
        enough = self._rows >= self._rows_ahead or self.blocks_ahead >= _MAX_BLOCKS_AHEAD
        return self.blocks_ahead < self._min_blocks_ahead or not enough
