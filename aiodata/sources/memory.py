"""Rows that are in memory, or that are counted up: `range`, `from_items`, `from_arrow`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from aiodata.bundle import BlockMetadata, InlineBlock, RefBundle
from aiodata.errors import SourceError
from aiodata.plan.nodes import Source
from aiodata.plan.pieces import Chunk, Origin, Piece

# Rows per block of a range, where its number of blocks is not asked for: a MiB of int64.
_RANGE_BLOCK_ROWS = 1 << 17

_RANGE_SCHEMA = pa.schema([("id", pa.int64())])


@dataclass(frozen=True, slots=True)
class RangePiece:
    """The integers of a half-open range.

    Attributes:
        start: The first.
        stop: The one to stop before.
        weight: Their bytes.
        ends_block: Whether they are to be a block of their own.
    """

    start: int
    stop: int
    weight: int
    ends_block: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments: a task may get thousands, and a dataclass with slots takes ten times as long."""
        return RangePiece, (self.start, self.stop, self.weight, self.ends_block)

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        """Return itself: it stands for no block."""
        return self

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Yield all its rows from `row` on."""
        ids = np.arange(self.start + row, self.stop, dtype=np.int64)
        origin = Origin(f"range, block at {self.start}", (self.start + row, self.stop))
        yield Chunk(0, row, pa.table({"id": ids}, schema=_RANGE_SCHEMA), origin, self.ends_block)


@dataclass(frozen=True, slots=True)
class RangeSource:
    """The integers from 0 to `num_rows`, as the column `id`."""

    num_rows: int
    num_blocks: int | None

    @property
    def name(self) -> str:
        """`range(<rows>)`."""
        return f"range({self.num_rows})"

    def with_columns(self, columns: tuple[str, ...]) -> Source | None:
        """Leave it to the transform."""
        return None

    def with_filter(self, expression: Any) -> Source | None:
        """Leave it to the transform."""
        return None

    def pieces(self, num_tasks: int) -> Sequence[RangePiece]:
        """Divide the range into blocks of equal size, give or take one row."""
        enough = max(num_tasks, -(-self.num_rows // _RANGE_BLOCK_ROWS))
        count = max(1, min(self.num_blocks or enough, self.num_rows))
        bounds = [self.num_rows * index // count for index in range(count + 1)]
        piece_bytes = 8 * self.num_rows // count
        return [RangePiece(start, stop, piece_bytes, self.num_blocks is not None) for start, stop in pairwise(bounds)]

    def bundles(self) -> Iterable[RefBundle] | None:
        """Return None: rows are made in tasks."""
        return None

    def schema(self) -> pa.Schema | None:
        """Return `id: int64`."""
        return _RANGE_SCHEMA

    def count_rows(self) -> int | None:
        """Return the end of the range."""
        return self.num_rows


@dataclass(frozen=True, slots=True, eq=False)
class TableSource:
    """Tables in memory."""

    name: str
    tables: tuple[pa.Table, ...]

    def with_columns(self, columns: tuple[str, ...]) -> Source | None:
        """Leave it to the transform, which names the missing column."""
        return None

    def with_filter(self, expression: Any) -> Source | None:
        """Leave it to the transform, which runs in tasks."""
        return None

    def pieces(self, num_tasks: int) -> Sequence[Piece]:
        """Return nothing: the tables are passed on as blocks."""
        return ()

    def bundles(self) -> Iterable[RefBundle] | None:
        """Return the tables, each as its own reference, as they are needed: to count their bytes takes a while."""
        return (
            RefBundle.whole(InlineBlock(table), BlockMetadata(table.num_rows, table.nbytes, table.schema, self.name))
            for table in self.tables
        )

    def schema(self) -> pa.Schema | None:
        """Return the tables' schema."""
        return _unify(self.name, [table.schema for table in self.tables])

    def count_rows(self) -> int | None:
        """Return the rows of all tables."""
        return sum(int(table.num_rows) for table in self.tables)


@dataclass(frozen=True, slots=True, eq=False)
class StoredSource:
    """Blocks that a run has left where it made them; they stay there as long as this does."""

    name: str
    stored: tuple[RefBundle, ...]
    stored_schema: pa.Schema

    def with_columns(self, columns: tuple[str, ...]) -> Source | None:
        """Leave it to the transform."""
        return None

    def with_filter(self, expression: Any) -> Source | None:
        """Leave it to the transform."""
        return None

    def pieces(self, num_tasks: int) -> Sequence[Piece]:
        """Return nothing: the blocks are passed on."""
        return ()

    def bundles(self) -> Iterable[RefBundle] | None:
        """Return the blocks."""
        return self.stored

    def schema(self) -> pa.Schema | None:
        """Return the blocks' schema; without a block, what it would be."""
        schemas = [bundle.metadata.schema for bundle in self.stored]
        return _unify(self.name, schemas) if schemas else self.stored_schema

    def count_rows(self) -> int | None:
        """Return the rows of all blocks."""
        return sum(bundle.num_rows for bundle in self.stored)


def split_table(table: pa.Table, block_bytes: int) -> list[pa.Table]:
    """Cut a table into blocks of about so many bytes, without copying."""
    if table.nbytes <= block_bytes:
        return [table]
    step = max(1, table.num_rows * block_bytes // table.nbytes)
    return [table.slice(offset, step) for offset in range(0, table.num_rows, step)]


def _unify(name: str, schemas: Sequence[pa.Schema]) -> pa.Schema:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise SourceError(name, f"its tables have schemas that do not go together: {error}") from error
