"""Sizes: what rows decode to is held within the budget, and what a filter costs grows with the rows alone."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import aiodata

BUDGET, BLOCK = 16 << 20, 1 << 20
NUM_ROWS = 40_000

# Columns of which a row group takes kilobytes in a file, and dozens of MiB in memory.
COLUMNS = {
    "words": lambda: pa.array([one * 1024 for one in "abc"]).take(pa.array(np.arange(NUM_ROWS) % 3)),
    "structs": lambda: pa.array([{"a": "a" * 512, "b": ["b" * 512]}]).take(pa.array(np.zeros(NUM_ROWS, int))),
    "lists": lambda: pa.array([[7] * 128]).take(pa.array(np.zeros(NUM_ROWS, int))),
}


@pytest.mark.parametrize("name", COLUMNS)
async def test_first_rows_of_a_row_group_that_decodes_to_far_more_need_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": COLUMNS[name]()}), path, row_group_size=NUM_ROWS)
    ds = aiodata.read_parquet(path).with_options(
        runtime="local", max_object_store_bytes=BUDGET, target_block_bytes=BLOCK, num_cpus=2
    )
    before = pa.total_allocated_bytes()
    async with ds.aiter_bundles() as bundles:
        bundle = await anext(bundles)
        assert bundle.num_bytes <= 4 * BLOCK
        assert pa.total_allocated_bytes() - before <= BUDGET + 4 * BLOCK
    assert len(await ds.limit(10).take()) == 10
    assert await ds.limit(10).count() == 10


async def test_every_row_of_such_a_row_group_comes_once(runtime: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"k": range(NUM_ROWS), "x": COLUMNS["words"]()})
    pq.write_table(table, path, row_group_size=NUM_ROWS)
    ds = aiodata.read_parquet(path).with_options(runtime=runtime, max_object_store_bytes=BUDGET)
    sums = ds.filter(pc.field("k") >= 100).map_batches(lambda batch: {"n": [len(batch["k"])], "s": [batch["k"].sum()]})
    rows = await sums.take(10_000)
    assert sum(row["n"] for row in rows) == NUM_ROWS - 100
    assert sum(row["s"] for row in rows) == sum(range(100, NUM_ROWS))


def cpu_s(path: Path, num_groups: int) -> float:
    """The processor's time for a filter over so many row groups of many columns, in seconds."""
    table = pa.table({f"c{i}": np.arange(num_groups * 10.0) for i in range(40)})
    pq.write_table(table, path, row_group_size=10)
    ds = aiodata.read_parquet(path).filter(pc.field("c0") >= 0).with_options(runtime="local", num_cpus=1)
    started = time.process_time()
    assert aiodata.run(ds.count) == len(table)
    return time.process_time() - started


@pytest.mark.slow
def test_filter_over_many_row_groups_costs_what_so_many_rows_cost(tmp_path: Path) -> None:
    few = min(cpu_s(tmp_path / "a.parquet", 50) for _ in range(2))
    # Ten times as many; quadratic would be a hundred.
    assert cpu_s(tmp_path / "a.parquet", 500) < 30 * few
