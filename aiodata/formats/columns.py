"""Columns: how Arrow arrays become numpy arrays or Python values, and how arrays are joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from aiodata.formats.cost import is_counted, is_plain
from aiodata.formats.decoding import decoded
from aiodata.formats.dense import Array, Look, filled_and_mask, null_mask, settle, to_dense
from aiodata.formats.moments import moments

_READ_ONLY = Look()


def column_to_numpy(array: pa.Array, look: Look = _READ_ONLY, *, has_nulls: bool | None = None) -> Array:
    """Convert an Arrow array; zero-copy where the layout and `look` allow it.

    Args:
        array: Values of any type.
        look: What is asked of the result.
        has_nulls: Whether rows of the whole column are null, of which these are a part; None: that is not known.

    Raises:
        ValueError: A value has no exact counterpart.
    """
    kind = array.type
    array = decoded(array)
    if not is_plain(array.type):
        return settle(_to_objects(array, look), look)
    column = to_dense(array, look, has_nulls=has_nulls)
    if isinstance(kind, pa.FixedShapeTensorType):
        column = column.reshape(len(array), *kind.shape)
        if kind.permutation:
            # Not to_numpy_ndarray, which (in pyarrow 26) mixes up the values where a permutation is a cycle of three.
            column = column.transpose(0, *(1 + axis for axis in kind.permutation))
    return settle(column, look)


def python_values(array: pa.Array, look: Look = _READ_ONLY) -> list[Any]:
    """Return one Python value per row, None for null: what structs, maps and object columns hold.

    Lists are arrays, structs are dicts, maps are lists of pairs.

    Raises:
        ValueError: A value has no exact counterpart.
    """
    array = decoded(array)
    kind = array.type
    if pa.types.is_struct(kind):
        values = _dicts(array, look)
    elif pa.types.is_map(kind):
        values = _lists_of_pairs(array, look)
    elif _is_list(kind):
        values = _arrays(array, look)
    elif is_counted(kind):
        values = filled_and_mask(array)[0].tolist()
    elif pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return moments(array)
    elif pa.types.is_union(kind) or pa.types.is_interval(kind):
        return list(array.to_pylist())
    else:
        values = array.to_numpy(zero_copy_only=False).tolist()
    nulls = null_mask(array)
    for row in () if nulls is None else np.flatnonzero(nulls).tolist():
        values[row] = None
    return values


def join_columns(columns: Sequence[Array], look: Look = _READ_ONLY) -> Array:
    """Put a column's parts end to end."""
    if any(isinstance(column, np.ma.MaskedArray) for column in columns):
        masks = [np.ma.getmaskarray(column) for column in columns]
        data = np.concatenate([np.ma.getdata(column) for column in columns])
        return settle(np.ma.MaskedArray(data, np.concatenate(masks)), look)
    return settle(np.concatenate(columns), look)


def _to_objects(array: pa.Array, look: Look) -> Array:
    values = python_values(array, look)
    return np.fromiter(values, object, count=len(values))


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _bounds(array: pa.Array) -> tuple[Array, Array]:
    """Return where each row's values start and stop among all; nowhere for null rows."""
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        starts = (array.offset + np.arange(len(array))) * kind.list_size
        stops = starts + kind.list_size
    elif pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        starts = array.offsets.to_numpy(zero_copy_only=False)
        stops = starts + array.sizes.to_numpy(zero_copy_only=False)
    else:
        offsets = array.offsets.to_numpy(zero_copy_only=False)
        starts, stops = offsets[:-1], offsets[1:]
    nulls = null_mask(array)
    return starts, stops if nulls is None else np.where(nulls, starts, stops)


def _used(array: pa.Array) -> tuple[list[slice], int, int]:
    """Return each row's range among the values that rows refer to, and which of all these are."""
    starts, stops = _bounds(array)
    is_used = stops > starts
    if not is_used.any():
        return [slice(0, 0)] * len(array), 0, 0
    low, high = int(starts[is_used].min()), int(stops[is_used].max())
    starts, stops = np.where(is_used, starts - low, 0), np.where(is_used, stops - low, 0)
    return list(map(slice, starts.tolist(), stops.tolist())), low, high


def _arrays(array: pa.Array, look: Look) -> list[Any]:
    """Return each row of a list column as an array; a masked one where this row has nulls that are to be masked."""
    ranges, low, high = _used(array)
    values = column_to_numpy(array.values.slice(low, high - low), look)
    if not isinstance(values, np.ma.MaskedArray):
        return [values[one] for one in ranges]
    # To slice a masked array takes microseconds, so it is done where there is need alone.
    data, mask = values.data, np.ma.getmaskarray(values)
    counts = np.concatenate([[0], mask.reshape(len(mask), -1).any(axis=1).cumsum()]).tolist()
    return [values[one] if counts[one.stop] > counts[one.start] else data[one] for one in ranges]


def _lists_of_pairs(array: pa.Array, look: Look) -> list[Any]:
    ranges, low, high = _used(array)
    keys, values = (python_values(part.slice(low, high - low), look) for part in (array.keys, array.items))
    pairs = list(zip(keys, values, strict=True))
    return [pairs[one] for one in ranges]


def _dicts(array: pa.Array, look: Look) -> list[Any]:
    names = [field.name for field in array.type]
    if len(set(names)) < len(names):
        raise ValueError(f"its fields share names, which a dict cannot have: {names}; rename them in the source")
    if not names:
        return [{} for _ in range(len(array))]
    members = [python_values(array.field(index), look) for index in range(len(names))]
    return [dict(zip(names, row, strict=True)) for row in zip(*members, strict=True)]
