"""Parquet: what is read of a file is what is asked for, in parts of a bounded size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import aiodata
from tests.conftest import collect
from tests.sources.test_parquet import ALL, damage_chunk, make_file, read

pytestmark = pytest.mark.loops("asyncio")


async def test_chosen_columns_are_all_that_is_read(runtime: str, parquet_dir: Path) -> None:
    for index in range(4):
        for group in range(3):
            damage_chunk(parquet_dir / f"part-{index}.parquet", group=group, column=2)
    ds = read(parquet_dir, runtime)
    with pytest.raises(aiodata.SourceError):
        await collect(ds)
    for chosen in (ds.select_columns(["x", "id"]), read(parquet_dir, runtime, columns=["x", "id"])):
        assert (await chosen.schema()).names == ["x", "id"]
        assert await collect(chosen) == ALL


async def test_row_groups_that_a_filter_rules_out_are_not_read(runtime: str, parquet_dir: Path) -> None:
    for index, group in ((0, 0), (0, 1), (1, 0), (3, 2)):
        for column in range(3):
            damage_chunk(parquet_dir / f"part-{index}.parquet", group=group, column=column)
    wanted = (pc.field("id") >= 4000) & (pc.field("id") < 9500)
    ds = read(parquet_dir, runtime)
    for kept in (ds.filter(wanted), read(parquet_dir, runtime, filter=wanted)):
        assert await collect(kept) == list(range(4000, 9500))
    both = ds.filter(pc.field("id") >= 4000).filter(pc.field("id") < 9500).select_columns("x")
    assert await collect(both, "x") == [one / 2 for one in range(4000, 9500)]
    assert await ds.filter(wanted).count() == 5500


def test_explain_shows_what_is_pushed_into_reading(parquet_dir: Path) -> None:
    ds = aiodata.read_parquet(parquet_dir).filter(pc.field("id") > 5).select_columns(["x"])
    assert ds.explain().startswith(f"read_parquet({parquet_dir}, columns=['x'], filter=(id > 5))    ")
    assert "->" not in ds.explain()
    late = aiodata.read_parquet(parquet_dir).map_batches(dict_of).select_columns(["x"])
    assert ") -> map_batches(dict_of) -> select_columns(['x'])" in late.explain()


async def test_columns_and_filter_agree_with_what_arrow_reads(parquet_dir: Path) -> None:
    wanted = (pc.field("x") > 100) & pc.field("s").is_valid()
    expected = pq.read_table(parquet_dir, columns=["s", "id"], filters=wanted).to_pylist()
    ds = read(parquet_dir)
    for same in (
        read(parquet_dir, columns=["s", "id"], filter=wanted),
        ds.filter(wanted).select_columns(["s", "id"]),
        ds.filter(pc.field("x") > 100).filter(pc.field("s").is_valid()).select_columns(["s", "id"]),
        ds.filter(pc.field("x") > 100).select_columns(["s", "id"]).filter(pc.field("s").is_valid()),
    ):
        assert await same.take(20_000) == expected
        assert await same.count() == len(expected)
        assert (await same.schema()).names == ["s", "id"]


async def test_filter_on_a_column_that_a_selection_dropped_is_an_error(parquet_dir: Path) -> None:
    with pytest.raises(aiodata.AiodataError, match="x"):
        await collect(read(parquet_dir).select_columns("id").filter(pc.field("x") > 1))


async def test_narrower_selection_reads_less(parquet_dir: Path) -> None:
    async def bytes_read(ds: aiodata.Dataset) -> int:
        async with ds.aiter_batches() as batches:
            async for _ in batches:
                pass
            return batches.stats().operators[0].bytes

    ds = read(parquet_dir)
    assert 8 * len(ALL) <= await bytes_read(ds.select_columns("id")) < 9 * len(ALL) < await bytes_read(ds)


async def test_large_row_group_is_read_in_parts(runtime: str, tmp_path: Path) -> None:
    make_file(tmp_path / "one.parquet", range(50_000), row_group_size=50_000)
    ds = read(tmp_path, runtime, target_block_bytes=20_000)
    blocks = [len(batch["id"]) async for batch in ds.aiter_batches(batch_size=None)]
    assert len(blocks) >= 10
    assert max(blocks) * 8 <= 3 * 20_000
    assert await collect(ds) == list(range(50_000))


async def test_large_row_group_starts_anywhere_and_gives_each_row_once(tmp_path: Path) -> None:
    make_file(tmp_path / "one.parquet", range(3000), row_group_size=1700)
    for target in (500, 1999, 7000):
        ds = read(tmp_path, target_block_bytes=target)
        assert await collect(ds) == list(range(3000))
        assert await collect(ds.map_batches(dict_of, batch_size=77)) == list(range(3000))
        assert await collect(ds.filter(pc.field("id") >= 1600)) == list(range(1600, 3000))


async def test_one_file_is_divided_among_tasks(runtime: str, tmp_path: Path) -> None:
    make_file(tmp_path / "one.parquet", range(4000), row_group_size=500)
    async with read(tmp_path, runtime).aiter_batches() as batches:
        ids = [one async for batch in batches for one in batch["id"].tolist()]
        assert batches.stats().operators[0].tasks > 1
    assert ids == list(range(4000))


async def test_files_without_rows_are_read(runtime: str, tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.int64()), ("s", pa.string())])
    for name in ("a", "c"):
        pq.write_table(schema.empty_table(), tmp_path / f"{name}.parquet")
    ds = read(tmp_path, runtime)
    assert await collect(ds) == []
    assert await ds.schema() == schema
    assert await ds.count() == 0
    assert (await ds.take_batch(batch_format="pyarrow")).schema == schema
    pq.write_table(pa.table({"id": [1], "s": ["x"]}), tmp_path / "b.parquet")
    assert await ds.take() == [{"id": 1, "s": "x"}]
    assert await ds.filter(pc.field("id") > 1).take() == []


ONE = {"id": pa.array([1, 2], pa.int64()), "s": pa.array(["a", "b"])}

# What a second file holds, and the rows that come of it.
COMPATIBLE: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "other_order": ({"s": ["c"], "id": [3]}, [{"id": 3, "s": "c"}]),
    "column_missing": ({"id": [3]}, [{"id": 3, "s": None}]),
    "null_column": ({"id": [3], "s": pa.nulls(1)}, [{"id": 3, "s": None}]),
    "narrower_integer": ({"id": pa.array([3], pa.int32()), "s": ["c"]}, [{"id": 3, "s": "c"}]),
    "wider_integer": ({"id": pa.array([3], pa.uint32()), "s": ["c"]}, [{"id": 3, "s": "c"}]),
    "large_string": ({"id": [3], "s": pa.array(["c"], pa.large_string())}, [{"id": 3, "s": "c"}]),
}


@pytest.mark.parametrize("batch_format", ["numpy", "pyarrow", "pandas", "polars"])
@pytest.mark.parametrize(("columns", "rows"), COMPATIBLE.values(), ids=COMPATIBLE)
async def test_files_of_compatible_schemas_share_a_batch(
    tmp_path: Path, columns: dict[str, Any], rows: list[dict[str, Any]], batch_format: str
) -> None:
    pq.write_table(pa.table(ONE), tmp_path / "a.parquet")
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    (batch,) = [batch async for batch in read(tmp_path).aiter_batches(batch_format=batch_format)]
    table = pa.table({name: pa.array(batch[name], from_pandas=True) for name in ("id", "s")})
    assert table.to_pylist() == [{"id": 1, "s": "a"}, {"id": 2, "s": "b"}, *rows]


@pytest.mark.parametrize("ids", [pa.array([[1.5]]), pa.array([1.5]), pa.array(["1"])], ids=lambda ids: str(ids.type))
async def test_files_of_schemas_that_do_not_go_together_are_an_error(tmp_path: Path, ids: pa.Array) -> None:
    pq.write_table(pa.table(ONE), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ids, "s": ["c"]}), tmp_path / "b.parquet")
    with pytest.raises(
        aiodata.SourceError, match=r"(?s)'id'.*int64 in .*a\.parquet.* in .*b\.parquet.*schema="
    ) as caught:
        await collect(read(tmp_path))
    assert str(pq.read_schema(tmp_path / "b.parquet").field("id").type) in str(caught.value)


def dict_of(batch: dict[str, Any]) -> dict[str, Any]:
    return dict(batch)
