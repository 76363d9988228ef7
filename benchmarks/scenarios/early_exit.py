"""Leave a slow pipeline after its first batch, twenty times.

The pipeline maps batches of 131,072 ids with a function that sleeps for 50 ms and returns 1 MB;
left alone, two cores would be busy with it for 30 s. The consumer leaves by `break` after one
batch. One clock runs from there until every CPU is free (on the local runtime: until none of the
function's calls is running), another until the object store holds no more than just before that
pass; the state has to last for a quarter of a second. Both give up after 2.25 s: such a figure means
"not in that time". The first four breaks of a process are not counted; the levels that threads, asyncio
tasks, object references and the object store are compared with at the end are taken after them.

The cluster reports its free resources every 10 ms (Ray's default is 100 ms), which is the
resolution of the time. What is left at the end is counted after a garbage collection.

- aiodata: a bare `break` out of `async for`.
- Ray Data: a `break` out of `for`, in a coroutine; 300 blocks of four batches each.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import event_loop
from benchmarks.model import AIODATA, Metric, Scenario, aiodata_contenders, at_most, ray_data_contender
from benchmarks.settling import seconds_until_rest
from benchmarks.sources import quiet_ray_data

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_BATCH_ROWS = 131_072
_NUM_BATCHES = 1_200
_NUM_BLOCKS = 300
# Breaks before those that count: after some, a pool of threads has as many as it ever needs.
_NUM_WARM_UPS = 4
_NUM_COUNTED = 20
_SLEEP_S = 0.05
_WARM_UP_QUIET_S = 1.0

_running_calls: set[object] = set()


def slow_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Take 50 ms, and note that this process is busy meanwhile."""
    call = object()
    _running_calls.add(call)
    try:
        time.sleep(_SLEEP_S)
        return {"id": batch["id"] + 1}
    finally:
        _running_calls.discard(call)


async def _leave_aiodata(runtime: str) -> float:
    """Take one batch, leave, and return the time of leaving."""
    import aiodata

    dataset = (
        aiodata.range(_NUM_BATCHES * _BATCH_ROWS, num_blocks=_NUM_BLOCKS)
        .map_batches(slow_batch, batch_size=_BATCH_ROWS)
        .with_options(runtime=runtime)
    )
    left_at = 0.0
    async for _ in dataset.aiter_batches(batch_size=_BATCH_ROWS):
        left_at = time.perf_counter()
        break
    return left_at


async def _leave_ray_data() -> float:
    import ray.data

    quiet_ray_data()
    dataset = ray.data.range(_NUM_BATCHES * _BATCH_ROWS, override_num_blocks=_NUM_BLOCKS).map_batches(
        slow_batch, batch_size=_BATCH_ROWS
    )
    left_at = 0.0
    for _ in dataset.iter_batches(batch_size=_BATCH_ROWS):
        left_at = time.perf_counter()
        break
    return left_at


class _LocalResources:
    """Know whether calls are running in this process."""

    store_used_bytes = 0.0
    num_refs = 0

    def cpus_free(self) -> bool:
        """Say whether no call is running."""
        return not _running_calls


class _ClusterResources:
    """Know what is in use on the Ray cluster."""

    def __init__(self) -> None:
        import ray

        self._available = ray.available_resources
        totals = ray.cluster_resources()
        self._num_cpus = totals["CPU"]
        self._store_bytes: float = totals["object_store_memory"]

    def cpus_free(self) -> bool:
        """Say whether no CPU is taken."""
        return bool(self._available().get("CPU", 0.0) >= self._num_cpus)

    @property
    def store_used_bytes(self) -> float:
        """Return the bytes that the object store holds."""
        free_bytes: float = self._available().get("object_store_memory", 0.0)
        return self._store_bytes - free_bytes

    @property
    def num_refs(self) -> int:
        """Count the objects that this process refers to."""
        from ray._private.worker import global_worker

        return len(global_worker.core_worker.get_all_reference_counts())


_Resources = _LocalResources | _ClusterResources


@dataclass(frozen=True, slots=True)
class _Level:
    """Count what a process holds at one moment."""

    num_threads: int
    num_tasks: int
    num_refs: int
    store_bytes: float

    @classmethod
    def now(cls, resources: _Resources) -> _Level:
        """Count after a garbage collection."""
        gc.collect()
        return cls(
            threading.active_count(),
            len(asyncio.all_tasks()),
            resources.num_refs,
            resources.store_used_bytes,
        )


async def _leave_once(leave: Callable[[], Awaitable[float]], resources: _Resources) -> list[float]:
    """Return the seconds until the CPUs and the object store were free again."""
    store_bytes_before = resources.store_used_bytes
    left_at = await leave()
    conditions = [resources.cpus_free, lambda: resources.store_used_bytes <= store_bytes_before]
    return await seconds_until_rest(conditions, since=left_at)


async def _leave_often(
    leave: Callable[[], Awaitable[float]], open_resources: Callable[[], _Resources]
) -> dict[str, float]:
    resources = open_resources()
    for _ in range(_NUM_WARM_UPS):
        left_at = await leave()
        await seconds_until_rest([resources.cpus_free], since=left_at, quiet_s=_WARM_UP_QUIET_S)
    baseline = _Level.now(resources)
    waits_s = [await _leave_once(leave, resources) for _ in range(_NUM_COUNTED)]
    cpu_waits_s, store_waits_s = zip(*waits_s, strict=True)
    end = _Level.now(resources)
    return {
        "cpus_free_s": statistics.median(cpu_waits_s),
        "cpus_free_max_s": max(cpu_waits_s),
        "store_free_s": statistics.median(store_waits_s),
        "threads_left": max(0, end.num_threads - baseline.num_threads),
        "tasks_left": max(0, end.num_tasks - baseline.num_tasks),
        "refs_left": max(0, end.num_refs - baseline.num_refs),
        "store_left_bytes": max(0.0, end.store_bytes - baseline.store_bytes),
    }


def _early_exit(leave: Callable[[], Awaitable[float]], open_resources: Callable[[], _Resources]) -> Mapping[str, float]:
    return event_loop.run(_leave_often(leave, open_resources))


def _aiodata(runtime: str) -> Mapping[str, float]:
    open_resources: Callable[[], _Resources] = _ClusterResources if runtime == "ray" else _LocalResources
    return _early_exit(partial(_leave_aiodata, runtime), open_resources)


_NOTHING_LEFT = ("threads_left", "tasks_left", "refs_left", "store_left_bytes")

SCENARIO = Scenario(
    name="early_exit",
    summary="`break` after one batch of a slow pipeline, twenty times",
    timed="from the break until the CPUs are free and the object store is at its baseline",
    notes=__doc__,
    metrics=(
        Metric("cpus_free_s", "s", "the wait until the CPUs are free, median of twenty"),
        Metric("cpus_free_max_s", "s", "the longest of the twenty"),
        Metric("store_free_s", "s", "the wait until the object store is as before, median of twenty"),
        Metric("threads_left", "", "threads more than before, after twenty breaks"),
        Metric("tasks_left", "", "asyncio tasks more than before"),
        Metric("refs_left", "", "object references more than before"),
        Metric("store_left_bytes", "B", "bytes in the object store more than before"),
    ),
    baseline="ray_data",
    contenders=(
        *aiodata_contenders(_aiodata, warms_itself=True),
        ray_data_contender(
            partial(_early_exit, _leave_ray_data, _ClusterResources), "break out of iter_batches", warms_itself=True
        ),
    ),
    aims=tuple(
        at_most(contender, metric, limit)
        for contender in AIODATA
        for metric, limit in (
            ("cpus_free_s", 0.05),
            ("store_free_s", 0.05),
            *((name, 0.0) for name in _NOTHING_LEFT),
        )
    ),
)
