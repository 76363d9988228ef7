"""Unions in the executor: all rows, in order if asked; no branch starves another; one's error or a limit ends all."""

from __future__ import annotations

import pytest

from aiodata import ExecutionOptions, TaskError
from aiodata.concurrency.supervise import unwrap
from aiodata.plan.nodes import Plan
from tests.execution.fakes import OPTIONS, FakeTask, IdsSource, pair_of, settle
from tests.execution.runs import Run, alone, plan, started, then, union

ORDERED = OPTIONS.override(preserve_order=True)

FIRST, SECOND = plan(IdsSource(6, name="first")), plan(IdsSource(6, first=10, name="second"))
BOTH = union(FIRST, SECOND)
ALL_ROWS = [*range(6), *range(10, 16)]


def running(run: Run, name: str) -> list[FakeTask]:
    return run.runtime.stages[name].running if name in run.runtime.stages else []


def work_on_all(run: Run, name: str, *, num_bytes: int = 8) -> int:
    """Have the tasks of one stage that run now work to their end."""
    tasks = running(run, name)
    for task in tasks:
        task.work_on(num_bytes=num_bytes)
    return len(tasks)


async def both_started(run: Run) -> None:
    await run.started(2)
    while not (running(run, "first") and running(run, "second")):
        await settle(1)


async def test_ordered_union_passes_on_one_branch_after_the_other() -> None:
    async with started(BOTH, ORDERED) as run:
        await both_started(run)
        work_on_all(run, "second")
        await settle()
        assert not run.take(), "the first branch has not begun"
        await run.to_end()
        assert run.rows == ALL_ROWS


async def test_union_passes_on_what_comes_if_order_does_not_matter() -> None:
    async with started(BOTH) as run:
        await both_started(run)
        running(run, "second")[0].work_on()
        await settle()
        assert run.take()
        running(run, "first")[0].work_on()
        await settle()
        assert run.take()
        assert (run.rows[0], run.rows[-1]) == (10, running(run, "first")[0].ids[0] - 1)
        await run.to_end()
        assert sorted(run.rows) == ALL_ROWS


@pytest.mark.parametrize("made", [BOTH, then(BOTH, alone())], ids=["last", "before a map"])
async def test_what_waits_in_one_branch_does_not_starve_the_one_before_it(made: Plan) -> None:
    """The second branch's blocks fill the budget, and are taken only when the first is done."""
    async with started(made, ORDERED.override(max_object_store_bytes=10)) as run:
        await both_started(run)
        while work_on_all(run, "second", num_bytes=10):
            await settle()
        assert run.executor.context.budget.live_bytes >= 10
        await run.to_end(num_bytes=10)
        assert run.rows == ALL_ROWS


@pytest.mark.parametrize("chosen", [OPTIONS, ORDERED], ids=["as it comes", "ordered"])
async def test_limit_after_a_union_ends_all_branches(chosen: ExecutionOptions) -> None:
    big = union(plan(IdsSource(1000, name="first")), plan(IdsSource(1000, first=1000, name="second")))
    async with started(then(big, 5), chosen) as run:
        await both_started(run)
        await run.to_end(max_rows=1)
        assert len(run.rows) == 5
        assert chosen is OPTIONS or run.rows == list(range(5))
        assert not run.runtime.running
        assert len(run.runtime.tasks) < 50
        await settle()
        budget = run.executor.context.budget
        assert (budget.live_bytes, budget.expected_bytes) == (0, 0)


async def test_limit_in_one_branch_ends_that_branch_alone() -> None:
    made = union(plan(IdsSource(1000, name="limited"), 3), plan(IdsSource(6, first=2000, name="second")))
    async with started(made, ORDERED) as run:
        await run.to_end(max_rows=1)
        assert run.rows == [0, 1, 2, *range(2000, 2006)]


async def test_branch_that_ended_early_leaves_nothing_counted_in_the_budget() -> None:
    made = union(plan(IdsSource(1000, name="limited"), 1), plan(IdsSource(6, first=2000, name="second")))
    async with started(made, OPTIONS.override(max_object_store_bytes=1000)) as run:
        name = "limited -> limit(1)"
        await run.started(4)
        while min(len(running(run, name)), len(running(run, "second"))) < 2:
            await settle(1)
        stuck = pair_of(500, num_bytes=100, is_pending=True)
        metadata, later = stuck.metadata, running(run, name)[1]
        running(run, name)[0].work_on(1)
        later.give(stuck)
        del stuck
        await settle()
        assert run.take()
        await settle()
        budget = run.executor.context.budget
        assert not running(run, name)
        assert budget.live_bytes == 0, "a block of the ended branch waits for its metadata, and counts"
        # An eighth of the budget for each task.
        assert budget.expected_bytes == 125 * len(running(run, "second"))
        metadata.settle()
        await run.to_end()
        assert sorted(run.rows) == [0, *range(2000, 2006)]


@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.parametrize("chosen", [OPTIONS, ORDERED], ids=["as it comes", "ordered"])
async def test_error_in_one_branch_ends_all(name: str, chosen: ExecutionOptions) -> None:
    error = TaskError(name, "a file", None, "ValueError: no")

    async def fail() -> None:
        async with started(BOTH, chosen) as run:
            await both_started(run)
            failing, *_ = running(run, name)
            failing.end(error=error)
            runs.append(run)
            await run.to_end(lambda count: count - 1)

    runs: list[Run] = []
    with pytest.raises(ExceptionGroup) as caught:
        await fail()
    assert unwrap(caught.value) is error
    assert all(task.was_cancelled for task in runs[0].runtime.tasks if not task.has_ended)
    assert not runs[0].is_done


async def test_union_of_unions_has_all_rows_in_order() -> None:
    made = union(union(FIRST, SECOND), plan(IdsSource(3, first=20, name="third")))
    async with started(then(made, alone()), ORDERED) as run:
        await run.to_end(lambda count: count // 2)
        assert run.rows == [*ALL_ROWS, 20, 21, 22]


async def test_union_holds_no_block_while_it_waits_for_the_next() -> None:
    async with started(BOTH) as run:
        await both_started(run)
        for name in ("first", "second"):
            running(run, name)[0].work_on(num_bytes=100)
            await settle()
            assert run.take()
            await settle()
            assert run.executor.context.budget.live_bytes == 0


async def test_limit_holds_no_block_while_it_waits_for_the_next() -> None:
    async with started(plan(IdsSource(6, name="first"), 5)) as run:
        await run.started()
        run.runtime.running[0].work_on(1, num_bytes=100)
        await settle()
        assert run.take()
        await settle()
        assert run.executor.context.budget.live_bytes == 0
