"""Arrays: how a column of Python values, numpy arrays or tensors becomes an Arrow array.

The type depends on the values' types, and on the shapes of arrays, but never on how many rows there are:

| values | Arrow |
|---|---|
| an array of one dimension; values | as their type; a masked value is null |
| an array of more dimensions; equal arrays of two and more | tensors; where all of one is masked, or it is None, null |
| arrays of one dimension, of any lengths | lists |
| arrays of other shapes | a ValueError |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types

from aiodata.casts import cast_exactly
from aiodata.kinds import is_list_like, is_permuted, unify_all_types
from aiodata.memory import copy_array
from aiodata.moments import as_moments, from_moments, with_nanoseconds
from aiodata.sorts import what_is_mixed

# Units that Arrow has no types for, with the next finer one that it has.
_DATETIME_UNITS = {"Y": "D", "M": "D", "W": "D", "h": "s", "m": "s"}
_DURATION_UNITS = {"W": "s", "D": "s", "h": "s", "m": "s"}


_FAILURES = (pa.ArrowException, TypeError, ValueError, OverflowError, KeyError)


def to_array(
    name: str, values: Any, hint: pa.DataType | None = None, *, copy: bool = False, nan_is_null: bool = False
) -> pa.Array:
    """Make an Arrow array of a column's values.

    Args:
        name: The column, for errors.
        values: An array, or a sequence, with one value per row.
        hint: A type that the values may have had before they became Python's: what else nobody could tell (which
            pairs are a map's, how a tensor's dimensions lie) is as it says.
        copy: Whether the array must not share memory with `values`.
        nan_is_null: Whether NaN is null, as in pandas.

    Raises:
        TypeError: It is not one value per row, or has a type that Arrow lacks.
        ValueError: The values, or the shapes of arrays, do not go together.
    """
    if isinstance(values, np.ma.MaskedArray):
        return _from_masked(name, values, hint)
    if not isinstance(values, np.ndarray | list | tuple) and hasattr(values, "__array__"):
        values = _to_numpy(name, values)
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__") or getattr(values, "ndim", 1) == 0:
        raise TypeError(
            f"column {name!r} must be an array or a list with one value per row, not {type(values).__name__}"
        )
    if isinstance(values, np.ndarray):
        return _from_numpy(name, values, hint, copy=copy, nan_is_null=nan_is_null)
    return _from_list(name, list(values), hint, nan_is_null=nan_is_null)


def _to_numpy(name: str, values: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(values)
    except (TypeError, RuntimeError, ValueError) as error:
        raise TypeError(f"column {name!r} ({type(values).__name__}) cannot be made a numpy array: {error}") from error


def _from_numpy(
    name: str, values: np.ndarray[Any, Any], hint: pa.DataType | None, *, copy: bool, nan_is_null: bool
) -> pa.Array:
    if values.dtype.kind == "O":
        if values.ndim > 2:
            # Equal arrays in an object array are one array of objects to numpy.
            return _from_list(name, [np.array(row.tolist()) for row in values], hint, nan_is_null=nan_is_null)
        return _from_list(name, list(values), hint, nan_is_null=nan_is_null)
    values = _with_arrow_dtype(name, values)
    if values.ndim > 1:
        return _to_tensors(name, values, hint, copy=copy)
    array = as_moments(_infer(name, values, nan_is_null=nan_is_null), hint)
    # Arrow's own memory is in use already when it is allocated again, that of numpy most often is not.
    return copy_array(array) if copy and values.flags.c_contiguous and values.dtype.kind in "iufmM" else array


def _with_arrow_dtype(name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Convert to a type that Arrow has, too, where there is one with the same values."""
    dtype = values.dtype
    if not dtype.isnative:
        values, dtype = values.astype(dtype.newbyteorder("=")), dtype.newbyteorder("=")
    if dtype.kind == "T":
        return values.astype(object)
    if dtype.kind in "mM":
        unit = np.datetime_data(dtype)[0]
        finer = (_DATETIME_UNITS if dtype.kind == "M" else _DURATION_UNITS).get(unit, unit)
        if finer != unit or np.datetime_data(dtype)[1] != 1:
            return values.astype(f"{dtype.kind}8[{finer}]")
    if dtype.kind in "cV":
        raise TypeError(
            f"column {name!r}: numpy's {dtype} has no Arrow type; give its parts (real and imaginary, or fields) as "
            "columns of their own"
        )
    return values


def _from_masked(name: str, values: np.ma.MaskedArray[Any, Any], hint: pa.DataType | None) -> pa.Array:
    mask, data = np.ma.getmaskarray(values), np.ma.getdata(values)
    if data.ndim == 0:
        raise TypeError(f"column {name!r} must be an array with one value per row, not a masked scalar")
    if data.dtype.kind == "O":
        if data.ndim > 1:
            raise TypeError(f"column {name!r}: a masked array of objects must have one dimension, not {data.ndim}")
        rows = [None if is_null else value for value, is_null in zip(data, mask, strict=True)]
        return _from_list(name, rows, hint, nan_is_null=False)
    data = _with_arrow_dtype(name, data)
    if data.ndim > 1:
        return _to_tensors(name, data, hint, mask, copy=True)
    return as_moments(_infer(name, np.array(data), mask=mask), hint)


def _to_tensors(
    name: str,
    values: np.ndarray[Any, Any],
    hint: pa.DataType | None,
    mask: np.ndarray[Any, Any] | None = None,
    *,
    copy: bool = False,
) -> pa.Array:
    """Make tensors, of which there may be none, or ones without values; where all of one is masked, it is null."""
    order: list[int] | None = None
    if isinstance(hint, pa.FixedShapeTensorType) and is_permuted(hint) and len(hint.shape) == values.ndim - 1:
        order = [0, *(1 + axis for axis in np.argsort(hint.permutation))]
    if order is not None and hint is not None and list(values.transpose(order).shape[1:]) == list(hint.shape):
        values, mask = values.transpose(order), None if mask is None else mask.transpose(order)
    else:
        order = None
    nulls_inside = None if mask is None else np.ascontiguousarray(mask).reshape(-1)
    flat = _infer(name, np.ascontiguousarray(values).reshape(-1), mask=nulls_inside)
    flat = copy_array(flat) if copy and values.flags.c_contiguous else flat
    axes = tuple(range(1, values.ndim))
    shape = values.shape[1:]
    nulls = None if mask is None or not np.prod(shape) else np.asarray(mask.all(axis=axes))
    kind = pa.fixed_shape_tensor(flat.type, shape)
    if order is not None and hint is not None:
        kind = pa.fixed_shape_tensor(flat.type, shape, dim_names=hint.dim_names, permutation=hint.permutation)
    return _wrap_tensors(flat, len(values), kind, nulls)


def _wrap_tensors(flat: pa.Array, num_rows: int, kind: pa.DataType, nulls: np.ndarray[Any, Any] | None) -> pa.Array:
    storage = kind.storage_type
    if not storage.list_size:
        rows: list[list[Any] | None] = [
            None if is_null else [] for is_null in (np.zeros(num_rows) if nulls is None else nulls)
        ]
        return pa.ExtensionArray.from_storage(kind, pa.array(rows, storage))
    mask = None if nulls is None or not nulls.any() else pa.array(nulls)
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, type=storage, mask=mask))


def _from_list(name: str, rows: list[Any], hint: pa.DataType | None, *, nan_is_null: bool) -> pa.Array:
    first = next((row for row in rows if row is not None), None)
    if _is_array(first):
        return _from_arrays(name, rows, hint)
    is_map = hint is not None and _has_map(hint) and isinstance(first, Mapping | list | tuple)
    if is_map or _has_masked(rows):  # Arrow takes what is masked for values.
        nested = _from_nested(name, rows, hint, nan_is_null=nan_is_null)
        if nested is not None:
            return nested
    try:
        array = with_nanoseconds(pa.array(rows, from_pandas=nan_is_null), rows)
    except _FAILURES as error:
        if any(map(_is_array, rows)):
            return _from_arrays(name, rows, hint)
        if any(isinstance(row, int) and row >= 2**63 for row in rows):
            return _infer(name, rows, kind=pa.uint64())
        moments = from_moments(rows, hint)
        if moments is not None:
            return moments
        nested = _from_nested(name, rows, hint, nan_is_null=nan_is_null)
        if nested is not None:
            return nested
        raise _no_array(name, error) from error
    if mixed := what_is_mixed(array.type, rows):
        raise ValueError(f"column {name!r} has {mixed}, which do not go together; give it values of one type")
    return array


def _infer(name: str, values: Any, *, nan_is_null: bool = False, mask: Any = None, kind: Any = None) -> pa.Array:
    try:
        array = pa.array(values, kind, mask=mask, from_pandas=nan_is_null)
    except _FAILURES as error:
        raise _no_array(name, error) from error
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _no_array(name: str, error: BaseException) -> ValueError:
    remedy = "give it values of one type"
    if isinstance(error, OverflowError):
        remedy += ", of which integers have 64 bits: give larger ones as decimal.Decimal, or as text"
    return ValueError(f"column {name!r} cannot be made an Arrow array: {error}; {remedy}")


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (hasattr(type(value), "__array__") and not isinstance(value, np.generic))


def _has_masked(rows: Iterable[Any]) -> bool:
    """Whether arrays somewhere in structs and lists have masked values."""
    for row in rows:
        if np.ma.is_masked(row) or (isinstance(row, Mapping) and _has_masked(row.values())):
            return True
        if isinstance(row, list | tuple) or (isinstance(row, np.ndarray) and row.dtype.kind == "O"):
            # What is in a list is of one sort.
            first = next((one for one in row if one is not None), None)
            if isinstance(first, Mapping | list | tuple | np.ndarray) and _has_masked(row):
                return True
    return False


def _from_arrays(name: str, rows: list[Any], hint: pa.DataType | None) -> pa.Array:
    """Make tensors, or lists, of arrays and None."""
    arrays = [None if row is None else row if isinstance(row, np.ndarray) else _to_numpy(name, row) for row in rows]
    shapes = {array.shape for array in arrays if array is not None}
    dimensions = {len(shape) for shape in shapes}
    if dimensions == {0}:
        scalars = [None if one is None or np.ma.is_masked(one) else one[()] for one in arrays]
        return _from_list(name, scalars, hint, nan_is_null=False)
    if dimensions == {1} or (0 not in dimensions and _is_list_of_lists(hint)):
        return _to_lists(name, arrays, hint)
    if len(shapes) > 1:
        raise ValueError(
            f"column {name!r} has arrays of shapes {_shown(shapes)}, which are no column: arrays of two and more "
            "dimensions need one shape; pad them, or flatten them to one dimension and keep the shapes in a column"
        )
    return _stack(name, arrays, next(iter(shapes)), hint)


def _is_list_of_lists(hint: pa.DataType | None) -> bool:
    """Whether a type is lists, of any lengths, of what may look like an array of more dimensions."""
    if hint is None or not is_list_like(hint) or types.is_fixed_size_list(hint):
        return False
    return is_list_like(hint.value_type) or isinstance(hint.value_type, pa.FixedShapeTensorType)


def _shown(shapes: set[tuple[int, ...]]) -> str:
    some = ", ".join(map(str, sorted(shapes)[:5]))
    return some if len(shapes) <= 5 else f"{some}, ..."


def _stack(
    name: str, arrays: list[np.ndarray[Any, Any] | None], shape: tuple[int, ...], hint: pa.DataType | None
) -> pa.Array:
    present = [_with_arrow_dtype(name, one) for one in arrays if one is not None]
    nulls = np.array([one is None for one in arrays])
    is_masked = any(map(np.ma.is_masked, present))
    if len({one.dtype for one in present}) == 1 and not nulls.any() and not is_masked:
        return _to_tensors(name, np.stack(present), hint)
    flat = _join(name, [one.reshape(-1) for one in present])
    size = int(np.prod(shape))
    if nulls.any() and size:
        places = np.full((len(arrays), size), -1, np.int64)
        places[~nulls] = np.arange(len(flat)).reshape(-1, size)
        flat = flat.take(pa.array(places.reshape(-1), mask=places.reshape(-1) < 0))
    if is_masked and size:
        nulls |= np.array([one is not None and bool(np.ma.getmaskarray(one).all()) for one in arrays])
    return _wrap_tensors(flat, len(arrays), pa.fixed_shape_tensor(flat.type, shape), nulls)


def _to_lists(name: str, arrays: list[np.ndarray[Any, Any] | None], hint: pa.DataType | None) -> pa.Array:
    present = [one for one in arrays if one is not None]
    element = hint.value_type if hint is not None and hasattr(hint, "value_type") else None
    flat = _join(name, present, element)
    return _wrap_lists([-1 if one is None else len(one) for one in arrays], flat)


def _wrap_lists(lengths: list[int], flat: pa.Array) -> pa.Array:
    """Make lists of values; those of a length below 0 are null."""
    sizes = np.array(lengths, np.int64)
    offsets = np.concatenate([[0], np.cumsum(np.maximum(sizes, 0))])
    mask = pa.array(sizes < 0) if (sizes < 0).any() else None
    if offsets[-1] < 2**31:
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), flat, mask=mask)
    return pa.LargeListArray.from_arrays(pa.array(offsets), flat, mask=mask)


def _join(name: str, arrays: Sequence[np.ndarray[Any, Any]], hint: pa.DataType | None = None) -> pa.Array:
    """Put arrays of one dimension end to end as one of the type that holds the values of all exactly."""
    if any(array.ndim > 1 for array in arrays):
        return _join_rows(name, arrays, hint)
    dtypes = {array.dtype for array in arrays}
    if len(dtypes) == 1 and arrays[0].dtype.kind in "biufmM":
        return to_array(name, _concatenate(arrays), hint)
    if all(array.dtype.kind in "OUST" for array in arrays):
        values = [None if value is np.ma.masked else value for value in chain.from_iterable(arrays)]
        return _from_list(name, values, hint, nan_is_null=False)
    parts = [to_array(name, array, hint) for array in arrays if len(array)] or [pa.nulls(0)]
    kind = unify_all_types(list(dict.fromkeys(part.type for part in parts)))
    if kind is None:
        raise ValueError(
            f"column {name!r} has arrays of types that do not go together: {sorted(map(str, dtypes))}; "
            "convert all of them to one"
        )
    try:
        return pa.concat_arrays([cast_exactly(part, kind) for part in parts])
    except ValueError as error:
        raise _no_array(name, error) from error


def _join_rows(name: str, arrays: Sequence[np.ndarray[Any, Any]], hint: pa.DataType | None) -> pa.Array:
    """Put arrays of more dimensions end to end, whose rows are values of one column."""
    if len({(array.dtype, array.shape[1:]) for array in arrays}) == 1 and arrays[0].dtype.kind != "O":
        return to_array(name, _concatenate(arrays), hint)
    return _from_list(name, list(chain.from_iterable(arrays)), hint, nan_is_null=False)


def _concatenate(arrays: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    if not any(map(np.ma.is_masked, arrays)):
        return np.concatenate(arrays)
    masks = np.concatenate(list(map(np.ma.getmaskarray, arrays)))
    return np.ma.MaskedArray(np.concatenate(list(map(np.ma.getdata, arrays))), masks)


def _has_map(kind: pa.DataType) -> bool:
    kind = getattr(kind, "storage_type", kind)
    return bool(types.is_map(kind)) or any(_has_map(kind.field(i).type) for i in range(kind.num_fields))


def _from_nested(name: str, rows: list[Any], hint: pa.DataType | None, *, nan_is_null: bool) -> pa.Array | None:
    """Make structs, maps or lists member by member, where Arrow cannot tell what they are; None: they are none."""
    present = [row for row in rows if row is not None]
    if not present:
        return None
    if all(isinstance(row, Mapping) for row in present):
        return _to_structs(name, rows, hint, nan_is_null=nan_is_null)
    if not all(isinstance(row, list | tuple | np.ndarray) for row in present):
        return None
    if hint is not None and types.is_map(hint):
        return _to_maps(name, rows, hint, nan_is_null=nan_is_null)
    value_type = hint.value_type if hint is not None and hasattr(hint, "value_type") else None
    flat = _from_list(name, list(chain.from_iterable(present)), value_type, nan_is_null=nan_is_null)
    return _wrap_lists([-1 if row is None else len(row) for row in rows], flat)


def _to_structs(name: str, rows: list[Any], hint: pa.DataType | None, *, nan_is_null: bool) -> pa.Array | None:
    members = dict.fromkeys(key for row in rows if row is not None for key in row)
    if not members or any(not isinstance(member, str) for member in members):
        return None
    hints = {field.name: field.type for field in hint} if hint is not None and types.is_struct(hint) else {}
    children = [
        _from_list(
            f"{name}.{member}",
            [None if row is None else row.get(member) for row in rows],
            hints.get(member),
            nan_is_null=nan_is_null,
        )
        for member in members
    ]
    return pa.StructArray.from_arrays(children, list(members), mask=pa.array([row is None for row in rows]))


def _to_maps(name: str, rows: list[Any], hint: pa.DataType, *, nan_is_null: bool) -> pa.Array | None:
    pairs = list(_pairs(rows))
    if any(len(pair) != 2 for pair in pairs):
        return None
    keys = _from_list(f"{name}.key", [key for key, _ in pairs], hint.key_type, nan_is_null=nan_is_null)
    items = _from_list(f"{name}.value", [item for _, item in pairs], hint.item_type, nan_is_null=nan_is_null)
    entries = pa.StructArray.from_arrays([keys, items], ["key", "value"])
    return _wrap_lists([-1 if row is None else len(row) for row in rows], entries)


def _pairs(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for row in rows:
        for pair in row if row is not None else ():
            yield pair if isinstance(pair, tuple | list) else ()
