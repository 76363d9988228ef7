"""Wait for the first batch.

The recipe (the listed files) is built before the clock starts; the clock runs from the call that
starts the iteration to its first batch of 4096 rows. Then the iteration is left. Each process does
so once uncounted and then three times, with a pause between; a run's figure is the median of the
three, beside it the slowest.

- aiodata and Ray Data: defaults, `pyarrow` batches.
- pyarrow.dataset: `to_batches(batch_size=4096)` over a dataset that has already listed its files.
- duckdb: an Arrow reader over an open connection, with `preserve_insertion_order` off.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from benchmarks import event_loop
from benchmarks.model import Contender, Metric, Scenario, aiodata_contenders, at_most, ray_data_contender
from benchmarks.sources import (
    aiodata_parquet,
    arrow_parquet,
    duckdb_parquet,
    ray_data_parquet,
)

_BATCH_ROWS = 4096
_NUM_COUNTED = 3
_PAUSE_S = 0.5

_Opener = Callable[[], Iterable[Any]]


def _figures(waits_s: list[float]) -> dict[str, float]:
    counted = waits_s[1:]
    return {"first_s": statistics.median(counted), "slowest_s": max(counted)}


async def _aiodata_waits(runtime: str) -> list[float]:
    waits_s = []
    for _ in range(1 + _NUM_COUNTED):
        dataset = aiodata_parquet(runtime)
        started = time.perf_counter()
        async with dataset.aiter_batches(batch_size=_BATCH_ROWS, batch_format="pyarrow") as batches:
            await anext(batches)
            waits_s.append(time.perf_counter() - started)
        await asyncio.sleep(_PAUSE_S)
    return waits_s


def _aiodata(runtime: str) -> Mapping[str, float]:
    return _figures(event_loop.run(_aiodata_waits(runtime)))


def _pull_first(prepare: Callable[[], _Opener]) -> Mapping[str, float]:
    """Time the first batch of what `prepare` has made ready to open."""
    waits_s = []
    for _ in range(1 + _NUM_COUNTED):
        open_batches = prepare()
        started = time.perf_counter()
        batches = iter(open_batches())
        next(batches)
        waits_s.append(time.perf_counter() - started)
        del batches, open_batches
        time.sleep(_PAUSE_S)
    return _figures(waits_s)


def _ray_data() -> _Opener:
    dataset = ray_data_parquet()
    return partial(dataset.iter_batches, batch_size=_BATCH_ROWS, batch_format="pyarrow")


def _pyarrow_dataset() -> _Opener:
    return partial(arrow_parquet().to_batches, batch_size=_BATCH_ROWS)


def _duckdb() -> _Opener:
    return partial(duckdb_parquet().to_arrow_reader, _BATCH_ROWS)


SCENARIO = Scenario(
    name="first_batch",
    summary="Parquet files, the wait for the first batch",
    timed="from the call that starts an iteration to its first batch, after one uncounted wait",
    notes=__doc__,
    metrics=(
        Metric("first_s", "s", "the wait, median of three in a process"),
        Metric("slowest_s", "s", "the slowest of the three"),
    ),
    baseline="ray_data",
    contenders=(
        *aiodata_contenders(_aiodata, warms_itself=True),
        ray_data_contender(partial(_pull_first, _ray_data), warms_itself=True),
        Contender(
            "pyarrow_dataset",
            "pyarrow.dataset, to_batches",
            ("pyarrow",),
            partial(_pull_first, _pyarrow_dataset),
            warms_itself=True,
        ),
        Contender(
            "duckdb",
            "duckdb, to_arrow_reader",
            ("duckdb",),
            partial(_pull_first, _duckdb),
            warms_itself=True,
        ),
    ),
    aims=(
        at_most("aiodata_ray", "first_s", 0.025),
        at_most("aiodata_local", "first_s", 0.012),
    ),
)
