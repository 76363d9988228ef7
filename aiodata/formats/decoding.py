"""Decoding: arrays that refer to their values, as those values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def decoded(array: pa.Array) -> pa.Array:
    """Return a dictionary or run-end encoded array as its values, an extension as its storage; only at the top."""
    while True:
        kind = array.type
        if isinstance(kind, pa.BaseExtensionType):
            array = array.storage
        elif pa.types.is_dictionary(kind):
            array = _gather(array.dictionary, array.indices)
        elif pa.types.is_run_end_encoded(kind):
            array = _expand(array)
        else:
            return array


def decoded_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of what `decoded` makes of this type; what a dictionary or a run views may be gathered."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def replaced(kind: pa.DataType, replace: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a type with `replace` applied to it and then to the types that it holds; not within extensions."""
    kind = replace(kind)
    if isinstance(kind, pa.BaseExtensionType) or not kind.num_fields:
        return kind
    fields = [kind.field(i).with_type(replaced(kind.field(i).type, replace)) for i in range(kind.num_fields)]
    if pa.types.is_struct(kind):
        return pa.struct(fields)
    if pa.types.is_map(kind):
        entry = [fields[0].type.field(i) for i in range(2)] if len(fields) == 1 else fields
        return pa.map_(*entry, keys_sorted=kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(fields[0], kind.list_size)
    return pa.list_(fields[0]) if pa.types.is_list(kind) else pa.large_list(*fields) if is_large_list(kind) else kind


def is_large_list(kind: pa.DataType) -> bool:
    """Whether these are lists with long offsets."""
    return bool(pa.types.is_large_list(kind))


def without_view(kind: pa.DataType) -> pa.DataType:
    """Return the type of the same values that are not views."""
    if pa.types.is_list_view(kind):
        return pa.list_(kind.value_field)
    if pa.types.is_large_list_view(kind):
        return pa.large_list(kind.value_field)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def _gather(values: pa.Array, indices: pa.Array) -> pa.Array:
    try:
        return values.take(indices)
    except pa.ArrowNotImplementedError:
        # Arrow (26) gathers no views.
        return values.cast(replaced(values.type, without_view)).take(indices)


def _expand(array: pa.Array) -> pa.Array:
    try:
        return pc.run_end_decode(array)
    except pa.ArrowNotImplementedError:
        rows = array.offset + np.arange(len(array))
        return _gather(array.values, pa.array(np.searchsorted(array.run_ends.to_numpy(), rows, side="right")))
