"""Reduce samples to figures, and write figures as text."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_FINER_UNITS = {"s": ("ms", 1e3), "ms": ("us", 1e3)}
_BYTES_PER_MB = 1e6


@dataclass(frozen=True, slots=True)
class Spread:
    """Hold the median of some runs, and how far they lie apart."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """Reduce the values of some runs.

    Raises:
        ValueError: There are no values.
    """
    known = sorted(values)
    if not known:
        raise ValueError("no values to reduce: run the contender at least once")
    return Spread(statistics.median(known), known[0], known[-1])


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that at least `percent` of the samples do not exceed.

    Args:
        samples: The samples, in any order, at least one.
        percent: From 0 to 100.
    """
    ordered = sorted(samples)
    rank = math.ceil(percent / 100 * len(ordered))
    return ordered[max(rank, 1) - 1]


def ratio(dividend: float, divisor: float) -> float:
    """Divide two figures; nothing by nothing is 1, something by nothing is infinite."""
    if divisor:
        return dividend / divisor
    return math.inf if dividend else 1.0


def _three_digits(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}"


def figure_text(value: float, unit: str) -> str:
    """Write a figure with three digits, in a unit that fits its size."""
    if unit == "":
        return f"{value:,.4g}"
    if unit == "B":
        return f"{_three_digits(value / _BYTES_PER_MB)} MB"
    while 0 < abs(value) < 1 and unit in _FINER_UNITS:
        unit, factor = _FINER_UNITS[unit]
        value *= factor
    return f"{_three_digits(value)} {'µs' if unit == 'us' else unit}"


def spread_text(values: Spread, unit: str) -> str:
    """Write a median with the least and the largest value behind it."""
    median = figure_text(values.median, unit)
    if values.low == values.high:
        return median
    return f"{median} ({figure_text(values.low, unit)} – {figure_text(values.high, unit)})"


def ratio_text(value: float) -> str:
    """Write a ratio, as in `12.3×`."""
    return f"{_three_digits(value)}×"
