"""Casts that change no value.

Arrow's safe casts are not all exact (float64 to float32 rounds), and some are missing or wrong (views of lists, structs
with other members, tensors, maps). Where there is doubt, values are cast back and compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from aiodata.kinds import are_alike_tensors, is_bytes, is_extension, is_list_like, is_permuted, is_text, plain_type


def cast_exactly(column: Any, kind: pa.DataType) -> Any:
    """Return the values of an array, or chunked array, as another type; itself where it has that type already.

    Nulls stay nulls, NaN stays NaN, and the sign of a zero is kept.

    Raises:
        ValueError: A value would change, or its sort would: a number into text, a day into a moment, a moment without
            a time zone into one with, a boolean into a number.

    Example:
        >>> cast_exactly(pa.array([1.0, None]), pa.int8()).to_pylist()
        [1, None]
    """
    if column.type.equals(kind):
        return column
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([cast_exactly(chunk, kind) for chunk in column.chunks], kind)
    try:
        return _cast(column, kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise ValueError(f"{column.type} does not fit {kind}: {error}") from error


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    source = array.type
    if source.equals(kind):
        return array
    if types.is_null(source):
        return pa.nulls(len(array), kind)
    if types.is_null(kind) and pc.all(array.is_null(), min_count=0).as_py():
        return pa.nulls(len(array))
    if is_extension(source) or is_extension(kind):
        return _cast_extension(array, kind)
    if types.is_run_end_encoded(source):
        return _cast(pc.run_end_decode(array), kind)
    if types.is_dictionary(kind):
        return _to_dictionary(array, kind)
    if types.is_dictionary(source):
        return _take(_cast(array.dictionary, kind), array.indices)
    if types.is_run_end_encoded(kind):
        return pc.run_end_encode(_cast(array, kind.value_type), run_end_type=kind.run_end_type)
    for goes, cast in _CASTS:
        if goes(source, kind):
            return cast(array, kind)
    raise ValueError(f"{source} does not fit {kind}: values of one sort are not made another's")


def _cast_extension(array: pa.Array, kind: pa.DataType) -> pa.Array:
    source = array.type
    if is_extension(source):
        if not is_extension(kind) and (kind.equals(source.storage_type) or _is_vector(source)):
            return _cast(array.storage, kind)
        if isinstance(source, pa.FixedShapeTensorType) and is_list_like(kind) and not is_permuted(source):
            return _to_list(_nest(array), kind)
        if are_alike_tensors(source, kind):
            return pa.ExtensionArray.from_storage(kind, _cast(array.storage, kind.storage_type))
    elif isinstance(kind, pa.FixedShapeTensorType):
        return pa.ExtensionArray.from_storage(kind, _to_tensor_storage(array, kind))
    elif source.equals(kind.storage_type):
        return pa.ExtensionArray.from_storage(kind, array)
    raise ValueError(f"{source} does not fit {kind}: these types are not made of each other")


def _nest(array: pa.Array) -> pa.Array:
    """Return tensors as lists of lists."""
    storage, values = array.storage, array.storage.flatten()
    for size in reversed(array.type.shape[1:]):
        if not size:
            raise ValueError(f"{array.type} has no values, so it has no lists of them either")
        values = pa.FixedSizeListArray.from_arrays(values, size)
    lengths = np.where(storage.is_valid(), array.type.shape[0], 0)
    return _to_fixed_size(lengths, values, storage.is_null(), pa.list_(values.type, array.type.shape[0]))


def _is_vector(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.FixedShapeTensorType) and len(kind.shape) == 1


def _to_tensor_storage(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return lists as a tensor's storage: they are one-dimensional like it, its flat values, or nested as it is."""
    storage = kind.storage_type
    is_flat = types.is_fixed_size_list(array.type) and array.type.list_size == storage.list_size
    if len(kind.shape) == 1 or (is_flat and not is_list_like(array.type.value_type)):
        return _cast(array, storage)
    if is_permuted(kind):
        raise ValueError(f"{array.type} does not fit {kind}: its dimensions are permuted")
    nested = kind.value_type
    for size in reversed(kind.shape):
        nested = pa.list_(nested, size)
    rows = _cast(array, nested)
    values = rows
    for _ in kind.shape:
        values = values.flatten()
        if values.null_count and is_list_like(values.type):
            raise ValueError(f"{array.type} does not fit {kind}: inside of tensors there are nulls")
    return _to_fixed_size(np.where(rows.is_valid(), storage.list_size, 0), values, rows.is_null(), storage)


def _to_dictionary(array: pa.Array, kind: pa.DataType) -> pa.Array:
    source = array.type
    if types.is_dictionary(source):
        if kind.ordered and not source.ordered:
            raise ValueError(f"{source} does not fit {kind}: its values have no order")
        indices, values = array.indices, array.dictionary
    elif kind.ordered:
        raise ValueError(f"{source} does not fit {kind}: its values have no order")
    else:
        encoded = _cast(array, kind.value_type).dictionary_encode()
        indices, values = encoded.indices, encoded.dictionary
    return pa.DictionaryArray.from_arrays(
        _cast(indices, kind.index_type), _cast(values, kind.value_type), ordered=kind.ordered
    )


def _safely(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast where Arrow refuses what would lose something."""
    return array.cast(kind)


def _there_and_back(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast between floats, or floats and integers; then compare what comes back."""
    source = array.type
    result = array.cast(kind, safe=False)
    before = _comparable(array)
    same = pc.equal(_comparable(result.cast(source, safe=False)), before)
    if types.is_floating(source) and types.is_floating(kind):
        same = pc.or_(same, pc.is_nan(before))
    elif types.is_floating(source):
        same = pc.and_not(same, pc.and_(pc.equal(before, 0.0), _is_negative(before)))
    # The largest integer may come back from a float that is one more.
    floats, integer = (before, kind) if types.is_floating(source) else (_comparable(result), source)
    if types.is_integer(integer):
        bits = integer.bit_width - (1 if types.is_signed_integer(integer) else 0)
        same = pc.and_(same, pc.less(floats, pa.scalar(2.0**bits, floats.type)))
    if pc.all(same).as_py() is False:
        value = array.filter(pc.invert(same))[0].as_py()
        raise ValueError(f"{source} does not fit {kind}: {value} is none of its values")
    return result


def _comparable(array: pa.Array) -> pa.Array:
    """Return numbers as a type that Arrow can compare, which 16-bit floats are not."""
    return array.cast(pa.float32()) if types.is_float16(array.type) else array


def _is_negative(array: pa.Array) -> pa.Array:
    """Whether each of some floats has its sign bit set."""
    return pa.array(np.signbit(array.to_numpy(zero_copy_only=False)))


def _to_decimal(array: pa.Array, kind: pa.DataType) -> pa.Array:
    # Integers would be refused by how many digits their type may have, decimals are by their values.
    whole = array.cast(pa.decimal128(38, 0)) if types.is_integer(array.type) else array
    try:
        return whole.cast(kind)
    except pa.ArrowNotImplementedError:
        return pa.array(whole.to_pylist(), kind)


def _to_bytes(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if types.is_fixed_size_binary(array.type) and types.is_fixed_size_binary(kind):
        raise ValueError(f"{array.type} does not fit {kind}: the widths differ")
    if types.is_fixed_size_binary(kind) and not types.is_binary(array.type):
        array = array.cast(pa.binary())
    return array.cast(kind)


def _to_list(array: pa.Array, kind: pa.DataType) -> pa.Array:
    source = array.type
    if type(source) is type(kind) and not types.is_fixed_size_list(kind) and source.value_type.equals(kind.value_type):
        return array.cast(kind)
    nulls = array.is_null()
    if types.is_fixed_size_list(source):
        lengths = np.where(array.is_valid(), source.list_size, 0)
        # Arrow cannot flatten lists of no values.
        values = array.flatten() if source.list_size else pa.nulls(0, source.value_type)
    else:
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        values = array.flatten()
    values = _fit_field(_cast(values, kind.value_type), kind.value_field, source)
    if types.is_fixed_size_list(kind):
        return _to_fixed_size(lengths, values, nulls, kind)
    offsets = _offsets(lengths, kind)
    if types.is_list(kind):
        return pa.ListArray.from_arrays(offsets, values, type=kind, mask=nulls)
    if types.is_large_list(kind):
        return pa.LargeListArray.from_arrays(offsets, values, type=kind, mask=nulls)
    view = pa.LargeListViewArray if types.is_large_list_view(kind) else pa.ListViewArray
    sizes = pa.array(lengths, offsets.type)
    return view.from_arrays(offsets[:-1], sizes, values, type=kind, mask=nulls)


def _offsets(lengths: Any, kind: pa.DataType) -> pa.Array:
    """Return where each list begins, and where the last one ends."""
    is_large = types.is_large_list(kind) or types.is_large_list_view(kind)
    return pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])).cast(
        pa.int64() if is_large else pa.int32()
    )


def _to_fixed_size(lengths: Any, values: pa.Array, nulls: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return lists of one size; null ones have no values yet, but do have a place for them."""
    is_null = nulls.to_numpy(zero_copy_only=False)
    size = kind.list_size
    if (wrong := lengths[~is_null & (lengths != size)]).size:
        raise ValueError(f"a list of {wrong[0]} values does not fit {kind}")
    if not size:
        return pa.array([None if one else [] for one in is_null], kind)
    if is_null.any():
        places = np.full((len(lengths), size), -1, np.int64)
        places[~is_null] = np.arange(len(values)).reshape(-1, size)
        places = places.reshape(-1)
        values = _take(values, pa.array(places, mask=places < 0))
    return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=nulls if is_null.any() else None)


def _take(values: pa.Array, places: pa.Array) -> pa.Array:
    """Gather values; Arrow cannot gather views."""
    plain = plain_type(values.type)
    return values.take(places) if plain.equals(values.type) else _cast(_cast(values, plain).take(places), values.type)


def _to_struct(array: pa.Array, kind: pa.DataType) -> pa.Array:
    source = array.type
    names, wanted = [field.name for field in source], [field.name for field in kind]
    if len(set(names)) < len(names) or len(set(wanted)) < len(wanted):
        raise ValueError(f"{source} does not fit {kind}: several members have one name")
    if extra := [name for name in names if name not in wanted]:
        raise ValueError(f"{source} does not fit {kind}: it has more members: {extra}")
    members = dict(zip(names, array.flatten(), strict=True))
    children = []
    for field in kind:
        if field.name not in members:
            child = pa.nulls(len(array), field.type)
        else:
            child = _cast(members[field.name], field.type)
        # Where all of the struct is null, so are its members.
        children.append(child if field.nullable or array.null_count else _fit_field(child, field, source))
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())


def _to_map(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if kind.keys_sorted and not getattr(array.type, "keys_sorted", False):
        raise ValueError(f"{array.type} does not fit {kind}: its keys are not sorted")
    lists = map_to_lists(array) if types.is_map(array.type) else array
    entries = lists.flatten()
    keys, items = entries.flatten()
    keys = _fit_field(_cast(keys, kind.key_type), kind.key_field, array.type)
    items = _fit_field(_cast(items, kind.item_type), kind.item_field, array.type)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    offsets = _offsets(lengths, kind)
    if array.null_count:
        mask = np.append(array.is_null().to_numpy(zero_copy_only=False), False)
        offsets = pa.array(offsets.to_numpy(), pa.int32(), mask=mask)
    return pa.MapArray.from_arrays(offsets, keys, items, type=kind)


def map_to_lists(array: pa.Array) -> pa.Array:
    """Return maps as lists of structs of key and item, zero-copy."""
    entries = pa.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
    buffers = array.buffers()[:2]
    return pa.ListArray.from_buffers(
        pa.list_(entries.type), len(array), buffers, offset=array.offset, children=[entries]
    )


def _fit_field(values: pa.Array, field: pa.Field, source: pa.DataType) -> pa.Array:
    if values.null_count and not field.nullable:
        raise ValueError(f"{source} does not fit {field}: it has nulls")
    return values


def _are_entries(kind: pa.DataType) -> bool:
    """Whether a type is how a map's values look to libraries without maps."""
    if not is_list_like(kind) or not types.is_struct(kind.value_type):
        return False
    return [field.name for field in kind.value_type] == ["key", "value"]


def _both(is_kind: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType, pa.DataType], bool]:
    return lambda a, b: bool(is_kind(a) and is_kind(b))


def _is_simple_number(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind))


def _is_moment_alike(a: pa.DataType, b: pa.DataType) -> bool:
    return bool(types.is_timestamp(a) and types.is_timestamp(b) and a.tz == b.tz)


def _is_exact_number(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_decimal(kind))


# The first that fits is taken.
_CASTS: tuple[tuple[Callable[[pa.DataType, pa.DataType], bool], Callable[[pa.Array, pa.DataType], pa.Array]], ...] = (
    (_both(types.is_integer), _safely),
    (_both(_is_simple_number), _there_and_back),
    (lambda a, b: _both(_is_exact_number)(a, b) and types.is_decimal(b), _to_decimal),
    (_both(_is_exact_number), _safely),
    (_is_moment_alike, _safely),
    (_both(types.is_duration), _safely),
    (_both(types.is_time), _safely),
    (_both(types.is_date), _safely),
    (_both(is_text), _safely),
    (_both(is_bytes), _to_bytes),
    (_both(is_list_like), _to_list),
    (lambda a, b: _are_entries(a) and types.is_map(b), _to_map),
    (_both(types.is_struct), _to_struct),
    (_both(types.is_map), _to_map),
)
