"""Decoding: how much of a Parquet file is decoded at a time, by what its rows take in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from aiodata.errors import AiodataError, SourceError
from aiodata.sources.layout import Layout

# Row groups of up to this many chunks are decoded at once.
_CHUNKS_AT_ONCE = 2

# Rows that are decoded at a time where only an estimate says what they take; and where the estimate was about right for
# the row group before.
_UNSURE_ROWS = 16_384
_EXPECTED_ROWS = 65_536

# How wrong an estimate may be that is about right.
_ABOUT = 2

# With fewer rows at a time decoding gets slower, so it is begun anew once it is seen that more may be.
_FEW_ROWS = 2_048

_GROWTH = 64

# Fewer rows than this are decoded at a time only once it is seen that they are large.
_FIRST_ROWS = 4

# How wrong the size of the rows that are decoded at a time may be before it is changed.
_TOLERANCE = 4


@dataclass(frozen=True, slots=True)
class Decoded:
    """Rows of a file.

    Attributes:
        group: The row group that they begin in.
        row: The first row, from the start of that row group.
        last_group: The row group that they end in.
        table: The rows.
    """

    group: int
    row: int
    last_group: int
    table: pa.Table


class Decoder:
    """Decodes row groups, about so many bytes at a time.

    One thread does it: tasks are what runs side by side.
    """

    def __init__(self, path: str, file: Any, columns: list[str] | None, layout: Layout, chunk_bytes: int) -> None:
        """Decode columns of a `ParquetFile`; None: all of them."""
        self._path = path
        self._file = file
        self._columns = columns
        self._layout = layout
        self._chunk_bytes = chunk_bytes
        # By how much the last estimates were wrong, and how many rows may be decoded on the strength of the next one.
        self._correction = 1.0
        self._unsure_rows = _UNSURE_ROWS
        # The most that rows of the current row group have taken, on the average of those that were decoded together.
        self._largest_row_bytes = 0.0
        # What is being decoded, for errors.
        self._place = "it"

    def decode(self, groups: Sequence[int], row: int = 0) -> Iterator[Decoded]:
        """Yield the rows of row groups, from row `row` of the first one on; small row groups many at a time.

        Raises:
            SourceError: One cannot be read.
        """
        try:
            yield from self._decode(groups, row)
        except AiodataError:
            raise
        # What is damaged may make a reader raise anything.
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise SourceError(self._path, f"{self._place} cannot be read as Parquet: {reason}") from error

    def _decode(self, groups: Sequence[int], row: int) -> Iterator[Decoded]:
        metadata = self._file.metadata
        run: list[int] = []
        run_bytes = 0.0
        for group in groups:
            info = metadata.row_group(group)
            if row >= info.num_rows and row > 0:
                row -= info.num_rows
                continue
            size, is_sure = self._layout.num_bytes(info)
            if not is_sure:
                size *= self._correction
            is_small = row == 0 and size <= _CHUNKS_AT_ONCE * self._chunk_bytes
            is_small = is_small and (is_sure or info.num_rows <= self._unsure_rows)
            if run and not (is_small and run_bytes + size <= self._chunk_bytes):
                yield from self._run(run)
                run, run_bytes = [], 0.0
            if is_small:
                run.append(group)
                run_bytes += size
            else:
                row_bytes = size / info.num_rows
                rows = max(1, int(self._chunk_bytes / max(1.0, row_bytes)))
                yield from self._parts(
                    group,
                    info.num_rows,
                    row,
                    rows if is_sure else min(max(_FIRST_ROWS, rows), self._unsure_rows),
                    row_bytes,
                )
                row = 0
        if run:
            yield from self._run(run)

    def _run(self, run: list[int]) -> Iterator[Decoded]:
        self._place = f"row group {run[0]}"
        try:
            table = self._file.read_row_groups(run, columns=self._columns, use_threads=False)
        except pa.ArrowNotImplementedError:
            # A nested column of which more than 2 GiB come at once: Arrow can only read that in parts.
            for group in run:
                num_rows = self._file.metadata.row_group(group).num_rows
                yield from self._parts(group, num_rows, 0, _UNSURE_ROWS, 0.0)
        # Whatever a reader raises, one row group is to blame; those before it are good.
        except Exception:
            if len(run) == 1:
                raise
            for group in run:
                yield from self._run([group])
        else:
            decoded = [Decoded(run[0], 0, run[-1], table)]
            del table
            yield decoded.pop()

    def _parts(self, group: int, num_rows: int, start: int, batch_rows: int, row_bytes: float) -> Iterator[Decoded]:
        """Yield a row group from a row on, a chunk at a time, and learn what its rows take."""
        gathered: list[pa.RecordBatch] = []
        gathered_bytes = 0.0
        self._place = f"row group {group}"
        self._largest_row_bytes = 0.0
        while start < num_rows:
            next_rows = batch_rows
            try:
                for part in self._batches(group, start, batch_rows):
                    gathered.append(part)
                    # A dictionary is not a part's own: all of them share it.
                    part_bytes = part.num_rows * row_bytes if self._layout.has_dictionaries else part.nbytes
                    gathered_bytes += part_bytes
                    start += part.num_rows
                    next_rows = self._better_rows(part_bytes, part.num_rows, batch_rows, num_rows - start)
                    if (
                        gathered_bytes + part_bytes / 2 >= self._chunk_bytes
                        or start >= num_rows
                        or next_rows != batch_rows
                    ):
                        if row_bytes:
                            error = part_bytes / part.num_rows / row_bytes
                            self._correction *= error
                            self._unsure_rows = _EXPECTED_ROWS if 1 / _ABOUT <= error <= _ABOUT else _UNSURE_ROWS
                            row_bytes = part_bytes / part.num_rows
                        table = pa.Table.from_batches(gathered)
                        gathered, gathered_bytes = [], 0.0
                        del part
                        decoded = [Decoded(group, start - table.num_rows, group, table)]
                        del table
                        yield decoded.pop()
                    if next_rows != batch_rows:
                        break
                else:
                    if start < num_rows:
                        raise EOFError(f"{num_rows - start} of its {num_rows} rows are missing")
            except pa.ArrowNotImplementedError:
                if batch_rows == 1:
                    raise
                next_rows = max(1, batch_rows // 16)
            batch_rows = next_rows

    def _better_rows(self, part_bytes: float, part_rows: int, batch_rows: int, rows_left: int) -> int:
        """Return how many rows to decode at a time, given what some took; what is decoded twice costs, too."""
        fitting = int(self._chunk_bytes * part_rows / max(1.0, part_bytes))
        if part_bytes > _TOLERANCE * self._chunk_bytes and batch_rows > 1:
            return max(1, min(fitting, batch_rows - 1))
        if batch_rows < _FEW_ROWS and rows_left > 8 * batch_rows:
            # The next rows may be unlike the first ones; and those that were large are decoded again to get past them.
            most = int(_TOLERANCE * self._chunk_bytes / max(1.0, self._largest_row_bytes))
            more_rows = min(fitting, most, _GROWTH * batch_rows, _UNSURE_ROWS)
            if more_rows >= _TOLERANCE * batch_rows:
                return more_rows
        return batch_rows

    def _batches(self, group: int, start: int, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield a row group's rows from `start` on; to come there, it has to be decoded from its begin."""
        position = 0
        for batch in self._file.iter_batches(batch_rows, row_groups=[group], columns=self._columns, use_threads=False):
            position += batch.num_rows
            if not self._layout.has_dictionaries:
                self._largest_row_bytes = max(self._largest_row_bytes, batch.nbytes / max(1, batch.num_rows))
            if position > start:
                yield batch.slice(max(0, batch.num_rows - (position - start)))
