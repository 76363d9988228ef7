"""Pieces: the smallest parts of a source that a task is given, and how they are read from any position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import pyarrow as pa

from aiodata.origin import Origin as Origin
from aiodata.origin import Spans, origin_of, slice_spans

# Rows on their way through a task, with where they came from.
Rows = tuple[pa.Table, Origin]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows that a piece yields.

    Attributes:
        unit: Index of the unit that the rows begin in (a row group, a block); they may go on into the next ones.
        row: Index of the first row, counted from the start of the unit over what that and all units after it yield.
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

    @property
    def num_rows(self) -> int | None:
        """How many rows reading it yields, if that is known beforehand."""

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        """Return the piece with its block, if it stands for one of the task's `blocks`."""

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Yield the rows from row `row` of unit `unit` on: the same ones each time, whatever `chunk_bytes`.

        Args:
            unit: The unit to start at.
            row: The row to start at, counted from the start of that unit over what it and all units after it yield.
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

    @property
    def num_rows(self) -> int | None:
        """The rows."""
        return int(self.table.num_rows)

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        """Return itself: it has its rows."""
        return self

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Yield all rows from `row` on at once."""
        table = self.table.slice(row)
        yield Chunk(0, row, table, self.origin.slice(row, table.num_rows))


@dataclass(frozen=True, slots=True)
class BlockPiece:
    """A range of rows of one of the blocks that a task is given by reference.

    Attributes:
        index: Which block.
        start: The first row.
        stop: The row to stop before.
        num_bytes: Bytes of the whole block.
        source: Where its rows came from.
        spans: Where each row of the block came from; empty: all that is known is `source`.
    """

    index: int
    start: int
    stop: int
    num_bytes: int
    source: str
    spans: Spans = ()

    @property
    def weight(self) -> int:
        """Bytes of the whole block."""
        return self.num_bytes

    @property
    def num_rows(self) -> int | None:
        """Rows in the range."""
        return self.stop - self.start

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        """Return the rows of the block."""
        rows = blocks[self.index].slice(self.start, self.stop - self.start)
        if not self.spans:
            return TablePiece(rows, Origin(self.source or "block", (self.start, self.stop)))
        return TablePiece(rows, origin_of(slice_spans(self.spans, self.start, self.stop - self.start)))

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Never called: a block is read once it is bound."""
        raise RuntimeError("a BlockPiece has to be bound to its block before it can be read")


@dataclass(frozen=True, slots=True)
class PartPiece:
    """Some of a small piece's rows: it is read from its beginning, and what comes before them is left out.

    Attributes:
        piece: The piece.
        start: The first row.
        stop: The row to stop before.
    """

    piece: Piece
    start: int
    stop: int

    @property
    def weight(self) -> int:
        """Bytes of the whole piece."""
        return self.piece.weight

    @property
    def num_rows(self) -> int | None:
        """Rows in the range."""
        return self.stop - self.start

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        """Return the same part of the piece with its block."""
        return PartPiece(self.piece.bind(blocks), self.start, self.stop)

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Yield the rows; all of them are one unit."""
        skip, left = self.start + row, self.stop - self.start - row
        for chunk in self.piece.read(0, 0, chunk_bytes):
            num_rows = min(chunk.table.num_rows - skip, left)
            if num_rows > 0:
                origin = chunk.origin.slice(skip, num_rows)
                yield Chunk(0, row, chunk.table.slice(skip, num_rows), origin, chunk.ends_block)
                row += num_rows
                left -= num_rows
            skip = max(0, skip - chunk.table.num_rows)
            if not left:
                return


# Numbers and names that a block piece is made of, in `BlockPieces`.
_NUM_FIELDS = 5


class BlockPieces(Sequence[BlockPiece]):
    """The pieces that a task's blocks are, numbered in their order; each is made when it is asked for.

    Thousands of tasks wait with dozens of blocks each. One flat tuple of numbers and names is less to send, and nothing
    that the garbage collections have to go through.

    Example:
        >>> BlockPieces.of([(0, 10, 80, "a", ()), (3, 5, 80, "b", ())])[1:][0]
        BlockPiece(index=0, start=3, stop=5, num_bytes=80, source='b', spans=())
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: tuple[int | str | Spans, ...]) -> None:
        """Take the fields of all pieces but their index, one piece after the other."""
        self._fields = fields

    @classmethod
    def of(cls, pieces: Iterable[tuple[int, int, int, str, Spans]]) -> BlockPieces:
        """Make pieces, each of its first and last row, the bytes of its block, and the block's source and spans."""
        return cls(tuple(field for piece in pieces for field in piece))

    def __len__(self) -> int:
        """Pieces."""
        return len(self._fields) // _NUM_FIELDS

    @overload
    def __getitem__(self, index: int) -> BlockPiece: ...
    @overload
    def __getitem__(self, index: slice) -> BlockPieces: ...
    def __getitem__(self, index: int | slice) -> BlockPiece | BlockPieces:
        """Return a piece, or several from one on: these are numbered anew."""
        chosen = range(len(self))[index]
        if isinstance(chosen, int):
            return BlockPiece(chosen, *self._fields[chosen * _NUM_FIELDS : (chosen + 1) * _NUM_FIELDS])  # type: ignore[arg-type]
        return BlockPieces(tuple(field for one in chosen for field in self._fields[one * _NUM_FIELDS :][:_NUM_FIELDS]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockPieces) and self._fields == other._fields

    def __hash__(self) -> int:
        return hash(self._fields)

    def __repr__(self) -> str:
        return f"BlockPieces({list(self)})"
