"""Values and types are those that went in, in every format, and one per column and pass."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import aiodata

pytestmark = pytest.mark.loops("asyncio")

BIG = 2**60 + 1
FORMATS = ["numpy", "pandas", "polars", "pyarrow"]

# One column for each type, with a null in its second row.
COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "int64": (pa.int64(), [BIG, None, 3]),
    "uint64": (pa.uint64(), [2**64 - 1, None, 0]),
    "int8": (pa.int8(), [-128, None, 127]),
    "bool": (pa.bool_(), [True, None, False]),
    "float32": (pa.float32(), [1.5, None, -0.0]),
    "decimal": (pa.decimal128(10, 2), [Decimal("1.25"), None, Decimal("-3.00")]),
    "date": (pa.date32(), [dt.date(2024, 1, 1), None, dt.date(9999, 12, 31)]),
    "far moment": (pa.timestamp("us"), [dt.datetime(9999, 12, 31), None, dt.datetime(1, 1, 1)]),
    "zoned": (pa.timestamp("us", "Asia/Tokyo"), [dt.datetime(2024, 1, 1), None, dt.datetime(1900, 1, 1)]),
    "time": (pa.time64("us"), [dt.time(1, 2, 3, 4), None, dt.time(0)]),
    "duration": (pa.duration("s"), [dt.timedelta(seconds=1), None, dt.timedelta(days=-5)]),
    "large string": (pa.large_string(), ["a", None, ""]),
    "binary": (pa.binary(3), [b"abc", None, b"\0\0\0"]),
    "category": (pa.dictionary(pa.int8(), pa.string()), ["a", None, "b"]),
    "ids in lists": (pa.list_(pa.int64()), [[BIG, None], None, []]),
    "bools in lists": (pa.list_(pa.bool_()), [[True, None], None, [False]]),
    "lists in lists": (pa.list_(pa.list_(pa.int64())), [[[BIG, None], []], None, []]),
    "pairs of ids": (pa.list_(pa.int64(), 2), [[BIG, None], None, [3, 4]]),
    "lists of pairs": (pa.list_(pa.list_(pa.int64(), 2)), [[[BIG, None]], None, []]),
    "embeddings": (pa.list_(pa.float32(), 2), [[1.0, 2.0], None, [3.0, 4.0]]),
    "strings in lists": (pa.large_list(pa.string()), [["a", None], None, []]),
    "struct": (
        pa.struct([("a", pa.int32()), ("b", pa.list_(pa.int64()))]),
        [{"a": 1, "b": [BIG, None]}, None, {"a": None, "b": None}],
    ),
    "structs in lists": (pa.list_(pa.struct([("a", pa.int64())])), [[{"a": BIG}, None], None, [{"a": None}]]),
    "map": (pa.map_(pa.string(), pa.int64()), [[("a", BIG), ("b", None)], None, []]),
    "null": (pa.null(), [None, None, None]),
}
TABLE = pa.table({name: pa.array(values, kind) for name, (kind, values) in COLUMNS.items()})


async def blocks(ds: aiodata.Dataset, **options: Any) -> pa.Table:
    """Collect a pass, of which all batches have the schema that the dataset says."""
    schema = await ds.schema()
    batches = [batch async for batch in ds.aiter_batches(batch_format="pyarrow", **options)]
    assert {str(batch.schema) for batch in batches} == {str(schema)}
    return pa.concat_tables(batches)


def dtypes(batches: Sequence[Any], column: str = "x") -> set[str]:
    """The types of a column in batches of any format."""
    columns = [batch[column] for batch in batches]
    return {str(one.dtype if hasattr(one, "dtype") else one.type) for one in columns}


@pytest.mark.parametrize("batch_format", FORMATS)
@pytest.mark.parametrize("batch_size", [1, 2, 1000])
async def test_identity_changes_no_value_and_no_type(runtime: str, batch_format: str, batch_size: int) -> None:
    tables = [TABLE.slice(0, 1), TABLE.slice(1)]
    ds = aiodata.from_arrow(tables).with_options(runtime=runtime, preserve_order=True)
    same = ds.map_batches(lambda batch: batch, batch_format=batch_format, batch_size=batch_size)
    out = await blocks(same, batch_size=2)
    assert out.schema == TABLE.schema
    assert out.to_pylist() == TABLE.to_pylist()


@pytest.mark.parametrize("as_class", [False, True])
async def test_columns_beside_a_new_one_stay_as_they_are(runtime: str, *, as_class: bool) -> None:
    class Model:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {**batch, "score": np.ones(len(batch["int64"]), np.float32)}

    async def asynchronous(batch: dict[str, Any]) -> dict[str, Any]:
        return Model()(batch)

    ds = aiodata.from_arrow(TABLE).with_options(runtime=runtime, preserve_order=True)
    out = await blocks(ds.map_batches(Model if as_class else asynchronous, batch_size=1), batch_size=None)
    assert out.column("score").type == pa.float32()
    assert out.drop_columns(["score"]).to_pylist() == TABLE.to_pylist()
    assert out.drop_columns(["score"]).schema == TABLE.schema


async def test_materialized_blocks_shuffled_and_joined_keep_types(runtime: str) -> None:
    ds = aiodata.from_arrow([TABLE, TABLE]).with_options(runtime=runtime)
    kept = await ds.map_batches(lambda batch: batch).union(ds.select_columns(TABLE.column_names)).materialize()
    out = await blocks(kept, batch_size=5, local_shuffle_buffer_size=4)
    assert out.schema == TABLE.schema
    assert sorted(map(str, out.to_pylist())) == sorted(map(str, TABLE.to_pylist() * 4))


# What two of three files have in a column that the third lacks, or has nothing but nulls in; and its type in numpy.
PARTLY_KNOWN: dict[str, tuple[pa.Array, str]] = {
    "int64": (pa.array([BIG, 2]), "int64"),
    "bool": (pa.array([True, False]), "bool"),
    "float32": (pa.array([0.5, 1], pa.float32()), "float32"),
    "string": (pa.array(["a", "b"]), "object"),
    "zoned": (pa.array([1, 2], pa.timestamp("us", "UTC")), "datetime64[us]"),
    "list": (pa.array([[1], [2, None]]), "object"),
    "pair": (pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)), "int64"),
    "struct": (pa.array([{"a": 1}, {"a": 2}]), "object"),
}


@pytest.mark.parametrize("is_missing", [False, True])
@pytest.mark.parametrize("kind", PARTLY_KNOWN)
def test_column_that_one_file_does_not_know_has_one_dtype_everywhere(
    tmp_path: Path, kind: str, *, is_missing: bool
) -> None:
    values, dtype = PARTLY_KNOWN[kind]
    for name in "abc":
        unknown = {"k": [0, 1]} if is_missing else {"k": [0, 1], "x": pa.nulls(2)}
        pq.write_table(pa.table(unknown if name == "b" else {"k": [0, 1], "x": values}), tmp_path / f"{name}.parquet")

    async def check() -> None:
        seen = {name: set[str]() for name in FORMATS}
        for num_cpus in (1, 16):
            ds = aiodata.read_parquet(tmp_path).with_options(runtime="local", num_cpus=num_cpus, preserve_order=True)
            ways: list[dict[str, Any]] = [{"batch_size": 1}, {"batch_size": 2}]
            for options in (*ways, {"batch_size": 4, "local_shuffle_buffer_size": 3}):
                for batch_format in FORMATS:
                    batches = [one async for one in ds.aiter_batches(batch_format=batch_format, **options)]
                    seen[batch_format] |= dtypes(batches)
            rows = (await blocks(ds, batch_size=4))["x"].to_pylist()
            assert rows == [*values.to_pylist(), None, None, *values.to_pylist()]
        assert {name: len(one) for name, one in seen.items()} == dict.fromkeys(FORMATS, 1)
        assert seen["numpy"] == {dtype}

    aiodata.run(check)


async def test_tensors_of_a_column_that_a_file_lacks_have_one_dtype(runtime: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"k": [0, 1], "x": [1, 2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"k": [2, 3]}), tmp_path / "b.parquet")
    ds = aiodata.read_parquet(tmp_path).with_options(runtime=runtime, preserve_order=True)
    for batches in (ds.aiter_batches(batch_size=2, batch_format="torch"), ds.aiter_torch_batches(batch_size=1)):
        assert {batch["x"].dtype async for batch in batches} == {torch.float64}


PAIRS: dict[str, tuple[pa.Array, pa.Array, pa.DataType]] = {
    "int8, int64": (pa.array([1], pa.int8()), pa.array([BIG]), pa.int64()),
    "int32, uint32": (pa.array([-5], pa.int32()), pa.array([2**32 - 1], pa.uint32()), pa.int64()),
    "int16, float32": (pa.array([7], pa.int16()), pa.array([0.5], pa.float32()), pa.float32()),
    "int32, float32": (pa.array([2**31 - 1], pa.int32()), pa.array([0.5], pa.float32()), pa.float64()),
    "decimals": (pa.array([Decimal("1.5")]), pa.array([Decimal("1.25")]), pa.decimal128(3, 2)),
    "s, us": (pa.array([1], pa.timestamp("s")), pa.array([1], pa.timestamp("us")), pa.timestamp("us")),
    "strings": (pa.array(["a"]), pa.array(["b"], pa.large_string()), pa.large_string()),
    "dictionary, string": (pa.array(["a"]).dictionary_encode(), pa.array(["b"]), pa.string()),
    "lists": (pa.array([[1]], pa.list_(pa.int32())), pa.array([[BIG, None]]), pa.list_(pa.int64())),
    "members": (
        pa.array([{"a": 1}], pa.struct([("a", pa.int8())])),
        pa.array([{"a": BIG}]),
        pa.struct([("a", "int64")]),
    ),
}


@pytest.mark.parametrize("batch_format", ["numpy", "pandas", "polars"])
@pytest.mark.parametrize("pair", PAIRS)
def test_other_widths_and_units_share_a_type_that_holds_all_exactly(pair: str, batch_format: str) -> None:
    a, b, kind = PAIRS[pair]

    async def check() -> None:
        for first, second in ((a, b), (b, a)):
            tables = [pa.table({"x": first}), pa.table({"x": second})]
            united = aiodata.from_arrow(tables[0]).union(aiodata.from_arrow(tables[1]))
            for num_cpus, one in ((1, aiodata.from_arrow(tables)), (16, aiodata.from_arrow(tables)), (4, united)):
                ds = one.with_options(runtime="local", preserve_order=True, num_cpus=num_cpus)
                out = await blocks(ds, batch_size=2)
                assert out.schema.field("x").type == kind
                assert out["x"].to_pylist() == first.to_pylist() + second.to_pylist()
                batches = [batch async for batch in ds.aiter_batches(batch_size=1, batch_format=batch_format)]
                assert len(dtypes(batches)) == 1

    aiodata.run(check)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (pa.array([2**53 + 1]), pa.array([BIG], pa.uint64())),
        (pa.array([BIG]), pa.array([0.5])),
        (pa.array([5]), pa.array(["a"])),
        (pa.array([True]), pa.array([1])),
        (pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("us", "UTC"))),
        (pa.array([dt.date(2024, 1, 1)]), pa.array([dt.datetime(2024, 1, 1)])),
        (pa.array([b"a"]), pa.array(["a"])),
        (pa.array([dt.datetime(9999, 12, 31)], pa.timestamp("us")), pa.array([1], pa.timestamp("ns"))),
    ],
    ids=lambda one: str(one.type),
)
async def test_what_no_type_holds_exactly_is_an_error_that_names_column_and_types(
    runtime: str, a: pa.Array, b: pa.Array
) -> None:
    ds = aiodata.from_arrow([pa.table({"x": a}), pa.table({"x": b})]).with_options(runtime=runtime)
    with pytest.raises(aiodata.AiodataError, match="'x'") as caught:
        [batch async for batch in ds.aiter_batches(batch_size=2)]
    assert str(a.type) in str(caught.value)
    assert str(b.type) in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"batch_size": 3}, {"batch_size": 1}, {"batch_size": 2, "local_shuffle_buffer_size": 4}]
)
async def test_categories_are_the_same_in_all_batches(runtime: str, options: dict[str, Any]) -> None:
    tables = [pa.table({"c": pa.array(list(values)).dictionary_encode()}) for values in ("abab", "cccc", "ca")]
    ds = aiodata.from_arrow(tables).with_options(runtime=runtime, preserve_order=True)
    frames = [frame async for frame in ds.aiter_batches(batch_format="pandas", **options)]
    assert {tuple(frame["c"].cat.categories) for frame in frames} == {("a", "b", "c")}
    assert sorted(value for frame in frames for value in frame["c"]) == sorted("ababccccca")


@pytest.mark.parametrize("num_cpus", [1, 4, 16])
def test_categories_beside_strings_are_strings_for_any_number_of_cpus(tmp_path: Path, num_cpus: int) -> None:
    for number in range(12):
        values = pa.array(["a", None, "b"])
        pq.write_table(
            pa.table({"c": values.dictionary_encode() if number % 2 else values}), tmp_path / f"{number:02}.parquet"
        )

    async def check() -> None:
        ds = aiodata.read_parquet(tmp_path).with_options(runtime="local", num_cpus=num_cpus)
        ways: list[dict[str, Any]] = [{"batch_size": None}, {"batch_size": 5}]
        for options in (*ways, {"batch_size": 4, "local_shuffle_buffer_size": 10}):
            frames = [frame async for frame in ds.aiter_batches(batch_format="pandas", **options)]
            assert sum(map(len, frames)) == 36
            assert dtypes(frames, "c") == {"str"}
        assert await ds.map_batches(lambda batch: batch, batch_format="polars", batch_size=5).count() == 36

    aiodata.run(check)
