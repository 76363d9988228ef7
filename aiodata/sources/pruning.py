"""Pruning: which row groups, or files, a filter need not read, by statistics and the values of their directories.

Of each, what is known of its columns is told to Arrow as an expression that holds for all its rows, and Arrow says
whether the filter can be true where that holds. Statistics leave out NaN, and whoever wrote them may have cut strings
short, taken -0.0 for 0.0, or ordered them in another way; so what is told is only what is certain:

- of integers, dates, times and booleans: the bounds;
- of floats: bounds that are one step wider, so that the sign of a zero does not matter and they never look like one
  value; and the filter must not be true either where any of these columns are NaN;
- of strings and bytes: the bounds, if they are whole;
- that a column is null everywhere, or nowhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

# With more columns of floats in a filter no bounds of floats are used: each combination of NaNs is looked at.
_MAX_FLOATS = 3

# Longer strings than this may have been cut short by some writers.
_SHORT_BYTES = 16

# How Arrow writes the number.
_NAN = re.compile(r"\bnan\b")

_WHOLE_STRINGS = "parquet-cpp-arrow"

_NOWHERE = pafs.LocalFileSystem()

_TIME_UNITS = {"milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}


def can_be_true(expression: Any, schema: pa.Schema, guarantees: Sequence[Any]) -> list[bool]:
    """Return for each guarantee, an expression or None, whether a filter can be true of rows that it holds for."""
    # Here, since it imports pandas, which takes as long as all of aiodata.
    import pyarrow.dataset as pads

    file_format = pads.ParquetFileFormat()
    # Nothing opens these files, which are not there: just their guarantees are looked at.
    fragments = [
        file_format.make_fragment(str(index), _NOWHERE, partition_expression=guarantee)
        for index, guarantee in enumerate(guarantees)
        if guarantee is not None
    ]
    result = [guarantee is None for guarantee in guarantees]
    if fragments and _has_nan(expression):
        return [True] * len(guarantees)
    if fragments:
        dataset = pads.FileSystemDataset(fragments, schema, file_format, _NOWHERE)
        try:
            for fragment in dataset.get_fragments(filter=expression):
                result[int(fragment.path)] = True
        except pa.ArrowException:
            # Some filters Arrow can evaluate, but not simplify: dates that are in a list of strings.
            return [True] * len(guarantees)
    return result


def _has_nan(expression: Any) -> bool:
    """Whether a filter may compare with NaN: Arrow simplifies `~(i < nan)` as if a number were above or below it."""
    try:
        return _NAN.search(str(expression)) is not None
    except UnicodeDecodeError:  # Bytes that it compares with: nobody can tell what else is in it.
        return True


def constant(field: pa.Field, value: pa.Scalar) -> Any:
    """Return the guarantee that a column has one value in all rows."""
    column = pc.field(field.name)
    if not value.is_valid:
        return column.is_null()
    if pa.types.is_floating(field.type):
        return None
    return column == value


class RowGroups:
    """Says which row groups of a file a filter has to read."""

    def __init__(self, expression: Any, schema: pa.Schema, names: Sequence[str]) -> None:
        """Prune by a filter on columns of this schema, of which it uses these."""
        self._expression = expression
        self._schema = schema
        self._fields = [schema.field(name) for name in names]

    def keep(
        self,
        metadata: Any,
        groups: Sequence[int],
        leaves: Mapping[str, range],
        constants: Mapping[str, pa.Scalar],
    ) -> list[int]:
        """Return the row groups, out of some, that may have rows for which the filter is true.

        Args:
            metadata: The file's.
            groups: The row groups to look at.
            leaves: Where the file's columns are.
            constants: Columns that are not read, with their value in all rows.
        """
        fixed = []
        by_leaf = []
        for field in self._fields:
            if field.name in constants:
                fixed.append(constant(field, constants[field.name]))
            elif field.name not in leaves:
                fixed.append(pc.field(field.name).is_null())
            elif len(leaves[field.name]) == 1 and not field.type.num_fields:
                leaf = leaves[field.name][0]
                by_leaf.append((field, leaf, Bounds.of(metadata.schema.column(leaf), field.type, metadata.created_by)))
        numbers: list[int] = []
        guarantees: list[Any] = []
        for group in groups:
            info = metadata.row_group(group)
            known = [
                (field, *found)
                for field, leaf, bounds in by_leaf
                if (found := bounds.guarantee(field, info.column(leaf).statistics, info.num_rows)) is not None
            ]
            for guarantee in _with_nans(known, [one for one in fixed if one is not None]):
                numbers.append(group)
                guarantees.append(guarantee)
        kept = can_be_true(self._expression, self._schema, guarantees)
        wanted = {number for number, is_kept in zip(numbers, kept, strict=True) if is_kept}
        return [group for group in groups if group in wanted]


def _with_nans(known: Sequence[tuple[pa.Field, Any, bool]], fixed: Sequence[Any]) -> Iterator[Any]:
    """Yield what holds for the rows of a group: for those without NaN, and for those with NaN in some columns."""
    floats = [field.name for field, _, may_be_nan in known if may_be_nan]
    if len(floats) > _MAX_FLOATS:
        known = [one for one in known if not one[2]]
        floats = []
    for nans in chain.from_iterable(combinations(floats, count) for count in range(len(floats) + 1)):
        guarantee = None
        not_nan = [one for field, one, _ in known if field.name not in nans]
        are_nan = [pc.field(name) == pa.scalar(math.nan, _type_of(known, name)) for name in nans]
        for one in [*fixed, *not_nan, *are_nan]:
            guarantee = one if guarantee is None else guarantee & one
        yield guarantee


def _type_of(known: Sequence[tuple[pa.Field, Any, bool]], name: str) -> pa.DataType:
    return next(field.type for field, _, _ in known if field.name == name)


class Bounds:
    """How the bounds in a column's statistics are to be read."""

    def __init__(self, stored: pa.DataType | None, wanted: pa.DataType, *, are_strings_whole: bool) -> None:
        """Read bounds of a type, or none, as those of a column that is conformed to another type."""
        self._stored = stored
        self._wanted = wanted
        self._are_strings_whole = are_strings_whole
        self._may_be_nan = stored is not None and bool(pa.types.is_floating(stored))

    @classmethod
    def of(cls, column: Any, wanted: pa.DataType, created_by: str) -> Bounds:
        """Return how to read the bounds of a leaf, of which this is the schema."""
        stored = _stored_type(column)
        if stored is not None and not _are_alike(stored, wanted):
            stored = None
        return cls(stored, wanted, are_strings_whole=created_by.startswith(_WHOLE_STRINGS))

    def guarantee(self, field: pa.Field, statistics: Any, num_rows: int) -> tuple[Any, bool] | None:
        """Return what statistics say for certain of a column's rows, and whether some may be NaN nevertheless."""
        if statistics is None:
            return None
        column = pc.field(field.name)
        num_nulls = statistics.null_count if statistics.has_null_count else None
        if num_nulls == num_rows:
            return column.is_null(), False
        if self._stored is None or not statistics.has_min_max:
            return None
        low = self._bound(statistics.min_raw, is_upper=False)
        high = self._bound(statistics.max_raw, is_upper=True)
        if low is None or high is None:
            return None
        bounded = (column >= low) & (column <= high)
        return (bounded if num_nulls == 0 else bounded | column.is_null()), self._may_be_nan

    def _bound(self, raw: Any, *, is_upper: bool) -> pa.Scalar | None:
        try:
            value = self._value(raw, is_upper=is_upper)
            return None if value is None else _cast_scalar(value, self._wanted)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            return None

    def _value(self, raw: Any, *, is_upper: bool) -> pa.Scalar | None:
        stored, types = self._stored, pa.types
        assert stored is not None
        if types.is_unsigned_integer(stored) and raw < 0:
            raw += 1 << stored.bit_width
            if raw < 0 or raw >= 1 << stored.bit_width:
                return None
        if types.is_floating(stored):
            if math.isnan(raw):
                return None
            number = np.float32(raw) if types.is_float32(stored) else np.float64(raw)
            with np.errstate(over="ignore"):
                raw = float(np.nextafter(number, number.dtype.type(math.inf if is_upper else -math.inf)))
        elif types.is_string(stored) or types.is_binary(stored):
            if len(raw) >= _SHORT_BYTES and not self._are_strings_whole:
                return None
            raw = raw.decode() if types.is_string(stored) and isinstance(raw, bytes) else raw
        return pa.scalar(raw, stored)


def _cast_scalar(value: pa.Scalar, wanted: pa.DataType) -> pa.Scalar | None:
    """Cast to the type of the column that is filtered, if that changes nothing."""
    if value.type == wanted:
        return value
    cast = value.cast(wanted)
    return cast if cast.cast(value.type) == value else None


def _are_alike(stored: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of one type are in the order of those of the other, so that bounds stay bounds."""
    types = pa.types
    for kinds in (
        (types.is_integer,),
        (types.is_floating,),
        (types.is_boolean,),
        (types.is_date32,),
        (types.is_timestamp,),
        (types.is_string, types.is_large_string),
        (types.is_binary, types.is_large_binary),
    ):
        if any(is_kind(stored) for is_kind in kinds):
            return any(is_kind(wanted) for is_kind in kinds) and not types.is_float16(wanted)
    return False


def _stored_type(column: Any) -> pa.DataType | None:
    """Return the type of the values in a leaf's statistics; None: it is not one of those that are looked at."""
    logical, physical = column.logical_type.type, column.physical_type
    if physical in ("INT32", "INT64"):
        return _stored_integer(column, logical, 32 if physical == "INT32" else 64)
    match physical, logical:
        case "BOOLEAN", "NONE":
            return pa.bool_()
        case "FLOAT", "NONE":
            return pa.float32()
        case "DOUBLE", "NONE":
            return pa.float64()
        case "BYTE_ARRAY", "STRING":
            return pa.string()
        case "BYTE_ARRAY", "NONE":
            return pa.binary()
    return None


def _stored_integer(column: Any, logical: str, width: int) -> pa.DataType | None:
    if logical in ("NONE", "INT"):
        is_unsigned = str(column.converted_type).startswith("UINT")
        return (
            (pa.uint32() if width == 32 else pa.uint64())
            if is_unsigned
            else (pa.int32() if width == 32 else pa.int64())
        )
    if logical == "DATE":
        return pa.date32()
    if logical == "TIMESTAMP":
        text = str(column.logical_type)
        unit = next((unit for name, unit in _TIME_UNITS.items() if f"timeUnit={name}" in text), None)
        if unit is not None:
            return pa.timestamp(unit, "UTC" if "isAdjustedToUTC=true" in text else None)
    return None
