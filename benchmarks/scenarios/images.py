"""Decode JPEG files with Pillow, in batches of tensors' shape.

3,000 JPEG files of 320 × 320 pixels are listed by their paths, decoded to RGB, 32 at a time, and
read in batches of 64: arrays of shape (64, 320, 320, 3), of uint8, 922 MB in all. Pillow lets go of
the interpreter's lock while it decodes. In the variant `parquet` the files' bytes are the rows of
one row group of one Parquet file. The clock runs from opening the iteration to its end.

- threads: a plain `ThreadPoolExecutor` of two threads, 32 images a call, at most four calls ahead;
  two calls' arrays are put together for a batch. It is what two processors can do, less the joining.
- aiodata: `from_items(paths)` (or `read_parquet`), `map_batches(decode, batch_size=32)`,
  `aiter_batches(batch_size=64)`. Nothing is said of how the work is to be divided.
- torch: a `DataLoader` with two worker processes that live on from pass to pass, `batch_size=64`;
  workers give arrays, which are put together there.
- Ray Data: `from_items(paths)`, `map_batches(decode, batch_size=32)`, `iter_batches(batch_size=64)`.
- SPDL: a pipeline of two threads that decodes 32 images a call and aggregates two calls.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import event_loop
from benchmarks.figures import percentile
from benchmarks.images import NUM_IMAGES, decode, image_parquet, image_paths
from benchmarks.model import (
    AIODATA,
    Contender,
    Metric,
    Scenario,
    aiodata_contenders,
    ray_data_contender,
    times_as_fast,
)
from benchmarks.sources import quiet_ray_data
from benchmarks.stamps import Timing, time_async_pass, time_pass

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import ray.data
    import torch.utils.data

    import aiodata

_CALL_IMAGES = 32
_BATCH_IMAGES = 64
_NUM_WORKERS = 2
_CALLS_AHEAD = 4
_MS_PER_S = 1e3


def decode_paths(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Decode the images that a batch has the paths of."""
    return {"image": decode(batch["item"])}


def decode_bytes(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Decode the images that a batch has the bytes of."""
    return {"image": decode(batch["jpeg"])}


def _figures(timing: Timing) -> Mapping[str, float]:
    return {
        "pass_s": timing.pass_s,
        "image_us": timing.pass_s / NUM_IMAGES * _MS_PER_S * _MS_PER_S,
        "first_s": timing.first_s,
        "next_p99_ms": percentile(timing.waits_s, 99) * _MS_PER_S,
    }


def _time(open_batches: Any) -> Mapping[str, float]:
    return _figures(time_pass(open_batches, "image", NUM_IMAGES))


@cache
def _aiodata_dataset(runtime: str, *, is_parquet: bool) -> aiodata.Dataset:
    import aiodata

    if is_parquet:
        ds = aiodata.read_parquet(image_parquet()).map_batches(decode_bytes, batch_size=_CALL_IMAGES)
    else:
        ds = aiodata.from_items(image_paths()).map_batches(decode_paths, batch_size=_CALL_IMAGES)
    return ds.with_options(runtime=runtime)


async def _time_aiodata(dataset: aiodata.Dataset) -> Mapping[str, float]:
    open_batches = partial(dataset.aiter_batches, batch_size=_BATCH_IMAGES)
    return _figures(await time_async_pass(open_batches, "image", NUM_IMAGES))


def _aiodata(runtime: str, *, is_parquet: bool) -> Mapping[str, float]:
    return event_loop.run(_time_aiodata(_aiodata_dataset(runtime, is_parquet=is_parquet)))


def _thread_batches() -> Iterator[dict[str, Any]]:
    paths = image_paths()
    waiting: deque[Any] = deque()
    arrays: list[Any] = []
    with ThreadPoolExecutor(_NUM_WORKERS) as pool:
        calls = (paths[at : at + _CALL_IMAGES] for at in range(0, len(paths), _CALL_IMAGES))
        for call in calls:
            waiting.append(pool.submit(decode, call))
            if len(waiting) > _CALLS_AHEAD:
                arrays.append(waiting.popleft().result())
            if len(arrays) == _BATCH_IMAGES // _CALL_IMAGES:
                yield {"image": np.concatenate(arrays)}
                arrays.clear()
        arrays += [one.result() for one in waiting]
        per_batch = _BATCH_IMAGES // _CALL_IMAGES
        for at in range(0, len(arrays), per_batch):
            yield {"image": np.concatenate(arrays[at : at + per_batch])}


class _Images:
    """Give a torch DataLoader the images by their number."""

    def __init__(self) -> None:
        self._paths = image_paths()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> np.ndarray[Any, Any]:
        return decode([self._paths[number]])


def _join(images: list[Any]) -> dict[str, Any]:
    return {"image": np.concatenate(images)}


@cache
def _torch_loader() -> torch.utils.data.DataLoader[Any]:
    import torch.utils.data

    images: Any = _Images()
    return torch.utils.data.DataLoader(
        images, batch_size=_BATCH_IMAGES, collate_fn=_join, num_workers=_NUM_WORKERS, persistent_workers=True
    )


@cache
def _ray_dataset() -> ray.data.Dataset:
    import ray.data

    quiet_ray_data()
    return ray.data.from_items(image_paths()).map_batches(decode_paths, batch_size=_CALL_IMAGES)


def _ray_data() -> Mapping[str, float]:
    return _time(partial(_ray_dataset().iter_batches, batch_size=_BATCH_IMAGES))


def _spdl_batches() -> Iterable[dict[str, Any]]:
    from spdl.pipeline import PipelineBuilder

    paths = image_paths()
    calls = [paths[at : at + _CALL_IMAGES] for at in range(0, len(paths), _CALL_IMAGES)]
    pipeline = (
        PipelineBuilder()
        .add_source(calls)
        .pipe(decode, concurrency=_NUM_WORKERS)
        .aggregate(_BATCH_IMAGES // _CALL_IMAGES)
        .pipe(_join)
        .add_sink(_CALLS_AHEAD)
        .build(num_threads=_NUM_WORKERS + 1)
    )
    with pipeline.auto_stop():
        yield from pipeline


SCENARIO = Scenario(
    name="images",
    summary="3,000 JPEG files, decoded by Pillow, in batches of 64",
    timed="a pass over files that are in the page cache, after such a pass in the same process",
    notes=__doc__,
    metrics=(
        Metric("pass_s", "s", "the whole pass"),
        Metric("image_us", "us", "the pass, per image"),
        Metric("first_s", "s", "wait for the first batch"),
        Metric("next_p99_ms", "ms", "wait for the next batch, 99th percentile"),
    ),
    baseline="threads",
    contenders=(
        *aiodata_contenders(partial(_aiodata, is_parquet=False), requires=("PIL",)),
        *aiodata_contenders(partial(_aiodata, is_parquet=True), variant="parquet", requires=("PIL",)),
        Contender("threads", "ThreadPoolExecutor, 2 threads", ("PIL",), partial(_time, _thread_batches)),
        Contender("torch", "torch DataLoader, 2 processes", ("torch", "PIL"), partial(_time, _torch_loader)),
        ray_data_contender(_ray_data, "map_batches"),
        Contender("spdl", "SPDL, 2 threads", ("spdl.pipeline", "PIL"), partial(_time, _spdl_batches)),
    ),
    aims=(
        times_as_fast("aiodata_local", "pass_s", 0.9, against="threads"),
        times_as_fast("aiodata_local_parquet", "pass_s", 0.9, against="threads"),
        *(times_as_fast(AIODATA[0] + suffix, "pass_s", 1, against="torch") for suffix in ("", "_parquet")),
    ),
)
