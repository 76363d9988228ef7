"""Rows in are rows out: whatever the types, the blocks, the files, the batch size and the format."""

from __future__ import annotations

import asyncio
import datetime
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiodata

pytestmark = pytest.mark.loops("asyncio")

Row = dict[str, Any]

FORMATS = ("numpy", "pyarrow", "pandas", "polars")

_WHOLE = st.integers(-(2**63), 2**63 - 1)
_WHEN = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1))
_CHOICES = pa.dictionary(pa.int32(), pa.string())
_STRUCT = pa.struct([("a", pa.int64()), ("b", pa.string())])

COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "int64": (pa.int64(), st.none() | _WHOLE),
    "int64_full": (pa.int64(), _WHOLE),
    "uint8": (pa.uint8(), st.none() | st.integers(0, 255)),
    "float64": (pa.float64(), st.none() | st.floats()),
    "bool": (pa.bool_(), st.none() | st.booleans()),
    "string": (pa.string(), st.none() | st.text(max_size=5)),
    "binary": (pa.binary(), st.none() | st.binary(max_size=5)),
    "dictionary": (_CHOICES, st.none() | st.sampled_from("abc")),
    "decimal": (pa.decimal128(9, 2), st.none() | st.decimals(-9999, 9999, places=2)),
    "timestamp": (pa.timestamp("us"), st.none() | _WHEN),
    "date": (pa.date32(), st.none() | st.dates(datetime.date(1900, 1, 1), datetime.date(2200, 1, 1))),
    "list": (pa.list_(pa.int64()), st.none() | st.lists(st.none() | _WHOLE, max_size=3)),
    "strings": (pa.list_(pa.string()), st.none() | st.lists(st.none() | st.text(max_size=3), max_size=3)),
    "pair": (pa.list_(pa.float64(), 2), st.lists(st.floats(), min_size=2, max_size=2)),
    "struct": (_STRUCT, st.none() | st.fixed_dictionaries({"a": st.none() | _WHOLE, "b": st.text(max_size=3)})),
    "null": (pa.null(), st.none()),
}


@dataclass(frozen=True)
class Case:
    """How rows are laid out, and how they are asked for."""

    tables: tuple[pa.Table, ...]
    in_one_table: bool
    row_group_size: int
    batch_size: int | None
    batch_format: str
    target_block_bytes: int
    preserve_order: bool
    drop_last: bool
    through_tasks: bool


@st.composite
def made_tables(draw: st.DrawFn, columns: Sequence[str] = tuple(COLUMNS)) -> tuple[pa.Table, ...]:
    """Draw tables of one schema: an `id` that counts the rows of all, and columns that repeat a few drawn values."""
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
    samples = {
        name: draw(st.lists(COLUMNS[name][1], min_size=1, max_size=5))
        for name in draw(st.lists(st.sampled_from(columns), max_size=3, unique=True))
    }
    ids = range(sum(sizes))
    arrays = {
        name: pa.array([values[one % len(values)] for one in ids], COLUMNS[name][0]) for name, values in samples.items()
    }
    # Slices of one table: every one but the first starts at an offset in its buffers.
    whole = pa.table({"id": pa.array(ids, pa.int64()), **arrays})
    return tuple(whole.slice(sum(sizes[:index]), size) for index, size in enumerate(sizes))


CASES = st.builds(
    Case,
    tables=made_tables(),
    in_one_table=st.booleans(),
    row_group_size=st.integers(1, 30),
    batch_size=st.none() | st.integers(1, 50),
    batch_format=st.sampled_from(FORMATS),
    target_block_bytes=st.sampled_from([100, 1000, 10_000, 1 << 25]),
    preserve_order=st.booleans(),
    drop_last=st.booleans(),
    through_tasks=st.booleans(),
)


@pytest.mark.slow
def test_rows_of_tables_come_out_once_in_every_batching() -> None:
    @settings(max_examples=250, deadline=None, database=None)
    @given(CASES)
    def rows_in_are_rows_out(case: Case) -> None:
        asyncio.run(check_rows(from_tables(case), case, "local"))

    rows_in_are_rows_out()


@pytest.mark.slow
def test_rows_of_parquet_files_come_out_once_in_every_batching() -> None:
    @settings(max_examples=120, deadline=None, database=None)
    @given(CASES)
    def rows_in_are_rows_out(case: Case) -> None:
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(check_rows(from_files(case, Path(directory)), case, "local"))

    rows_in_are_rows_out()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_rows_of_tables_come_out_once_on_ray() -> None:
    @settings(max_examples=40, deadline=None, database=None)
    @given(CASES.filter(lambda case: case.target_block_bytes >= 1000))
    def rows_in_are_rows_out(case: Case) -> None:
        asyncio.run(check_rows(from_tables(case), case, "ray"))

    rows_in_are_rows_out()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_rows_of_parquet_files_come_out_once_on_ray() -> None:
    @settings(max_examples=30, deadline=None, database=None)
    @given(CASES.filter(lambda case: case.target_block_bytes >= 1000))
    def rows_in_are_rows_out(case: Case) -> None:
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(check_rows(from_files(case, Path(directory)), case, "ray"))

    rows_in_are_rows_out()


@pytest.mark.slow
def test_function_is_given_every_row_once_in_every_format() -> None:
    @settings(max_examples=60, deadline=None, database=None)
    @given(CASES, st.none() | st.integers(1, 20))
    def rows_in_are_rows_out(case: Case, call_rows: int | None) -> None:
        given_rows: list[list[Row]] = []

        def note(batch: Any) -> pa.Table:
            rows = rows_of(batch, case.batch_format)
            given_rows.append(rows)
            return pa.table({"id": [row["id"] for row in rows]})

        with tempfile.TemporaryDirectory() as directory:
            ds = from_files(case, Path(directory)).with_options(runtime="local")
            ds = ds.map_batches(note, batch_size=call_rows, batch_format=case.batch_format)
            ids = asyncio.run(gather_ids(ds))
        rows = sorted((row for call in given_rows for row in call), key=lambda row: int(row["id"]))
        assert rows == rows_of_tables(case.tables)
        assert sorted(ids) == [row["id"] for row in rows]
        assert all(0 < len(call) <= (call_rows or len(rows)) for call in given_rows)

    rows_in_are_rows_out()


@pytest.mark.slow
def test_filter_keeps_the_same_rows_in_files_and_in_tables() -> None:
    plain = made_tables(("int64", "string", "bool", "timestamp", "list"))

    @settings(max_examples=30, deadline=None, database=None)
    @given(plain, st.integers(-5, 130), st.integers(1, 30), st.sampled_from([100, 1 << 25]))
    def filters_agree(tables: tuple[pa.Table, ...], bound: int, row_group_size: int, target: int) -> None:
        expected = [row for row in rows_of_tables(tables) if row["id"] >= bound]
        with tempfile.TemporaryDirectory() as directory:
            write_files(tables, Path(directory), row_group_size)
            for ds in (aiodata.read_parquet(directory), aiodata.from_arrow(list(tables))):
                options = {"runtime": "local", "preserve_order": True, "target_block_bytes": target}
                kept = ds.filter(pc.field("id") >= bound).with_options(**options)
                assert asyncio.run(gather_rows(kept)) == expected
                assert asyncio.run(kept.count()) == len(expected)

    filters_agree()


@pytest.mark.slow
def test_limit_lets_the_first_rows_through() -> None:
    @settings(max_examples=80, deadline=None, database=None)
    @given(CASES, st.integers(0, 170))
    def first_rows(case: Case, num_rows: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            for ds in (from_tables(case), from_files(case, Path(directory))):
                options = {"runtime": "local", "preserve_order": True, "target_block_bytes": case.target_block_bytes}
                limited = ds.limit(num_rows).with_options(**options)
                assert asyncio.run(gather_rows(limited)) == rows_of_tables(case.tables)[:num_rows]
                assert asyncio.run(limited.count()) == min(num_rows, len(rows_of_tables(case.tables)))

    first_rows()


async def test_nan_and_null_are_told_apart_where_the_format_can(runtime: str) -> None:
    ds = aiodata.from_arrow(pa.table({"x": [1.0, float("nan"), None]})).with_options(runtime=runtime)
    (table,) = [batch async for batch in ds.aiter_batches(batch_format="pyarrow")]
    (frame,) = [batch async for batch in ds.aiter_batches(batch_format="polars")]
    assert table["x"].null_count == 1
    assert pc.is_nan(table["x"]).to_pylist() == [False, True, None]
    assert frame["x"].null_count() == 1
    assert frame["x"].is_nan().to_list() == [False, True, None]


@pytest.mark.parametrize("batch_format", FORMATS)
async def test_fixed_size_lists_with_and_without_nulls_share_a_batch(batch_format: str) -> None:
    pair = pa.list_(pa.float64(), 2)
    tables = [pa.table({"pair": pa.array(values, pair)}) for values in ([[1, 2], [3, 4]], [[5, 6], None])]
    ds = aiodata.from_arrow(tables).with_options(runtime="local")
    rows = [row async for batch in ds.aiter_batches(batch_format=batch_format) for row in rows_of(batch, batch_format)]
    null = [None, None] if batch_format == "numpy" else None
    assert rows == [{"pair": [1, 2]}, {"pair": [3, 4]}, {"pair": [5, 6]}, {"pair": null}]


async def test_nested_fixed_size_lists_are_arrays_of_their_shape_in_numpy() -> None:
    values = [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]
    table = pa.table({"x": pa.array(values, pa.list_(pa.list_(pa.int64(), 3), 2))})
    (batch,) = [batch async for batch in aiodata.from_arrow(table).with_options(runtime="local").aiter_batches()]
    assert batch["x"].shape == (2, 2, 3)
    assert batch["x"].tolist() == values


@pytest.mark.parametrize("batch_format", FORMATS)
async def test_tensors_keep_their_shape_in_every_format(batch_format: str) -> None:
    def tensors(batch: dict[str, Any]) -> dict[str, Any]:
        return {"x": np.stack([np.arange(6).reshape(2, 3) + one for one in batch["id"]])}

    ds = aiodata.range(2, num_blocks=1).map_batches(tensors).with_options(runtime="local")
    rows = [row async for batch in ds.aiter_batches(batch_format=batch_format) for row in rows_of(batch, batch_format)]
    # pyarrow, polars and pandas show a tensor's values as one flat list; numpy shows the shape.
    flat = [{"x": list(range(one, one + 6))} for one in range(2)]
    shaped = [{"x": [list(range(one, one + 3)), list(range(one + 3, one + 6))]} for one in range(2)]
    assert rows == (shaped if batch_format == "numpy" else flat)


def from_tables(case: Case) -> aiodata.Dataset:
    return aiodata.from_arrow(pa.concat_tables(case.tables) if case.in_one_table else list(case.tables))


def from_files(case: Case, directory: Path) -> aiodata.Dataset:
    tables = [pa.concat_tables(case.tables)] if case.in_one_table else case.tables
    write_files(tables, directory, case.row_group_size)
    return aiodata.read_parquet(directory)


def write_files(tables: Sequence[pa.Table], directory: Path, row_group_size: int) -> None:
    for index, table in enumerate(tables):
        pq.write_table(table, directory / f"part-{index}.parquet", row_group_size=row_group_size)


async def check_rows(ds: aiodata.Dataset, case: Case, runtime: str) -> None:
    """Iterate as `case` says and compare with its tables."""
    ds = ds.with_options(
        runtime=runtime, preserve_order=case.preserve_order, target_block_bytes=case.target_block_bytes
    )
    if case.through_tasks:
        ds = ds.map_batches(lambda table: table, batch_format="pyarrow")
    batches = [
        rows_of(batch, case.batch_format)
        async for batch in ds.aiter_batches(
            batch_size=case.batch_size, batch_format=case.batch_format, drop_last=case.drop_last
        )
    ]
    expected = rows_of_tables(case.tables)
    assert all(batches), "a batch is empty"
    num_rows = len(expected)
    if case.batch_size is not None:
        assert all(len(batch) == case.batch_size for batch in batches[:-1])
        assert all(len(batch) <= case.batch_size for batch in batches)
        num_rows -= num_rows % case.batch_size if case.drop_last else 0
    rows = [row for batch in batches for row in batch]
    assert len(rows) == num_rows
    if case.preserve_order:
        assert rows == expected[:num_rows]
    else:
        assert len({row["id"] for row in rows}) == num_rows
        assert all(row == expected[int(row["id"])] for row in rows)


async def gather_ids(ds: aiodata.Dataset) -> list[int]:
    return [row["id"] for row in await gather_rows(ds)]


async def gather_rows(ds: aiodata.Dataset) -> list[Row]:
    return [row async for batch in ds.aiter_batches(batch_format="pyarrow") for row in rows_of(batch, "pyarrow")]


def rows_of_tables(tables: Sequence[pa.Table]) -> list[Row]:
    return [row for table in tables for row in rows_of(table, "pyarrow")]


def rows_of(batch: Any, batch_format: str) -> list[Row]:
    """Return a batch's rows in a form that is the same for all formats."""
    match batch_format:
        case "numpy":
            columns = {name: list(column) for name, column in batch.items()}
        case "pandas":
            columns = {name: batch[name].tolist() for name in batch.columns}
        case "polars":
            columns = batch.to_arrow().to_pydict()
        case _:
            columns = batch.to_pydict()
    values = [[common(value) for value in column] for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def common(value: Any) -> Any:
    """Return a value as Python's own; null, NaN and NaT are None, as numpy and pandas have one sign for them."""
    if value is np.ma.masked:
        return None
    if isinstance(value, np.ndarray | list):
        return [common(one) for one in value]
    if isinstance(value, dict):
        return {name: common(one) for name, one in value.items()}
    if isinstance(value, str | bytes | Decimal):
        return value
    if pd.isna(value):
        return None
    if isinstance(value, pd.Timestamp):
        return value.to_pydatetime()
    return value.item() if isinstance(value, np.generic) else value
