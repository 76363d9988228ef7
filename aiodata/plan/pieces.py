"""Pieces: the smallest parts of a source that a task is given, and how they are read from any position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Origin:
    """Where rows came from, for error messages.

    Attributes:
        source: For example `flights/jan.parquet, row group 3`.
        rows: The half-open range of rows within `source`, None where a filter made it unknown.
    """

    source: str
    rows: tuple[int, int] | None

    def slice(self, start: int, num_rows: int) -> Origin:
        """Narrow the origin to `num_rows` rows from `start`."""
        if self.rows is None:
            return self
        first = self.rows[0] + start
        return Origin(self.source, (first, first + num_rows))

    def without_rows(self) -> Origin:
        """Return the source alone: its rows can not be told from those of the output any more."""
        return Origin(self.source, None)

    def to(self, last: Origin) -> Origin:
        """Return the origin that stretches from this one to `last`."""
        if self.source != last.source:
            return Origin(f"{self.source} to {last.source}", None)
        if self.rows is None or last.rows is None:
            return Origin(self.source, None)
        return Origin(self.source, (self.rows[0], last.rows[1]))


# Rows on their way through a task, with where they came from.
Rows = tuple[pa.Table, Origin]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows that a piece yields.

    Attributes:
        unit: Index of the unit that the rows belong to (a row group, a block).
        row: Index of the first row within the rows that the unit yields.
        table: The rows.
        origin: Where they came from.
        ends_block: Whether an output block ends with them, if no user function comes in between.
    """

    unit: int
    row: int
    table: pa.Table
    origin: Origin
    ends_block: bool = False


class Piece(Protocol):
    """A part of a source: a file, some row groups of one, a block. It is sent to workers, so it pickles small."""

    @property
    def weight(self) -> int:
        """About how many bytes reading it takes, for dividing pieces among tasks."""

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        """Return the piece with its block, if it stands for one of the task's `blocks`."""

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Yield the rows from row `row` of unit `unit` on, the same ones each time it is called.

        Args:
            unit: The unit to start at.
            row: The row of what that unit yields to start at.
            chunk_bytes: About how many bytes a chunk should have at most, where there is a choice.

        Raises:
            SourceError: A file is missing, corrupt or unreadable.
        """


@dataclass(frozen=True, slots=True)
class TablePiece:
    """Rows that are already there."""

    table: pa.Table
    origin: Origin

    @property
    def weight(self) -> int:
        """Bytes of the rows."""
        return int(self.table.nbytes)

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        """Return itself: it has its rows."""
        return self

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Yield all rows from `row` on at once."""
        table = self.table.slice(row)
        yield Chunk(0, row, table, self.origin.slice(row, table.num_rows))


@dataclass(frozen=True, slots=True)
class BlockPiece:
    """A range of rows of one of the blocks that a task is given by reference."""

    index: int
    start: int
    stop: int
    num_bytes: int
    source: str

    @property
    def weight(self) -> int:
        """Bytes of the whole block."""
        return self.num_bytes

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        """Return the rows of the block."""
        rows = blocks[self.index].slice(self.start, self.stop - self.start)
        return TablePiece(rows, Origin(self.source or "block", (self.start, self.stop)))

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Never called: a block is read once it is bound."""
        raise RuntimeError("a BlockPiece has to be bound to its block before it can be read")
