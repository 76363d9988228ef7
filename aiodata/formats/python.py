"""Rows as dicts of Python's values: what Arrow makes of them, and tensors as NumPy arrays of their shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from aiodata.formats.columns import python_values, used_values
from aiodata.formats.dense import Look, null_mask

# What is written into one tensor changes no other row, and no block.
_PRIVATE = Look(writable=True)


def to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table.

    Raises:
        Exception: Python has no such values; of which kind is up to Arrow.

    Example:
        >>> to_rows(pa.table({"x": [1, 2]}))
        [{'x': 1}, {'x': 2}]
    """
    if not has_tensors(table.schema):
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows
    columns = [[value for chunk in column.chunks for value in _values(chunk)] for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def has_tensors(schema: pa.Schema) -> bool:
    """Whether there are tensors somewhere in rows of a schema."""
    return any(map(_has_tensors, schema.types))


def _has_tensors(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.FixedShapeTensorType):
        return True
    kind = getattr(kind, "storage_type", kind)
    return any(_has_tensors(kind.field(index).type) for index in range(kind.num_fields))


def _values(array: pa.Array) -> list[Any]:
    """Return one Python value per row; tensors may be within structs, lists and maps."""
    kind = array.type
    if not _has_tensors(kind):
        values: list[Any] = array.to_pylist()
        return values
    if isinstance(kind, pa.FixedShapeTensorType):
        return [None if value is None else _shaped(value, kind) for value in python_values(array, _PRIVATE)]
    if isinstance(kind, pa.BaseExtensionType):
        return _values(array.storage)
    if pa.types.is_struct(kind):
        members = [_values(array.field(index)) for index in range(kind.num_fields)]
        names = [field.name for field in kind]
        if len(set(names)) < len(names):
            raise ValueError(f"fields share names, which a dict cannot have: {names}; rename them in the source")
        values = [dict(zip(names, row, strict=True)) for row in zip(*members, strict=True)]
    else:
        ranges, low, high = used_values(array)
        if pa.types.is_map(kind):
            keys, items = (_values(part.slice(low, high - low)) for part in (array.keys, array.items))
            inner: list[Any] = list(zip(keys, items, strict=True))
        else:
            inner = _values(array.values.slice(low, high - low))
        values = [inner[start:stop] for start, stop in ranges]
    nulls = null_mask(array)
    for row in () if nulls is None else np.flatnonzero(nulls).tolist():
        values[row] = None
    return values


def _shaped(value: Any, kind: pa.FixedShapeTensorType) -> Any:
    tensor = value.reshape(kind.shape)
    return tensor.transpose(kind.permutation) if kind.permutation else tensor
