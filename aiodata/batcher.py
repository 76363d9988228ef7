"""Cut a stream of blocks into batches; no I/O, no awaits."""

from __future__ import annotations

from collections import deque
from typing import Any

import pyarrow as pa

from aiodata.formats import Format


class Batcher:
    """Cut blocks into batches of exactly `batch_size` rows; only the last may be shorter.

    Blocks go in by `push`, batches come out of `next`, until it returns None: then it needs more blocks, or,
    after `finish`, is at its end. `rows` counts the rows handed out.

    Args:
        fmt: The format of the batches.
        batch_size: Rows per batch; None: one batch per block.
        drop_last: Whether to drop a last batch that is not full.

    Example:
        >>> from aiodata.formats import get_format
        >>> batcher = Batcher(get_format("pyarrow"), 2)
        >>> batcher.push(pa.table({"x": [1, 2, 3]}))
        >>> batcher.next().num_rows, batcher.next()
        (2, None)
    """

    def __init__(self, fmt: Format, batch_size: int | None, *, drop_last: bool = False) -> None:
        """Start empty."""
        self._format = fmt
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._segments: deque[pa.RecordBatch] = deque()
        self._blocks: deque[pa.Table] = deque()
        self._finished = False
        self.rows = 0
        # The stretch that batches are sliced from: converted rows, the next row, and their number.
        self._rows: Any = None
        self._position = 0
        self._length = 0
        # Slices at the end of earlier stretches that do not fill a batch yet.
        self._pieces: list[Any] = []
        self._piece_rows = 0

    def push(self, block: pa.Table) -> None:
        """Add a block."""
        if not block.num_rows:
            return
        if not block.num_columns:
            raise ValueError("a block has rows but no columns; select at least one column")
        if self._batch_size is None:
            self._blocks.append(block)
        else:
            self._segments.extend(segment for segment in block.to_batches() if segment.num_rows)

    def finish(self) -> bool:
        """Say that no block follows; return whether that is news."""
        news, self._finished = not self._finished, True
        return news

    def next(self) -> Any:
        """Return the next batch, or None where more blocks are needed, or, after `finish`, at the end."""
        size = self._batch_size
        if size is None:
            return self._next_block()
        start = self._position
        stop = start + size
        if stop <= self._length and not self._pieces:
            self._position = stop
            self.rows += size
            return self._format.slice(self._rows, start, stop)
        return self._next_joined(size)

    def _next_joined(self, size: int) -> Any:
        """Collect slices of several stretches until they fill a batch."""
        while True:
            taken = min(size - self._piece_rows, self._length - self._position)
            if taken:
                self._pieces.append(self._format.slice(self._rows, self._position, self._position + taken))
                self._piece_rows += taken
                self._position += taken
            if self._piece_rows == size:
                return self._flush()
            if not self._segments:
                break
            self._convert_stretch(size)
        self._rows = None
        self._position = self._length = 0
        if self._finished and self._piece_rows and not self._drop_last:
            return self._flush()
        return None

    def _convert_stretch(self, size: int) -> None:
        """Convert the next stretch of rows: as many whole batches as can be done in about a millisecond."""
        segment = self._segments.popleft()
        limit = self._format.stretch(segment.schema)
        if limit is not None:
            limit = max(1, limit // size) * size - self._piece_rows % size
            if limit < segment.num_rows:
                self._segments.appendleft(segment.slice(limit))
                segment = segment.slice(0, limit)
        self._rows = self._format.convert(segment)
        self._position = 0
        self._length = segment.num_rows

    def _flush(self) -> Any:
        self.rows += self._piece_rows
        pieces, self._pieces, self._piece_rows = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else self._format.join(pieces)

    def _next_block(self) -> Any:
        if not self._blocks:
            return None
        block = self._blocks.popleft()
        self.rows += block.num_rows
        segments = [segment for segment in block.to_batches() if segment.num_rows]
        pieces = [self._format.convert(segment) for segment in segments]
        return pieces[0] if len(pieces) == 1 else self._format.join(pieces)
