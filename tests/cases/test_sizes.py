"""Sizes: what rows decode to is held within the budget, and what a filter costs grows with the rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import aiodata

pytestmark = pytest.mark.loops("asyncio")

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


async def test_filter_over_many_row_groups_opens_a_file_once_per_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"c": np.arange(5000.0)}), path, row_group_size=10)
    opened: list[str] = []
    parquet_file = pq.ParquetFile

    def note(*args: Any, **kwargs: Any) -> Any:
        opened.append("with its footer" if kwargs.get("metadata") is None else "without")
        return parquet_file(*args, **kwargs)

    monkeypatch.setattr(pq, "ParquetFile", note)
    ds = aiodata.read_parquet(path).filter(pc.field("c") >= 0).with_options(runtime="local", num_cpus=1)
    async with ds.aiter_batches(batch_size=None) as batches:
        assert sum([len(batch["c"]) async for batch in batches]) == 5000
        num_tasks = sum(operator.tasks for operator in batches.stats().operators)
    assert opened.count("with its footer") == 1
    assert opened.count("without") <= num_tasks
