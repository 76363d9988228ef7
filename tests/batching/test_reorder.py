"""ReorderBuffer: items leave in the order of their numbers, none is lost or doubled."""

from __future__ import annotations

import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata.batching.reorder import ReorderBuffer


def pop_all(buffer: ReorderBuffer[int | None]) -> list[int | None]:
    items = []
    while buffer.has_next:
        items.append(buffer.pop())
    return items


@settings(max_examples=100, deadline=None)
@given(numbers=st.integers(0, 30).flatmap(lambda count: st.permutations(range(count))), eagerly=st.booleans())
def test_any_permutation_leaves_in_order(numbers: list[int], eagerly: bool) -> None:
    buffer = ReorderBuffer[int | None]()
    left: list[int | None] = []
    for number in numbers:
        buffer.put(number, number)
        if eagerly:
            left += pop_all(buffer)
    assert left + pop_all(buffer) == sorted(numbers)
    assert len(buffer) == 0


@settings(max_examples=100, deadline=None)
@given(numbers=st.permutations(range(20)))
def test_what_waits_is_what_comes_after_a_gap(numbers: list[int]) -> None:
    buffer = ReorderBuffer[int | None]()
    num_left = 0
    for place, number in enumerate(numbers):
        buffer.put(number, number)
        num_left += len(pop_all(buffer))
        put = set(numbers[: place + 1])
        assert num_left == min(set(range(21)) - put)
        assert len(buffer) == len(put) - num_left


def test_item_may_be_none() -> None:
    buffer = ReorderBuffer[int | None]()
    buffer.put(0, None)
    assert buffer.has_next
    assert buffer.pop() is None
    assert not buffer.has_next


def test_number_that_waits_is_refused() -> None:
    buffer = ReorderBuffer[str]()
    buffer.put(3, "a")
    with pytest.raises(ValueError, match="number 3 is given twice"):
        buffer.put(3, "b")
    assert len(buffer) == 1


@pytest.mark.parametrize("number", [0, -1])
def test_number_that_has_left_is_refused(number: int) -> None:
    buffer = ReorderBuffer[str]()
    buffer.put(0, "a")
    buffer.pop()
    with pytest.raises(ValueError, match=f"number {number} comes too late; the next to leave is 1"):
        buffer.put(number, "b")


def test_pop_across_a_gap_is_refused_and_changes_nothing() -> None:
    buffer = ReorderBuffer[str]()
    buffer.put(1, "b")
    with pytest.raises(LookupError, match="number 0 is not there; 1 later"):
        buffer.pop()
    buffer.put(0, "a")
    assert [buffer.pop(), buffer.pop()] == ["a", "b"]


def test_cleared_buffer_holds_no_item_and_keeps_its_place() -> None:
    class Batch:
        pass

    buffer = ReorderBuffer[Batch]()
    buffer.put(0, Batch())
    buffer.pop()
    batch = Batch()
    dead = weakref.ref(batch)
    buffer.put(1, batch)
    buffer.put(3, Batch())
    buffer.clear()
    del batch
    assert dead() is None
    assert len(buffer) == 0
    assert not buffer.has_next
    buffer.put(1, Batch())
    assert buffer.has_next


def test_popped_item_is_let_go_of() -> None:
    class Batch:
        pass

    buffer = ReorderBuffer[Batch]()
    buffer.put(0, Batch())
    dead = weakref.ref(buffer.pop())
    assert dead() is None


def test_repr_shows_what_is_waited_for() -> None:
    buffer = ReorderBuffer[str]()
    buffer.put(2, "c")
    assert repr(buffer) == "<ReorderBuffer next=0 waiting=1>"
