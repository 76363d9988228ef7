"""The byte budget: what fits, who is told, what is expected; and runs within it that always come to their end."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata.bundle import RefBundle
from aiodata.execution.budget import ByteBudget, Expectation
from aiodata.plan.nodes import Plan
from tests.execution.fakes import OPTIONS, FakeRuntime, IdsSource, settle
from tests.execution.runs import alone, chooser, plan, started, then, union


def test_live_and_expected_bytes_count_towards_the_limit() -> None:
    budget = ByteBudget(100)
    assert budget.fits(100)
    assert not budget.fits(101)
    budget.expect(30)
    budget.add(50)
    assert budget.fits(20)
    assert not budget.fits(21)
    budget.expect(-30)
    assert budget.fits(50)
    budget.remove(50)
    assert budget.fits(100)


def test_peak_is_the_most_that_was_there_at_a_time() -> None:
    budget = ByteBudget(100)
    budget.add(70)
    budget.remove(50)
    budget.add(40)
    budget.expect(500)
    stats = budget.stats()
    assert (stats.limit_bytes, stats.live_bytes, stats.peak_live_bytes) == (100, 60, 70)


def test_who_is_refused_is_told_once_when_bytes_become_free() -> None:
    budget, told = ByteBudget(100), []
    budget.add(100)

    def tell() -> None:
        told.append(budget.live_bytes)

    budget.refuse(tell)
    budget.refuse(tell)
    budget.expect(10)
    assert told == []
    budget.remove(40)
    budget.remove(20)
    assert told == [60]
    budget.refuse(tell)
    budget.expect(-10)
    assert told == [60, 40]


def test_all_who_are_refused_are_told_in_the_order_of_asking_and_may_ask_again_at_once() -> None:
    budget, told = ByteBudget(100), []

    def first() -> None:
        told.append(1)
        budget.refuse(first)

    budget.refuse(first)
    budget.refuse(lambda: told.append(2))
    budget.tell_refused()
    assert told == [1, 2]
    budget.tell_refused()
    assert told == [1, 2, 1]


def test_expectation_is_the_allotment_however_little_tasks_produce() -> None:
    expectation = Expectation(64)
    assert expectation.num_bytes == 64
    expectation.observe(0, 0)
    assert expectation.num_bytes == 64


def test_expectation_rises_at_once_and_falls_by_a_tenth() -> None:
    expectation = Expectation(850)
    seen = []
    for produced in (100, 1000, 10, 10, 895):
        expectation.observe(produced, 0)
        seen.append(expectation.num_bytes)
    assert seen == [850, 1000, 900, 850, 895]


PLANS = {
    "read": lambda rows: plan(IdsSource(rows)),
    "read and map": lambda rows: plan(IdsSource(rows), alone()),
    "read and two maps": lambda rows: plan(IdsSource(rows), alone("one"), alone("two")),
    "union": lambda rows: union(plan(IdsSource(rows // 2)), plan(IdsSource(rows - rows // 2, first=rows // 2))),
    "union and map": lambda rows: then(
        union(
            plan(IdsSource(rows // 2), alone("left")),
            plan(IdsSource(rows - rows // 2, first=rows // 2), alone("right")),
        ),
        alone("after"),
    ),
    "limit and map": lambda rows: plan(IdsSource(rows), rows, alone()),
}


async def play(made: Plan, limit: int, choices: list[int], num_bytes: int, *, ordered: bool, inline: bool) -> list[int]:
    options = OPTIONS.override(
        max_object_store_bytes=limit, preserve_order=ordered, metadata_prefetch=not inline, target_block_bytes=1 << 20
    )
    async with started(made, options) as run:
        budget = run.executor.context.budget

        def check() -> None:
            assert budget.expected_bytes >= 0

        await run.to_end(chooser(choices), num_bytes=num_bytes, max_rows=3, on_turn=check)
        rows = run.rows
        await settle()
        assert (budget.live_bytes, budget.expected_bytes) == (0, 0), "something is counted at the end"
        peak = budget.peak_live_bytes
    return [peak, *rows]


@pytest.mark.parametrize("kind", PLANS)
@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(0, 16),
    limit=st.sampled_from([1, 10, 100, 1 << 30]),
    choices=st.lists(st.integers(0, 20), min_size=1, max_size=30),
    num_bytes=st.sampled_from([0, 8, 60]),
    ordered=st.booleans(),
    inline=st.booleans(),
)
def test_run_comes_to_its_end_with_all_rows_however_small_the_budget(
    kind: str, rows: int, limit: int, choices: list[int], num_bytes: int, ordered: bool, inline: bool
) -> None:
    made = PLANS[kind](rows)
    _, *taken = asyncio.run(play(made, limit, choices, num_bytes, ordered=ordered, inline=inline))
    assert (taken if ordered else sorted(taken)) == list(range(rows))


@pytest.mark.parametrize(("kind", "over"), [("read", 0), ("read and map", 1), ("read and two maps", 1), ("union", 0)])
@settings(max_examples=20, deadline=None)
@given(
    num_bytes=st.integers(1, 12),
    choices=st.lists(st.integers(0, 20), min_size=1, max_size=30),
    ordered=st.booleans(),
)
def test_blocks_stay_within_the_budget_when_tasks_produce_what_is_expected(
    kind: str, over: int, num_bytes: int, choices: list[int], ordered: bool
) -> None:
    # A task whose output nothing later waits for may start all the same: `over` of them at a time.
    limit = 100
    made = PLANS[kind](24)
    peak, *taken = asyncio.run(play(made, limit, choices, num_bytes, ordered=ordered, inline=False))
    assert sorted(taken) == list(range(24))
    assert peak <= limit + over * num_bytes


async def test_refused_operator_goes_on_when_the_consumer_lets_go_of_a_block() -> None:
    options = OPTIONS.override(max_object_store_bytes=160, target_block_bytes=10)
    runtime = FakeRuntime(num_cpus=8)
    async with started(plan(IdsSource(40)), options, runtime) as run:
        await run.started()
        for task in runtime.running:
            task.work_on(num_bytes=20)
        await settle()
        held: list[RefBundle] = []
        while len(held) < 8:
            held.append(run.receive.receive_nowait())
            await settle()
        num_started = len(runtime.tasks)
        assert run.executor.context.budget.live_bytes == 160
        assert len(runtime.running) <= 1, "the budget is spent; one may start, as nothing else would ever become free"
        held.clear()
        await settle()
        assert len(runtime.tasks) > num_started
        await run.to_end(num_bytes=20)


async def test_operator_starts_nothing_beyond_the_budget_while_a_later_one_has_its_block() -> None:
    options = OPTIONS.override(max_object_store_bytes=1)
    async with started(plan(IdsSource(8, name="read"), alone()), options) as run:
        await run.started()
        stages = run.runtime.stages
        for _ in range(8):
            await settle()
            assert len(stages["read"].running) == 1
            stages["read"].running[0].work_on(1, num_bytes=10)
            await settle()
            [mapping] = run.runtime.running
            assert mapping in stages["map_batches(alone)"].tasks, "the source is next only when the map is done"
            mapping.work_on(num_bytes=10)
            await settle()
            assert run.take()
        await run.to_end()
        assert sorted(run.rows) == list(range(8))


async def test_block_larger_than_what_was_expected_holds_up_new_tasks_until_it_is_gone() -> None:
    options = OPTIONS.override(max_object_store_bytes=160, target_block_bytes=10)
    async with started(plan(IdsSource(40)), options) as run:
        await run.started(4)
        run.runtime.running[0].work_on(1, num_bytes=1000)
        await settle()
        assert len(run.runtime.running) == 3
        assert run.take()
        await settle()
        assert len(run.runtime.running) == 3, "a task is expected to produce as much again"
        await run.to_end()
        assert sorted(run.rows) == list(range(40))
