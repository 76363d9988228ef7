"""A filter keeps the same rows wherever it is evaluated, and is what is blamed if it cannot be."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import aiodata

pytestmark = pytest.mark.loops("asyncio")

X, A, NAN = pc.field("x"), pc.field("x", "a"), float("nan")

FLOATS = [X != 3.0, ~(X < 10), pc.is_nan(X), X.is_null(nan_is_null=True), X.isin([0.0]), X.isin([3.0, NAN]), X <= 0]
CASES: dict[str, tuple[pa.Array, list[pc.Expression]]] = {
    "float64": (pa.array([3.0, NAN, None, -0.0, 0.0]), FLOATS),
    "float32": (pa.array([3.0, NAN, None, -0.0], pa.float32()), FLOATS),
    "float16": (pa.array(np.array([3, np.nan, 0], np.float16)), [pc.is_nan(X), ~pc.is_nan(X), X.is_valid()]),
    "nulls": (pa.array([None, None], pa.float64()), FLOATS),
    "struct": (
        pa.array([{"a": 3.0}, {"a": NAN}, {"a": -0.0}, {"a": None}, None]),
        [A != 3.0, pc.is_nan(A), A.isin([0.0]), A.is_null()],
    ),
    "int64": (
        pa.array([1, None, 2**60 + 1]),
        [X == 2**60 + 1, X > 2.5, X.isin([1.0]), X.isin([None, 1]), ~X.isin([1])],
    ),
    "uint64": (pa.array([1, None, 2**64 - 1], pa.uint64()), [pa.scalar(2**64 - 1, pa.uint64()) == X, X > 1]),
    "int8": (pa.array([1, None, 127], pa.int8()), [X < 300, X.isin([1, 300]), X == 127]),
    "string": (
        pa.array(["a", None, "b", ""]),
        [X == "a", ~X.isin(["a"]), X.isin([]), pc.starts_with(X, "a"), X.is_null()],
    ),
    "category": (pa.array(["a", None, "b"]).dictionary_encode(), [X == "a", X.isin(["b"]), X.is_null()]),
    "bool": (pa.array([True, None, False]), [X, ~X, X.isin([True])]),
    "date": (
        pa.array([dt.date(2024, 4, 1), dt.date(2024, 4, 2), None]),
        [X.isin(["2024-04-02"]), X.isin([dt.date(2024, 4, 2)]), dt.date(2024, 4, 1) < X],
    ),
    "moment": (
        pa.array([dt.datetime(2024, 4, 1), None, dt.datetime(2024, 4, 2, 1)]),
        [dt.datetime(2024, 4, 1, 12) <= X, X.isin([dt.datetime(2024, 4, 1)]), X.isin(["2024-04-01"])],
    ),
    "decimal": (pa.array([Decimal("1.25"), None]), [Decimal("1.25") == X, X.isin([Decimal("1.25")]), X < 2]),
}


async def rows_or_error(ds: aiodata.Dataset) -> list[str] | str:
    try:
        rows = await ds.take(100)
        assert await ds.count() == len(rows)
    except aiodata.AiodataError as error:
        return type(error).__name__
    return sorted(map(str, rows))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_filters_keep_the_same_rows_in_files_in_memory_and_after_a_function(tmp_path: Path, name: str) -> None:
    array, expressions = CASES[name]
    table = pa.table({"x": array, "k": range(len(array))})
    ways: list[dict[str, Any]] = [{}, {"row_group_size": 1}, {"write_statistics": False}]
    paths = [tmp_path / f"{number}.parquet" for number in range(len(ways))]
    for path, options in zip(paths, ways, strict=True):
        pq.write_table(table, path, **options)

    async def check() -> None:
        memory = aiodata.from_arrow(table).with_options(runtime="local")
        identity = memory.map_batches(lambda batch: batch, batch_format="pyarrow", batch_size=2)
        files = [aiodata.read_parquet(path).with_options(runtime="local") for path in paths]
        for expression in expressions:
            # What memory refuses as well, be it as another error, is refused.
            want = await rows_or_error(memory.filter(expression))
            for ds in (identity, *files):
                found = await rows_or_error(ds.filter(expression))
                assert isinstance(found, str) if isinstance(want, str) else found == want, (expression, want)
            if not isinstance(want, str):
                assert want == sorted(map(str, table.filter(expression).to_pylist()))

    aiodata.run(check)


async def test_nan_and_negative_zero_are_kept_on_every_runtime(runtime: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [3.0, NAN, -0.0, None]}), tmp_path / "a.parquet", row_group_size=1)
    ds = aiodata.read_parquet(tmp_path).with_options(runtime=runtime)
    counts = [
        await ds.filter(one).count() for one in (X != 3.0, pc.is_nan(X), X.isin([0.0]), X.is_null(nan_is_null=True))
    ]
    assert counts == [2, 1, pa.table({"x": [3.0, NAN, -0.0, None]}).filter(X.isin([0.0])).num_rows, 2]


@pytest.mark.parametrize("is_pushed", [True, False])
async def test_expression_that_cannot_be_evaluated_is_blamed(runtime: str, tmp_path: Path, *, is_pushed: bool) -> None:
    pq.write_table(pa.table({"name": ["a"], "d": [dt.date(2024, 4, 1)]}), tmp_path / "a.parquet")
    ds = aiodata.read_parquet(tmp_path).with_options(runtime=runtime)
    ds = ds if is_pushed else ds.map_batches(lambda batch: batch, batch_format="pyarrow")
    for expression in (pc.field("name") > 5, pc.field("d") == 1.5, pc.field("name").isin([1.5]), pc.field("name")):
        with pytest.raises(aiodata.AiodataError) as caught:
            await ds.filter(expression).count()
        assert "name" in str(caught.value)
        assert not isinstance(caught.value, aiodata.SourceError)


async def test_filter_names_a_column_that_an_empty_file_has_without_a_type(runtime: str, tmp_path: Path) -> None:
    pd.DataFrame({"s": []}).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame({"s": ["a", "b"]}).to_parquet(tmp_path / "b.parquet")
    ds = aiodata.read_parquet(tmp_path).with_options(runtime=runtime)
    assert await ds.filter(pc.field("s") == "a").count() == 1
    assert await ds.map_batches(lambda table: table, batch_format="pyarrow").filter(pc.field("s") == "a").count() == 1


@pytest.mark.parametrize("kind", [pl.String, pl.Categorical, pl.List(pl.String), pl.Struct({"a": pl.String})], ids=str)
async def test_rows_beside_columns_of_polars_are_filtered(runtime: str, kind: Any) -> None:
    values: dict[Any, list[Any]] = {pl.List(pl.String): [["a"], []], pl.Struct({"a": pl.String}): [{"a": "a"}, None]}
    frame = pl.DataFrame({"id": [1, 2], "s": pl.Series(values.get(kind, ["a", "b"]), dtype=kind)})
    made = aiodata.range(1).map_batches(lambda _: frame)
    for ds in (aiodata.from_arrow(frame), made, aiodata.from_arrow(frame).map_batches(lambda one: one)):
        assert await ds.with_options(runtime=runtime).filter(pc.field("id") > 1).count() == 1
