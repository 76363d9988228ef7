"""Sorts: Python values that Arrow would take for values of another sort, and so change."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types

from aiodata.kinds import is_bytes, is_list_like


def what_is_mixed(kind: pa.DataType, rows: Iterable[Any]) -> str | None:
    """Return which sorts of values, that do not go together, an array of this type was made of; None: it was not.

    Arrow drops the time of a moment among days and the zone of one among others, and takes text for bytes and
    numbers for durations.

    Args:
        kind: The type that Arrow has found.
        rows: The values.

    Example:
        >>> what_is_mixed(pa.binary(), [b"a", "a"])
        'bytes and strings'
    """
    if not _may_be_mixed(kind):
        return None
    present = [row for row in rows if row is not None]
    if types.is_struct(kind):
        named = [row for row in present if isinstance(row, Mapping)]
        found = (what_is_mixed(field.type, (row.get(field.name) for row in named)) for field in kind)
        return next((one for one in found if one is not None), None)
    if is_list_like(kind):
        # Arrays of a type of their own hold values of one sort.
        lists = (row for row in present if not isinstance(row, np.ndarray) or row.dtype.kind == "O")
        return what_is_mixed(kind.value_type, chain.from_iterable(lists))
    if types.is_date(kind):
        return "days and moments" if any(map(_is_moment, present)) else None
    if is_bytes(kind):
        return "bytes and strings" if any(isinstance(row, str) for row in present) else None
    if types.is_duration(kind):
        return "durations and numbers" if any(isinstance(row, int) for row in present) else None
    has_zone = {row.tzinfo is not None for row in present if _is_moment(row)}
    return "moments with and without a time zone" if len(has_zone) == 2 else None


def _may_be_mixed(kind: pa.DataType) -> bool:
    if types.is_struct(kind):
        return any(_may_be_mixed(field.type) for field in kind)
    if is_list_like(kind):
        return _may_be_mixed(kind.value_type)
    return bool(types.is_date(kind) or is_bytes(kind) or types.is_duration(kind) or types.is_timestamp(kind))


def _is_moment(row: Any) -> bool:
    # pandas' NaT is one to Python, but differs from itself.
    return isinstance(row, dt.datetime) and bool(row == row)
