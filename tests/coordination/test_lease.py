"""Ledger: what a split was given, and what becomes of it when its consumer is gone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodata import EpochError
from aiodata.bundle import RefBundle
from aiodata.coordination.lease import Ledger
from tests.strategies import bundle_of, ids_of


def ledger_of(*, keeps: bool = True, max_calls: int = 1) -> Ledger:
    return Ledger(3, keeps=keeps, max_calls=max_calls)


def deliver(ledger: Ledger, *deliveries: Sequence[int]) -> None:
    """Deliver a bundle for each, of these rows, to whoever asks for it."""
    for ids in deliveries:
        ledger.rows += len(ids)
        ledger.deliver([bundle_of(*ids)])


def rows_of(bundles: Sequence[RefBundle]) -> list[int]:
    return [row for bundle in bundles for row in ids_of(bundle)]


def test_who_asks_again_gets_the_same_until_the_next_one_is_asked_for() -> None:
    ledger = ledger_of()
    ledger.ask(0, 4)
    assert ledger.wanted == 4
    deliver(ledger, [1, 2])
    assert ledger.wanted == 0
    first = ledger.delivery(0)
    ledger.ask(0, 4)
    assert ledger.wanted == 0
    assert ledger.delivery(0) is first
    ledger.ask(1, 1)
    assert ledger.delivery(0) is None
    with pytest.raises(EpochError, match="split 3 asked for delivery 0; the next one is 1"):
        ledger.ask(0, 1)


@pytest.mark.parametrize(("max_calls", "wrong"), [(1, [-1, 1, 5]), (2, [-1, 2, 5]), (3, [-2, 3])])
def test_a_delivery_out_of_turn_is_refused(max_calls: int, wrong: list[int]) -> None:
    ledger = ledger_of(max_calls=max_calls)
    for sequence in wrong:
        with pytest.raises(EpochError, match=f"asked for delivery {sequence}; the next one is 0"):
            ledger.ask(sequence, 1)
    assert ledger.wanted == 0


def test_two_calls_in_flight_are_answered_in_turn_whatever_their_order() -> None:
    ledger = ledger_of(max_calls=2)
    ledger.ask(1, 7)
    assert ledger.wanted == 0, "the delivery before it was not asked for"
    ledger.ask(0, 5)
    assert ledger.wanted == 5
    deliver(ledger, [1])
    assert ledger.wanted == 7
    deliver(ledger, [2])
    assert [rows_of(ledger.delivery(sequence) or ()) for sequence in (0, 1)] == [[1], [2]]
    ledger.ask(2, 1)
    assert ledger.delivery(0) is None
    assert rows_of(ledger.delivery(1) or ()) == [2], "its call may have been cancelled"


def test_nobody_waits_for_less_than_a_bundle() -> None:
    ledger = ledger_of()
    ledger.ask(0, 0)
    assert ledger.wanted == 1


def test_acknowledgements_are_counts_so_late_ones_are_harmless() -> None:
    ledger = ledger_of()
    deliver(ledger, [1, 2, 3])
    for acked_rows in (2, 1, 2, 0):
        ledger.acknowledge(acked_rows)
        assert (ledger.acked_rows, ledger.unacked_rows) == (2, 1)


def test_more_rows_than_were_given_can_not_be_acknowledged() -> None:
    ledger = ledger_of()
    deliver(ledger, [1, 2])
    with pytest.raises(EpochError, match="split 3 acknowledged 3 rows; it was given 2"):
        ledger.acknowledge(3)
    assert ledger.acked_rows == 0


def test_the_next_consumer_gets_what_was_not_acknowledged_to_the_row() -> None:
    ledger = ledger_of()
    deliver(ledger, [1, 2, 3], [4, 5, 6], [7])
    ledger.acknowledge(4)
    ledger.reserve()
    assert rows_of(ledger.reserved) == [5, 6, 7]
    assert (ledger.rows, ledger.acked_rows, ledger.unacked_rows) == (7, 4, 0)
    with pytest.raises(EpochError, match="it was given 0"):
        ledger.acknowledge(5)


def test_what_is_reserved_comes_after_what_the_second_one_had_not_acknowledged() -> None:
    ledger = ledger_of()
    deliver(ledger, [1, 2], [3, 4])
    ledger.reserve()
    ledger.ask(0, 1)
    ledger.deliver([ledger.reserved.popleft()])
    ledger.acknowledge(1)
    ledger.reserve()
    assert rows_of(ledger.reserved) == [2, 3, 4]


def test_what_is_given_back_is_no_more_the_splits() -> None:
    ledger = ledger_of()
    deliver(ledger, [1, 2, 3], [4])
    ledger.reserved.append(bundle_of(5, 6))
    ledger.rows += 2
    ledger.acknowledge(1)
    assert rows_of(ledger.give_back()) == [2, 3, 4, 5, 6]
    assert (ledger.rows, ledger.acked_rows, len(ledger.reserved)) == (1, 1, 0)


@given(
    sizes=st.lists(st.integers(1, 5), max_size=6),
    acked=st.lists(st.integers(0, 30), max_size=4),
    keeps=st.booleans(),
)
def test_acknowledged_and_kept_rows_are_all_that_were_given(sizes: list[int], acked: list[int], keeps: bool) -> None:
    ledger, rows = ledger_of(keeps=keeps), list[int]()
    for size in sizes:
        ids = range(len(rows), len(rows) + size)
        deliver(ledger, ids)
        rows += ids
    done = 0
    for count in acked:
        if count <= len(rows):
            ledger.acknowledge(count)
            done = max(done, count)
    assert (ledger.acked_rows, ledger.unacked_rows) == (done, len(rows) - done)
    assert rows_of(ledger.give_back()) == (rows[done:] if keeps else [])


@pytest.mark.parametrize("keeps", [True, False])
def test_what_is_done_with_is_referred_to_no_more(keeps: bool) -> None:
    ledger = ledger_of(keeps=keeps)
    for ids in ([1, 2], [3, 4]):
        ledger.ask(0 if ids == [1, 2] else 1, 1)
        deliver(ledger, ids)
    tables = [weakref.ref(bundle.ref.table) for bundle in ledger.delivery(1) or ()]
    ledger.acknowledge(3)
    assert tables[0]() is not None
    ledger.acknowledge(4)
    gc.collect()
    assert tables[0]() is None


@pytest.mark.parametrize("method", ["drop", "give_back"])
def test_a_split_that_is_over_refers_to_nothing(method: str) -> None:
    ledger = ledger_of()
    ledger.ask(0, 1)
    deliver(ledger, [1, 2])
    ledger.reserved.append(bundle_of(3))
    tables = [weakref.ref(bundle.ref.table) for bundle in (*(ledger.delivery(0) or ()), *ledger.reserved)]
    ledger.prefetched_bytes = 9
    getattr(ledger, method)()
    gc.collect()
    assert [table() for table in tables] == [None, None]
    assert ledger.prefetched_bytes == 0
    assert ledger.wanted == 0
