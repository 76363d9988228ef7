"""Blocks: what every stage of a run holds is a `pyarrow.Table`; here is how other things become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types

from aiodata.arrays import to_array
from aiodata.given import Given as Given
from aiodata.memory import copy_array
from aiodata.moments import as_days
from aiodata.restore import restore
from aiodata.schemas import cast_exactly, check_names, conform, plain_type, unify_schemas, with_plain_types


def as_block(value: object, *, given: Given | None = None) -> pa.Table:
    """Return `value` as a `pyarrow.Table`.

    Args:
        value: A Table, a RecordBatch, a mapping of columns (arrays of one length; an array of shape
            `(rows, ...)` becomes a tensor column), or anything with `__arrow_c_stream__` or
            `__arrow_c_array__` (pandas, polars, duckdb, ...).
        given: What the function that returned `value` was given. What it made is copied, since it may go on to write
            to it; what it hands back has the type that it had, and is not copied where nobody can have changed it.
            None: nothing is copied where the layout allows it.

    Raises:
        TypeError: `value` is none of these.
        ValueError: The columns differ in length, have one name, or there are none but rows; values do not go together.

    Example:
        >>> as_block({"x": [1, 2]}).num_rows
        2
    """
    if isinstance(value, pa.RecordBatch):
        value = pa.Table.from_batches([value])
    if isinstance(value, pa.Table):
        return _from_table(value, given, is_declared=True)
    if isinstance(value, Mapping):
        names = check_names(value)
        return _from_columns(dict(zip(names, value.values(), strict=True)), given)
    if _is_pandas(value):
        return _from_pandas(value, given)
    if hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__"):
        # These types are the other library's, and not for the function to choose.
        return _from_table(_other_table(value), given, is_declared=False)
    raise _no_block(value)


def _other_table(value: Any) -> pa.Table:
    """Return the table of another library as one of Arrow's."""
    if len(getattr(value, "shape", (0, 0))) != 2:  # A column, which has no name.
        raise _no_block(value)
    _check_columns(value)
    try:
        return pa.table(value)
    except pa.ArrowInvalid as error:
        raise _no_block(value) from error


def _no_block(value: object) -> TypeError:
    return TypeError(
        f"cannot make a block of {type(value).__name__}; give a dict of arrays, a pyarrow.Table or "
        "RecordBatch, or a pandas or polars DataFrame"
    )


def from_rows(rows: Sequence[Any]) -> pa.Table:
    """Make a block of rows: mappings become columns, anything else the column `item`.

    Example:
        >>> from_rows([1, 2]).column_names
        ['item']
    """
    if rows and all(isinstance(row, Mapping) for row in rows):
        keys = list(dict.fromkeys(key for row in rows for key in row))
        if not keys:
            raise ValueError(f"{len(rows)} rows have no columns; give each of them at least one")
        names = check_names(keys)
        return _from_columns({name: [row.get(key) for row in rows] for name, key in zip(names, keys, strict=True)})
    return _from_columns({"item": list(rows)})


def concat_blocks(blocks: Sequence[pa.Table]) -> pa.Table:
    """Put blocks end to end, without copying those of the common schema; columns that one of them lacks are null there.

    Raises:
        SchemaError: A column has types that no type holds exactly.
    """
    if len(blocks) == 1:
        return blocks[0]
    first = blocks[0].schema
    if all(block.schema.equals(first, check_metadata=True) for block in blocks[1:]):
        return pa.concat_tables(blocks)
    schema = unify_schemas([(f"block {place}", block.schema) for place, block in enumerate(blocks, 1)])
    return pa.concat_tables([conform(block, schema) for block in blocks])


def copy_rows(block: pa.Table) -> pa.Table:
    """Return a copy that refers to nothing of `block`, so that a slice does not keep alive what it was cut from.

    Example:
        >>> copy_rows(pa.table({"x": [1, 2, 3]}).slice(2)).to_pydict()
        {'x': [3]}
    """
    columns = [pa.chunked_array(map(copy_array, column.chunks), column.type) for column in block.columns]
    return pa.Table.from_arrays(columns, schema=block.schema) if columns else block


def _is_pandas(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "columns")


def _check_columns(table: Any) -> None:
    """Refuse rows without columns: a block would not know how many it has."""
    num_rows, num_columns = getattr(table, "shape", (0, 0))
    if num_rows and not num_columns:
        raise ValueError(f"{num_rows} rows have no columns; keep at least one")


def _from_table(table: pa.Table, given: Given | None, *, is_declared: bool) -> pa.Table:
    check_names(table.column_names)
    _check_columns(table)
    is_given = given is not None and given.batch is table
    table = _without_notes(table)
    if given is None or is_given:
        return table if is_given else with_plain_types(table)
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        hint = given.type_of(name)
        column = given.memory.own(column)
        if hint is None or not column.type.equals(hint):
            column = cast_exactly(column, plain_type(column.type))
            if hint is not None and not is_declared:
                restored = _restore(column, name, given)
                is_original = not restored.type.equals(hint) and _is_again(column, name, given)
                column = given.column(name) if is_original else restored
        columns.append(column)
    return pa.Table.from_arrays(columns, table.column_names)


def _is_again(column: pa.ChunkedArray, name: str, given: Given) -> bool:
    """Whether a column of another library is what it makes of the column that was given."""
    fresh = given.convert(name) if len(column) == given.rows.num_rows else None
    if fresh is None or not hasattr(fresh, "__arrow_c_stream__"):
        return False
    return bool(with_plain_types(pa.table(fresh)).column(0).equals(column))


def _without_notes(table: pa.Table) -> pa.Table:
    """Drop what is noted of rows in a schema, which may be about other rows by now."""
    fields = [_bare(field) if field.metadata else field for field in table.schema]
    bare = pa.schema(fields)
    if table.schema.equals(bare, check_metadata=True):
        return table
    return pa.Table.from_arrays(table.columns, schema=bare) if fields else table


def _bare(field: pa.Field) -> pa.Field:
    notes = {key: value for key, value in field.metadata.items() if key.startswith(b"ARROW:extension:")}
    return field.with_metadata(notes) if notes else field.remove_metadata()


def _from_columns(columns: Mapping[str, Any], given: Given | None = None) -> pa.Table:
    arrays = {name: _as_column(name, values, given) for name, values in columns.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of a batch must have one length, not {lengths}")
    return pa.table(arrays)


def _as_column(name: str, values: Any, given: Given | None) -> pa.Array | pa.ChunkedArray:
    """Make an Arrow array of a column's values."""
    if given is not None and (column := given.untouched(values)) is not None:
        return column
    if type(values).__module__.partition(".")[0] == "pandas" and hasattr(values, "dtype"):
        return _from_series(name, values, given)
    is_arrow = isinstance(values, pa.Array | pa.ChunkedArray)
    if is_arrow or hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__"):
        column = pa.chunked_array([values]) if isinstance(values, pa.Array) else pa.chunked_array(values)
        return _from_table(pa.table({name: column}), given, is_declared=is_arrow).column(0)
    if given is None:
        return to_array(name, values)
    # A copy is no other column.
    source = given.name_of(values) or name
    array = to_array(name, values, given.type_of(source), copy=True)
    array = _restored(array, source, given, is_declared=_is_declared(values))
    original = _unchanged(source, values, array, given)
    return array if original is None else original


def _is_declared(values: Any) -> bool:
    """Whether values have a type of their own, which Python's numbers have not."""
    return hasattr(values, "dtype") and getattr(values.dtype, "kind", "") != "O"


def _restored(array: pa.Array, name: str, given: Given | None, *, is_declared: bool) -> pa.Array:
    hint = None if given is None else given.type_of(name)
    if given is None or hint is None or array.type.equals(hint):
        return array
    # A library's categories may be ordered by themselves, and then they are its function's choice.
    is_chosen = types.is_dictionary(array.type) and is_declared
    categories = None if is_chosen else given.categories(name)
    return restore(array, hint, is_declared=is_declared, categories=categories)


def _restore(column: pa.ChunkedArray, name: str, given: Given) -> pa.ChunkedArray:
    """Restore the chunks, to one type."""
    hint = given.type_of(name)
    chunks = [_restored(as_days(chunk, hint), name, given, is_declared=False) for chunk in column.chunks]
    if len({str(chunk.type) for chunk in chunks}) > 1:
        return column
    return pa.chunked_array(chunks, chunks[0].type if chunks else column.type)


def _from_pandas(frame: Any, given: Given | None) -> pa.Table:
    _check_columns(frame)
    names = check_names(frame.columns)
    return pa.table({name: _from_series(name, frame.iloc[:, place], given) for place, name in enumerate(names)})


def _from_series(name: str, series: Any, given: Given | None) -> pa.Array | pa.ChunkedArray:
    """Make an Arrow array of a pandas column, in which NaN is null."""
    hint = None if given is None else given.type_of(name)
    is_plain = isinstance(series.dtype, np.dtype)
    if is_plain:
        array = to_array(name, series.to_numpy(), hint, nan_is_null=True)
    else:
        try:
            array = pa.array(series, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise ValueError(f"column {name!r} ({series.dtype}) cannot be made an Arrow array: {error}") from error
    column = pa.chunked_array([array]) if isinstance(array, pa.Array) else array
    column = with_plain_types(pa.table({name: column})).column(0)
    if given is None:
        return column
    if hint is not None:
        is_declared = not is_plain or series.dtype.kind != "O"
        chunks = [_restored(chunk, name, given, is_declared=is_declared) for chunk in column.chunks]
        if chunks and len({str(chunk.type) for chunk in chunks}) == 1:
            column = pa.chunked_array(chunks)
        if (original := _unchanged(name, series, column, given)) is not None:
            return original
    return given.memory.own(column)


def _unchanged(name: str, values: Any, made: Any, given: Given) -> pa.ChunkedArray | None:
    """Return the column that was given if its values have come back, and what was made of them may be less."""
    kind = given.type_of(name)
    if kind is None or given.rows.num_rows != len(made):
        return None
    original = given.column(name)
    is_float = types.is_floating(kind)
    if made.type.equals(kind):
        made = made if isinstance(made, pa.ChunkedArray) else pa.chunked_array([made])
        if not _has_floats(kind) and made.equals(original):
            return original
        if is_float and not made.null_count and not original.null_count:
            return None
    # Nulls and NaN may have become one, integers floats, and what is nested, or a time of day, of fewer digits.
    storage = getattr(kind, "storage_type", kind)
    is_lossy = is_float or storage.num_fields or types.is_time(kind) or not made.type.equals(kind)
    return given.if_same(name, values) if is_lossy else None


def _has_floats(kind: pa.DataType) -> bool:
    kind = getattr(kind, "storage_type", kind)
    if types.is_dictionary(kind):
        return _has_floats(kind.value_type)
    return bool(types.is_floating(kind)) or any(_has_floats(kind.field(i).type) for i in range(kind.num_fields))
