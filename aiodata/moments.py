"""Moments and durations: what Python's and numpy's lack, as time zones and nanoseconds, is as it was before."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types

_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def as_moments(array: pa.Array, hint: pa.DataType | None) -> pa.Array:
    """Return moments in the time zone they had, or as days: numpy has neither zones nor days in milliseconds."""
    if hint is None or not types.is_timestamp(array.type) or array.type.tz is not None:
        return array
    if types.is_timestamp(hint) and hint.unit == array.type.unit:
        return array.view(hint)
    if types.is_date64(hint) and array.type.unit == "ms":
        try:
            days = array.view(hint)
            days.cast(pa.date32())
        except pa.ArrowInvalid:
            return array
        return days
    return array


def as_days(array: pa.Array, hint: pa.DataType | None) -> pa.Array:
    """Return moments as days, as `as_moments` does, for libraries that do have time zones."""
    return as_moments(array, hint) if hint is not None and types.is_date64(hint) else array


def with_nanoseconds(array: pa.Array, rows: Sequence[Any]) -> pa.Array:
    """Infer again where pandas' moments and durations were taken for Python's, which lack nanoseconds."""
    if types.is_timestamp(array.type) and any(getattr(row, "nanosecond", 0) for row in rows):
        return pa.array(rows, pa.timestamp("ns", array.type.tz))
    if types.is_duration(array.type) and any(getattr(row, "nanoseconds", 0) for row in rows):
        return pa.array(rows, pa.duration("ns"))
    return array


def from_moments(rows: Sequence[Any], hint: pa.DataType | None) -> pa.Array | None:
    """Make moments, or durations, of Python's and of numpy's, which stand for what is out of Python's range, in UTC."""
    if hint is None or not (types.is_timestamp(hint) or types.is_duration(hint)):
        return None
    is_moment = types.is_timestamp(hint)
    known = (np.datetime64, dt.datetime) if is_moment else (np.timedelta64, dt.timedelta)
    present = [row for row in rows if row is not None]
    if not all(isinstance(row, known) for row in present):
        return None
    if any(isinstance(row, dt.datetime) and (row.tzinfo is None) != (hint.tz is None) for row in present):
        return None
    numbers = [None if row is None else _nanoseconds(row) for row in rows]
    nanoseconds = [number for number in numbers if number is not None]
    if len(nanoseconds) < len(present):
        return None
    # As they were, unless they have become finer.
    units = [hint.unit, "us", "ns"]
    unit = next(one for one in units if all(number % _NANOSECONDS[one] == 0 for number in nanoseconds))
    counts = [None if number is None else number // _NANOSECONDS[unit] for number in numbers]
    if any(count is not None and not -(2**63) <= count < 2**63 for count in counts):
        return None
    return pa.array(counts, pa.int64()).view(pa.timestamp(unit, hint.tz) if is_moment else pa.duration(unit))


def _nanoseconds(value: Any) -> int | None:
    """Return a moment's distance from 1970, in UTC, or a duration; None: it is in another unit, or none at all."""
    if isinstance(value, np.datetime64 | np.timedelta64):
        unit, count = np.datetime_data(value.dtype)
        return (
            None
            if np.isnat(value) or unit not in _NANOSECONDS
            else int(value.astype(np.int64)) * count * _NANOSECONDS[unit]
        )
    if isinstance(value, dt.datetime):
        value -= dt.datetime(1970, 1, 1, tzinfo=None if value.tzinfo is None else dt.UTC)
    return int(value // dt.timedelta(microseconds=1)) * 1000 + int(getattr(value, "nanoseconds", 0))
