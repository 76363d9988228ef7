"""Garbage is collected at every turn of the loop: no task of a pass hangs on nothing but its own references."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

import aiodata
from aiodata.errors import TaskError
from aiodata.options import ExecutionOptions
from aiodata.testing import Faults, SimulatedMap, SimulatedSource, Simulation, SimulationReport, no_leaks
from tests.testing.collecting import CollectingLoop, CollectingVirtualTimeLoop, run_collecting

NUM_ROWS = 2000
BATCH_ROWS = 100

SOURCE = SimulatedSource(num_pieces=6, blocks_per_piece=3, rows_per_block=10, s_per_block=0.1)
SIMULATION = Simulation(
    source=SOURCE,
    maps=[SimulatedMap(name="model", s_per_block=0.2, needs_actor=True), SimulatedMap(name="after")],
    num_workers=4,
    metadata_delay_s=0.05,
    cancel_delay_s=0.1,
)


def same(batch: dict[str, list[int]]) -> dict[str, list[int]]:
    return batch


def fail_late(batch: dict[str, list[int]]) -> dict[str, list[int]]:
    if batch["id"][0] >= NUM_ROWS // 2:
        raise ValueError("late")
    return batch


async def collate(batch: dict[str, list[int]]) -> list[int]:
    await asyncio.sleep(0)
    return list(batch["id"])


def dataset() -> aiodata.Dataset:
    return aiodata.range(NUM_ROWS, num_blocks=10).with_options(runtime="local")


@asynccontextmanager
async def collated(ds: aiodata.Dataset) -> AsyncIterator[aiodata.BatchIterator]:
    async with no_leaks(), ds.aiter_batches(batch_size=BATCH_ROWS, collate_fn=collate) as batches:
        yield batches


async def to_the_end() -> None:
    rows = []
    async with collated(dataset().map_batches(same)) as batches:
        async for batch in batches:
            rows += batch
    assert sorted(rows) == list(range(NUM_ROWS))


async def with_a_break() -> None:
    rows: list[int] = []
    async with collated(dataset().map_batches(same)) as batches:
        async for batch in batches:
            rows += batch
            if len(rows) >= NUM_ROWS // 2:
                break
    assert len(rows) == len(set(rows)) == NUM_ROWS // 2


async def with_an_error() -> None:
    rows: list[int] = []

    async def take() -> None:
        async with collated(dataset().map_batches(fail_late)) as batches:
            async for batch in batches:
                rows.extend(batch)

    with pytest.raises(TaskError, match="late"):
        await take()
    assert set(rows) <= set(range(NUM_ROWS // 2))


async def with_a_cancellation() -> None:
    rows: list[int] = []
    with anyio.CancelScope() as scope:
        async with collated(dataset().map_batches(same)) as batches:
            async for batch in batches:
                rows += batch
                if len(rows) >= NUM_ROWS // 2:
                    scope.cancel()
    assert scope.cancelled_caught
    assert len(rows) == len(set(rows)) == NUM_ROWS // 2


@pytest.mark.slow
@pytest.mark.parametrize("leave", [to_the_end, with_a_break, with_an_error, with_a_cancellation])
def test_no_task_of_a_local_pass_is_destroyed_however_it_ends(leave: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run_collecting(leave, CollectingLoop())


async def simulate(simulation: Simulation) -> SimulationReport:
    async with no_leaks():
        return await simulation.simulate()


@pytest.mark.slow
@pytest.mark.parametrize("metadata_prefetch", [False, True])
@pytest.mark.parametrize("faults", [None, Faults(seed=1, kill=0.1, stall=0.1, slow=0.1)])
def test_no_task_of_a_simulated_pass_is_destroyed(faults: Faults | None, metadata_prefetch: bool) -> None:
    options = ExecutionOptions(task_max_retries=100, metadata_prefetch=metadata_prefetch)
    simulation = replace(SIMULATION, faults=faults, options=options)
    report = run_collecting(lambda: simulate(simulation), CollectingVirtualTimeLoop())
    assert report.error is None
    assert report.is_exact
    assert report.is_accounted_for
    assert report.left_bytes == 0


@pytest.mark.slow
def test_no_task_is_destroyed_when_a_simulated_consumer_stops() -> None:
    simulation = replace(SIMULATION, consumer_max_blocks=4)
    report = run_collecting(lambda: simulate(simulation), CollectingVirtualTimeLoop())
    assert (report.error, report.rows_out) == (None, 40)
    assert report.is_accounted_for
    assert report.left_bytes == 0


@pytest.mark.slow
def test_no_task_is_destroyed_when_a_simulated_function_fails() -> None:
    simulation = replace(SIMULATION, faults=Faults(seed=1, fail=0.1))
    report = run_collecting(lambda: simulate(simulation), CollectingVirtualTimeLoop())
    assert isinstance(report.error, TaskError)
    assert report.is_accounted_for
    assert report.left_bytes == 0


@pytest.mark.slow
def test_no_task_is_destroyed_when_a_simulated_run_is_cancelled() -> None:
    async def main() -> bool:
        async with no_leaks():
            with anyio.move_on_after(0.7) as scope:
                await SIMULATION.simulate()
        return scope.cancelled_caught

    assert run_collecting(main, CollectingVirtualTimeLoop())


def test_a_task_that_nobody_refers_to_is_noticed() -> None:
    async def forget() -> None:
        async def wait() -> None:
            await asyncio.get_running_loop().create_future()

        # Nobody refers to it: that is what is to be noticed.
        asyncio.get_running_loop().create_task(wait())  # type: ignore[unused-awaitable]
        for _ in range(3):
            await asyncio.sleep(0)

    with pytest.raises(AssertionError, match="destroyed but it is pending"):
        run_collecting(forget, CollectingLoop())
