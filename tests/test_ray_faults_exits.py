"""Leaving is prompt with actors, async functions and several stages, too: all stops, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import ray

import aiodata
from tests.conftest import stored_bytes, threads, until
from tests.test_exits import CallLog

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean")]

Batch = dict[str, Any]

# Each call takes this long; 1,000 batches on 2 CPUs would take 25 s.
CALL_S = 0.05
NUM_ROWS = 10_000
BATCH_ROWS = 10


def note(path: str) -> None:
    with open(path, "a") as file:
        file.write(f"{time.time()}\n")


class Slow:
    """State of an actor, which notes who has it."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(f"{path}-pids", "a") as file:
            file.write(f"{os.getpid()}\n")

    def __call__(self, batch: Batch) -> Batch:
        note(self.path)
        time.sleep(CALL_S)  # The work of a user's function; it is what is to be stopped.
        return batch


class SlowAsync(Slow):
    async def __call__(self, batch: Batch) -> Batch:  # type: ignore[override]
        note(self.path)
        await asyncio.sleep(CALL_S)
        return batch


def slow_function(path: str) -> Callable[[Batch], Batch]:
    def call(batch: Batch) -> Batch:
        note(path)
        time.sleep(CALL_S)
        return batch

    return call


def actors(ds: aiodata.Dataset, path: str) -> aiodata.Dataset:
    return ds.map_batches(Slow, batch_size=BATCH_ROWS, concurrency=2, fn_constructor_args=(path,))


def async_function(ds: aiodata.Dataset, path: str) -> aiodata.Dataset:
    async def call(batch: Batch) -> Batch:
        note(path)
        await asyncio.sleep(CALL_S)
        return batch

    return ds.map_batches(call, batch_size=BATCH_ROWS, concurrency=4)


def async_actors(ds: aiodata.Dataset, path: str) -> aiodata.Dataset:
    return ds.map_batches(SlowAsync, batch_size=BATCH_ROWS, concurrency=2, fn_constructor_args=(path,))


def four_stages(ds: aiodata.Dataset, path: str) -> aiodata.Dataset:
    before = ds.map_batches(slow_function(path), batch_size=BATCH_ROWS, concurrency=2)
    return actors(before, path).map_batches(slow_function(path), batch_size=BATCH_ROWS, concurrency=2)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def actor_pids(path: str) -> list[int]:
    file = Path(f"{path}-pids")
    return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.mark.parametrize("add", [actors, async_function, async_actors, four_stages], ids=lambda add: add.__name__)
async def test_break_stops_calls_and_actors_and_frees_cpus(
    runtime: str, tmp_path: Path, add: Callable[[aiodata.Dataset, str], aiodata.Dataset], capfd: Any
) -> None:
    log = CallLog(tmp_path / "calls")
    threads_before = threads()
    tasks_before = asyncio.all_tasks()
    ds = add(aiodata.range(NUM_ROWS).with_options(runtime=runtime, preserve_order=True), str(log.path))
    async for batch in ds.aiter_batches(batch_size=BATCH_ROWS):
        assert batch["id"].tolist() == list(range(BATCH_ROWS))
        break
    left = time.time()

    await until(lambda: not (asyncio.all_tasks() - tasks_before), "tasks are left")
    if runtime == "ray":
        await until(lambda: ray.available_resources().get("CPU") == 2, "CPUs are not free")
        await until(lambda: not any(map(is_running, actor_pids(str(log.path)))), "actors are left")
    await log.check_stopped(left, CALL_S)
    assert threads() <= threads_before
    assert capfd.readouterr() == ("", "")


async def test_ten_breaks_in_a_row_leave_no_actor_and_no_block(runtime: str, tmp_path: Path) -> None:
    before = stored_bytes() if runtime == "ray" else 0
    path = str(tmp_path / "calls")
    table = pa.table({"id": range(NUM_ROWS), "pad": [b"." * 100] * NUM_ROWS})
    ds = aiodata.from_arrow(table).with_options(runtime=runtime, preserve_order=True)
    ds = ds.map_batches(dict, batch_size=BATCH_ROWS)
    # One actor: to start them is what takes the time here.
    ds = ds.map_batches(Slow, batch_size=BATCH_ROWS, concurrency=1, fn_constructor_args=(path,)).map_batches(dict)
    for _ in range(10):
        async for batch in ds.aiter_batches(batch_size=BATCH_ROWS):
            assert batch["id"].tolist() == list(range(BATCH_ROWS))
            break
        del batch
    await until(lambda: len(asyncio.all_tasks()) == 1, "tasks are left")
    if runtime == "ray":
        await until(lambda: not any(map(is_running, actor_pids(path))), "actors are left")
        gc.collect()
        await until(lambda: stored_bytes() <= before, "blocks are left in the store")
    assert len(actor_pids(path)) >= 10
