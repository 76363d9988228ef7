"""Keep memory within a budget while the consumer is slow.

A function makes 1,200 rows of 1 MB each, as fast as it can, and the consumer takes them ten at a time and sleeps
20 ms after each batch: 1.2 GB pass through a store of 2 GiB. The use of the object store, and what Ray has written to
disk, is sampled every 10 ms. On the local runtime, where there is no store, the peak is that of the statistics.

- aiodata: a budget of 128 MiB (`max_object_store_bytes`).
- aiodata_ray_unbounded, aiodata_local_unbounded: a budget larger than all the data.
- ray_data: the same function and consumer in a coroutine, its defaults.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import event_loop
from benchmarks.model import AIODATA, Contender, Metric, Scenario, aiodata_contenders, at_most, times_as_long
from benchmarks.sources import check_rows, quiet_ray_data
from benchmarks.spilling import spilled_bytes, store_used_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_NUM_ROWS = 1_200
_ROW_VALUES = 125_000
_BATCH_ROWS = 10
_SLEEP_S = 0.02
_BUDGET_BYTES = 128 << 20
_UNBOUNDED_BYTES = 1 << 40
_SAMPLE_S = 0.01


def _large_rows(batch: dict[str, Any]) -> dict[str, Any]:
    return {"id": batch["id"], "x": np.ones((len(batch["id"]), _ROW_VALUES))}


async def _aiodata_pass(runtime: str, budget_bytes: int) -> float:
    """Return the peak of the live bytes."""
    import aiodata

    dataset = (
        aiodata.range(_NUM_ROWS, num_blocks=24)
        .map_batches(_large_rows, batch_size=1)
        .with_options(runtime=runtime, max_object_store_bytes=budget_bytes)
    )
    num_rows = 0
    async with dataset.aiter_batches(batch_size=_BATCH_ROWS) as batches:
        async for batch in batches:
            num_rows += len(batch["id"])
            del batch
            await asyncio.sleep(_SLEEP_S)
        budget = batches.stats().budget
    check_rows(num_rows, _NUM_ROWS)
    return 0.0 if budget is None else budget.peak_live_bytes


async def _ray_data_pass() -> float:
    import ray.data

    quiet_ray_data()
    dataset = ray.data.range(_NUM_ROWS, override_num_blocks=24).map_batches(_large_rows, batch_size=1)
    num_rows = 0
    for batch in dataset.iter_batches(batch_size=_BATCH_ROWS):
        num_rows += len(batch["id"])
        del batch
        await asyncio.sleep(_SLEEP_S)
    check_rows(num_rows, _NUM_ROWS)
    return 0.0


@dataclass
class _Peaks:
    """The most bytes in the object store and on disk, beyond what was there before."""

    store_bytes: float = 0.0
    spilled_bytes: float = 0.0

    async def watch(self) -> None:
        """Sample both."""
        store_before, spilled_before = store_used_bytes(), spilled_bytes()
        while True:
            self.store_bytes = max(self.store_bytes, store_used_bytes() - store_before)
            self.spilled_bytes = max(self.spilled_bytes, spilled_bytes() - spilled_before)
            await asyncio.sleep(_SAMPLE_S)


async def _measure(run_pass: Callable[[], Awaitable[float]], *, has_store: bool) -> Mapping[str, float]:
    peaks = _Peaks()
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(peaks.watch()) if has_store else None
        live_bytes = await run_pass()
        if watching is not None:
            watching.cancel()
    return {
        "pass_s": time.perf_counter() - started,
        "live_peak_bytes": live_bytes,
        "store_peak_bytes": peaks.store_bytes if has_store else live_bytes,
        "spilled_bytes": peaks.spilled_bytes,
    }


def _aiodata(budget_bytes: int, runtime: str) -> Mapping[str, float]:
    return event_loop.run(_measure(partial(_aiodata_pass, runtime, budget_bytes), has_store=runtime == "ray"))


def _ray_data() -> Mapping[str, float]:
    return event_loop.run(_measure(_ray_data_pass, has_store=True))


SCENARIO = Scenario(
    name="slow_consumer",
    summary="1.2 GB of large rows for a consumer that sleeps",
    timed="the whole pass",
    notes=__doc__,
    metrics=(
        Metric("pass_s", "s", "the pass"),
        Metric("live_peak_bytes", "B", "the most bytes of blocks that something referred to (aiodata's statistics)"),
        Metric("store_peak_bytes", "B", "the most bytes in the object store"),
        Metric("spilled_bytes", "B", "the most bytes of objects on disk"),
    ),
    baseline="ray_data",
    contenders=(
        *aiodata_contenders(partial(_aiodata, _BUDGET_BYTES)),
        *aiodata_contenders(partial(_aiodata, _UNBOUNDED_BYTES), variant="unbounded"),
        Contender("ray_data", "Ray Data", ("ray", "pandas"), _ray_data, on_cluster=True),
    ),
    aims=tuple(
        aim
        for contender in AIODATA
        for aim in (
            at_most(contender, "live_peak_bytes", _BUDGET_BYTES),
            at_most(contender, "spilled_bytes", 0),
            times_as_long(contender, "pass_s", 1.05, against=f"{contender}_unbounded"),
        )
    ),
)
