"""The format `"polars"`: a DataFrame of polars."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import pyarrow as pa

from aiodata.casts import cast_exactly
from aiodata.formats.cost import Costed, PerSchema, count_words, is_plain, weigh
from aiodata.formats.decoding import decoded
from aiodata.formats.format import REFUSALS, BatchFormat, Library, blamed, refuse_duplicates
from aiodata.kinds import plain_type
from aiodata.schemas import has_known_categories

# What counts as so many words: a string that polars refers to (7 to 14 ns).
_WORDS_PER_STRING = 8

# Columns that polars is given one by one, at most: each costs about 10 µs more than it would among others.
_COLUMNS_ALONE = 16

_REMEDY = "leave it out with select_columns, convert it with map_batches, or ask for batch_format='pyarrow'"


class PolarsFormat(Costed):
    """Refers to the block's memory where polars does; copies strings, binary and times.

    Args:
        writable: Whether each stretch is a private copy.
    """

    name: BatchFormat = "polars"
    join_copies = False
    library: str | None = "polars"

    def __init__(self, *, writable: bool = False) -> None:
        """Look for polars."""
        super().__init__()
        self._polars = Library("polars")
        self._writable = writable
        self._plan: PerSchema[list[tuple[int, pa.Field, pa.DataType]]] = PerSchema()

    def convert(self, segment: pa.RecordBatch) -> Any:
        """Return the rows as a frame."""
        for index, field, kind in self._plan.of(segment.schema, self._look_at):
            column = segment.column(index)
            try:
                mended = self._mend(column, kind)
            except REFUSALS as error:
                raise blamed(field.name, field.type, error) from error
            if mended is not column:
                segment = segment.set_column(index, pa.field(field.name, mended.type), mended)
        return self._call(self._to_frame, segment)

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        """Return a range of rows, zero-copy."""
        return rows.slice(start, stop - start)

    def join(self, pieces: Sequence[Any]) -> Any:
        """Put frames end to end, zero-copy."""
        # `concat` would wait for polars' threads, as in `_to_frame`.
        return reduce(self._polars.DataFrame.vstack, pieces)

    def _cost(self, field: pa.Field) -> tuple[float, float]:
        is_copied = self._writable or _has_inner_tensors(field.type)
        return 0, _string_words(field.type) + (count_words(field.type) if is_copied else 0)

    def _look_at(self, schema: pa.Schema) -> list[tuple[int, pa.Field, pa.DataType]]:
        """Return the columns that polars is not, or may not be, handed as they are, and the types it is handed."""
        refuse_duplicates(schema)
        plan = []
        for index, field in enumerate(schema):
            kind = self._known_type(field)
            try:
                _refuse(kind)
            except ValueError as error:
                raise blamed(field.name, field.type, error) from error
            if kind != field.type or self._needs_copy(kind) or pa.types.is_fixed_size_list(_stored(kind)):
                plan.append((index, field, kind))
        return plan

    def _known_type(self, field: pa.Field) -> pa.DataType:
        """Return the type in which values are handed to polars.

        A dictionary stays one where it is the same in all batches, and polars' categories are for all.
        """
        kind = field.type
        is_category = pa.types.is_dictionary(kind) and _is_string(kind.value_type) and has_known_categories(field)
        if is_category and hasattr(self._polars, "Categories"):
            return kind
        return _known_type(plain_type(kind, keep_nested_dictionaries=False))

    def _mend(self, column: pa.Array, kind: pa.DataType) -> pa.Array:
        """Return the same values in a type that polars has, and in memory that it may refer to."""
        if pa.types.is_run_end_encoded(column.type):
            column = decoded(column)
        mended = cast_exactly(column, kind)
        # Polars (2.1) refuses slices of fixed-size lists with nulls.
        is_sliced_tensor = mended.null_count and pa.types.is_fixed_size_list(_stored(kind))
        return pa.concat_arrays([mended]) if is_sliced_tensor or self._needs_copy(kind) else mended

    def _needs_copy(self, kind: pa.DataType) -> bool:
        """Whether columns of this type are copied, be it that all of a column would be converted for each slice."""
        kind = _stored(kind)
        if self._writable:
            return not _is_string(kind) and not pa.types.is_dictionary(kind)
        return bool(kind.num_fields and (_string_words(kind) > 0 or _has_inner_tensors(kind)))

    def _to_frame(self, segment: pa.RecordBatch) -> Any:
        converted = [field.name for field in segment.schema if _string_words(field.type)]
        if not 0 < len(converted) <= _COLUMNS_ALONE:
            return self._polars.from_arrow(segment, rechunk=False)
        # Polars converts a column alone in this thread, several by its own threads; where decoding keeps the processors
        # busy, those take milliseconds to be scheduled, and the event loop would wait for them.
        alone = [self._polars.from_arrow(segment.column(name)).alias(name) for name in converted]
        if len(alone) == segment.num_columns:
            return self._polars.DataFrame(alone)
        frame = self._polars.from_arrow(segment.drop_columns(converted), rechunk=False)
        for series in alone:
            frame.insert_column(segment.schema.get_field_index(series.name), series)
        return frame

    def _call(self, convert: Any, segment: pa.RecordBatch) -> Any:
        """Call `convert`; where polars refuses, or panics, raise a ValueError that names the column."""
        try:
            return convert(segment)
        except BaseException as error:
            if not self._is_refusal(error):
                raise
            for name, column in zip(segment.schema.names, segment.columns, strict=True):
                try:
                    self._polars.from_arrow(column)
                except BaseException as one:
                    if not self._is_refusal(one):
                        raise
                    raise ValueError(f"column {name!r} is {column.type}: polars says {str(one)!r}; {_REMEDY}") from one
            raise ValueError(f"polars says {str(error)!r} of {segment.schema}") from error

    def _is_refusal(self, error: BaseException) -> bool:
        # A panic is no Exception, and its type cannot be imported.
        return isinstance(error, self._polars.exceptions.PolarsError) or type(error).__name__ == "PanicException"


def _stored(kind: pa.DataType) -> pa.DataType:
    """Return the type of an extension's values; else the type."""
    return getattr(kind, "storage_type", kind)


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _string_words(kind: pa.DataType) -> float:
    """Return what converting strings and the like costs, in words."""
    return weigh(kind, lambda leaf: 0 if is_plain(leaf) or pa.types.is_decimal(leaf) else _WORDS_PER_STRING)


def _has_inner_tensors(kind: pa.DataType) -> bool:
    """Whether there are fixed-size lists within other types."""
    kind = _stored(kind)
    fields = [kind.field(index).type for index in range(kind.num_fields)]
    return any(pa.types.is_fixed_size_list(_stored(one)) or _has_inner_tensors(one) for one in fields)


def _known_type(kind: pa.DataType) -> pa.DataType:
    """Return the type in which values are handed to polars: seconds as milliseconds, dictionaries as their values.

    Polars would turn seconds into milliseconds itself, but wrap what is out of range. Short decimals within other types
    it takes, but panics when it is to give them back.
    """
    if pa.types.is_dictionary(kind):
        return _known_type(kind.value_type)
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("ms", kind.tz)
    if pa.types.is_duration(kind) and kind.unit == "s":
        return pa.duration("ms")
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    if isinstance(kind, pa.BaseExtensionType) or not kind.num_fields:
        return kind
    fields = [kind.field(index).with_type(_known_type(kind.field(index).type)) for index in range(kind.num_fields)]
    if pa.types.is_struct(kind):
        return pa.struct(fields)
    if pa.types.is_map(kind):
        return pa.map_(*(_known_type(one) for one in (kind.key_type, kind.item_type)), keys_sorted=kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(fields[0], kind.list_size)
    make = {pa.types.is_list: pa.list_, pa.types.is_large_list: pa.large_list}
    return next((of(fields[0]) for is_kind, of in make.items() if is_kind(kind)), kind)


def _refuse(kind: pa.DataType) -> None:
    """Raise a ValueError where polars has no type for this one; at some it would panic."""
    inner = _stored(kind)
    why = None
    if pa.types.is_decimal256(inner):
        why = "its decimals have 38 digits at most"
    elif pa.types.is_decimal(inner) and not 0 <= inner.scale <= inner.precision:
        why = "its decimals have a scale from 0 to their number of digits"
    elif pa.types.is_interval(inner) or pa.types.is_union(inner):
        why = "it has no such type"
    elif pa.types.is_fixed_size_list(inner) and not inner.list_size:
        why = "it has no arrays without values"
    if why:
        of = "" if kind is inner else f" (of {inner})"
        raise ValueError(f"polars cannot have this{of}: {why}; {_REMEDY}")
    for index in range(inner.num_fields):
        _refuse(inner.field(index).type)
