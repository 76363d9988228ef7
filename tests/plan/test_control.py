"""Stopping a task that waits for async calls, and settling one before it pauses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata import TaskError
from aiodata.plan.transforms import Control, Stopped
from aiodata.plan.work import Cuts, TaskEnd, Work, run_work
from tests.plan.calls import Calls, all_cuts, mapped, start
from tests.plan.running import Batch, Output, counted, ids_of, step


def test_stop_from_another_thread_interrupts_the_wait() -> None:
    control = Control()
    calls = Calls()
    waiting = threading.Event()

    async def hang(batch: Batch) -> Batch:
        with calls.noted(int(batch["id"][0])):
            waiting.set()
            await asyncio.Event().wait()
        return batch

    def stop() -> None:
        waiting.wait()
        control.stop()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(stop)
        with pytest.raises(Stopped):
            step(start(hang, 9, control=control))
    assert not calls.in_flight
    assert all(loop.is_closed() for loop in calls.loops)
    control.stop()  # Also when all is over.


@pytest.mark.parametrize("streams", [False, True])
def test_settle_ends_what_is_in_flight_and_starts_nothing(streams: bool) -> None:
    control = Control()
    calls = Calls([0, 50, 50, 50])
    steps = start(calls.stream if streams else calls, 30, control=control)
    first = step(steps)
    assert not isinstance(first, TaskEnd)
    assert calls.in_flight
    started = list(calls.started)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(control.settle).result()
    assert calls.started == started
    assert not calls.in_flight
    rest: list[Output] = []
    while not isinstance(output := step(steps), TaskEnd):
        rest.append(output)
    assert ids_of([first, *rest]) == list(range(30))
    control.settle()


@settings(max_examples=40, deadline=None)
@given(
    pauses=st.sets(st.integers(0, 12)),
    turns=st.lists(st.integers(0, 9), min_size=1, max_size=7),
    limits=all_cuts(),
    streams=st.booleans(),
)
def test_blocks_do_not_depend_on_pauses(pauses: set[int], turns: list[int], limits: Cuts, streams: bool) -> None:
    seen = []
    for settled in (pauses, set()):
        control, calls = Control(), Calls(turns)
        chain = [mapped(calls.stream if streams else calls, 2), mapped(Calls(turns), 3)]
        steps = run_work(Work((counted(30),), limits), chain, (), control)
        outputs: list[Output] = []
        while not isinstance(output := step(steps), TaskEnd):
            outputs.append(output)
            if len(outputs) in settled:
                control.settle()
        seen.append(([(table.to_pydict(), one.calls) for table, one in outputs], output))
    assert seen[0] == seen[1]
    assert seen[0][1].error is None


def test_settle_does_not_wait_for_generators_that_wait_for_their_taker() -> None:
    control = Control()

    async def endless(batch: Batch) -> AsyncIterator[Batch]:
        while True:
            yield batch

    steps = start(endless, 9, control=control)
    assert not isinstance(step(steps), TaskEnd)
    control.settle()
    assert not isinstance(step(steps), TaskEnd)
    steps.close()


def test_failure_while_settling_is_raised_by_the_next_step() -> None:
    control = Control()
    calls = Calls()

    async def fail(batch: Batch) -> Batch:
        if batch["id"][0]:
            for _ in range(50):
                await asyncio.sleep(0)
            raise KeyError("oops")
        return await calls(batch)

    steps = start(fail, 9, control=control)
    assert not isinstance(step(steps), TaskEnd)
    control.settle()
    end = step(steps)
    assert isinstance(end, TaskEnd)
    assert isinstance(end.error, TaskError)
    assert end.error.rows == (1, 2)


def test_stop_interrupts_settling() -> None:
    control = Control()
    calls = Calls()
    steps = start(calls.hang, 9, control=control)
    assert not isinstance(step(steps), TaskEnd)
    with ThreadPoolExecutor(1) as thread:
        settling = thread.submit(control.settle)
        control.stop()
        settling.result()
    steps.close()
    assert not calls.in_flight
