"""shuffle_blocks: another order of a source's blocks in each pass, and the same rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import aiodata
from tests.conftest import collect
from tests.splits import read_all, together

ORDERED = {"preserve_order": True}
GROUP_ROWS, NUM_ROWS = 10, 400


@pytest.fixture
def files(tmp_path: Path) -> str:
    """Four files of ten row groups of ten rows."""
    for index in range(4):
        ids = np.arange(100) + 100 * index
        pq.write_table(pa.table({"id": ids, "half": ids / 2}), tmp_path / f"{index}.parquet", row_group_size=GROUP_ROWS)
    return str(tmp_path)


def memory(_: str) -> aiodata.Dataset:
    return aiodata.from_arrow([pa.table({"id": np.arange(at, at + 10)}) for at in range(0, NUM_ROWS, GROUP_ROWS)])


sources = pytest.mark.parametrize(
    "source",
    [aiodata.read_parquet, memory, lambda _: aiodata.range(NUM_ROWS, num_blocks=40)],
    ids=["parquet", "memory", "range"],
)


def blocks_of(ids: list[int]) -> list[int]:
    """The blocks in the order in which they came, each of which has to be whole and in its own order."""
    starts = ids[::GROUP_ROWS]
    assert ids == [start + one for start in starts for one in range(GROUP_ROWS)]
    return starts


@sources
async def test_each_pass_has_another_order_of_whole_blocks_and_the_same_seed_has_the_same(
    runtime: str, clean: None, files: str, source: Callable[[str], aiodata.Dataset]
) -> None:
    orders: list[list[list[int]]] = []
    for cpus in (1, 16):
        ds = source(files).shuffle_blocks(seed=11).with_options(runtime=runtime, num_cpus=cpus, **ORDERED)
        batches = ds.aiter_batches(batch_size=7)
        orders.append([blocks_of([int(i) async for batch in batches for i in batch["id"]]) for _ in range(3)])
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders[0]}) == 3
    assert [sorted(order) for order in orders[0]] == [list(range(0, NUM_ROWS, GROUP_ROWS))] * 3


@pytest.mark.ray
async def test_both_runtimes_and_splits_have_the_same_orders(ray_cluster: None, files: str) -> None:
    ds = aiodata.read_parquet(files).shuffle_blocks(seed=5).with_options(**ORDERED)
    local, ray = (ds.with_options(runtime=name).aiter_batches(batch_size=10) for name in ("local", "ray"))
    [split] = ds.with_options(runtime="ray").streaming_split(1)
    for _ in range(2):
        expected = [int(i) async for batch in local for i in batch["id"]]
        assert [int(i) async for batch in ray for i in batch["id"]] == expected
        assert await read_all(split) == expected


@pytest.mark.ray
async def test_splits_have_all_rows_in_each_epoch(ray_cluster: None, files: str) -> None:
    splits = aiodata.read_parquet(files).shuffle_blocks().with_options(runtime="ray").streaming_split(2, equal=True)
    for _ in range(2):
        parts = await together(*(read_all(split) for split in splits))
        assert sorted(i for part in parts for i in part) == list(range(NUM_ROWS))


async def test_without_a_seed_each_iteration_has_another_order(files: str) -> None:
    ds = aiodata.read_parquet(files).shuffle_blocks().with_options(runtime="local", **ORDERED)
    orders = {tuple(await collect(ds)) for _ in range(4)}
    assert len(orders) == 4


async def test_verbs_before_and_after_it_see_the_same_rows(files: str) -> None:
    def doubled(batch: dict[str, Any]) -> dict[str, Any]:
        return {"id": batch["id"], "twice": batch["half"] * 4}

    ds = aiodata.read_parquet(files).map_batches(doubled).filter(pc.field("id") >= 50).shuffle_blocks(seed=1)
    rows = await ds.filter(pc.field("id") < 300).with_options(runtime="local").take(1000)
    assert sorted((row["id"], row["twice"]) for row in rows) == [(i, 2.0 * i) for i in range(50, 300)]


async def test_a_limit_after_it_lets_through_the_first_rows_of_the_order(files: str) -> None:
    ds = aiodata.read_parquet(files).shuffle_blocks(seed=2).with_options(runtime="local", **ORDERED)
    assert await collect(ds.limit(25)) == (await collect(ds))[:25]


async def test_the_branches_of_a_union_are_shuffled_each_by_itself(files: str) -> None:
    ds = aiodata.read_parquet(files).union(memory("")).shuffle_blocks(seed=2).with_options(runtime="local", **ORDERED)
    ids = await collect(ds)
    first, second = blocks_of(ids[:NUM_ROWS]), blocks_of(ids[NUM_ROWS:])
    assert sorted(first) == sorted(second) == list(range(0, NUM_ROWS, GROUP_ROWS))
    assert first != sorted(first)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "1"])
def test_a_seed_is_an_integer_of_at_least_0(seed: Any) -> None:
    with pytest.raises(aiodata.OptionError, match=r"seed=.* must be an integer of at least 0"):
        aiodata.range(3).shuffle_blocks(seed)


def test_it_is_refused_where_it_would_change_which_rows_a_limit_lets_through() -> None:
    limited = aiodata.range(3).limit(2)
    for ds in (limited, aiodata.range(3).union(limited)):
        with pytest.raises(aiodata.OptionError, match=r"shuffle_blocks\(\) after limit\(2\).*shuffle first"):
            ds.shuffle_blocks()


def test_it_is_explained() -> None:
    assert "in another order in each pass" in aiodata.range(3).shuffle_blocks().explain()
    assert "in another order in each pass" in memory("").shuffle_blocks().explain()
