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

# Types whose memory is numpy's, too.
_NUMBERS = frozenset(
    [
        *(make().id for make in (pa.int8, pa.int16, pa.int32, pa.int64, pa.uint8, pa.uint16, pa.uint32, pa.uint64)),
        *(make().id for make in (pa.float16, pa.float32, pa.float64)),
        *(make("us").id for make in (pa.timestamp, pa.duration)),
    ]
)


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
    if kind.id in _NUMBERS and not has_nulls and not look.nulls_as_nan and not array.null_count:
        return settle(array.to_numpy(), look)
    array = decoded(array)
    if not is_plain(array.type):
        objects = array.to_numpy(zero_copy_only=False) if _is_leaf(array.type) else _to_objects(array, look)
        return settle(objects, look)
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
    if _is_leaf(kind) or _is_simple(array):
        if pa.types.is_map(kind):
            # Arrow would convert all of what this is a slice of, for each slice again.
            array = pa.concat_arrays([array])
        return list(array.to_numpy(zero_copy_only=False))
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
    elif pa.types.is_floating(kind):
        values = array.to_numpy(zero_copy_only=False).tolist()
    else:
        return list(array.to_pylist())
    nulls = null_mask(array)
    for row in () if nulls is None else np.flatnonzero(nulls).tolist():
        values[row] = None
    return values


def join_columns(columns: Sequence[Array], look: Look = _READ_ONLY) -> Array:
    """Put a column's parts end to end."""
    if len(columns) == 1:
        return columns[0]
    if any(isinstance(column, np.ma.MaskedArray) for column in columns):
        masks = [np.ma.getmaskarray(column) for column in columns]
        data = np.concatenate([np.ma.getdata(column) for column in columns])
        return settle(np.ma.MaskedArray(data, np.concatenate(masks)), look)
    return settle(np.concatenate(columns), look)


def _to_objects(array: pa.Array, look: Look) -> Array:
    values = python_values(array, look)
    return np.fromiter(values, object, count=len(values))


def _is_leaf(kind: pa.DataType) -> bool:
    """Whether values are text, bytes or decimals, which Arrow makes exactly."""
    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_decimal(kind)
    )


def _is_simple(array: pa.Array) -> bool:
    """Whether these are structs or maps of which Arrow makes all values exactly; it does so in a third of the time."""
    kind = array.type
    if pa.types.is_struct(kind):
        names, parts = [field.name for field in kind], [array.field(index) for index in range(kind.num_fields)]
        if len(set(names)) < len(names):
            return False
    elif pa.types.is_map(kind):
        parts = [array.keys, array.items]
    else:
        return False
    return all(
        not part.null_count and (_is_leaf(part.type) or is_counted(part.type) or pa.types.is_floating(part.type))
        for part in parts
    )


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


def used_values(array: pa.Array) -> tuple[list[tuple[int, int]], int, int]:
    """Return each row's range among the values that rows refer to, and which of all these are."""
    starts, stops = _bounds(array)
    is_used = stops > starts
    if not is_used.any():
        return [(0, 0)] * len(array), 0, 0
    if not is_used.all():
        # An empty row may start anywhere, out of range even.
        starts, stops = (np.where(is_used, one, starts[is_used][0]) for one in (starts, stops))
    low, high = int(starts.min()), int(stops.max())
    return list(zip((starts - low).tolist(), (stops - low).tolist(), strict=True)), low, high


def _arrays(array: pa.Array, look: Look) -> list[Any]:
    """Return each row of a list column as an array; a masked one where this row has nulls that are to be masked."""
    ranges, low, high = used_values(array)
    values = column_to_numpy(array.values.slice(low, high - low), look)
    if not isinstance(values, np.ma.MaskedArray):
        return [values[start:stop] for start, stop in ranges]
    data, mask = values.data, np.ma.getmaskarray(values)
    counts = np.concatenate([[0], mask.reshape(len(mask), -1).any(axis=1).cumsum()]).tolist()
    return [
        slice_masked(values, start, stop) if counts[stop] > counts[start] else data[start:stop]
        for start, stop in ranges
    ]


def slice_masked(column: Any, start: int, stop: int) -> Array:
    """Return a range of a masked array, in half the time that it takes by its index."""
    part: Any = column.data[start:stop].view(np.ma.MaskedArray)
    part._mask = column._mask[start:stop]  # noqa: SLF001 - Whatever is public copies masks, or checks them.
    return part  # type: ignore[no-any-return]


def _lists_of_pairs(array: pa.Array, look: Look) -> list[Any]:
    ranges, low, high = used_values(array)
    keys, values = (python_values(part.slice(low, high - low), look) for part in (array.keys, array.items))
    pairs = list(zip(keys, values, strict=True))
    return [pairs[start:stop] for start, stop in ranges]


def _dicts(array: pa.Array, look: Look) -> list[Any]:
    names = [field.name for field in array.type]
    if len(set(names)) < len(names):
        raise ValueError(f"its fields share names, which a dict cannot have: {names}; rename them in the source")
    if not names:
        return [{} for _ in range(len(array))]
    members = [python_values(array.field(index), look) for index in range(len(names))]
    return [dict(zip(names, row)) for row in zip(*members)]  # noqa: B905 - To check their lengths takes a third more time.
