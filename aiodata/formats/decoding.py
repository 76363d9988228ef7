"""Decoding: arrays that refer to their values, as those values."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aiodata.casts import cast_exactly
from aiodata.kinds import plain_type


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


def _gather(values: pa.Array, indices: pa.Array) -> pa.Array:
    # Within structs that are null there may be indices that nothing is behind.
    if not len(values):
        return pa.nulls(len(indices), values.type)
    try:
        return values.take(indices)
    except pa.ArrowNotImplementedError:
        # Arrow (26) gathers no views.
        return cast_exactly(values, plain_type(values.type)).take(indices)


def _expand(array: pa.Array) -> pa.Array:
    try:
        return pc.run_end_decode(array)
    except pa.ArrowNotImplementedError:
        rows = array.offset + np.arange(len(array))
        return _gather(array.values, pa.array(np.searchsorted(array.run_ends.to_numpy(), rows, side="right")))
