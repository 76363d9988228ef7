"""Where rows came from: kept for each of them, whatever becomes of a block, and told in few words."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodata.origin import (
    MAX_SPANS,
    Origin,
    Spans,
    SpansOrigin,
    bound_spans,
    describe_spans,
    join_spans,
    origin_of,
    slice_spans,
    split_by_source,
)

SPANS = st.lists(
    st.tuples(st.sampled_from("abc"), st.none() | st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=12
).map(lambda drawn: tuple((source, source, row, count) for source, row, count in drawn))


def rows_of(spans: Spans) -> list[tuple[str, str, int | None]]:
    """What is known of each row."""
    return [
        (first, last, None if row is None else row + place)
        for first, last, row, count in spans
        for place in range(count)
    ]


@given(SPANS)
def test_joining_says_the_same_of_each_row_in_as_few_spans_as_there_can_be(spans: Spans) -> None:
    joined = join_spans(spans)
    assert rows_of(joined) == rows_of(spans)
    assert join_spans(joined) == joined
    assert len(join_spans((("a", "a", 0, 2), ("a", "a", 2, 3), ("a", "a", 6, 1)))) == 2


@given(SPANS, st.integers(0, 60), st.integers(0, 60))
def test_slice_says_of_its_rows_what_the_whole_does(spans: Spans, start: int, num_rows: int) -> None:
    assert rows_of(slice_spans(spans, start, num_rows)) == rows_of(spans)[start : start + num_rows]


@pytest.mark.parametrize("num_sources", [1, MAX_SPANS, MAX_SPANS + 1, 1000])
def test_bounded_spans_name_the_sources_of_each_row(num_sources: int) -> None:
    # Of each source, two ranges that are apart.
    spans = tuple((f"{one:04}", f"{one:04}", row, 2) for one in range(num_sources) for row in (0, 5))
    bounded = bound_spans(spans)
    assert len(bounded) <= MAX_SPANS
    for (source, _, _), (first, last, _) in zip(rows_of(spans), rows_of(bounded), strict=True):
        assert first <= source <= last
    if len(spans) <= MAX_SPANS:
        assert bounded == spans


@pytest.mark.parametrize(
    ("spans", "source", "rows"),
    [
        ([("a", "a", 3, 4)], "a", (3, 7)),
        ([("a", "a", 3, 4), ("a", "a", 9, 1)], "a", (3, 10)),
        ([("a", "a", 9, 1), ("a", "a", 3, 4)], "a", None),
        ([("a", "a", 3, 4), ("a", "a", None, 1)], "a", None),
        ([("a", "a", 3, 4), ("b", "b", 0, 1), ("c", "c", 0, 1)], "a to c", None),
        ([("a", "c", None, 4), ("d", "f", None, 4)], "a to f", None),
        ([("x, row group 1", "x, row group 1", 0, 1), ("x, row group 2", "x, row group 2", 0, 1)],
         "x, row group 1 to row group 2", None),
    ],
)  # fmt: skip
def test_origin_names_the_source_and_rows_or_the_first_and_the_last(
    spans: list[tuple[str, str, int | None, int]], source: str, rows: tuple[int, int] | None
) -> None:
    origin = origin_of(tuple(spans))
    assert (origin.source, origin.rows) == (source, rows)
    assert origin.without_rows() == Origin(source, None)
    assert origin.spans(sum(count for *_, count in spans)) == tuple(spans)


def test_part_of_the_rows_of_several_sources_is_narrowed_to_those_it_is_of() -> None:
    origin = origin_of((("a", "a", 5, 2), ("b", "b", 0, 3)))
    assert isinstance(origin, SpansOrigin)
    assert origin.slice(0, 2) == Origin("a", (5, 7))
    assert origin.slice(3, 1) == Origin("b", (1, 2))
    assert origin.slice(1, 2).source == "a to b"


def test_rows_that_are_fewer_or_more_than_the_origin_says_have_no_numbers() -> None:
    assert Origin("a", (0, 5)).spans(4) == (("a", "a", None, 4),)
    assert origin_of((("a", "a", 5, 2), ("b", "b", 0, 3))).spans(4) == (("a", "b", None, 4),)


def test_rows_are_split_by_source_and_keep_their_order() -> None:
    table = pa.table({"id": range(6)})
    spans = (("a", "a", 5, 1), ("a", "a", 8, 2), ("b", "b", None, 3))
    parts = list(split_by_source(table, origin_of(spans)))
    assert [part.column("id").to_pylist() for part, _ in parts] == [[0, 1, 2], [3, 4, 5]]
    assert [(origin.source, origin.rows) for _, origin in parts] == [("a", (5, 10)), ("b", None)]
    assert list(split_by_source(table, Origin("a", (0, 6)))) == [(table, Origin("a", (0, 6)))]


def test_nothing_has_no_source() -> None:
    assert describe_spans(()) == ""
