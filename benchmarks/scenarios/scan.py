"""Scan Parquet files to the end.

Every contender reads all five columns of the 32 files (6.4 M rows, 242 MB in Arrow) and is handed
batches of 4096 rows, which it counts. The process has made three whole passes before: files are in
the page cache, Ray's worker processes are there and have the store's memory mapped. The recipe is
built inside the clock.

- aiodata: defaults, `pyarrow` batches, on uvloop.
- Ray Data: defaults, `pyarrow` batches, progress bars off. Measured as here, six runs of each in
  turn: a median of 3.18 s by default, 3.20 s with 4 read blocks, 3.37 s with 8. Later passes of one
  process, six of each in turn: 2.71 s by default, 2.56–2.60 s with 2, 4 or 8 read blocks or 16
  prefetched batches. The ranges overlap in both cases.
- pyarrow.dataset: `to_batches(batch_size=4096)` with its own readahead. Larger readaheads were not
  faster. Its batches end at row groups, so that some are smaller.
- polars: the streaming engine's `collect_batches`, unordered, in chunks of 65,536 rows which are
  then sliced: faster than chunks of 4096. The batches stay polars frames, which saves it the
  conversion.
- duckdb: an Arrow reader, with `preserve_insertion_order` off; it rounds the batch size up to its
  vectors of 2048.
- torch: a `DataLoader` with two workers, each reading every second file with
  `ParquetFile.iter_batches`; record batches travel as they are, without a collate function.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import event_loop
from benchmarks.model import (
    Contender,
    Metric,
    Scenario,
    aiodata_contenders,
    ray_data_contender,
    times_as_fast,
    times_as_long,
)
from benchmarks.sources import (
    aiodata_parquet,
    arrow_parquet,
    check_rows,
    duckdb_parquet,
    parquet_folder,
    parquet_paths,
    ray_data_parquet,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

BATCH_ROWS = 4096
_POLARS_CHUNK_ROWS = 16 * BATCH_ROWS
_NUM_TORCH_WORKERS = 2


class _Clock:
    """Time one pass: the whole, its first batch, and the processor time of this process."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._cpu_started = time.process_time()
        self._first: float | None = None
        self._num_rows = 0

    def batch(self, num_rows: int) -> None:
        """Count a batch."""
        if self._first is None:
            self._first = time.perf_counter()
        self._num_rows += num_rows

    def stop(self) -> dict[str, float]:
        """Check the rows and return the figures."""
        ended = time.perf_counter()
        cpu_s = time.process_time() - self._cpu_started
        check_rows(self._num_rows)
        assert self._first is not None
        return {
            "total_s": ended - self._started,
            "first_s": self._first - self._started,
            "process_cpu_s": cpu_s,
        }


async def _aiodata_pass(runtime: str) -> dict[str, float]:
    clock = _Clock()
    batches = aiodata_parquet(runtime).aiter_batches(batch_size=BATCH_ROWS, batch_format="pyarrow")
    async for batch in batches:
        clock.batch(batch.num_rows)
    return clock.stop()


def _aiodata(runtime: str) -> Mapping[str, float]:
    return event_loop.run(_aiodata_pass(runtime))


def _pull(open_batches: Callable[[], Iterable[Any]], rows_of: str) -> Mapping[str, float]:
    """Pull every batch; `rows_of` names the attribute that holds a batch's number of rows."""
    clock = _Clock()
    for batch in open_batches():
        clock.batch(getattr(batch, rows_of))
    return clock.stop()


def _ray_data() -> Iterable[Any]:
    dataset = ray_data_parquet()
    batches: Iterable[Any] = dataset.iter_batches(batch_size=BATCH_ROWS, batch_format="pyarrow")
    return batches


def _pyarrow_dataset() -> Iterable[Any]:
    batches: Iterable[Any] = arrow_parquet().to_batches(batch_size=BATCH_ROWS)
    return batches


def _polars() -> Iterator[Any]:
    import polars as pl

    chunks = pl.scan_parquet(f"{parquet_folder()}/*.parquet").collect_batches(
        chunk_size=_POLARS_CHUNK_ROWS, maintain_order=False
    )
    for chunk in chunks:
        yield from chunk.iter_slices(BATCH_ROWS)


def _duckdb() -> Iterable[Any]:
    reader: Iterable[Any] = duckdb_parquet().to_arrow_reader(BATCH_ROWS)
    return reader


def _untouched(batch: Any) -> Any:
    return batch


def _torch_dataloader() -> Iterable[Any]:
    import torch.utils.data

    from benchmarks.file_shares import FileShares

    loader: Iterable[Any] = torch.utils.data.DataLoader(
        FileShares(parquet_paths(), BATCH_ROWS),
        batch_size=None,
        collate_fn=_untouched,
        num_workers=_NUM_TORCH_WORKERS,
        prefetch_factor=8,
    )
    return loader


SCENARIO = Scenario(
    name="scan",
    summary="Parquet files to batches of 4096 rows, whole pass",
    timed="from building the recipe to the last batch, after one whole pass in the same process",
    notes=__doc__,
    metrics=(
        Metric("total_s", "s", "the whole pass"),
        Metric("first_s", "s", "its first batch"),
        Metric("process_cpu_s", "s", "processor time of the iterating process, all threads"),
    ),
    baseline="ray_data",
    contenders=(
        *aiodata_contenders(_aiodata),
        ray_data_contender(partial(_pull, _ray_data, "num_rows")),
        Contender(
            "pyarrow_dataset",
            "pyarrow.dataset, to_batches",
            ("pyarrow",),
            partial(_pull, _pyarrow_dataset, "num_rows"),
        ),
        Contender(
            "polars",
            "polars, collect_batches and iter_slices",
            ("polars",),
            partial(_pull, _polars, "height"),
        ),
        Contender("duckdb", "duckdb, to_arrow_reader", ("duckdb",), partial(_pull, _duckdb, "num_rows")),
        Contender(
            "torch",
            "torch DataLoader, 2 workers",
            ("torch",),
            partial(_pull, _torch_dataloader, "num_rows"),
        ),
    ),
    num_warm_ups=3,
    aims=(
        times_as_fast("aiodata_ray", "total_s", 12, against="ray_data"),
        times_as_long("aiodata_ray", "total_s", 1.5, against="pyarrow_dataset"),
        times_as_long("aiodata_local", "total_s", 1.1, against="pyarrow_dataset"),
    ),
)
