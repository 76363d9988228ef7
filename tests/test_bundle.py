"""Bundles are narrowed, never copied."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodata.bundle import RefBundle
from tests.strategies import bundle_of, ids_of

IDS = list(range(100, 110))


@pytest.fixture
def bundle() -> RefBundle:
    return bundle_of(*IDS)


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 10**9])
def test_head_and_skip_share_the_rows(bundle: RefBundle, count: int) -> None:
    head, rest = bundle.head(count), bundle.skip(count)
    assert (ids_of(head), ids_of(rest)) == (IDS[:count], IDS[count:])
    assert head.num_rows + rest.num_rows == 10
    assert head.ref is rest.ref is bundle.ref


def test_narrowing_counts_from_the_narrowed_range(bundle: RefBundle) -> None:
    assert ids_of(bundle.skip(2).head(5).skip(1)) == [103, 104, 105, 106]
    assert ids_of(bundle.head(5).skip(4).head(9)) == [104]


def test_narrowing_leaves_the_bundle_as_it_is(bundle: RefBundle) -> None:
    assert bundle.skip(4) != bundle
    assert ids_of(bundle) == IDS


def test_bytes_are_in_proportion_to_rows(bundle: RefBundle) -> None:
    assert bundle.num_bytes == bundle.metadata.num_bytes == 80
    assert bundle.head(3).num_bytes == 24
    assert bundle.skip(3).num_bytes == 56
    assert bundle.skip(10).num_bytes == 0


def test_empty_block_has_no_bytes() -> None:
    assert bundle_of().num_bytes == 0
    assert bundle_of().skip(1).num_rows == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=6))
def test_any_narrowing_is_that_of_a_list(steps: list[tuple[bool, int]]) -> None:
    narrowed, ids = bundle_of(*IDS), IDS
    for is_head, count in steps:
        narrowed = narrowed.head(count) if is_head else narrowed.skip(count)
        ids = ids[:count] if is_head else ids[count:]
    assert ids_of(narrowed) == ids
    assert narrowed.num_bytes == 8 * len(ids)
