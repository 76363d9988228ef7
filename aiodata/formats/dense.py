"""Dense columns: numbers, bools, dates, moments and blocks of a fixed shape of these, as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from aiodata.formats.cost import is_counted

Array = np.ndarray[Any, Any]

# What float64 holds exactly.
_EXACT = 2**53

# Copies of less than this have memory that the C library keeps.
_SMALL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Look:
    """What is asked of arrays beside their types.

    Attributes:
        nulls_as_nan: Whether integers and bools that may be null are float64, NaN where null; else they are masked.
        writable: Whether arrays are private copies that may be written to; else they are read-only.
    """

    nulls_as_nan: bool = False
    writable: bool = False


def to_dense(array: pa.Array, look: Look, *, has_nulls: bool | None) -> Array:
    """Convert plain values, or fixed-size lists of these, to an array of shape `(rows, ...)`.

    Raises:
        ValueError: Nulls are to be NaN, and there are values beyond 2**53.
    """
    rows, sizes, mask = len(array), [], None
    while pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        mask = _either(mask, null_mask(array))
        array = array.values.slice(array.offset * size, len(array) * size)
        mask = None if mask is None else np.repeat(mask, size)
        sizes.append(size)
    if is_counted(array.type):
        data, nulls = filled_and_mask(array)
        return _hide_nulls(data, _either(mask, nulls), look, has_nulls=has_nulls).reshape(rows, *sizes)
    data = array.to_numpy(zero_copy_only=False)
    if mask is not None:
        data = data.copy()
        data[mask] = np.nan if data.dtype.kind == "f" else np.array("NaT", data.dtype)
    dense: Array = data.reshape(rows, *sizes)
    return dense


def filled_and_mask(array: pa.Array) -> tuple[Array, Array | None]:
    """Return integers or bools with zeros in place of nulls, and where these are; None: nowhere."""
    nulls = null_mask(array)
    if nulls is not None:
        array = array.fill_null(False if pa.types.is_boolean(array.type) else 0)
    return array.to_numpy(zero_copy_only=False), nulls


def null_mask(array: pa.Array) -> Array | None:
    """Return where an array is null; None: nowhere."""
    return array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None


def to_floats(data: Array, mask: Array | None) -> Array:
    """Return integers or bools as float64, NaN where `mask` is true.

    Raises:
        ValueError: One of them is beyond what float64 holds exactly.
    """
    if data.dtype.itemsize == 8 and data.size and (data.max() > _EXACT or data.min() < -_EXACT):
        raise ValueError(
            "nulls are to be NaN, so these are float64, which would round values beyond 2**53; fill the nulls with "
            "map_batches, or take numpy batches with nulls='mask'"
        )
    floats: Array = data.astype(np.float64)
    if mask is not None:
        floats[mask] = np.nan
    return floats


def settle(column: Array, look: Look) -> Array:
    """Make a column private, or read-only."""
    if look.writable:
        return column if column.flags.writeable else _private(column)
    if column.flags.writeable:
        column.flags.writeable = False
    if isinstance(column, np.ma.MaskedArray):
        np.ma.getmaskarray(column).flags.writeable = False
    return column


def _private(column: Array) -> Array:
    """Return a copy that may be written to.

    Its memory is from Arrow's pool: the C library's gives memory of this size back when it is free, and pages that are
    new cost more than to copy what is in them.
    """
    is_plain = not isinstance(column, np.ma.MaskedArray) and column.dtype.kind in "biuf" and column.flags.c_contiguous
    if not is_plain or column.nbytes < _SMALL_BYTES:
        return column.copy("K")
    copy: Array = np.frombuffer(pa.allocate_buffer(column.nbytes), column.dtype).reshape(column.shape)
    copy[...] = column
    return copy


def _either(one: Array | None, other: Array | None) -> Array | None:
    return other if one is None else one if other is None else one | other


def _hide_nulls(data: Array, mask: Array | None, look: Look, *, has_nulls: bool | None) -> Array:
    """Return integers or bools as `look` has them."""
    if look.nulls_as_nan:
        if has_nulls is not False:
            return to_floats(data, mask)
        if mask is not None:
            raise ValueError("no row is null, but values in rows are, so these are no floats: use nulls='mask'")
    if mask is None and has_nulls:
        mask = np.zeros(len(data), bool)
    if mask is None:
        return data
    if not data.flags.writeable:
        data = data.copy()
    data[mask] = 0  # What a null row of a fixed-size list holds is not defined.
    masked: Array = np.ma.MaskedArray(data, mask)
    return masked
