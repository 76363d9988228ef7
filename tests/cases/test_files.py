"""Files: everything that is found is read or named, and older files have the columns of newer ones."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import aiodata

pytestmark = pytest.mark.loops("asyncio")

SCORE = pc.field("score")

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "text": lambda _: b"PAR1 cut off",
    "empty": lambda _: b"",
    "zeros": lambda data: bytes(len(data)),
    "no length": lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("damaged", [0, 1, 2])
async def test_file_without_a_footer_is_one_listed_error_for_any_number_of_cpus(
    runtime: str, tmp_path: Path, damaged: int, damage: str
) -> None:
    for number in range(3):
        pq.write_table(pa.table({"id": [number], "s": ["x"]}), tmp_path / f"{number}.parquet")
    path = tmp_path / f"{damaged}.parquet"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    for num_cpus in (1, 2, 16) if runtime == "local" else (2,):
        ds = aiodata.read_parquet(tmp_path).with_options(runtime=runtime, max_errored_blocks=1, num_cpus=num_cpus)
        async with ds.aiter_batches(batch_size=1) as batches:
            rows = [int(batch["id"][0]) async for batch in batches]
        assert sorted(rows) == sorted({0, 1, 2} - {damaged})
        [error] = batches.stats().errors
        assert str(path) in str(error)
        assert await ds.count() == await ds.filter(pc.field("id") >= 0).count() == 2
        with pytest.raises(aiodata.SourceError, match=path.name):
            await ds.with_options(max_errored_blocks=0).count()


async def test_a_count_is_that_of_an_iteration_where_a_page_is_damaged(runtime: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": range(80)}), path, row_group_size=10, compression="none", use_dictionary=False)
    offset = pq.read_metadata(path).row_group(3).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 10] = b"\xff" * 10
    path.write_bytes(data)
    ds = aiodata.read_parquet(path).with_options(runtime=runtime, max_errored_blocks=-1)
    assert await ds.count() == len(await ds.take(100)) == await ds.map_batches(lambda batch: batch).count() == 70


async def test_patterns_that_match_directories_read_them_and_files(runtime: str, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").mkdir()
    pq.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet" / "part-0.parquet")
    ds = aiodata.read_parquet(f"{tmp_path}/*.parquet").with_options(runtime=runtime)
    assert await ds.take() == [{"id": 1}]
    pq.write_table(pa.table({"id": [2]}), tmp_path / "b.parquet")
    for pattern in ("*.parquet", "*", "?.parquet", "**", "**/*.parquet", "[ab].parquet", ""):
        found = aiodata.read_parquet(f"{tmp_path}/{pattern}").with_options(runtime=runtime, preserve_order=True)
        assert await found.take() == [{"id": 1}, {"id": 2}], pattern


async def test_directories_are_columns_for_every_verb(runtime: str, tmp_path: Path) -> None:
    table = pa.table({"year": [2023, 2024, 2024], "m": ["a", "b c", None], "id": [0, 1, 2]})
    pq.write_to_dataset(table, tmp_path, partition_cols=["year", "m"])
    ds = aiodata.read_parquet(tmp_path).with_options(runtime=runtime)
    rows = sorted(await ds.take(), key=lambda row: row["id"])
    assert rows == [{"id": i, "year": y, "m": m} for y, m, i in zip(*table.to_pydict().values(), strict=True)]
    assert (await ds.schema()).field("year").type == pa.int64()
    assert sorted(row["year"] for row in await ds.select_columns(["year"]).take()) == [2023, 2024, 2024]
    assert await ds.filter((pc.field("year") == 2024) & pc.field("m").is_null()).take() == [rows[2]]
    assert await ds.filter((pc.field("m") == "a") | (pc.field("id") == 1)).count() == 2
    assert await ds.map_batches(lambda batch: batch).filter(pc.field("year") == 2023).take() == [rows[0]]
    assert await ds.filter(pc.field("year") == 1999).take() == []


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """Files of three versions, of which each knows one column more."""
    tables = [{"id": [0]}, {"id": [1], "score": [0.9]}, {"extra": [{"a": 1}], "score": [0.1], "id": [2]}]
    for number, table in enumerate(tables):
        pq.write_table(pa.table(table), tmp_path / f"v{number}.parquet")
    return tmp_path


async def test_columns_that_older_files_lack_are_null_for_every_verb(runtime: str, versions: Path) -> None:
    def read(**options: Any) -> aiodata.Dataset:
        return aiodata.read_parquet(versions, **options).with_options(runtime=runtime, preserve_order=True)

    ds = read()
    table = await ds.take_batch(batch_format="pyarrow")
    assert table.to_pylist() == [
        {"id": 0, "score": None, "extra": None},
        {"id": 1, "score": 0.9, "extra": None},
        {"id": 2, "score": 0.1, "extra": {"a": 1}},
    ]
    assert table.schema == await ds.schema()
    for names in (["score", "id"], ["extra"]):
        want = table.select(names).to_pylist()
        assert await ds.select_columns(names).take() == await read(columns=names).take() == want
    for expression in (
        SCORE > 0.5,
        SCORE.is_null(),
        ~(SCORE > 0.5),
        pc.field("extra", "a") == 1,
        SCORE.isin([None, 0.9]),
    ):
        want = table.filter(expression).to_pylist()
        for one in (ds.filter(expression), ds.map_batches(lambda batch: batch).filter(expression)):
            assert await one.take() == want
            assert await one.count() == len(want)
        assert await read(columns=["id"], filter=expression).count() == len(want)


def names_of(batch: Any) -> dict[str, list[str]]:
    return {"names": ["|".join(batch if isinstance(batch, dict) else batch.columns)]}


@pytest.mark.parametrize("num_cpus", [1, 4, 16])
def test_functions_see_columns_that_older_files_lack(versions: Path, num_cpus: int) -> None:
    async def check() -> None:
        ds = aiodata.read_parquet(versions).with_options(runtime="local", num_cpus=num_cpus)
        for batch_format in ("numpy", "pandas", "polars"):
            seen = ds.map_batches(names_of, batch_size=1, batch_format=batch_format)
            assert await seen.take() == [{"names": "id|score|extra"}] * 3

    aiodata.run(check)


async def test_moments_of_old_writers_are_those_that_were_written(runtime: str, tmp_path: Path) -> None:
    moments = [dt.datetime(9999, 12, 31), None, dt.datetime(1, 1, 1), dt.datetime(2024, 1, 1, 12, 30, 0, 5)]
    table = pa.table({"t": pa.array(moments, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    ds = aiodata.read_parquet(tmp_path).with_options(runtime=runtime)
    assert [row["t"] for row in await ds.take()] == moments
    assert await ds.filter(pc.field("t") == moments[0]).count() == 1
    assert [row["t"] for row in await ds.map_batches(lambda batch: batch).take()] == moments


@pytest.mark.parametrize("batch_size", [1, 4, None])
async def test_an_index_that_pandas_wrote_for_some_files_is_no_column(
    runtime: str, tmp_path: Path, batch_size: int | None
) -> None:
    frame = pd.DataFrame({"a": range(4)})
    frame.to_parquet(tmp_path / "0.parquet")
    frame[frame.a != 1].to_parquet(tmp_path / "1.parquet")
    ds = aiodata.read_parquet(tmp_path).with_options(runtime=runtime)
    assert (await ds.schema()).names == ["a"]
    for batch_format in ("numpy", "pandas"):
        batches = [one async for one in ds.aiter_batches(batch_size=batch_size, batch_format=batch_format)]
        assert {tuple(batch) for batch in batches} == {("a",)}


async def test_each_row_counts_once_and_what_is_no_data_is_named(runtime: str, tmp_path: Path) -> None:
    for name in (
        "loop/a.parquet",
        "v[1]/a.parquet",
        "mixed/a.parquet",
        "mixed/B.PARQUET",
        "mixed/c.pq",
        "gone/a.parquet",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"x": [1]}), tmp_path / name)
    (tmp_path / "loop" / "up").symlink_to("..")
    (tmp_path / "gone" / "b.parquet").symlink_to("nowhere")
    for path, num_rows in (("loop/a.parquet", 1), ("v[1]", 1), ("v[1]/*.parquet", 1), ("mixed", 3)):
        assert await aiodata.read_parquet(tmp_path / path).with_options(runtime=runtime).count() == num_rows
    with pytest.raises(aiodata.SourceError, match=r"gone/b\.parquet"):
        await aiodata.read_parquet(tmp_path / "gone").with_options(runtime=runtime).count()
    with pytest.raises(aiodata.OptionError, match="empty"):
        aiodata.read_parquet("")
