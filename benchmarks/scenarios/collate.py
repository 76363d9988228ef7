"""Collate batches at costs that differ, in four workers.

51,200 rows of four numeric columns lie in memory, for the Ray contenders in the object store: 8
blocks of 25 `numpy` batches of 256 rows. A collate function takes 10 ms on average for each of the
200 batches: 5–8 ms for most, 30 ms for every seventh or so, by the batch's first id and so alike
for everybody. It waits without the interpreter's lock, as a tokenizer or an image decoder in C
would. All contenders but the async ones collate four batches at a time, which would take 501 ms if
none of the four ever waited for anything. In one pass the consumer does nothing else, and in a
second one, the paced one, it is busy for 3 ms with each batch, which would take 600 ms if it never
waited. The clock runs from opening the iteration to its end.

In the ordered variants batches come in the order of their rows; in the others, a batch that is
ready passes a slower one. Ray Data holds four batches at most, those being collated and those that
wait, but any number in its buffer for the order. At full speed its four threads are so never idle,
ordered or not, and 501 ms leave nothing to gain with four workers. When paced they are, most of all
in order: while the consumer is served from that buffer, nothing is taken from the threads.

- aiodata: `collate_fn` with `prefetch_batches=4` and so four workers; ordered by
  `preserve_order=True`.
- aiodata, async: the same costs in an `async def`, as calls to a service would be, with
  `collate_workers=16`: such calls need no threads, so there may be more of them.
- Ray Data: `from_arrow`, materialized, `prefetch_batches=4`, which makes four threads, the most
  that it  starts; ordered by `execution_options.preserve_order`. The function is passed as the
  parameter that  `iter_torch_batches(collate_fn=...)` passes it on in: that spares Ray Data the
  tensors. With  `prefetch_batches=8` it was neither faster nor slower, with 1 (the default) it took
  four times as long.
- torch: a `DataLoader` with four worker processes, which live on from pass to pass, and two batches
  ahead for each (the default; one is slower); ordered by default, else with `in_order=False`.
"""

from __future__ import annotations

import asyncio
import time
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
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
    ray_data_contender,
    times_as_fast,
    times_as_long,
)
from benchmarks.stamps import Stamps, Timing, time_async_pass, time_pass

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence

    import ray.data
    import torch.utils.data

    import aiodata

_NUM_BATCHES = 200
_BATCH_ROWS = 256
_BATCHES_PER_BLOCK = 25
_NUM_ROWS = _NUM_BATCHES * _BATCH_ROWS
_NUM_WORKERS = 4
_NUM_ASYNC_CALLS = 16
_NUM_SLOW = 30
_STEP_S = 0.003
_SEED = 20_262
_MS_PER_S = 1e3


@cache
def costs_s() -> Sequence[float]:
    """Return what each batch costs, by its number."""
    slow = np.full(_NUM_SLOW, 0.03)
    fast = np.linspace(0.005, 0.008, _NUM_BATCHES - _NUM_SLOW)
    costs: list[float] = np.random.default_rng(_SEED).permutation(np.concatenate([slow, fast])).tolist()
    return costs


def slow_collate(batch: Any) -> Any:
    """Take the time that this batch costs."""
    time.sleep(costs_s()[int(batch["id"][0]) // _BATCH_ROWS])
    return batch


async def slow_collate_async(batch: Any) -> Any:
    """Take the time that this batch costs, without a thread."""
    await asyncio.sleep(costs_s()[int(batch["id"][0]) // _BATCH_ROWS])
    return batch


@cache
def _chunks() -> list[pa.Table]:
    return numeric_chunks(_NUM_ROWS, _BATCHES_PER_BLOCK * _BATCH_ROWS)


def _figures(full_speed: Timing, paced: Timing) -> Mapping[str, float]:
    return {
        "pass_s": full_speed.pass_s,
        "next_p50_ms": percentile(full_speed.waits_s, 50) * _MS_PER_S,
        "next_p99_ms": percentile(full_speed.waits_s, 99) * _MS_PER_S,
        "paced_s": paced.pass_s,
        "paced_next_p99_ms": percentile(paced.waits_s, 99) * _MS_PER_S,
        "first_s": full_speed.first_s,
    }


def _step() -> None:
    time.sleep(_STEP_S)


async def _time_async_passes(open_batches: Callable[[], AsyncIterable[Any]]) -> Mapping[str, float]:
    full_speed = await time_async_pass(open_batches, "id", _NUM_ROWS)
    stamps = Stamps()
    async for batch in open_batches():
        stamps.batch(len(batch["id"]))
        # A timer of the event loop would come up to a millisecond late.
        await asyncio.to_thread(_step)
        stamps.ask()
    return _figures(full_speed, stamps.end(_NUM_ROWS))


def _time_passes(open_batches: Callable[[], Iterable[Any]]) -> Mapping[str, float]:
    full_speed = time_pass(open_batches, "id", _NUM_ROWS)
    stamps = Stamps()
    for batch in open_batches():
        stamps.batch(len(batch["id"]))
        _step()
        stamps.ask()
    return _figures(full_speed, stamps.end(_NUM_ROWS))


@cache
def _aiodata_dataset(runtime: str, *, is_ordered: bool) -> aiodata.Dataset:
    import aiodata

    return aiodata.from_arrow(_chunks()).with_options(runtime=runtime, preserve_order=is_ordered)


def _aiodata(runtime: str, *, is_ordered: bool, is_async: bool = False) -> Mapping[str, float]:
    open_batches = partial(
        _aiodata_dataset(runtime, is_ordered=is_ordered).aiter_batches,
        batch_size=_BATCH_ROWS,
        batch_format="numpy",
        prefetch_batches=_NUM_WORKERS,
        collate_fn=slow_collate_async if is_async else slow_collate,
        collate_workers=_NUM_ASYNC_CALLS if is_async else _NUM_WORKERS,
    )
    return event_loop.run(_time_async_passes(open_batches))


@cache
def _ray_dataset(*, is_ordered: bool) -> ray.data.MaterializedDataset:
    return ray_data_blocks(_chunks(), preserve_order=is_ordered)


def _ray_data(*, is_ordered: bool) -> Mapping[str, float]:
    open_batches = partial(
        _ray_dataset(is_ordered=is_ordered).iter_batches,
        batch_size=_BATCH_ROWS,
        batch_format="numpy",
        prefetch_batches=_NUM_WORKERS,
        _collate_fn=slow_collate,
    )
    return _time_passes(open_batches)


class _Batches:
    """Give a torch DataLoader the batches by their number."""

    def __init__(self) -> None:
        self._table = pa.concat_tables(_chunks()).combine_chunks()

    def __len__(self) -> int:
        return _NUM_BATCHES

    def __getitem__(self, number: int) -> dict[str, Any]:
        rows = self._table.slice(number * _BATCH_ROWS, _BATCH_ROWS)
        return {name: column.to_numpy() for name, column in zip(rows.column_names, rows.columns, strict=True)}


@cache
def _torch_loader(*, is_ordered: bool) -> torch.utils.data.DataLoader[Any]:
    import torch.utils.data

    batches: Any = _Batches()
    return torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        collate_fn=slow_collate,
        num_workers=_NUM_WORKERS,
        persistent_workers=True,
        in_order=is_ordered,
    )


def _torch_batches(*, is_ordered: bool) -> Iterable[Any]:
    return _torch_loader(is_ordered=is_ordered)


def _torch(*, is_ordered: bool) -> Mapping[str, float]:
    return _time_passes(partial(_torch_batches, is_ordered=is_ordered))


def _contenders(variant: str, *, is_ordered: bool) -> tuple[Contender, ...]:
    suffix = variant and f"_{variant}"
    in_words = variant and f", {variant}"
    return (
        *aiodata_contenders(partial(_aiodata, is_ordered=is_ordered), variant=variant),
        ray_data_contender(partial(_ray_data, is_ordered=is_ordered), f"4 threads{in_words}", variant=variant),
        Contender(
            f"torch{suffix}",
            f"torch DataLoader, 4 processes{in_words}",
            ("torch",),
            partial(_torch, is_ordered=is_ordered),
        ),
    )


SCENARIO = Scenario(
    name="collate",
    summary="200 batches through a collate function of 10 ms and uneven costs, four at a time",
    timed="passes over blocks in memory, after such passes in the same process",
    notes=__doc__,
    metrics=(
        Metric("pass_s", "s", "the whole pass"),
        Metric("next_p50_ms", "ms", "wait for the next batch, median"),
        Metric("next_p99_ms", "ms", "wait for the next batch, 99th percentile"),
        Metric("paced_s", "s", "the whole of the paced pass"),
        Metric("paced_next_p99_ms", "ms", "wait for the next batch in the paced pass, 99th percentile"),
        Metric("first_s", "s", "wait for the first batch"),
    ),
    baseline="ray_data",
    contenders=(
        *_contenders("", is_ordered=False),
        *aiodata_contenders(partial(_aiodata, is_ordered=False, is_async=True), variant="async"),
        *_contenders("ordered", is_ordered=True),
    ),
    aims=(
        *(
            times_as_long(contender + suffix, metric, 1, against=f"ray_data{suffix}")
            for suffix in ("", "_ordered")
            for contender in AIODATA
            for metric in ("next_p99_ms", "paced_next_p99_ms")
        ),
        *(times_as_fast(f"{contender}_async", "pass_s", 1.2, against="ray_data") for contender in AIODATA),
    ),
)
