"""OutputOrder: nothing is lost, and if order is asked for, one job's bundles leave after those of the one before."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata.bundle import RefBundle
from aiodata.execution.ordering import OutputOrder
from tests.strategies import bundle_of, ids_of

# One event per entry, the number of its job: a bundle, or the job's end where it occurs for the last time.
EVENTS = st.lists(st.integers(0, 5), max_size=40).map(lambda jobs: [*jobs, *range(6)])


def add(order: OutputOrder, job: int, bundle: RefBundle) -> list[RefBundle]:
    """Return the bundles that leave when a job's bundle comes."""
    released: deque[RefBundle] = deque()
    order.add(job, bundle, released)
    return list(released)


def finish(order: OutputOrder, job: int) -> list[RefBundle]:
    """Return the bundles that leave when a job ends."""
    released: deque[RefBundle] = deque()
    order.finish(job, released)
    return list(released)


def play(order: OutputOrder, events: list[int]) -> list[tuple[int, int]]:
    """Return the bundles in the order of their leaving, as (job, index within the job)."""
    left: list[RefBundle] = []
    seen: dict[int, int] = dict.fromkeys(range(6), 0)
    for place, job in enumerate(events):
        if job in events[place + 1 :]:
            left += add(order, job, bundle_of(job, seen[job]))
            seen[job] += 1
        else:
            left += finish(order, job)
    return [(ids_of(bundle)[0], ids_of(bundle)[1]) for bundle in left]


def bundles_in(events: list[int]) -> list[tuple[int, int]]:
    return [(job, index) for job in range(6) for index in range(events.count(job) - 1)]


@settings(max_examples=100, deadline=None)
@given(events=EVENTS)
def test_preserved_order_is_that_of_the_jobs(events: list[int]) -> None:
    order = OutputOrder(preserve=True, max_jobs_ahead=4)
    assert play(order, events) == bundles_in(events)
    assert order.head == 6


@settings(max_examples=100, deadline=None)
@given(events=EVENTS)
def test_without_order_every_bundle_leaves_as_it_comes(events: list[int]) -> None:
    left = play(OutputOrder(preserve=False, max_jobs_ahead=4), events)
    assert sorted(left) == bundles_in(events)
    arrivals = [job for place, job in enumerate(events) if job in events[place + 1 :]]
    assert [job for job, _ in left] == arrivals


def test_head_is_never_held() -> None:
    order = OutputOrder(preserve=True, max_jobs_ahead=4)
    first, second, third = (bundle_of(one) for one in range(3))
    assert add(order, 1, second) == []
    assert add(order, 0, first) == [first]
    assert finish(order, 0) == [second]
    assert add(order, 1, third) == [third]


def test_job_without_bundles_holds_up_nobody() -> None:
    order = OutputOrder(preserve=True, max_jobs_ahead=4)
    bundle = bundle_of(1)
    assert add(order, 2, bundle) == []
    assert finish(order, 2) == []
    assert finish(order, 1) == []
    assert finish(order, 0) == [bundle]
    assert order.head == 3


@pytest.mark.parametrize(("preserve", "expected"), [(True, [True, False, False]), (False, [True, True, True])])
def test_only_the_heads_rest_may_start_if_order_is_asked_for(preserve: bool, expected: list[bool]) -> None:
    order = OutputOrder(preserve=preserve, max_jobs_ahead=4)
    assert [order.may_start(job, is_rest=True) for job in range(3)] == expected
    finish(order, 0)
    assert order.may_start(1, is_rest=True)


@pytest.mark.parametrize(("preserve", "expected"), [(True, [True, True, False]), (False, [True, True, True])])
def test_jobs_far_ahead_of_the_head_wait_if_order_is_asked_for(preserve: bool, expected: list[bool]) -> None:
    order = OutputOrder(preserve=preserve, max_jobs_ahead=2)
    assert [order.may_start(job, is_rest=False) for job in range(3)] == expected


def test_cleared_order_holds_nothing() -> None:
    order = OutputOrder(preserve=True, max_jobs_ahead=4)
    add(order, 1, bundle_of(1))
    order.clear()
    assert finish(order, 0) == []
