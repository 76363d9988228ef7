"""Cut batches from blocks of five hundred columns.

64 blocks of 2,000 rows and 500 float64 columns (8 MB each) lie in memory, for the Ray contenders also in
the object store. They are iterated in `numpy` batches of 256 rows, so that every block but one in eight
ends within a batch. The clock runs from opening the iteration to its end; the next-batch latencies are
the times between two batches in the consumer's hands, with nothing else done in between.

- aiodata: `from_arrow` with a table for each block, defaults.
- Ray Data: `from_arrow` with a block for each table, materialized, defaults.
- pyarrow: slices the tables and turns each slice into arrays, in a plain loop; its batches end at the
  blocks' ends.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from benchmarks import event_loop
from benchmarks.figures import percentile
from benchmarks.memory import ray_data_blocks, wide_chunks
from benchmarks.model import AIODATA, Contender, Metric, Scenario, aiodata_contenders, ray_data_contender, times_as_fast
from benchmarks.stamps import Timing, time_async_pass, time_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import ray.data

    import aiodata

_NUM_BLOCKS = 64
_BLOCK_ROWS = 2_000
_NUM_COLUMNS = 500
_BATCH_ROWS = 256
_NUM_ROWS = _NUM_BLOCKS * _BLOCK_ROWS
_COLUMN = "c0"
_MS_PER_S = 1e3


@cache
def _chunks() -> list[pa.Table]:
    return wide_chunks(_NUM_BLOCKS, _BLOCK_ROWS, _NUM_COLUMNS)


def _figures(timing: Timing) -> Mapping[str, float]:
    waits_ms = [wait_s * _MS_PER_S for wait_s in timing.waits_s]
    return {
        "block_ms": timing.pass_s * _MS_PER_S / _NUM_BLOCKS,
        "next_p50_ms": percentile(waits_ms, 50),
        "next_p99_ms": percentile(waits_ms, 99),
        "first_s": timing.first_s,
    }


@cache
def _aiodata_dataset(runtime: str) -> aiodata.Dataset:
    import aiodata

    return aiodata.from_arrow(_chunks()).with_options(runtime=runtime)


def _aiodata(runtime: str) -> Mapping[str, float]:
    open_batches = partial(_aiodata_dataset(runtime).aiter_batches, batch_size=_BATCH_ROWS, batch_format="numpy")
    return _figures(event_loop.run(time_async_pass(open_batches, _COLUMN, _NUM_ROWS)))


def _pull(open_batches: Callable[[], Iterable[Any]]) -> Mapping[str, float]:
    return _figures(time_pass(open_batches, _COLUMN, _NUM_ROWS))


@cache
def _ray_dataset() -> ray.data.MaterializedDataset:
    return ray_data_blocks(_chunks())


def _ray_data() -> Iterable[Any]:
    batches: Iterable[Any] = _ray_dataset().iter_batches(batch_size=_BATCH_ROWS, batch_format="numpy")
    return batches


def _pyarrow() -> Iterator[dict[str, Any]]:
    for chunk in _chunks():
        for batch in chunk.to_batches(_BATCH_ROWS):
            yield {name: batch.column(index).to_numpy() for index, name in enumerate(batch.schema.names)}


SCENARIO = Scenario(
    name="wide",
    summary="256 rows of 500 columns as numpy arrays, from blocks already in memory",
    timed="one pass over the blocks, after one whole pass in the same process",
    notes=__doc__,
    metrics=(
        Metric("block_ms", "ms", "the pass, per block"),
        Metric("next_p50_ms", "ms", "wait for the next batch, median"),
        Metric("next_p99_ms", "ms", "wait for the next batch, 99th percentile"),
        Metric("first_s", "s", "wait for the first batch"),
    ),
    baseline="ray_data",
    contenders=(
        *aiodata_contenders(_aiodata),
        ray_data_contender(partial(_pull, _ray_data)),
        Contender("pyarrow", "pyarrow, slices to arrays", ("pyarrow",), partial(_pull, _pyarrow)),
    ),
    aims=tuple(times_as_fast(contender, "block_ms", 2, against="ray_data") for contender in AIODATA),
)
