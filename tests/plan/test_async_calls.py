"""Async functions in a task: rows, order, bounds, errors, and that nothing is left running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata import TaskError
from aiodata.plan.transforms import FilterRows, LimitRows
from aiodata.plan.work import Cuts, TaskEnd, Work
from tests.plan.calls import Calls, all_cuts, mapped, start
from tests.plan.running import UNLIMITED, Batch, counted, ids_of, outputs_of, run, step


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 40),
    size=st.none() | st.integers(1, 5),
    concurrency=st.integers(1, 6),
    turns=st.lists(st.integers(0, 9), min_size=1, max_size=7),
    limits=all_cuts(),
    streams=st.booleans(),
)
def test_rows_come_in_order_from_a_bounded_number_of_calls(
    count: int, size: int | None, concurrency: int, turns: list[int], limits: Cuts, streams: bool
) -> None:
    calls = Calls(turns)
    work: Work | None = Work((counted(count),), limits)
    ids: list[int] = []
    while work is not None:
        outputs, end = run(work, [mapped(calls.stream if streams else calls, size, concurrency)])
        ids += ids_of(outputs)
        work = None if end.rest is None else work.rest(end.rest)
    assert ids == list(range(count))
    assert calls.peak <= concurrency
    assert calls.started == sorted(calls.started)
    assert not calls.in_flight


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 40),
    concurrency=st.integers(1, 6),
    turns=st.lists(st.integers(0, 9), min_size=2, max_size=7),
    limits=all_cuts(),
    streams=st.booleans(),
)
def test_blocks_do_not_depend_on_how_long_calls_take(
    count: int, concurrency: int, turns: list[int], limits: Cuts, streams: bool
) -> None:
    seen = []
    for some in (turns, turns[::-1], [0]):
        calls = Calls(some)
        chain = [mapped(calls.stream if streams else calls, 2, concurrency), mapped(Calls(some), 3, concurrency)]
        outputs, end = run(Work((counted(count),), limits), chain)
        seen.append(([(table.to_pydict(), one.calls) for table, one in outputs], end))
    assert seen[0] == seen[1] == seen[2]


def test_calls_overlap_up_to_the_bound_at_little_cost() -> None:
    calls = Calls()

    async def nap(batch: Batch) -> Batch:
        with calls.noted(int(batch["id"][0])):
            await asyncio.sleep(0.1)
        return batch

    started = time.perf_counter()
    outputs = outputs_of(Work((counted(1000),), UNLIMITED), [mapped(nap, 1, 100)])
    assert ids_of(outputs) == list(range(1000))
    assert calls.peak == 100
    assert time.perf_counter() - started < 25  # One at a time they would take 100 seconds.


def test_slow_call_does_not_hold_up_the_others_at_once() -> None:
    ended: list[int] = []
    seven_ended = asyncio.Event()

    async def call(batch: Batch) -> Batch:
        first = int(batch["id"][0])
        if first == 0:
            await seven_ended.wait()
        ended.append(first)
        if len(ended) == 7:
            seven_ended.set()
        return batch

    assert ids_of(outputs_of(Work((counted(20),), UNLIMITED), [mapped(call)])) == list(range(20))
    assert ended.index(0) == 7


def test_async_functions_of_a_chain_go_on_while_one_waits() -> None:
    second = asyncio.Event()
    loops = set()

    async def first_of_chain(batch: Batch) -> Batch:
        loops.add(asyncio.get_running_loop())
        if batch["id"][0] == 1:
            await second.wait()
        return batch

    async def second_of_chain(batch: Batch) -> Batch:
        loops.add(asyncio.get_running_loop())
        if batch["id"][0] == 0:
            second.set()
        return batch

    chain = [mapped(first_of_chain, 1, 1), mapped(second_of_chain, 1, 1)]
    assert ids_of(outputs_of(Work((counted(5),), UNLIMITED), chain)) == list(range(5))
    [loop] = loops
    assert loop.is_closed()


@pytest.mark.parametrize(
    "error",
    [KeyError("oops"), asyncio.CancelledError(), StopAsyncIteration(), StopIteration(), GeneratorExit(), SystemExit(1)],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("streams", [False, True])
def test_failing_call_is_named_and_its_siblings_are_cancelled(error: BaseException, streams: bool) -> None:
    calls = Calls()

    async def fail_at_3(batch: Batch) -> Batch:
        if batch["id"][0] == 6:
            raise error
        return await calls.hang(batch)

    async def stream(batch: Batch) -> AsyncIterator[Batch]:
        yield await fail_at_3(batch)

    outputs, end = run(Work((counted(40),), UNLIMITED), [mapped(stream if streams else fail_at_3, 2)])
    assert isinstance(end.error, TaskError)
    assert (end.error.source, end.error.rows) == ("t", (6, 8))
    assert end.error.operator == f"map_batches({'stream' if streams else 'fail_at_3'})"
    assert type(error).__name__ in str(end.error) or "RuntimeError" in str(end.error)
    assert end.error.__cause__ is not None
    assert outputs == []
    assert max(calls.started) <= 8  # The fifth call takes the place of the first; none that of the failed one.
    assert not calls.in_flight
    assert all(loop.is_closed() for loop in calls.loops)


def test_results_before_a_failure_are_not_lost() -> None:
    async def fail_at_30(batch: Batch) -> Batch:
        if batch["id"][0] == 30:
            raise KeyError("oops")
        return batch

    outputs, end = run(Work((counted(40),), UNLIMITED), [mapped(fail_at_30)])
    assert end.error is not None
    assert ids_of(outputs) == list(range(len(ids_of(outputs))))
    assert len(ids_of(outputs)) >= 30 - 2 * 4


def test_generator_is_handed_on_item_by_item_and_waits_for_its_taker() -> None:
    produced: list[int] = []

    async def stream(batch: Batch) -> AsyncIterator[Batch]:
        for index in range(100):
            produced.append(index)
            yield {"id": [index]}

    steps = start(stream, 1)
    for taken in range(5):
        output = step(steps)
        assert not isinstance(output, TaskEnd)
        assert ids_of([output]) == [taken]
        assert len(produced) <= taken + 3
    steps.close()
    assert len(produced) <= 7


def test_item_comes_before_its_generator_ends() -> None:
    closed: list[bool] = []

    async def stream(batch: Batch) -> AsyncIterator[Batch]:
        try:
            yield batch
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    steps = start(stream, 1)
    output = step(steps)
    assert not isinstance(output, TaskEnd)
    steps.close()
    assert closed == [True]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 30),
    taken=st.integers(0, 30),
    concurrency=st.integers(1, 5),
    streams=st.booleans(),
    turns=st.lists(st.integers(0, 5), min_size=1, max_size=5),
)
def test_closing_anywhere_leaves_nothing_running(
    count: int, taken: int, concurrency: int, streams: bool, turns: list[int]
) -> None:
    calls = Calls(turns)
    steps = start(calls.stream if streams else calls, count, concurrency=concurrency)
    for _ in range(min(taken, count)):
        assert not isinstance(step(steps), TaskEnd)
    steps.close()
    assert not calls.in_flight
    assert all(loop.is_closed() for loop in calls.loops)


def test_limit_cancels_the_calls_that_it_does_not_need() -> None:
    calls = Calls()
    outputs = outputs_of(Work((counted(40),), UNLIMITED), [mapped(calls.hang), LimitRows(1)])
    assert ids_of(outputs) == [0]
    assert len(calls.started) <= 5
    assert not calls.in_flight


def test_failure_further_on_cancels_calls_in_flight() -> None:
    calls = Calls()

    def fail(batch: Batch) -> Batch:
        raise KeyError("oops")

    _, end = run(Work((counted(40),), UNLIMITED), [mapped(calls.hang), mapped(fail)])
    assert end.error is not None
    assert not calls.in_flight
    assert all(loop.is_closed() for loop in calls.loops)


def test_keyboard_interrupt_passes_and_cancels() -> None:
    calls = Calls()

    async def interrupt(batch: Batch) -> Batch:
        if batch["id"][0] == 2:
            raise KeyboardInterrupt
        return await calls.hang(batch)

    with pytest.raises(KeyboardInterrupt):
        outputs_of(Work((counted(9),), UNLIMITED), [mapped(interrupt)])
    assert not calls.in_flight


@pytest.mark.slow
def test_call_that_refuses_to_be_cancelled_holds_up_nobody() -> None:
    async def refuse(batch: Batch) -> Batch:
        while batch["id"][0]:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue
        return batch

    steps = start(refuse, 2)
    assert not isinstance(step(steps), TaskEnd)
    started = time.perf_counter()
    steps.close()
    assert time.perf_counter() - started < 4.0


def test_tasks_and_generators_of_the_users_own_end_with_the_work() -> None:
    ended: list[str] = []
    kept: list[Any] = []

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("task")

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            ended.append("generator")

    async def call(batch: Batch) -> Batch:
        generator = endless()
        kept.extend([asyncio.get_running_loop().create_task(background()), generator, await anext(generator)])
        await asyncio.sleep(0)
        return batch

    outputs_of(Work((counted(1),), UNLIMITED), [mapped(call)])
    assert sorted(ended) == ["generator", "task"]


async def test_work_can_be_stepped_and_closed_where_a_loop_runs() -> None:
    calls = Calls()
    steps = start(calls.hang, 9)
    assert not isinstance(step(steps), TaskEnd)
    steps.close()
    assert calls.loops.isdisjoint({asyncio.get_running_loop()})
    assert not calls.in_flight


def test_rows_of_a_failure_are_not_claimed_where_a_filter_dropped_some() -> None:
    async def fail(batch: Batch) -> Batch:
        raise KeyError("oops")

    _, end = run(Work((counted(9),), UNLIMITED), [FilterRows(pc.field("id") > 3), mapped(fail)])
    assert isinstance(end.error, TaskError)
    assert end.error.rows is None
