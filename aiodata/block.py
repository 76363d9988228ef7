"""Blocks: what every stage of a run holds is a `pyarrow.Table`; here is how other things become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa


def as_block(value: object) -> pa.Table:
    """Return `value` as a `pyarrow.Table`, without copying where the layout allows it.

    Args:
        value: A Table, a RecordBatch, a mapping of columns (arrays of one length; an array of shape
            `(rows, ...)` becomes a tensor column), or anything with `__arrow_c_stream__` or
            `__arrow_c_array__` (pandas, polars, duckdb, ...).

    Raises:
        TypeError: `value` is none of these.
        ValueError: The columns differ in length.

    Example:
        >>> as_block({"x": [1, 2]}).num_rows
        2
    """
    if isinstance(value, pa.Table):
        return value
    if isinstance(value, pa.RecordBatch):
        return pa.Table.from_batches([value])
    if isinstance(value, Mapping):
        return _from_columns(value)
    if _is_pandas(value):
        return pa.Table.from_pandas(value, preserve_index=False).replace_schema_metadata(None)
    if hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__"):
        return pa.table(value)
    raise TypeError(
        f"can not make a block of {type(value).__name__}; give a dict of arrays, a pyarrow.Table or "
        "RecordBatch, or a pandas or polars DataFrame"
    )


def from_rows(rows: Sequence[Any]) -> pa.Table:
    """Make a block of rows: mappings become columns, anything else the column `item`.

    Example:
        >>> from_rows([1, 2]).column_names
        ['item']
    """
    if rows and all(isinstance(row, Mapping) for row in rows):
        names = list(dict.fromkeys(name for row in rows for name in row))
        return _from_columns({name: [row.get(name) for row in rows] for name in names})
    return _from_columns({"item": list(rows)})


def concat_blocks(blocks: Sequence[pa.Table]) -> pa.Table:
    """Put blocks end to end without copying; columns that one of them lacks are null there.

    Raises:
        ValueError: A column has types that do not go together.
    """
    if len(blocks) == 1:
        return blocks[0]
    try:
        return pa.concat_tables(blocks)
    except pa.ArrowInvalid:
        pass
    try:
        return pa.concat_tables(blocks, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"blocks of one dataset have schemas that do not go together: {error}") from error


def copy_rows(block: pa.Table) -> pa.Table:
    """Return a copy that refers to nothing of `block`, so that a slice does not keep alive what it was cut from.

    Where Arrow can not gather a column's type (string views, list views), `block` itself is returned.

    Example:
        >>> copy_rows(pa.table({"x": [1, 2, 3]}).slice(2)).to_pydict()
        {'x': [3]}
    """
    try:
        return block.take(pa.array(np.arange(block.num_rows)))
    except pa.ArrowNotImplementedError:
        return block


def _is_pandas(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "columns")


def _from_columns(columns: Mapping[Any, Any]) -> pa.Table:
    arrays = {str(name): _as_array(str(name), values) for name, values in columns.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of a batch must have one length, not {lengths}")
    return pa.table(arrays)


def _as_array(name: str, values: Any) -> pa.Array | pa.ChunkedArray:
    """Make an Arrow array of a column's values; arrays of two and more dimensions become tensors."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if not isinstance(values, np.ndarray) and hasattr(values, "__array__"):
        values = np.asarray(values)
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return _as_tensors(name, values)
    if isinstance(values, str | bytes) or not hasattr(values, "__len__") or getattr(values, "ndim", 1) == 0:
        raise TypeError(
            f"column {name!r} must be an array or a list with one value per row, not {type(values).__name__}"
        )
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} can not be made an Arrow array: {error}") from error


def _as_tensors(name: str, values: np.ndarray[Any, Any]) -> pa.Array:
    """Make an Arrow array whose rows are tensors; there may be no rows, or no values in them."""
    if values.size:
        try:
            return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
        except (pa.ArrowException, TypeError, KeyError) as error:
            raise TypeError(f"column {name!r}: tensors of {values.dtype} have no Arrow type: {error}") from error
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), values.shape[1:])
    return pa.ExtensionArray.from_storage(kind, pa.array([[]] * len(values), kind.storage_type))
