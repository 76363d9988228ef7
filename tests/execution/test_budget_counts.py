"""Each block counts once in the byte budget, whoever passes it on: its peak is what blocks really took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

import aiodata
from aiodata.bundle import Charge, RefBundle
from aiodata.execution.budget import ByteBudget
from aiodata.runtime.shared_memory import InputMemory

MIB = 1 << 20
ROWS = 4 * MIB  # 32 MiB of int64, in blocks of 4 MiB.

Batch = dict[str, Any]


class Same:
    """A function with state that hands back what it is given."""

    def __call__(self, batch: Batch) -> Batch:
        return batch


def same(batch: Batch) -> Batch:
    return batch


def doubled(batch: Batch) -> Batch:
    return {"id": batch["id"] * 2}


def beside(batch: Batch) -> Batch:
    return {**batch, "twice": batch["id"] * 2}


def memory_of(bundles: Sequence[RefBundle]) -> int:
    """Bytes of the distinct buffers that blocks have."""
    chunks = [chunk for bundle in bundles for column in bundle.ref.table.columns for chunk in column.chunks]
    return sum({buffer.address: buffer.size for chunk in chunks for buffer in chunk.buffers() if buffer}.values())


@pytest.mark.parametrize(
    ("functions", "live_mib"),
    [
        ([doubled, Same], 32),
        ([Same, Same], 32),
        ([doubled, same, Same], 32),
        ([beside, Same], 64),
        ([Same, doubled], 32),
        ([doubled, Same, beside], 64),
    ],
    ids=lambda value: " ".join(one.__name__ for one in value) if isinstance(value, list) else str(value),
)
async def test_peak_is_what_blocks_take_and_a_few_that_are_on_their_way(functions: list[Any], live_mib: int) -> None:
    ds = aiodata.range(ROWS, num_blocks=8).with_options(runtime="local", num_cpus=2)
    for function in functions:
        # Each is a stage of its own.
        ds = ds.map_batches(function, concurrency=1)
    async with ds.aiter_bundles() as iterator:
        bundles = [bundle async for bundle in iterator]
        live = memory_of(bundles)
        budget = iterator.stats().budget
    assert budget is not None
    assert live >= live_mib * MIB
    # Beside the blocks that are kept, what the tasks of each stage have been given, and what they are making of it.
    assert live <= budget.peak_live_bytes + MIB
    assert budget.peak_live_bytes <= live + 2 * len(functions) * 4 * MIB


async def test_all_is_counted_out_when_blocks_that_share_memory_are_gone() -> None:
    ds = aiodata.range(ROWS, num_blocks=8).with_options(runtime="local", num_cpus=2)
    ds = ds.map_batches(beside, concurrency=1).map_batches(Same, concurrency=1)
    async with ds.aiter_bundles() as iterator:
        async for bundle in iterator:
            del bundle
        budget = iterator.stats().budget
    assert budget is not None
    assert budget.live_bytes <= 8 * MIB


def test_shared_memory_counts_with_the_block_that_lives_longer() -> None:
    budget, first, second = ByteBudget(100), Charge(), Charge()
    budget.add(60)
    first.num_bytes = 60
    budget.add(10)
    second.num_bytes = 10
    budget.take_over(second, [(first, 40), (None, 7)])
    assert (first.num_bytes, second.num_bytes, budget.live_bytes) == (20, 50, 70)
    budget.settle(first)
    assert budget.live_bytes == 50
    late = Charge()
    budget.take_over(late, [(first, 40)])
    assert (late.num_bytes, budget.live_bytes) == (40, 90)
    for charge in (second, late):
        budget.settle(charge)
    assert (budget.live_bytes, budget.peak_live_bytes) == (0, 90)


def test_memory_is_shared_by_slices_and_views_and_by_nothing_else() -> None:
    one, two = pa.table({"x": range(10)}), pa.table({"x": [1.5, 2.5], "s": ["a", "bc"]})
    memory = InputMemory([one, two])
    view = pa.array(one["x"].chunk(0).to_numpy()[3:7])
    assert memory.shared_with(one) == {0: 80}
    assert memory.shared_with(pa.table({"y": view})) == {0: 32}
    assert set(memory.shared_with(two)) == {1}
    assert memory.shared_with(pa.table({"x": range(10)})) == {}
    assert memory.shared_with(pa.table({"n": pa.nulls(3)})) == {}
    assert InputMemory([]).shared_with(one) == {}
