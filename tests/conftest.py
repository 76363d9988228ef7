"""What all tests share: both runtimes, both event loops, one Ray cluster, and a look for what a test left behind."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import uvloop
from hypothesis import HealthCheck, settings

import aiodata

# What has not come after so long, in seconds, does not come: no claim about speed, which a busy machine would refute.
PATIENCE_S = 120.0


# An example takes as long as the machine lets it.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every async test under both event loops, or under those that the closest mark `loops` names."""
    mark = item.get_closest_marker("loops")
    return {name: LOOPS[name] for name in (LOOPS if mark is None else mark.args)}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Refuse names that differ from process to process: tests that run side by side are known by them."""
    if " at 0x" in item.nodeid:
        raise pytest.UsageError(f"{item.nodeid} has an address in its name: give its parameters other ids")


def pytest_configure() -> None:
    """Have interrupts do what they do in a terminal: what is started in the background is told to ignore them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Take what is there before the first test out of the garbage collections, of which there are hundreds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start Ray once for all tests of this process; those beside it wait meanwhile, as Ray gives up after 30 s."""
    with (tmp_path_factory.getbasetemp().parent / "ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def runtime(request: pytest.FixtureRequest) -> str:
    """Run a test on each runtime."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return str(request.param)


@pytest.fixture
async def clean(runtime: str) -> AsyncIterator[None]:
    """Check after a test that it left nothing behind: no task, async generator, task set, CPU or stored object."""
    loop = asyncio.get_running_loop()
    complaints: list[object] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    baseline = await _settled_store() if runtime == "ray" else 0
    yield
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "tasks are left")
    assert not complaints
    if runtime == "ray":
        await until(lambda: ray.available_resources().get("CPU") == 2, "Ray's CPUs are not free")
        gc.collect()
        await until(lambda: stored_bytes() <= baseline, "objects are left in Ray's store")


@pytest.fixture
async def stored_before(ray_cluster: None) -> int:
    """Return the bytes that were in Ray's object store before the test."""
    return await _settled_store()


@pytest.fixture
async def same_store(stored_before: int) -> AsyncIterator[None]:
    """Check after a test that it has left nothing in Ray's object store."""
    yield
    gc.collect()
    await until(lambda: stored_bytes() <= stored_before, "objects are left in Ray's store")


def threads() -> set[str]:
    """Names of the threads that are neither pooled workers nor Ray's own."""
    return {
        thread.name
        for thread in threading.enumerate()
        if thread.name not in {"AnyIO worker thread", "aiodata worker thread"}
        and not thread.name.lower().startswith(("ray", "pythongc"))
    }


async def until(condition: Callable[[], bool], complaint: str, *, within_s: float = PATIENCE_S) -> float:
    """Wait for something that is seen only from outside; return how long it took, in seconds."""
    started = time.perf_counter()
    pause_s = 0.002
    while not condition():
        if time.perf_counter() - started > within_s:
            pytest.fail(f"{complaint}, after {within_s} s")
        await anyio.sleep(pause_s)
        # Whoever looks all the time takes time from what is waited for.
        pause_s = min(1.2 * pause_s, 0.05)
    return time.perf_counter() - started


def stored_bytes() -> int:
    """Bytes in Ray's object store."""
    available = ray.available_resources().get("object_store_memory", 0.0)
    return int(ray.cluster_resources().get("object_store_memory", 0.0) - available)


async def _settled_store() -> int:
    gc.collect()
    await until(lambda: ray.available_resources().get("CPU") == 2, "Ray's CPUs are not free before the test")
    return stored_bytes()


@pytest.fixture
def parquet_dir(tmp_path: Path) -> Path:
    """Four Parquet files of 2,500 rows in row groups of 1,000: id, x, and a string with nulls."""
    for index in range(4):
        ids = list(range(index * 2500, (index + 1) * 2500))
        table = pa.table(
            {"id": ids, "x": [one / 2 for one in ids], "s": [None if one % 7 == 0 else f"s{one}" for one in ids]}
        )
        pq.write_table(table, tmp_path / f"part-{index}.parquet", row_group_size=1000)
    return tmp_path


async def collect(ds: aiodata.Dataset, column: str = "id", **options: Any) -> list[Any]:
    """Iterate a dataset and return one column's values."""
    values: list[Any] = []
    async for batch in ds.aiter_batches(batch_format="pyarrow", **options):
        values += batch[column].to_pylist()
    return values
