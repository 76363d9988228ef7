"""Cut small batches from blocks that are there already.

A table of 6.4 M rows and four numeric columns (179 MB, in chunks of 160,000 rows) lies in memory,
for the Ray contenders also in the object store. It is iterated in `numpy` batches of 256 rows. The
clock runs in the steady state: from the first batch to the last. The next-batch latencies are the
times between two batches in the consumer's hands, with nothing else done in between.

- aiodata: `from_arrow(table)`, defaults.
- Ray Data: `from_arrow` with a block for each chunk, materialized, defaults; 640,000 rows, as each
  batch costs it so much: the figures are per batch.
- pyarrow: slices the table and turns each slice into arrays, in a plain loop.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from benchmarks import event_loop
from benchmarks.figures import percentile
from benchmarks.memory import numeric_chunks, ray_data_blocks
from benchmarks.model import (
    AIODATA,
    Contender,
    Metric,
    Scenario,
    aiodata_contenders,
    at_most,
    ray_data_contender,
    times_as_fast,
)
from benchmarks.stamps import Timing, time_async_pass, time_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import ray.data

    import aiodata

_NUM_ROWS = 6_400_000
_RAY_DATA_ROWS = 640_000
_CHUNK_ROWS = 160_000
_BATCH_ROWS = 256
_US_PER_S = 1e6


@cache
def _chunks(num_rows: int) -> list[pa.Table]:
    return numeric_chunks(num_rows, _CHUNK_ROWS)


def _figures(timing: Timing) -> Mapping[str, float]:
    waits_us = [wait_s * _US_PER_S for wait_s in timing.waits_s]
    return {
        "batch_us": sum(waits_us) / len(waits_us),
        "next_p50_us": percentile(waits_us, 50),
        "next_p99_us": percentile(waits_us, 99),
    }


@cache
def _aiodata_dataset(runtime: str) -> aiodata.Dataset:
    import aiodata

    return aiodata.from_arrow(pa.concat_tables(_chunks(_NUM_ROWS))).with_options(runtime=runtime)


def _aiodata(runtime: str) -> Mapping[str, float]:
    open_batches = partial(_aiodata_dataset(runtime).aiter_batches, batch_size=_BATCH_ROWS, batch_format="numpy")
    return _figures(event_loop.run(time_async_pass(open_batches, "id", _NUM_ROWS)))


def _pull(open_batches: Callable[[], Iterable[Any]], num_rows: int) -> Mapping[str, float]:
    return _figures(time_pass(open_batches, "id", num_rows))


@cache
def _ray_dataset() -> ray.data.MaterializedDataset:
    return ray_data_blocks(_chunks(_RAY_DATA_ROWS))


def _ray_data() -> Iterable[Any]:
    batches: Iterable[Any] = _ray_dataset().iter_batches(batch_size=_BATCH_ROWS, batch_format="numpy")
    return batches


def _pyarrow() -> Iterator[dict[str, Any]]:
    for chunk in _chunks(_NUM_ROWS):
        for batch in chunk.to_batches(_BATCH_ROWS):
            yield {
                name: column.to_numpy(zero_copy_only=False)
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
            }


SCENARIO = Scenario(
    name="small_batches",
    summary="256 rows of four numeric columns as numpy arrays, from blocks already in memory",
    timed="from the first batch to the last, after one whole pass in the same process",
    notes=__doc__,
    metrics=(
        Metric("batch_us", "us", "time per batch"),
        Metric("next_p50_us", "us", "wait for the next batch, median"),
        Metric("next_p99_us", "us", "wait for the next batch, 99th percentile"),
    ),
    baseline="ray_data",
    contenders=(
        *aiodata_contenders(_aiodata),
        ray_data_contender(partial(_pull, _ray_data, _RAY_DATA_ROWS), "iter_batches, 640,000 rows"),
        Contender(
            "pyarrow",
            "pyarrow, slices to arrays",
            ("pyarrow",),
            partial(_pull, _pyarrow, _NUM_ROWS),
        ),
    ),
    aims=tuple(
        aim
        for contender in AIODATA
        for aim in (
            at_most(contender, "batch_us", 6),
            times_as_fast(contender, "batch_us", 75, against="ray_data"),
            at_most(contender, "next_p99_us", 50),
            times_as_fast(contender, "next_p99_us", 20, against="ray_data"),
        )
    ),
)
