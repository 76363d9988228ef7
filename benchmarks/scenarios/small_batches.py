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

import time
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from benchmarks import event_loop
from benchmarks.figures import percentile
from benchmarks.model import Contender, Metric, Scenario, at_most, times_as_fast
from benchmarks.sources import check_rows, quiet_ray_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import ray.data

    import aiodata

_NUM_ROWS = 6_400_000
_RAY_DATA_ROWS = 640_000
_CHUNK_ROWS = 160_000
_BATCH_ROWS = 256
_SEED = 20_261
_NS_PER_US = 1e3


@cache
def _chunks(num_rows: int) -> tuple[pa.Table, ...]:
    random = np.random.default_rng(_SEED)
    return tuple(
        pa.table(
            {
                "id": np.arange(first, first + _CHUNK_ROWS, dtype=np.int64),
                "x": random.standard_normal(_CHUNK_ROWS),
                "y": random.random(_CHUNK_ROWS, dtype=np.float32),
                "label": random.integers(0, 10, _CHUNK_ROWS),
            }
        )
        for first in range(0, num_rows, _CHUNK_ROWS)
    )


class _Stamps:
    """Take the time of each batch."""

    def __init__(self) -> None:
        self._stamps_ns: list[int] = []
        self._num_rows = 0

    def batch(self, batch: Mapping[str, Any]) -> None:
        """Note a batch; its four columns have to be arrays."""
        self._stamps_ns.append(time.perf_counter_ns())
        self._num_rows += len(batch["id"])

    def figures(self, num_rows: int) -> dict[str, float]:
        """Check the rows and reduce the times."""
        check_rows(self._num_rows, num_rows)
        stamps = self._stamps_ns
        waits_us = [(later - earlier) / _NS_PER_US for earlier, later in pairwise(stamps)]
        return {
            "batch_us": sum(waits_us) / len(waits_us),
            "next_p50_us": percentile(waits_us, 50),
            "next_p99_us": percentile(waits_us, 99),
        }


@cache
def _aiodata_dataset(runtime: str) -> aiodata.Dataset:
    import aiodata

    table = pa.concat_tables(_chunks(_NUM_ROWS))
    return aiodata.from_arrow(table).with_options(runtime=runtime)


async def _aiodata_pass(runtime: str) -> dict[str, float]:
    stamps = _Stamps()
    batches = _aiodata_dataset(runtime).aiter_batches(batch_size=_BATCH_ROWS, batch_format="numpy")
    async for batch in batches:
        stamps.batch(batch)
    return stamps.figures(_NUM_ROWS)


def _aiodata(runtime: str) -> Mapping[str, float]:
    return event_loop.run(_aiodata_pass(runtime))


def _pull(open_batches: Callable[[], Iterable[Any]], num_rows: int) -> Mapping[str, float]:
    stamps = _Stamps()
    for batch in open_batches():
        stamps.batch(batch)
    return stamps.figures(num_rows)


@cache
def _ray_dataset() -> ray.data.MaterializedDataset:
    import ray.data

    quiet_ray_data()
    return ray.data.from_arrow(list(_chunks(_RAY_DATA_ROWS))).materialize()


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
        Contender(
            "aiodata_ray",
            "aiodata, Ray runtime",
            ("aiodata", "ray"),
            partial(_aiodata, "ray"),
            on_cluster=True,
        ),
        Contender("aiodata_local", "aiodata, local runtime", ("aiodata",), partial(_aiodata, "local")),
        Contender(
            "ray_data",
            "Ray Data, iter_batches, 640,000 rows",
            ("ray", "pandas"),
            partial(_pull, _ray_data, _RAY_DATA_ROWS),
            on_cluster=True,
        ),
        Contender(
            "pyarrow",
            "pyarrow, slices to arrays",
            ("pyarrow",),
            partial(_pull, _pyarrow, _NUM_ROWS),
        ),
    ),
    aims=(
        at_most("aiodata_ray", "batch_us", 6),
        at_most("aiodata_local", "batch_us", 6),
        times_as_fast("aiodata_ray", "batch_us", 75, against="ray_data"),
        times_as_fast("aiodata_local", "batch_us", 75, against="ray_data"),
        at_most("aiodata_ray", "next_p99_us", 50),
        at_most("aiodata_local", "next_p99_us", 50),
    ),
)
