"""See how late a timer is served beside an iteration at full speed.

A task wants to run every 5 ms on a fixed schedule, beside whole passes over the Parquet files in
batches of 4096 rows, `numpy` where nothing else is said, until three seconds are over. What counts is
how late its turns come: a loop that is held for a second makes 200 turns late. The process has done
the same once before, uncounted. uvloop's timers have a resolution of 1 ms, so that a lag of 1 ms is
the floor.

- aiodata: `async for`, defaults; also in `pandas`, `polars` and `torch` batches, the last without the
  column of strings, for which torch has no type.
- ray_data: a plain `for` in a coroutine, with `await asyncio.sleep(0)` after each batch.
- ray_data_thread: each `next` in a worker thread (`asyncio.to_thread`), the careful way to do it.
- ticker_alone: nothing beside the ticker, which shows what the machine itself adds.
"""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from benchmarks import event_loop
from benchmarks.figures import percentile
from benchmarks.lag import lags_beside
from benchmarks.model import AIODATA, Contender, Metric, Scenario, aiodata_contenders, at_most, ray_data_contender
from benchmarks.sources import NUMERIC_COLUMNS, aiodata_parquet, check_rows, ray_data_parquet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

_BATCH_ROWS = 4096
_AT_LEAST_S = 3.0
_MS_PER_S = 1e3


async def _aiodata_pass(batch_format: str, runtime: str) -> None:
    num_rows = 0
    dataset = aiodata_parquet(runtime)
    if batch_format == "torch":
        dataset = dataset.select_columns(NUMERIC_COLUMNS)
    async for batch in dataset.aiter_batches(batch_size=_BATCH_ROWS, batch_format=batch_format):
        num_rows += len(batch["id"])
    check_rows(num_rows)


def _ray_data_batches() -> Iterator[Any]:
    dataset = ray_data_parquet()
    return iter(dataset.iter_batches(batch_size=_BATCH_ROWS, batch_format="numpy"))


async def _ray_data_pass() -> None:
    num_rows = 0
    for batch in _ray_data_batches():
        num_rows += len(batch["id"])
        await asyncio.sleep(0)
    check_rows(num_rows)


async def _ray_data_thread_pass() -> None:
    num_rows = 0
    batches = await asyncio.to_thread(_ray_data_batches)
    while (batch := await asyncio.to_thread(next, batches, None)) is not None:
        num_rows += len(batch["id"])
    check_rows(num_rows)


async def _nothing() -> None:
    await asyncio.sleep(_AT_LEAST_S)


def _lag_beside(run_pass: Callable[[], Awaitable[None]]) -> Mapping[str, float]:
    lags_s, pass_s = event_loop.run(lags_beside(run_pass, at_least_s=_AT_LEAST_S))
    lags_ms = [lag_s * _MS_PER_S for lag_s in lags_s]
    return {
        "lag_p99_ms": percentile(lags_ms, 99),
        "lag_p50_ms": percentile(lags_ms, 50),
        "lag_max_ms": max(lags_ms),
        "pass_s": pass_s,
    }


def _aiodata(batch_format: str, runtime: str) -> Mapping[str, float]:
    return _lag_beside(partial(_aiodata_pass, batch_format, runtime))


def _aiodata_in(batch_format: str) -> tuple[Contender, ...]:
    return aiodata_contenders(partial(_aiodata, batch_format), variant=batch_format, requires=(batch_format,))


# The formats beside numpy, which the contenders without a variant are about.
_FURTHER_FORMATS = ("pandas", "polars", "torch")

SCENARIO = Scenario(
    name="loop_lag",
    summary="a 5 ms ticker beside an iteration at full speed",
    timed="how late the ticker's turns come, over whole passes for three seconds",
    notes=__doc__,
    metrics=(
        Metric("lag_p99_ms", "ms", "lateness, 99th percentile"),
        Metric("lag_p50_ms", "ms", "lateness, median"),
        Metric("lag_max_ms", "ms", "lateness, largest"),
        Metric("pass_s", "s", "one pass over the files"),
    ),
    baseline="ray_data",
    contenders=(
        *aiodata_contenders(partial(_aiodata, "numpy")),
        *chain.from_iterable(map(_aiodata_in, _FURTHER_FORMATS)),
        ray_data_contender(partial(_lag_beside, _ray_data_pass), "for in a coroutine"),
        ray_data_contender(partial(_lag_beside, _ray_data_thread_pass), "each next in a thread", variant="thread"),
        Contender("ticker_alone", "nothing beside it", (), partial(_lag_beside, _nothing)),
    ),
    aims=tuple(
        at_most(contender, metric, limit_ms)
        for contender in (*AIODATA, *(f"{name}_{variant}" for variant in _FURTHER_FORMATS for name in AIODATA))
        for metric, limit_ms in (("lag_p99_ms", 5), ("lag_max_ms", 20))
    ),
)
