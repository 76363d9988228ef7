"""What a pass reads of every Parquet file: the columns, as what types, and which rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from aiodata.errors import OptionError, SourceError, UnknownColumnError
from aiodata.plan.filtering import UNSHOWN, filter_table, show_expression
from aiodata.schemas import SchemaError, conform, near_miss
from aiodata.sources.footers import FileColumns, FileSchemas
from aiodata.sources.layout import Layout
from aiodata.sources.pruning import RowGroups

# Kinds of files that are remembered.
_MAX_VIEWS = 64


@dataclass(frozen=True, slots=True)
class View:
    """What is read of files that have the same columns.

    Attributes:
        columns: Names of the columns to read; None: all there are.
        layout: Where these are, and what they take.
        timestamps: Columns that have timestamps which might be INT96, with their leaves.
        has_others: Whether what is read may have to be made into the schema.
    """

    columns: list[str] | None
    layout: Layout
    timestamps: tuple[tuple[str, range], ...]
    has_others: bool


class Scan:
    """What is read of every file; the pieces of a pass share it.

    Attributes:
        schema: What is yielded.
        filter: The rows to yield; None: all.
        schemas: What files say of their columns.
    """

    __slots__ = (
        "_filter_names",
        "_full",
        "_is_strict",
        "_partitions",
        "_read",
        "_row_groups",
        "_views",
        "filter",
        "schema",
        "schemas",
    )

    def __init__(
        self,
        full: pa.Schema,
        columns: tuple[str, ...] | None,
        expression: Any,
        partitions: tuple[str, ...],
        *,
        is_strict: bool,
    ) -> None:
        """Read columns out of those of the dataset.

        Args:
            full: The schema of the dataset.
            columns: The columns to yield, of these; None: all.
            expression: The rows to yield; None: all.
            partitions: The columns that are what a file's directories say.
            is_strict: Whether files must have no other columns than the dataset's.

        Raises:
            OptionError: The filter cannot be evaluated, or names a column that is not there.
        """
        self._full = full
        self._partitions = partitions
        self._is_strict = is_strict
        self.filter = expression
        self.schema = full if columns is None else pa.schema([full.field(name) for name in columns])
        self._filter_names = () if expression is None else _names_in(expression, full)
        more = [name for name in self._filter_names if name not in self.schema.names]
        self._read = pa.schema([*self.schema, *map(full.field, more)]) if more else self.schema
        if expression is not None and _goes_by_position(expression):
            self._read = full
        self._row_groups = None if expression is None else RowGroups(expression, self._read, self._filter_names)
        self.schemas = FileSchemas()
        self._views: list[tuple[FileColumns, View]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments."""
        return _scan, (self._full, tuple(self.schema.names), self.filter, self._partitions, self._is_strict)

    @property
    def takes_all(self) -> bool:
        """Whether all columns and rows of the files are yielded."""
        return self._is_strict and self.filter is None

    @property
    def read_schema(self) -> pa.Schema:
        """What the filter is given: what is yielded, and what only the filter looks at."""
        return self._read

    @property
    def filtered_partitions(self) -> tuple[pa.Field, ...]:
        """The columns that the filter looks at and that are what a file's directories say."""
        return tuple(self._read.field(name) for name in self._partitions if name in self._filter_names)

    @property
    def partitions(self) -> tuple[pa.Field, ...]:
        """The columns that are read, in a way, and that are what a file's directories say."""
        return tuple(self._read.field(name) for name in self._partitions if name in self._read.names)

    def view(self, path: str, columns: FileColumns) -> View:
        """Return what to read of a file that has these columns.

        Raises:
            SourceError: It has one that the dataset has not.
        """
        for known, view in self._views:
            if known is columns or known == columns:
                return view
        view = self._view(path, columns)
        if len(self._views) < _MAX_VIEWS:
            self._views.append((columns, view))
        return view

    def keep_groups(
        self, metadata: Any, groups: Sequence[int], view: View, constants: Mapping[str, pa.Scalar]
    ) -> Sequence[int]:
        """Return the row groups that may have rows for which the filter is true."""
        if self._row_groups is None:
            return groups
        return self._row_groups.keep(metadata, groups, view.layout.leaves, constants)

    def shape(self, path: str, table: pa.Table, view: View, constants: Mapping[str, pa.Scalar]) -> pa.Table:
        """Return rows of a file as the filter takes them.

        Raises:
            SourceError: A value of a column does not fit the column's type.
        """
        if view.has_others:
            wanted = [name for name in table.column_names if name in view.layout.leaves]
            arrays = [table.column(name) for name in wanted]
            arrays += [pa.repeat(value, table.num_rows) for value in constants.values()]
            missing = [
                field for field in self._read if field.name not in view.layout.leaves and field.name not in constants
            ]
            arrays += [pa.nulls(table.num_rows) for _ in missing]
            names = [*wanted, *constants, *(field.name for field in missing)]
            table = pa.Table.from_arrays(arrays, names)
        try:
            return conform(table, self._read)
        except SchemaError as error:
            raise SourceError(path, f"does not fit the other files: {error}") from error

    def select(self, table: pa.Table) -> pa.Table:
        """Return rows as they are yielded."""
        return table if self._read is self.schema else table.select(self.schema.names)

    def _view(self, path: str, columns: FileColumns) -> View:
        own = [name for name in columns.schema.names if name not in self._partitions]
        if self._is_strict and (others := [name for name in own if name not in self._full.names]):
            kind = columns.schema.field(others[0]).type
            raise SourceError(
                path,
                f"has a column {others[0]!r} ({kind}) that the files which decide the schema have not, one in several; "
                f"say which columns to read by columns=, or what they are by schema=, all of them",
            )
        wanted = [name for name in own if name in self._read.names]
        layout = Layout.of(columns.stored, wanted)
        has_all = len(wanted) == len(columns.stored)
        fields = {name: columns.stored.field(name) for name in wanted}
        timestamps = tuple((name, layout.leaves[name]) for name, field in fields.items() if _has_timestamp(field.type))
        # A path of a nested column may be the name of another, so more may come than was asked for.
        has_others = self._read.names != wanted
        has_others = has_others or any("." in name for name in columns.stored.names)
        return View(None if has_all else wanted, layout, timestamps, has_others)


def _scan(
    full: pa.Schema,
    columns: tuple[str, ...],
    expression: Any,
    partitions: tuple[str, ...],
    is_strict: bool,
) -> Scan:
    return Scan(full, columns, expression, partitions, is_strict=is_strict)


def _names_in(expression: Any, schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns that an expression needs, and perhaps some more; all, where that is not to be seen."""
    text = show_expression(expression)
    names = [name for name in schema.names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
    if not _goes_by_position(expression):
        try:
            filter_table(pa.schema([schema.field(name) for name in names]).empty_table(), expression)
        except pa.ArrowException:
            pass
        else:
            return tuple(names)
    check_filter(expression, schema)
    return tuple(schema.names)


def check_filter(expression: Any, schema: pa.Schema) -> None:
    """Check that a filter can be evaluated on rows of a schema.

    Raises:
        UnknownColumnError: It names a column that is not there.
        OptionError: It cannot, for another reason.
    """
    try:
        filter_table(schema.empty_table(), expression)
    except pa.ArrowException as error:
        text = str(error)
        name = text.partition("No match for FieldRef.Name(")[2].partition(") in ")[0]
        if name and name not in schema.names:
            reason = f"there is no column {name!r}{near_miss(name, schema.names)}"
            raise UnknownColumnError(f"filter({show_expression(expression)})", reason) from error
        types = ", ".join(
            f"{field.name}: {field.type}" for field in schema if field.name in show_expression(expression)
        )
        raise OptionError(
            f"filter({show_expression(expression)}) cannot be evaluated with {types or 'these columns'}: {text}"
        ) from error


def _goes_by_position(expression: Any) -> bool:
    text = show_expression(expression)
    return "FieldPath(" in text or text == UNSHOWN


def _has_timestamp(kind: pa.DataType) -> bool:
    if pa.types.is_timestamp(kind):
        return kind.tz is None
    return any(_has_timestamp(kind.field(index).type) for index in range(kind.num_fields))
