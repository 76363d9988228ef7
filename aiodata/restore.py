"""Restore: what a function was given has the type that it had before, where it hands it back.

Formats lack types: numpy has no time zones, polars no small strings, Python no widths. So a column that comes back
under its name has the type that it went in with, if its values are what the format gives for that type, and fit it
exactly.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from aiodata.casts import cast_exactly
from aiodata.kinds import is_bytes, is_list_like, is_permuted, is_text

# Extension types of which all values of their storage are values; text, in contrast, is not always JSON.
_ANY_STORAGE = (pa.UuidType, pa.Bool8Type)


def restore(
    array: pa.Array, hint: pa.DataType, *, is_declared: bool = True, categories: pa.Array | None = None
) -> pa.Array:
    """Return the values as the type they went in with, if they may have come of it; else as they are.

    Args:
        array: The values that a function returned.
        hint: The type of the column of the same name that it was given.
        is_declared: Whether whoever made the values chose their width or unit, as for numpy's arrays; Python's
            integers have none.
        categories: The values of the dictionary that the column had, if it had one.
    """
    if array.type.equals(hint):
        return array
    try:
        if isinstance(hint, pa.FixedShapeTensorType) and _is_flat(array.type) and len(hint.shape) > 1:
            # Tensors look flat where a format has none.
            if _aim(array.type, hint.storage_type, is_declared).equals(hint.storage_type):
                return pa.ExtensionArray.from_storage(hint, cast_exactly(array, hint.storage_type))
            return array
        if isinstance(hint, _ANY_STORAGE):
            storage = restore(array, hint.storage_type, is_declared=is_declared)
            return pa.ExtensionArray.from_storage(hint, storage) if storage.type.equals(hint.storage_type) else array
        kind = _aim(array.type, hint, is_declared)
        if kind.equals(array.type):
            return array
        if types.is_dictionary(kind) and categories is not None:
            return _encode(array, kind, categories)
        return cast_exactly(array, kind)
    except ValueError:
        return array


def _is_flat(kind: pa.DataType) -> bool:
    return is_list_like(kind) and not is_list_like(kind.value_type)


def _encode(array: pa.Array, kind: pa.DataType, categories: pa.Array) -> pa.Array:
    """Make categories of values, those that there were before if they suffice."""
    values = cast_exactly(array, kind.value_type)
    indices = pc.index_in(values, value_set=categories)
    if indices.null_count > values.null_count:
        return cast_exactly(array, kind)
    return pa.DictionaryArray.from_arrays(cast_exactly(indices, kind.index_type), categories, ordered=kind.ordered)


def _aim(source: pa.DataType, hint: pa.DataType, is_declared: bool) -> pa.DataType:
    """Return the type that values should have that came back as `source`: as much as possible of the hint."""
    if source.equals(hint) or types.is_null(source):
        return hint
    if types.is_dictionary(hint):
        value = source.value_type if types.is_dictionary(source) else source
        return hint if _aim(value, hint.value_type, is_declared).equals(hint.value_type) else source
    for is_kind in (is_text, is_bytes, types.is_decimal, types.is_time, types.is_date):
        if is_kind(source) and is_kind(hint):
            return hint
    if not is_declared:
        for is_kind in (types.is_integer, types.is_floating, types.is_duration):
            if is_kind(source) and is_kind(hint):
                return hint
        if types.is_timestamp(source) and types.is_timestamp(hint) and source.tz == hint.tz:
            return hint
    return _aim_nested(source, hint, is_declared)


def _aim_nested(source: pa.DataType, hint: pa.DataType, is_declared: bool) -> pa.DataType:
    if isinstance(hint, pa.FixedShapeTensorType):
        is_kept = _aim(_leaf(source, len(hint.shape)), hint.value_type, is_declared).equals(hint.value_type)
        return hint if is_kept and (is_list_like(source) or _is_same_tensor(source, hint)) else source
    if isinstance(source, pa.FixedShapeTensorType):
        leaf, depth = hint, 0
        while types.is_fixed_size_list(leaf):
            leaf, depth = leaf.value_type, depth + 1
        is_kept = depth == len(source.shape) and _aim(source.value_type, leaf, is_declared).equals(leaf)
        return hint if is_kept else source
    if is_list_like(source) and types.is_map(hint):
        entries = source.value_type
        names = [field.name for field in entries] if types.is_struct(entries) else []
        if names != ["key", "value"]:
            return source
        key = _aim(entries[0].type, hint.key_type, is_declared)
        item = _aim(entries[1].type, hint.item_type, is_declared)
        return pa.map_(hint.key_field.with_type(key), hint.item_field.with_type(item), hint.keys_sorted)
    if is_list_like(source) and is_list_like(hint):
        value = _aim(source.value_type, hint.value_type, is_declared)
        return hint if value.equals(hint.value_type) else source
    if types.is_map(source) and types.is_map(hint):
        key = _aim(source.key_type, hint.key_type, is_declared)
        item = _aim(source.item_type, hint.item_type, is_declared)
        return pa.map_(hint.key_field.with_type(key), hint.item_field.with_type(item), hint.keys_sorted)
    if types.is_struct(source) and types.is_struct(hint):
        return _aim_struct(source, hint, is_declared)
    return source


def _aim_struct(source: pa.DataType, hint: pa.DataType, is_declared: bool) -> pa.DataType:
    members = {field.name: field for field in source}
    wanted = {field.name: field for field in hint}
    if len(members) < source.num_fields or len(wanted) < hint.num_fields:
        return source
    aimed = {
        name: field.with_type(_aim(field.type, wanted[name].type, is_declared)) if name in wanted else field
        for name, field in members.items()
    }
    if set(members) <= set(wanted):
        return pa.struct(
            [field.with_type(aimed[name].type if name in aimed else field.type) for name, field in wanted.items()]
        )
    return pa.struct(list(aimed.values()))


def _leaf(kind: pa.DataType, depth: int) -> pa.DataType:
    if isinstance(kind, pa.FixedShapeTensorType):
        return kind.value_type
    while depth and is_list_like(kind):
        kind, depth = kind.value_type, depth - 1
    return kind


def _is_same_tensor(source: pa.DataType, hint: pa.DataType) -> bool:
    return isinstance(source, pa.FixedShapeTensorType) and source.shape == hint.shape and not is_permuted(hint)
