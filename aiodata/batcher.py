"""Cut a stream of blocks into batches; no I/O, no awaits."""

from __future__ import annotations

import enum
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa

from aiodata.formats import Format
from aiodata.schemas import conform

# Joining that copies so many bytes takes about a millisecond, and is for a thread.
_JOIN_IN_THREAD_BYTES = 4 << 20

# Bytes are counted where a stretch has fewer batches than this: counting those of 500 columns takes a millisecond.
_BATCHES_PER_MEASURE = 4

# The rows of a batch whose size is not known yet.
_UNKNOWN = sys.maxsize


class Want(enum.Enum):
    """What a `Batcher` needs for its next batch.

    `BLOCK`: another block, or `finish`. `TURN`: to be asked again; it has worked for about a millisecond, and somebody
    else may want the loop. `JOIN`: that `join_job` is called, in a thread, and its result given to `accept`.
    """

    BLOCK = enum.auto()
    TURN = enum.auto()
    JOIN = enum.auto()


class Batcher:
    """Cut blocks into batches of exactly `batch_size` rows; only the last may be shorter.

    Blocks go in by `push`, batches come out of `next`. Where that returns None, `want` says what it needs; at the end,
    after `finish`, that is another block for ever. `rows` counts the rows handed out.

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
        self._drop_last = drop_last
        self._schema: pa.Schema | None = None
        self._segments: deque[pa.RecordBatch] = deque()
        # Without a batch size, each block's rows are one.
        self._block_rows: deque[int] | None = deque() if batch_size is None else None
        self._size = _UNKNOWN if batch_size is None else batch_size
        self._finished = False
        self.rows = 0
        self.want = Want.BLOCK
        # The stretch that batches are sliced from: converted rows, the next row, their number, and bytes per row.
        self._rows: Any = None
        self._position = 0
        self._length = 0
        self._row_bytes = 0.0
        # Slices at the end of earlier stretches that do not fill a batch yet.
        self._pieces: list[Any] = []
        self._piece_rows = 0
        self._piece_bytes = 0.0

    @property
    def rows_short(self) -> int:
        """Rows that the batch being put together lacks, once every block that was pushed is used."""
        return self._size - self._piece_rows

    def push(self, block: pa.Table) -> None:
        """Add a block; its columns become of the first one's types, so that batches have one type each.

        Raises:
            ValueError: A block has rows but no columns, or others than the first one, or values that it cannot hold.
        """
        if not block.num_rows:
            return
        if not block.num_columns:
            raise ValueError("a block has rows but no columns; select at least one column")
        if self._schema is None:
            self._schema = block.schema
        block = conform(block, self._schema)
        if self._block_rows is not None:
            self._block_rows.append(block.num_rows)
            self._size = self._block_rows[0]
        self._segments.extend(segment for segment in block.to_batches() if segment.num_rows)

    def finish(self) -> bool:
        """Say that no block follows; return whether that is news."""
        news, self._finished = not self._finished, True
        return news

    def next(self) -> Any:
        """Return the next batch, or None where it needs what `want` says; converts one stretch of rows at most."""
        start = self._position
        stop = start + self._size
        if stop <= self._length and not self._pieces:
            self._position = stop
            self.rows += stop - start
            batch = self._format.slice(self._rows, start, stop)
            if stop == self._length:
                self._rows = None  # It may keep a block alive, which nobody needs any more.
            if self._block_rows is not None:
                self._next_size()
            return batch
        return self._next_joined()

    def next_at_once(self) -> Any:
        """Return the next batch however long its conversion takes, or None where it needs a block; for a worker."""
        while (batch := self.next()) is None and self.want is not Want.BLOCK:
            if self.want is Want.JOIN:
                self.accept(self.join_job()())
        return batch

    def join_job(self) -> Callable[[], Any]:
        """Return the work that `Want.JOIN` is about; it changes nothing here, and may be done more than once."""
        return partial(self._format.join, tuple(self._pieces))

    def accept(self, joined: Any) -> None:
        """Take what the job returned; `next` hands it out."""
        self._pieces = [joined]

    def _next_joined(self) -> Any:
        """Collect slices of several stretches until they fill a batch."""
        has_converted = False
        while True:
            taken = min(self._size - self._piece_rows, self._length - self._position)
            if taken:
                self._pieces.append(self._format.slice(self._rows, self._position, self._position + taken))
                self._piece_rows += taken
                self._piece_bytes += taken * self._row_bytes
                self._position += taken
                if self._position == self._length:
                    self._rows = None
            if self._piece_rows == self._size:
                return self._flush()
            if has_converted and self._segments:
                self.want = Want.TURN
                return None
            if not self._segments:
                break
            self._convert_stretch()
            has_converted = True
        self._position = self._length = 0
        if self._finished and self._piece_rows and not self._drop_last:
            return self._flush()
        self.want = Want.BLOCK
        return None

    def _convert_stretch(self) -> None:
        """Convert the next stretch of rows: as many whole batches as can be done in about a millisecond, or less."""
        segment = self._segments.popleft()
        limit = self._format.stretch(segment.schema)
        if limit is not None:
            missing = self._size - self._piece_rows
            whole = missing + max(0, limit - missing) // self._size * self._size
            limit = whole if missing <= limit else limit
            if limit < segment.num_rows:
                self._segments.appendleft(segment.slice(limit))
                segment = segment.slice(0, limit)
        self._rows = self._format.convert(segment)
        self._position = 0
        self._length = segment.num_rows
        if not self._row_bytes or segment.num_rows < _BATCHES_PER_MEASURE * self._size:
            self._row_bytes = segment.nbytes / segment.num_rows

    def _flush(self) -> Any:
        if len(self._pieces) == 1:
            batch = self._pieces[0]
        elif self._format.join_copies and self._piece_bytes >= _JOIN_IN_THREAD_BYTES:
            self.want = Want.JOIN
            return None
        else:
            batch = self._format.join(self._pieces)
        self.rows += self._piece_rows
        self._pieces, self._piece_rows, self._piece_bytes = [], 0, 0.0
        self._next_size()
        return batch

    def _next_size(self) -> None:
        if self._block_rows is not None:
            self._block_rows.popleft()
            self._size = self._block_rows[0] if self._block_rows else _UNKNOWN
