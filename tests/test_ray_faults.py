"""Processes of Ray are killed under a pass over a dataset: no row is lost or doubled, or an error says what is."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pyarrow as pa
import pytest

import aiodata
from tests.conftest import PATIENCE_S, stored_bytes, until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.loops("asyncio")]

Batch = dict[str, Any]

NUM_ROWS = 1000
BATCH_ROWS = 10

# What makes the blocks of ten batches too large to travel in a message: they are in the object store.
PAD_BYTES = 4096


class Once:
    """Ends the process that first comes to a row; as seen from all processes.

    Args:
        folder: Where it is noted.
        row: The row.
        times: How many processes end, one after the other.
    """

    def __init__(self, folder: Path, row: int, times: int = 1) -> None:
        self.folder = str(folder)
        self.row = row
        self.times = times

    @property
    def num_killed(self) -> int:
        return sum(name.startswith(f"killed-{self.row}-") for name in os.listdir(self.folder))

    def look_at(self, batch: Batch) -> None:
        if self.row in batch["id"] and self.num_killed < self.times:
            (Path(self.folder) / f"killed-{self.row}-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)


def dying(once: Once) -> Callable[[Batch], Batch]:
    def double(batch: Batch) -> Batch:
        once.look_at(batch)
        return {"id": batch["id"], "twice": batch["id"] * 2, "pad": np.zeros((len(batch["id"]), PAD_BYTES), np.uint8)}

    return double


class Worker:
    """An actor's state: it notes each time that it is built, and says in each row who made it.

    Args:
        once: When to die.
        num_together: How many are built before any of them begins: a machine that is busy may take long for the second.
    """

    def __init__(self, once: Once, num_together: int = 1) -> None:
        self.once = once
        self.num_together = num_together
        (Path(once.folder) / f"built-{os.getpid()}-{time.monotonic_ns()}").touch()

    def __call__(self, batch: Batch) -> Batch:
        while len(pids_built(Path(self.once.folder))) < self.num_together:
            time.sleep(0.01)
        # As long as what feeds it takes: there is work for all actors, and no task takes all of it.
        time.sleep(0.03)
        self.once.look_at(batch)
        return {"id": batch["id"], "twice": batch["id"] * 2, "pid": np.full(len(batch["id"]), os.getpid())}


def pids_built(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("built-*"))


def same(block: pa.Table) -> pa.Table:
    return block


class Same:
    def __call__(self, block: pa.Table) -> pa.Table:
        return block


def numbers(**options: Any) -> aiodata.Dataset:
    return aiodata.range(NUM_ROWS, num_blocks=4).with_options(runtime="ray", **options)


async def rows_of(ds: aiodata.Dataset, column: str = "twice") -> list[int]:
    rows: list[int] = []
    with anyio.fail_after(PATIENCE_S):
        async for batch in ds.aiter_batches(batch_size=BATCH_ROWS):
            rows += batch[column].tolist()
    return rows


@pytest.mark.parametrize("preserve_order", [False, True])
@pytest.mark.parametrize("killed_in", [0, 1])
async def test_worker_killed_in_either_of_two_operators_loses_and_doubles_no_row(
    tmp_path: Path, killed_in: int, preserve_order: bool
) -> None:
    deaths = [Once(tmp_path, 350, times=killed_in == 0), Once(tmp_path, 650, times=killed_in == 1)]
    ds = numbers(preserve_order=preserve_order)
    for death in deaths:
        ds = ds.map_batches(dying(death), batch_size=BATCH_ROWS, concurrency=2)
    rows = await rows_of(ds)
    assert [death.num_killed for death in deaths] == [killed_in == 0, killed_in == 1]
    assert (rows if preserve_order else sorted(rows)) == [2 * one for one in range(NUM_ROWS)]


@pytest.mark.parametrize("preserve_order", [False, True])
async def test_killed_actor_builds_its_state_again_and_no_row_is_lost_or_doubled(
    tmp_path: Path, preserve_order: bool
) -> None:
    death = Once(tmp_path, 350)
    ds = numbers(preserve_order=preserve_order).map_batches(
        Worker, batch_size=BATCH_ROWS, concurrency=2, fn_constructor_args=(death, 2)
    )
    rows = await rows_of(ds)
    assert death.num_killed == 1
    assert len(pids_built(tmp_path)) == 3
    assert (rows if preserve_order else sorted(rows)) == [2 * one for one in range(NUM_ROWS)]


@pytest.mark.parametrize("killed_at", [0, 350, 650])
async def test_worker_killed_while_types_are_found_out_loses_and_doubles_no_row(tmp_path: Path, killed_at: int) -> None:
    death = Once(tmp_path, killed_at)

    def change(batch: Batch) -> Batch:
        death.look_at(batch)
        row = batch["id"][0]
        if row == 0:
            time.sleep(0.3)  # The others are done by then, each with types of its own.
        return {"id": batch["id"], "twice": batch["id"] * 2 if row < 250 else batch["id"] * 2.0}

    ds = numbers().map_batches(change, batch_size=BATCH_ROWS)
    with anyio.fail_after(PATIENCE_S):
        batches = [batch async for batch in ds.aiter_batches(batch_size=BATCH_ROWS)]
    assert death.num_killed == 1
    assert {batch["twice"].dtype for batch in batches} == {np.dtype(np.int64)}
    assert sorted(row for batch in batches for row in batch["twice"].tolist()) == [2 * one for one in range(NUM_ROWS)]


def slow(batch: Batch) -> Batch:
    """Take so long that there is something left to do when an actor is killed."""
    time.sleep(0.03)
    return batch


async def test_both_actors_killed_from_outside_in_mid_stream_lose_and_double_no_row(tmp_path: Path) -> None:
    nobody = Once(tmp_path, -1)
    ds = (
        numbers()
        .map_batches(slow, batch_size=BATCH_ROWS)
        .map_batches(Worker, batch_size=BATCH_ROWS, concurrency=2, fn_constructor_args=(nobody, 2))
    )
    rows: list[int] = []
    killed: list[int] = []
    with anyio.fail_after(PATIENCE_S):
        async for batch in ds.aiter_batches(batch_size=BATCH_ROWS):
            rows += batch["twice"].tolist()
            if not killed and len(pids_built(tmp_path)) == 2:
                killed = pids_built(tmp_path)
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
    # One of the two may not be needed any more when it is there again.
    assert len(killed) == 2
    assert len(pids_built(tmp_path)) in {3, 4}
    assert sorted(rows) == [2 * one for one in range(NUM_ROWS)]


async def test_actor_that_dies_more_often_than_there_are_retries_is_an_error_that_says_so(tmp_path: Path) -> None:
    death = Once(tmp_path, 350, times=100)
    ds = numbers(task_max_retries=1).map_batches(
        Worker, batch_size=BATCH_ROWS, concurrency=2, fn_constructor_args=(death,)
    )
    with pytest.raises(aiodata.TaskError, match=r"map_batches\(Worker\).*Actor"):
        await rows_of(ds)
    assert death.num_killed == 2


async def test_pool_replaces_an_actor_that_is_lost_and_goes_on_where_failures_may_be_skipped(tmp_path: Path) -> None:
    death = Once(tmp_path, 350)
    ds = numbers(task_max_retries=0, max_errored_blocks=-1).map_batches(slow, batch_size=BATCH_ROWS)
    ds = ds.map_batches(Worker, batch_size=BATCH_ROWS, concurrency=1, fn_constructor_args=(death,))
    rows: list[int] = []
    made_by: set[int] = set()
    with anyio.fail_after(PATIENCE_S):
        async with ds.aiter_batches(batch_size=BATCH_ROWS) as batches:
            async for batch in batches:
                rows += batch["id"].tolist()
                made_by |= set(batch["pid"].tolist())
            errors = batches.stats().errors
    missing = set(range(NUM_ROWS)) - set(rows)
    assert 350 in missing
    assert len(rows) + len(missing) == NUM_ROWS
    assert made_by == set(pids_built(tmp_path))
    assert len(made_by) == 2
    # What ran on the actor, and what waited for it there.
    assert 1 <= len(errors) <= 2
    assert all("Actor" in error for error in errors)


async def test_worker_that_is_lost_costs_what_its_task_had_left_where_failures_may_be_skipped(tmp_path: Path) -> None:
    death = Once(tmp_path, 350)
    ds = numbers(task_max_retries=0, max_errored_blocks=-1).map_batches(dying(death), batch_size=BATCH_ROWS)
    async with ds.aiter_batches(batch_size=BATCH_ROWS) as batches:
        rows = [row async for batch in batches for row in batch["id"].tolist()]
        [error] = batches.stats().errors
    missing = sorted(set(range(NUM_ROWS)) - set(rows))
    assert len(rows) + len(missing) == NUM_ROWS
    # The task had one of the four pieces of the range; what it had yielded before is there.
    assert 350 in missing
    assert missing == list(range(missing[0], 500))
    assert "WorkerCrashedError" in error


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Switch the cyclic garbage collection off: it may come late, and it may come in time to hide what it frees."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
async def test_block_that_was_put_into_the_store_leaves_it_when_the_pass_is_over(stored_before: int) -> None:
    """Ray keeps it for ever if a block that was made of it is dropped before its task is complete."""
    table = pa.table({"id": np.arange(100_000)})
    ds = aiodata.from_arrow(table).with_options(runtime="ray")
    once = ds.map_batches(same, batch_format="pyarrow")
    twice = once.map_batches(same, batch_format="pyarrow", concurrency=2)
    for one in (once, twice, twice.map_batches(Same, batch_format="pyarrow")):
        rows = await rows_of(one, "id")
        assert rows == list(range(100_000))
        await until(lambda: stored_bytes() <= stored_before, "blocks are left in the store")


@pytest.mark.usefixtures("uncollected")
async def test_large_function_leaves_the_store_when_the_pass_is_over(stored_before: int) -> None:
    numbers = np.arange(100_000)

    def add(batch: Batch) -> Batch:
        return {"id": batch["id"] + numbers[batch["id"]]}

    rows = await rows_of(aiodata.range(100_000).with_options(runtime="ray").map_batches(add), "id")
    assert sorted(rows) == list(range(0, 200_000, 2))
    await until(lambda: stored_bytes() <= stored_before, "the function is left in the store")


def test_large_function_leaves_the_store_though_its_loop_is_closed_before_its_tasks_are_complete() -> None:
    """A task is complete some milliseconds after its last row; what is to happen then must not need the loop."""
    before = stored_bytes()
    numbers = np.arange(100_000)

    def add(batch: Batch) -> Batch:
        return {"id": batch["id"] + numbers[batch["id"]]}

    ds = aiodata.range(100_000).with_options(runtime="ray").map_batches(add)
    for _ in range(8):
        assert sorted(asyncio.run(rows_of(ds, "id"))) == list(range(0, 200_000, 2))
    gc.collect()

    async def wait() -> None:
        await until(lambda: stored_bytes() <= before, "functions are left in the store")

    asyncio.run(wait())
