"""Rows that are in memory, or that are counted up: `range`, `from_items`, `from_arrow`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, overload

import numpy as np
import pyarrow as pa

from aiodata.bundle import BlockMetadata, InlineBlock, RefBundle
from aiodata.errors import SourceError
from aiodata.plan.pieces import Chunk, Origin, Piece
from aiodata.plan.source import Skip, Source
from aiodata.schemas import (
    SchemaError,
    cast_exactly,
    has_known_categories,
    mark_categories,
    mark_nulls,
    unify_schemas,
)

# Rows per block of a range, where its number of blocks is not asked for: a MiB of int64.
_RANGE_BLOCK_ROWS = 1 << 17

# Rows of a range that are made at a time: a block that is to be larger than 32 MiB is made in parts.
_MAX_RANGE_ROWS = 1 << 22

_RANGE_SCHEMA = pa.schema([mark_nulls(pa.field("id", pa.int64()), has_nulls=False)])


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

    @property
    def num_rows(self) -> int | None:
        """How many integers there are."""
        return self.stop - self.start

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        """Return itself: it stands for no block."""
        return self

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Yield its rows from `row` on, in few chunks: nearly always in one."""
        for start in range(self.start + row, self.stop, _MAX_RANGE_ROWS) or (self.start + row,):
            stop = min(start + _MAX_RANGE_ROWS, self.stop)
            table = pa.table({"id": np.arange(start, stop, dtype=np.int64)}, schema=_RANGE_SCHEMA)
            origin = Origin(f"range, block at {self.start}", (start, stop))
            yield Chunk(0, start - self.start, table, origin, self.ends_block and stop == self.stop)


@dataclass(frozen=True, slots=True)
class RangePieces(Sequence[RangePiece]):
    """The pieces of a range, each made when it is asked for: there may be more than memory has room for.

    Attributes:
        num_rows: The end of the range.
        num_pieces: How many parts it has, of equal size, give or take one row.
        end_blocks: Whether each is to be a block of its own.
    """

    num_rows: int
    num_pieces: int
    end_blocks: bool

    def __len__(self) -> int:
        """Pieces."""
        return self.num_pieces

    @overload
    def __getitem__(self, index: int) -> RangePiece: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RangePiece]: ...
    def __getitem__(self, index: int | slice) -> RangePiece | Sequence[RangePiece]:
        """Make a piece, or several."""
        chosen = range(self.num_pieces)[index]
        if not isinstance(chosen, int):
            return [self[one] for one in chosen]
        start, stop = (self.num_rows * bound // self.num_pieces for bound in (chosen, chosen + 1))
        return RangePiece(start, stop, 8 * (stop - start), self.end_blocks)


@dataclass(frozen=True, slots=True)
class RangeSource(Source):
    """The integers from 0 to `num_rows`, as the column `id`."""

    num_rows: int
    num_blocks: int | None

    @property
    def name(self) -> str:
        """`range(<rows>)`."""
        return f"range({self.num_rows})"

    @property
    def is_empty(self) -> bool:
        """Whether it ends where it begins."""
        return not self.num_rows

    def pieces(self, num_tasks: int, skip: Skip) -> Sequence[RangePiece]:
        """Divide the range into blocks of equal size, give or take one row."""
        enough = max(num_tasks, -(-self.num_rows // _RANGE_BLOCK_ROWS))
        count = max(1, min(self.num_blocks or enough, self.num_rows))
        return RangePieces(self.num_rows, count, end_blocks=self.num_blocks is not None)

    def schema(self, skip: Skip) -> pa.Schema:
        """Return `id: int64`."""
        return _RANGE_SCHEMA

    def count_rows(self, skip: Skip) -> int | None:
        """Return the end of the range."""
        return self.num_rows


class TableSource(Source):
    """Tables in memory; their types are unified when they are first asked for.

    Args:
        name: Its name.
        tables: The tables; they have plain types, and no name twice.
    """

    def __init__(self, name: str, tables: Sequence[pa.Table]) -> None:
        """Look at nothing yet."""
        self._name = name
        self.tables = tuple(tables)

    @property
    def name(self) -> str:
        """The verb that made it."""
        return self._name

    def __repr__(self) -> str:
        return f"TableSource({self.name!r}, tables={len(self.tables)})"

    @property
    def is_empty(self) -> bool:
        """Whether no table has rows."""
        return not any(table.num_rows for table in self.tables)

    def bundles(self) -> Iterable[RefBundle] | None:
        """Return the tables, each as its own reference, as they are needed: to count their bytes takes a while."""
        starts = accumulate((table.num_rows for table in self.tables), initial=0)
        return map(self._bundle, self._unified_tables, starts)

    def schema(self, skip: Skip) -> pa.Schema:
        """Return the schema that holds all tables' rows exactly, with what is known of nulls."""
        return self._schema

    def count_rows(self, skip: Skip) -> int | None:
        """Return the rows of all tables."""
        return sum(int(table.num_rows) for table in self.tables)

    @cached_property
    def _schema(self) -> pa.Schema:
        tables = [table for table in self.tables if table.num_rows] or self.tables
        try:
            schema = unify_schemas([(f"table {index}", table.schema) for index, table in enumerate(tables)])
        except SchemaError as error:
            raise SourceError(self.name, str(error)) from error
        for index, table in enumerate(tables):
            _check_moments(f"{self.name}, table {index}", table, schema)
        return pa.schema([_known_field(field, tables) for field in schema])

    @cached_property
    def _unified_tables(self) -> tuple[pa.Table, ...]:
        """The tables, with one dictionary for each dictionary column, so that its categories are known."""
        dictionaries = [field for field in self._schema if has_known_categories(field)]
        if not dictionaries:
            return self.tables
        columns: dict[str, list[pa.ChunkedArray]] = {}
        for field in dictionaries:
            parts = [_column(table, field) for table in self.tables]
            whole = pa.chunked_array([chunk for part in parts for chunk in part.chunks], field.type)
            unified = whole.unify_dictionaries()
            starts = accumulate((len(part) for part in parts), initial=0)
            columns[field.name] = [unified.slice(start, len(part)) for start, part in zip(starts, parts, strict=False)]
        return tuple(
            _with_columns(table, {name: parts[index] for name, parts in columns.items()})
            for index, table in enumerate(self.tables)
        )

    def _bundle(self, table: pa.Table, start: int) -> RefBundle:
        spans = Origin(self.name, (start, start + table.num_rows)).spans(table.num_rows)
        metadata = BlockMetadata(table.num_rows, table.nbytes, table.schema, self.name, spans)
        return RefBundle.whole(InlineBlock(table), metadata).conformed(self._schema)


@dataclass(frozen=True, slots=True, eq=False)
class StoredSource(Source):
    """Blocks that a run has left where it made them; they stay there as long as this does."""

    name: str
    stored: tuple[RefBundle, ...]
    stored_schema: pa.Schema

    @property
    def is_empty(self) -> bool:
        """Whether there is no block."""
        return not self.stored

    def bundles(self) -> Iterable[RefBundle] | None:
        """Return the blocks."""
        return self.stored

    def schema(self, skip: Skip) -> pa.Schema:
        """Return the blocks' schema, which is the same for all."""
        return self.stored_schema

    def count_rows(self, skip: Skip) -> int | None:
        """Return the rows of all blocks."""
        return sum(bundle.num_rows for bundle in self.stored)


def split_table(table: pa.Table, block_bytes: int) -> list[pa.Table]:
    """Cut a table into blocks of about so many bytes, without copying."""
    if table.nbytes <= block_bytes:
        return [table]
    step = max(1, table.num_rows * block_bytes // table.nbytes)
    return [table.slice(offset, step) for offset in range(0, table.num_rows, step)]


def _check_moments(name: str, table: pa.Table, schema: pa.Schema) -> None:
    """Check the one sort of values that may not fit the type that holds others: moments far off, in finer units."""
    for field in table.schema:
        kind = schema.field(field.name).type
        if not field.type.equals(kind) and _has_moments(field.type):
            try:
                cast_exactly(table.column(field.name), kind)
            except ValueError as error:
                reason = f"does not fit the other tables: column {field.name!r} is {field.type}, but {kind} there"
                raise SourceError(name, f"{reason}: {error}; give the tables one unit that has room for all") from error


def _has_moments(kind: pa.DataType) -> bool:
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        return True
    return any(_has_moments(kind.field(index).type) for index in range(kind.num_fields))


def _known_field(field: pa.Field, tables: Sequence[pa.Table]) -> pa.Field:
    """Return a field with what is known of its column in all tables."""
    some_null = any(
        table.num_rows and (field.name not in table.column_names or table.column(field.name).null_count)
        for table in tables
    )
    if pa.types.is_dictionary(field.type):
        field = mark_categories(field, are_known=True)
    return mark_nulls(field, has_nulls=bool(some_null))


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    # What has no rows says nothing, and may be of any type.
    if field.name not in table.column_names or not table.num_rows:
        return pa.chunked_array([pa.nulls(table.num_rows, field.type)])
    return cast_exactly(table.column(field.name), field.type)


def _with_columns(table: pa.Table, columns: Mapping[str, pa.ChunkedArray]) -> pa.Table:
    for name, column in columns.items():
        index = table.schema.get_field_index(name)
        table = table.append_column(name, column) if index < 0 else table.set_column(index, name, column)
    return table
