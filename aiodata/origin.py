"""Origin: where rows came from, for error messages. It goes with the rows through all stages of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa

# Consecutive rows, of one source or of several: the first source and the last one, the first row within the source
# (None: not known, or several sources), and the number of rows. They are plain tuples, which the garbage collections
# need not go through: a run may have a million of them.
Span = tuple[str, str, int | None, int]
Spans = tuple[Span, ...]

# Spans that are kept of a block, at most; of more, neighbours are put together.
MAX_SPANS = 64


@dataclass(frozen=True, slots=True)
class Origin:
    """Where rows came from, for error messages.

    Attributes:
        source: For example `flights/jan.parquet, row group 3`.
        rows: The half-open range of rows within `source`, None where a filter made it unknown.
    """

    source: str
    rows: tuple[int, int] | None

    def slice(self, start: int, num_rows: int) -> Origin:
        """Narrow the origin to `num_rows` rows from `start`."""
        if self.rows is None:
            return self
        first = self.rows[0] + start
        return Origin(self.source, (first, first + num_rows))

    def without_rows(self) -> Origin:
        """Return the source alone: its rows can not be told from those of the output any more."""
        return Origin(self.source, None)

    def spans(self, num_rows: int) -> Spans:
        """Return what the origin says of each of its `num_rows` rows."""
        is_exact = self.rows is not None and self.rows[1] - self.rows[0] == num_rows
        return ((self.source, self.source, self.rows[0] if self.rows and is_exact else None, num_rows),)


@dataclass(frozen=True, slots=True)
class SpansOrigin(Origin):
    """Rows of several sources, or of places in one that are apart; a part of them is narrowed to what it is of.

    Attributes:
        parts: What the rows are of, in their order.
    """

    parts: Spans

    def slice(self, start: int, num_rows: int) -> Origin:
        """Narrow the origin to the sources of `num_rows` rows from `start`."""
        return origin_of(slice_spans(self.parts, start, num_rows))

    def spans(self, num_rows: int) -> Spans:
        """Return the parts."""
        if sum(count for *_, count in self.parts) == num_rows:
            return self.parts
        return ((self.parts[0][0], self.parts[-1][1], None, num_rows),)


def origin_of(spans: Spans) -> Origin:
    """Return the origin of rows of which this is known.

    Example:
        >>> origin_of((("a.parquet", "a.parquet", 5, 5), ("b.parquet", "b.parquet", 0, 3))).source
        'a.parquet to b.parquet'
    """
    source = describe_spans(spans)
    rows = None
    if all(first == last == source and row is not None for first, last, row, _ in spans):
        bounds = [(row or 0, (row or 0) + count) for *_, row, count in spans]
        if bounds == sorted(bounds):
            rows = bounds[0][0], bounds[-1][1]
    return Origin(source, rows) if len(spans) == 1 else SpansOrigin(source, rows, spans)


def describe_spans(spans: Spans) -> str:
    """Return the sources of rows as text: one of them, or from which to which."""
    if not spans:
        return ""
    first, last = spans[0][0], spans[-1][1]
    if all(one == first and other == first for one, other, _, _ in spans):
        return first
    file, comma, part = last.rpartition(", ")
    return f"{first} to {part if comma and first.startswith(f'{file}, ') else last}"


def join_spans(spans: Iterable[Span]) -> Spans:
    """Put spans end to end: those that go on where the one before ends become one."""
    joined: list[Span] = []
    for span in spans:
        both = _next_to(joined[-1], span) if joined else None
        if both is None:
            joined.append(span)
        else:
            joined[-1] = both
    return tuple(joined)


def slice_spans(spans: Spans, start: int, num_rows: int) -> Spans:
    """Return the spans of `num_rows` rows from `start`."""
    return tuple(_cut(spans, start, start + num_rows))


def bound_spans(spans: Spans) -> Spans:
    """Return at most `MAX_SPANS` spans: of more, those of one source are put together, then neighbours."""
    if len(spans) <= MAX_SPANS:
        return spans
    by_source = groupby(spans, lambda span: span[:2])
    whole = [(first, last, None, sum(count for *_, count in group)) for (first, last), group in by_source]
    step = -(-len(whole) // MAX_SPANS)
    groups = (whole[index : index + step] for index in range(0, len(whole), step))
    return tuple((group[0][0], group[-1][1], None, sum(count for *_, count in group)) for group in groups)


def split_by_source(table: pa.Table, origin: Origin) -> Iterator[tuple[pa.Table, Origin]]:
    """Yield a table's rows source by source, for whatever makes row numbers unknown, but should not mix up sources."""
    start = 0
    for _, group in groupby(origin.spans(table.num_rows), lambda span: span[:2]):
        spans = tuple(group)
        num_rows = sum(count for *_, count in spans)
        is_all = num_rows == table.num_rows
        yield (table, origin) if is_all else (table.slice(start, num_rows), origin_of(spans))
        start += num_rows


def _next_to(span: Span, following: Span) -> Span | None:
    """Return two spans as one, where they are of one source and nothing is lost by it."""
    first, last, row, count = span
    *its_sources, its_row, its_count = following
    is_next = its_row is None if row is None else its_row == row + count
    return (first, last, row, count + its_count) if is_next and its_sources == [first, last] else None


def _cut(spans: Spans, start: int, stop: int) -> Iterator[Span]:
    for first, last, row, count in spans:
        low, high = max(start, 0), min(stop, count)
        if low < high:
            yield first, last, None if row is None else row + low, high - low
        start -= count
        stop -= count
