"""Count the driver's CPU time per block: tiny blocks, so that nothing but the bookkeeping is left.

Two thousand blocks of a KiB pass through one operator, or through eight that can not be one: each asks for
another share of a CPU than the one before. Every operator makes as many blocks as it gets, so eight operators
handle eight times as many blocks, and the time is divided by all of them. It is the processor time of the whole
driver process, Ray's own threads included; nothing fetches the blocks.

- aiodata_ray: metadata is fetched for many blocks at once, and ahead (the default).
- aiodata_ray_inline: `metadata_prefetch=False`, one at a time.
- aiodata_simulated: the same executor on simulated workers, which leaves the executor itself.
- ray_data: one operator, `iter_internal_ref_bundles`; its executor runs in a thread of the driver.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import event_loop
from benchmarks.model import Contender, Metric, Scenario, at_most
from benchmarks.sources import check_rows, quiet_ray_data

if TYPE_CHECKING:
    from collections.abc import Mapping

_NUM_BLOCKS = 2_000
_BLOCK_ROWS = 128
_NUM_ROWS = _NUM_BLOCKS * _BLOCK_ROWS
_BLOCK_BYTES = _BLOCK_ROWS * 8
_US_PER_S = 1e6


def _figures(num_blocks: int, cpu_s: float, wall_s: float) -> dict[str, float]:
    return {"cpu_us": cpu_s / num_blocks * _US_PER_S, "wall_us": wall_s / num_blocks * _US_PER_S}


def _pass_on(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


async def _count_rows(num_operators: int, metadata_prefetch: bool) -> Mapping[str, float]:
    import aiodata

    dataset = aiodata.range(_NUM_ROWS, num_blocks=_NUM_BLOCKS).with_options(
        runtime="ray", target_block_bytes=_BLOCK_BYTES, metadata_prefetch=metadata_prefetch
    )
    for number in range(1, num_operators):
        dataset = dataset.map_batches(_pass_on, num_cpus=0.5 if number % 2 else 0.25)
    cpu_s, wall_s, num_rows = time.process_time(), time.perf_counter(), 0
    async with dataset.aiter_bundles() as bundles:
        async for bundle in bundles:
            num_rows += bundle.num_rows
        operators = bundles.stats().operators
    check_rows(num_rows, _NUM_ROWS)
    num_blocks = sum(operator.blocks for operator in operators)
    return _figures(num_blocks, time.process_time() - cpu_s, time.perf_counter() - wall_s)


def _aiodata(num_operators: int, *, metadata_prefetch: bool) -> Mapping[str, float]:
    return event_loop.run(_count_rows(num_operators, metadata_prefetch))


def _simulated(num_operators: int) -> Mapping[str, float]:
    from benchmarks.simulated import simulated_pass

    passed = simulated_pass(num_workers=16, blocks_per_worker=_NUM_BLOCKS // 16, num_operators=num_operators)
    return _figures(passed.num_blocks, passed.cpu_s, passed.wall_s)


def _ray_data() -> Mapping[str, float]:
    import ray.data

    quiet_ray_data()
    dataset = ray.data.range(_NUM_ROWS, override_num_blocks=_NUM_BLOCKS)
    cpu_s, wall_s, num_rows = time.process_time(), time.perf_counter(), 0
    for bundle in dataset.iter_internal_ref_bundles():
        num_rows += bundle.num_rows() or 0
    check_rows(num_rows, _NUM_ROWS)
    return _figures(_NUM_BLOCKS, time.process_time() - cpu_s, time.perf_counter() - wall_s)


def _on_ray(name: str, summary: str, num_operators: int, *, metadata_prefetch: bool) -> Contender:
    measure = partial(_aiodata, num_operators, metadata_prefetch=metadata_prefetch)
    return Contender(name, summary, ("aiodata", "ray"), measure, on_cluster=True)


SCENARIO = Scenario(
    name="metadata",
    summary="the driver's CPU time per tiny block",
    timed="one pass over two thousand blocks of a KiB, by each operator",
    notes=__doc__,
    metrics=(
        Metric("cpu_us", "us", "processor time of the driver per block and operator"),
        Metric("wall_us", "us", "time per block and operator"),
    ),
    baseline="ray_data",
    contenders=(
        _on_ray("aiodata_ray", "aiodata on Ray, one operator", 1, metadata_prefetch=True),
        _on_ray("aiodata_ray_inline", "the same, one at a time", 1, metadata_prefetch=False),
        _on_ray("aiodata_ray_8", "aiodata on Ray, eight operators", 8, metadata_prefetch=True),
        _on_ray("aiodata_ray_8_inline", "the same, one at a time", 8, metadata_prefetch=False),
        Contender("aiodata_simulated", "aiodata, simulated, one operator", ("aiodata",), partial(_simulated, 1)),
        Contender("aiodata_simulated_8", "aiodata, simulated, eight operators", ("aiodata",), partial(_simulated, 8)),
        Contender("ray_data", "Ray Data, one operator", ("ray", "pandas"), _ray_data, on_cluster=True),
    ),
    aims=(
        at_most("aiodata_ray", "cpu_us", 300),
        at_most("aiodata_ray_8", "cpu_us", 300),
        at_most("aiodata_simulated", "cpu_us", 30),
        at_most("aiodata_simulated_8", "cpu_us", 30),
    ),
)
