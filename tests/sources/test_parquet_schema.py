"""Parquet: one schema for all files, known before the first row, which every chunk has exactly."""

from __future__ import annotations

import datetime as dt
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import aiodata
from aiodata.errors import AiodataError, OptionError, UnknownColumnError
from aiodata.plan.pieces import Chunk
from aiodata.plan.source import raise_it
from aiodata.schemas import has_nulls
from aiodata.sources import parquet
from aiodata.sources.files import check_paths
from aiodata.sources.parquet import ParquetSource

pytestmark = pytest.mark.loops("asyncio")


def source(path: Any, **arguments: Any) -> ParquetSource:
    return ParquetSource(check_paths(path, None), **arguments)


def chunks(given: ParquetSource, num_tasks: int = 1, chunk_bytes: int = 1 << 20) -> list[Chunk]:
    """Read all, as workers do that get the pieces sent."""
    pieces = pickle.loads(pickle.dumps(given.pieces(num_tasks, raise_it)))
    return [chunk for piece in pieces for chunk in piece.read(0, 0, chunk_bytes)]


def rows(given: ParquetSource, **arguments: Any) -> list[dict[str, Any]]:
    """Return the rows; each chunk has to have the schema."""
    schema = given.schema(raise_it)
    found = chunks(given, **arguments)
    assert found
    for chunk in found:
        assert chunk.table.schema.equals(schema, check_metadata=True)
    return [row for chunk in found for row in chunk.table.to_pylist()]


def write(folder: Path, **files: Any) -> Path:
    for name, columns in files.items():
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize("num_tasks", [1, 16])
def test_column_of_nulls_in_one_file_has_the_type_of_the_others(tmp_path: Path, num_tasks: int) -> None:
    given = source(write(tmp_path, a={"y": [1, 2]}, b={"y": pa.nulls(2)}, c={"y": [3, 4]}))
    assert given.schema(raise_it) == pa.schema([("y", pa.int64())])
    assert [row["y"] for row in rows(given, num_tasks=num_tasks)] == [1, 2, None, None, 3, 4]


@pytest.mark.parametrize("num_tasks", [1, 16])
def test_column_that_a_file_lacks_is_null_there(tmp_path: Path, num_tasks: int) -> None:
    given = source(write(tmp_path, v1={"id": [0]}, v2={"id": [1], "score": [0.9]}))
    assert given.schema(raise_it).names == ["id", "score"]
    assert rows(given, num_tasks=num_tasks) == [{"id": 0, "score": None}, {"id": 1, "score": 0.9}]
    selected = given.with_columns(("score",))
    assert isinstance(selected, ParquetSource)
    assert rows(selected, num_tasks=num_tasks) == [{"score": None}, {"score": 0.9}]
    for expression, kept in ((pc.field("score") > 0.5, [1]), (pc.field("score").is_null(), [0])):
        filtered = given.with_filter(expression)
        assert isinstance(filtered, ParquetSource)
        assert [row["id"] for row in rows(filtered, num_tasks=num_tasks)] == kept
        narrow = filtered.with_columns(("id",))
        assert isinstance(narrow, ParquetSource)
        assert rows(narrow, num_tasks=num_tasks) == [{"id": one} for one in kept]


async def test_column_that_a_file_lacks_is_null_in_a_dataset(tmp_path: Path) -> None:
    write(tmp_path, v1={"id": [0]}, v2={"id": [1], "score": [0.9]})
    ds = aiodata.read_parquet(tmp_path).with_options(runtime="local", preserve_order=True)
    assert (await ds.schema()).names == ["id", "score"]
    assert await ds.take() == [{"id": 0, "score": None}, {"id": 1, "score": 0.9}]
    assert await ds.select_columns(["id", "score"]).take() == await ds.take()
    assert await ds.filter(pc.field("score") > 0.5).take() == [{"id": 1, "score": 0.9}]


US, NS = pa.timestamp("us"), pa.timestamp("ns")

# Two columns, and what holds both exactly.
WIDER: dict[str, tuple[pa.Array, pa.Array, pa.DataType]] = {
    "integers": (pa.array([2**31 - 1], pa.int32()), pa.array([2**60 + 1]), pa.int64()),
    "signs": (pa.array([-1], pa.int32()), pa.array([2**32 - 1], pa.uint32()), pa.int64()),
    "floats": (pa.array([0.1], pa.float32()), pa.array([0.1]), pa.float64()),
    "decimals": (pa.array([Decimal("1.5")]), pa.array([Decimal("1.25")]), pa.decimal128(3, 2)),
    "units": (pa.array([dt.datetime(2024, 1, 1)], pa.timestamp("ms")), pa.array([1], US), US),
    "strings": (pa.array(["a"]), pa.array(["b"], pa.large_string()), pa.large_string()),
    "dictionary": (pa.array(["a"]).dictionary_encode(), pa.array(["b"]), pa.string()),
    "views": (pa.array(["a"], pa.string_view()), pa.array(["b"]), pa.large_string()),
    "members": (
        pa.array([{"a": 1}]),
        pa.array([{"a": 2, "b": "x"}]),
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
    ),
    "lists": (pa.array([[1]], pa.list_(pa.int8())), pa.array([[2]], pa.list_(pa.int64())), pa.list_(pa.int64())),
}


@pytest.mark.parametrize(("first", "second", "kind"), WIDER.values(), ids=WIDER)
def test_types_of_several_files_become_one_that_holds_them_exactly(
    tmp_path: Path, first: pa.Array, second: pa.Array, kind: pa.DataType
) -> None:
    given = source(write(tmp_path, a={"x": first}, b={"x": second}))
    assert given.schema(raise_it).field("x").type == kind
    values = [row["x"] for row in rows(given)]
    member = {"b": None} if pa.types.is_struct(kind) else {}
    assert values == [{**first[0].as_py(), **member} if member else first[0].as_py(), second[0].as_py()]


NO_TYPE = {
    "integer_and_string": (pa.array([5]), pa.array(["a"])),
    "int64_and_uint64": (pa.array([2**53 + 1]), pa.array([2**60 + 3], pa.uint64())),
    "zoned_and_naive": (pa.array([1], US), pa.array([1], pa.timestamp("us", "UTC"))),
    "integer_and_float": (pa.array([2**53 + 1]), pa.array([0.5])),
}


@pytest.mark.parametrize(("first", "second"), NO_TYPE.values(), ids=NO_TYPE)
def test_types_that_nothing_holds_are_an_error_that_names_both_files(
    tmp_path: Path, first: pa.Array, second: pa.Array
) -> None:
    given = source(write(tmp_path, a={"x": first}, b={"x": first}, c={"x": second}))
    with pytest.raises(aiodata.SourceError, match=r"'x'.*a\.parquet.*c\.parquet.*schema=") as caught:
        given.pieces(1, raise_it)
    assert str(first.type) in str(caught.value)
    assert str(second.type) in str(caught.value)


def test_value_that_does_not_fit_the_finer_unit_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    given = source(write(tmp_path, a={"x": pa.array([dt.datetime(9999, 12, 31)], US)}, b={"x": pa.array([1], NS)}))
    assert given.schema(raise_it).field("x").type == NS
    with pytest.raises(aiodata.SourceError, match=r"a\.parquet.*'x'.*timestamp\[us\].*timestamp\[ns\]"):
        chunks(given)


def test_file_without_rows_says_nothing_about_types(tmp_path: Path) -> None:
    pd.DataFrame({"s": []}).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame({"s": ["a", "b"]}).to_parquet(tmp_path / "b.parquet")
    given = source(tmp_path)
    assert given.schema(raise_it).field("s").type == pq.read_schema(tmp_path / "b.parquet").field("s").type
    assert rows(given) == [{"s": "a"}, {"s": "b"}]
    filtered = given.with_filter(pc.field("s") == "a")
    assert isinstance(filtered, ParquetSource)
    assert rows(filtered) == [{"s": "a"}]


def test_files_that_all_have_no_rows_say_their_types(tmp_path: Path) -> None:
    empty = pa.schema([("id", pa.int64()), ("s", pa.string())]).empty_table()
    given = source(write(tmp_path, a=empty, b=empty))
    assert given.schema(raise_it) == empty.schema
    assert rows(given) == []


def test_nulls_are_marked_where_statistics_say(tmp_path: Path) -> None:
    columns = {"some": [1, None], "none": [1, 2], "lists": [[1], []], "full_lists": [[1], [2]], "nested": [[1], [None]]}
    schema = source(write(tmp_path, a=columns)).schema(raise_it)
    known = {field.name: has_nulls(field) for field in schema}
    assert known == {"some": True, "none": False, "lists": None, "full_lists": None, "nested": None}
    write(tmp_path, b={"some": [1], "lists": [[1]], "full_lists": [[1]], "nested": [[1]]})
    assert has_nulls(source(tmp_path).schema(raise_it).field("none")) is True
    pq.write_table(pa.table(columns), tmp_path / "b.parquet", write_statistics=False)
    later = source(tmp_path).schema(raise_it)
    assert [has_nulls(later.field(name)) for name in ("some", "none")] == [True, None]


@pytest.mark.parametrize("cpus", [1, 2])
async def test_file_without_a_footer_is_one_error(tmp_path: Path, cpus: int) -> None:
    write(tmp_path, a={"id": [0]}, b={"id": [1]})
    (tmp_path / "c.parquet").write_bytes(b"PAR1 cut off")
    skipped: list[AiodataError] = []
    given = source(tmp_path)
    pieces = given.pieces(cpus, skipped.append)
    assert [row["id"] for piece in pieces for c in piece.read(0, 0, 1 << 20) for row in c.table.to_pylist()] == [0, 1]
    assert len(skipped) == 1
    assert "c.parquet" in str(skipped[0])
    assert given.count_rows(skipped.append) == 2
    with pytest.raises(aiodata.SourceError, match=r"c\.parquet"):
        given.schema(raise_it)


def test_files_that_are_all_broken_are_an_error_whatever_may_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "c.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(aiodata.SourceError, match="none of the files"):
        source(tmp_path).schema(lambda error: None)


def test_of_very_many_files_the_others_are_checked_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_MAX_FOOTERS", 3)
    write(tmp_path, **{name: {"id": [index]} for index, name in enumerate("abcde")})
    assert [row["id"] for row in rows(source(tmp_path))] == [0, 1, 2, 3, 4]
    write(tmp_path, b={"id": pa.array([1], pa.int8())})
    assert [row["id"] for row in rows(source(tmp_path))] == [0, 1, 2, 3, 4]
    for wrong in ({"id": ["1"]}, {"id": [1], "more": [2.5]}):
        write(tmp_path, b=wrong)
        given = source(tmp_path)
        assert given.schema(raise_it).names == ["id"]
        with pytest.raises(aiodata.SourceError, match=r"b\.parquet.*'(id|more)'.*(string|double).*schema="):
            chunks(given)
    chosen = given.with_columns(("id",))
    assert isinstance(chosen, ParquetSource)
    assert [row["id"] for row in rows(chosen)] == [0, 1, 2, 3, 4]


def test_schema_that_is_asked_for_is_what_rows_have(tmp_path: Path) -> None:
    write(tmp_path, a={"id": pa.array([0], pa.int32()), "x": ["dropped"]}, b={"id": [1], "x": [5]})
    asked = pa.schema([("new", pa.string()), ("id", pa.float64())])
    assert rows(source(tmp_path, asked_schema=asked)) == [{"new": None, "id": 0.0}, {"new": None, "id": 1.0}]
    with pytest.raises(aiodata.SourceError, match=r"b\.parquet.*'x'.*int64.*string"):
        chunks(source(tmp_path, asked_schema=pa.schema([("x", pa.string())])))


def test_directories_are_columns(tmp_path: Path) -> None:
    table = pa.table({"year": [2023, 2024, None], "id": [0, 1, 2]})
    pq.write_to_dataset(table, tmp_path, partition_cols=["year"])
    given = source(tmp_path)
    assert given.schema(raise_it) == pa.schema([("id", pa.int64()), ("year", pa.int64())])
    assert rows(given) == [{"id": 0, "year": 2023}, {"id": 1, "year": 2024}, {"id": 2, "year": None}]
    years = given.with_columns(("year",))
    assert isinstance(years, ParquetSource)
    assert [row["year"] for row in rows(years)] == [2023, 2024, None]
    assert rows(source(tmp_path, partitioning=None)) == [{"id": 0}, {"id": 1}, {"id": 2}]


def test_files_whose_directories_rule_them_out_are_not_opened(tmp_path: Path) -> None:
    pq.write_to_dataset(pa.table({"year": [2023, 2024], "id": [0, 1]}), tmp_path, partition_cols=["year"])
    given = source(tmp_path, filter=pc.field("year") == 2024)
    assert [piece.file.partition for piece in given.pieces(1) if isinstance(piece, parquet.ParquetPiece)] == [
        (("year", "2024"),)
    ]
    assert rows(given) == [{"id": 1, "year": 2024}]
    assert rows(source(tmp_path, filter=pc.field("year") > 2024)) == []
    assert rows(source(tmp_path, filter=(pc.field("year") < 2024) & (pc.field("id") == 1))) == []


def test_directory_wins_over_a_column_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "year=2024").mkdir()
    write(tmp_path / "year=2024", a={"year": ["x", "y"], "id": [0, 1]})
    assert rows(source(tmp_path)) == [{"id": 0, "year": 2024}, {"id": 1, "year": 2024}]


def test_columns_of_one_name_are_an_error(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["value", "value"])
    with pytest.raises(aiodata.SourceError, match=r"a\.parquet.*'value'"):
        source(write(tmp_path, a=twice)).schema(raise_it)


def test_exactly_the_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    write(tmp_path, a={"a": [{"b": 1, "c": 2}], "a.b": ["x"], "d": [1]})
    for columns, row in (
        (("a.b",), {"a.b": "x"}),
        (("d", "a"), {"d": 1, "a": {"b": 1, "c": 2}}),
        (("a", "a.b"), {"a": {"b": 1, "c": 2}, "a.b": "x"}),
    ):
        given = source(tmp_path, columns=columns)
        assert given.schema(raise_it).names == list(columns)
        assert rows(given) == [row]
    with pytest.raises(OptionError, match=r"'a\.b'"):
        source(tmp_path, columns=("a.b", "a.b")).schema(raise_it)


@pytest.mark.parametrize("question", [ParquetSource.schema, ParquetSource.count_rows, lambda one: one.pieces(1)])
def test_unknown_column_is_named_with_one_like_it(tmp_path: Path, question: Any) -> None:
    write(tmp_path, a={"name": ["a"]})
    with pytest.raises(UnknownColumnError, match=r"read_parquet.*'nmae'; did you mean 'name'.*\['name'\]"):
        question(source(tmp_path, columns=("nmae",)))


def test_filter_that_cannot_be_evaluated_is_blamed(tmp_path: Path) -> None:
    write(tmp_path, a={"name": ["a"]})
    with pytest.raises(UnknownColumnError, match=r"filter\(\(nmae == \"a\"\)\).*did you mean 'name'"):
        source(tmp_path, filter=pc.field("nmae") == "a").pieces(1)
    with pytest.raises(OptionError, match=r"filter\(\(name > 5\)\) .*name: string"):
        source(tmp_path, filter=pc.field("name") > 5).pieces(1)


def test_filter_means_the_same_pushed_down_or_not(tmp_path: Path) -> None:
    write(tmp_path, a={"d": [dt.date(2024, 4, 1), dt.date(2024, 4, 2)]})
    assert len(rows(source(tmp_path, filter=pc.field("d").isin(["2024-04-02"])))) == 1


def test_filter_that_arrow_cannot_write_out_is_no_other_error(tmp_path: Path) -> None:
    write(tmp_path, a={"n": [1, 2], "b": [b"a", b"\xff"]})
    condition = pc.field("b") == pa.scalar(b"\xff", pa.binary_view())
    with pytest.raises(UnicodeDecodeError):
        str(condition)
    one = source(tmp_path, columns=("n",), filter=condition)
    assert "an expression with bytes" in one.name
    with pytest.raises(OptionError, match="an expression with bytes"):
        one.pieces(1)


def test_columns_that_a_filter_does_not_name_are_not_read_for_it(tmp_path: Path) -> None:
    write(tmp_path, a={"i": [1, 2], "is": [2, 1], "n": [0, 0], "x.y": [5, 6]})
    [piece] = source(tmp_path, columns=("n",), filter=pc.field("x.y").isin([6])).pieces(1)
    assert isinstance(piece, parquet.ParquetPiece)
    assert piece.scan.read_schema.names == ["n", "x.y"]


def test_filter_by_position_is_about_the_columns_of_the_dataset(tmp_path: Path) -> None:
    write(tmp_path, a={"a": [1, 2], "b": [2, 1]})
    # Arrow cannot send such an expression to another process.
    [piece] = source(tmp_path, columns=("b",), filter=pc.field(0) == 1).pieces(1)
    assert [chunk.table.to_pylist() for chunk in piece.read(0, 0, 1 << 20)] == [[{"b": 2}]]


def int96(path: Path, *values: dt.datetime | pd.Timestamp | None, kind: pa.DataType = US) -> Path:
    table = pa.table({"i": list(range(len(values))), "t": pa.array(values, kind)})
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, row_group_size=2)
    return path


def test_int96_timestamps_are_read_as_they_are(tmp_path: Path) -> None:
    values = [dt.datetime(1600, 1, 1), dt.datetime(9999, 12, 31), dt.datetime(2024, 1, 2, 3, 4, 5, 678901), None]
    path = int96(tmp_path / "a.parquet", *values)
    for chunk_bytes in (1, 1 << 20):
        given = source(path)
        assert given.schema(raise_it).field("t").type == US
        assert [row["t"] for row in rows(given, chunk_bytes=chunk_bytes)] == values
    assert [row["i"] for row in rows(source(path, filter=pc.field("t") > dt.datetime(2000, 1, 1)))] == [1, 2]


def test_digits_of_int96_below_a_microsecond_are_an_error_or_read_as_asked(tmp_path: Path) -> None:
    path = int96(tmp_path / "a.parquet", pd.Timestamp(1_700_000_000_000_000_001), kind=NS)
    with pytest.raises(aiodata.SourceError, match=r"a\.parquet.*row group 0.*'t'.*timestamp\('ns'\) by schema="):
        chunks(source(path))
    [chunk] = chunks(source(path, asked_schema=pa.schema([("t", NS)])))
    assert chunk.table["t"][0].value == 1_700_000_000_000_000_001
    late = int96(tmp_path / "b.parquet", dt.datetime(9999, 12, 31))
    with pytest.raises(aiodata.SourceError, match=r"b\.parquet.*9999-12-31.*timestamp\('us'\)"):
        chunks(source(late, asked_schema=pa.schema([("t", NS)])))


def test_index_without_a_name_is_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [0, 1, 2, 3]})
    frame.to_parquet(tmp_path / "0.parquet")
    frame[frame.a != 1].to_parquet(tmp_path / "1.parquet")
    assert rows(source(tmp_path)) == [{"a": one} for one in (0, 1, 2, 3, 0, 2, 3)]
    frame.set_index(pd.Index([5, 7, 6, 9], name="key")).to_parquet(tmp_path / "named.parquet")
    assert source(tmp_path / "named.parquet").schema(raise_it).names == ["a", "key"]


def test_index_without_a_name_may_be_anywhere_among_the_columns(tmp_path: Path) -> None:
    table = pa.Table.from_pandas(pd.DataFrame({"a": pd.array([1, None], "Int64"), "b": [1, 2]}, index=[5, 7]))
    pq.write_table(table.select(["__index_level_0__", "a", "b"]), tmp_path / "a.parquet")
    schema = source(tmp_path).schema(raise_it)
    assert {field.name: has_nulls(field) for field in schema} == {"a": True, "b": False}
    assert rows(source(tmp_path, filter=pc.field("b") > 1)) == [{"a": None, "b": 2}]


def test_file_that_was_replaced_after_planning_is_read_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, a={"id": [0]})
    given = source(tmp_path)
    pieces = given.pieces(1)
    write(tmp_path, a={"id": list(range(100))})
    assert sum(chunk.table.num_rows for piece in pieces for chunk in piece.read(0, 0, 1 << 20)) == 100
