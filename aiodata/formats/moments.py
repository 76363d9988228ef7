"""Moments: dates, times, timestamps and durations as Python values."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa


def moments(array: pa.Array) -> list[Any]:
    """Return one value per row, None for null: those of `datetime` where they hold the value exactly.

    Timestamps and durations in nanoseconds, and what is out of Python's range, are numpy's scalars (UTC).

    Raises:
        ValueError: A time of day has nanoseconds, which Python's has not.
    """
    kind = array.type
    if pa.types.is_time(kind):
        return _times(array)
    column = array.to_numpy(zero_copy_only=False)
    if pa.types.is_date64(kind):
        return _days_of_ms(column)
    if not pa.types.is_date(kind) and kind.unit == "ns":
        return [None if np.isnat(value) else value for value in column]
    values = column.tolist()
    # Numpy has an integer for what Python's types cannot hold.
    values = [column[row] if type(value) is int else value for row, value in enumerate(values)]
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        zone = pa.scalar(0, kind).as_py().tzinfo
        return [_in_zone(value, zone, column[row]) for row, value in enumerate(values)]
    return values


def _times(array: pa.Array) -> list[Any]:
    try:
        return list(array.to_numpy(zero_copy_only=False))
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{error}, which datetime.time has no room for; cast it to time64('us') or to int64"
        ) from error


def _days_of_ms(column: np.ndarray[Any, Any]) -> list[Any]:
    """Return dates that are kept in milliseconds; where these are no whole day, as they are."""
    days = column.astype("M8[D]")
    is_whole = days.astype("M8[ms]") == column
    return [
        day if type(day) is dt.date and whole else None if np.isnat(value) else value
        for day, whole, value in zip(days.tolist(), is_whole.tolist(), column, strict=True)
    ]


def _in_zone(value: Any, zone: dt.tzinfo, exact: np.datetime64) -> Any:
    """Return a naive moment in UTC with its zone."""
    if type(value) is not dt.datetime:
        return value
    try:
        return value.replace(tzinfo=dt.UTC).astimezone(zone)
    except OverflowError:
        return exact
