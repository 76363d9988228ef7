"""Pruning: what is not read has no row that a filter keeps, whatever statistics say and leave out."""

from __future__ import annotations

import datetime as dt
import math
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiodata
from aiodata.plan.filtering import filter_table
from aiodata.sources.files import check_paths
from aiodata.sources.footers import FileSchemas, open_parquet
from aiodata.sources.layout import Layout
from aiodata.sources.parquet import ParquetSource
from aiodata.sources.pruning import RowGroups

NAN = math.nan

# A column's type, and values among which its rows and what they are compared with are chosen.
COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "x": (pa.float64(), [0.0, -0.0, 1.5, -3.0, 10.0, math.inf, -math.inf, NAN, 5e-324]),
    "y": (pa.float32(), [0.0, -0.0, 1.5, -3.0, 10.0, math.inf, NAN]),
    "i": (pa.int32(), [-3, 0, 1, 2**31 - 1]),
    "u": (pa.uint64(), [0, 1, 2**63, 2**64 - 1]),
    "d": (pa.date32(), [dt.date(1969, 12, 31), dt.date(2024, 4, 1), dt.date(2024, 4, 2)]),
    "t": (pa.timestamp("us", "UTC"), [dt.datetime(y, 1, 1, tzinfo=dt.UTC) for y in (1600, 1970, 2024)]),
    "b": (pa.bool_(), [True, False]),
    "s": (pa.string(), ["", "a", "ab", "b", "é", "a" * 20, "a" * 21]),
    "z": (pa.binary(), [b"", b"a", b"\xff", b"a\x00"]),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    num_rows = draw(st.integers(1, 9))
    columns = {}
    for name, (kind, values) in COLUMNS.items():
        # Few different values, so that a row group often has one alone.
        few = draw(st.lists(st.sampled_from([*values, None]), min_size=1, max_size=2))
        chosen = draw(st.lists(st.sampled_from(few), min_size=num_rows, max_size=num_rows))
        columns[name] = pa.array(chosen, kind)
    members = [{"x": x} for x in columns["x"].to_pylist()]
    columns["m"] = pa.array(
        [None if index == 1 else one for index, one in enumerate(members)], pa.struct({"x": pa.float64()})
    )
    return pa.table(columns)


@st.composite
def atoms(draw: st.DrawFn) -> pc.Expression:
    name = draw(st.sampled_from([*COLUMNS, "m"]))
    column = pc.field("m", "x") if name == "m" else pc.field(name)
    kind, values = COLUMNS["x" if name == "m" else name]
    value: Any = pa.scalar(draw(st.sampled_from(values)), kind)
    if name in "xyiu" and draw(st.booleans()):
        # What a user writes has another type, often.
        value = draw(st.sampled_from([0, 1, -3, 2**40, 0.0, -0.0, 1.5, NAN]))
    kinds = ["==", "!=", "<", "<=", ">", ">=", "isin", "null", "valid"]
    match draw(st.sampled_from([*kinds, "nan", "nan_is_null"] if pa.types.is_floating(kind) else kinds)):
        case "==":
            return column == value
        case "!=":
            return column != value
        case "<":
            return column < value
        case "<=":
            return column <= value
        case ">":
            return column > value
        case ">=":
            return column >= value
        case "isin":
            if not isinstance(value, pa.Scalar):
                return column.isin([value])
            some = draw(st.lists(st.sampled_from([*values, None]), max_size=3))
            return column.isin(pa.array(some, kind))
        case "null":
            return column.is_null()
        case "valid":
            return column.is_valid()
        case "nan":
            return pc.is_nan(column)
        case _:
            return column.is_null(nan_is_null=True)


EXPRESSIONS = st.recursive(
    atoms(),
    lambda inner: st.one_of(
        inner.map(lambda one: ~one),
        st.tuples(inner, inner).map(lambda two: two[0] & two[1]),
        st.tuples(inner, inner).map(lambda two: two[0] | two[1]),
    ),
    max_leaves=5,
)


def write(table: pa.Table, path: Path, **options: Any) -> Path:
    pq.write_table(table, path, row_group_size=options.pop("row_group_size", 3), **options)
    return path


def kept_groups(path: Path, expression: pc.Expression, names: list[str]) -> list[int]:
    """Ask which row groups of a file are read for a filter on these columns."""
    with path.open("rb") as handle:
        _, footer = open_parquet(str(path), handle, FileSchemas())
    schema = footer.columns.schema
    groups = RowGroups(expression, schema, names)
    return groups.keep(footer.metadata, range(footer.metadata.num_row_groups), Layout.of(schema).leaves, {})


def read(path: Path, expression: pc.Expression, **arguments: Any) -> pa.Table:
    source = ParquetSource(check_paths(path, None), filter=expression, **arguments)
    return pa.concat_tables(chunk.table for piece in source.pieces(1) for chunk in piece.read(0, 0, 1))


def text(table: pa.Table) -> list[str]:
    """Return rows such that NaN equals NaN, and -0.0 is not 0.0."""
    return [repr(row) for row in table.to_pylist()]


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(tables(), EXPRESSIONS)
def test_rows_are_those_that_the_filter_keeps_in_memory(table: pa.Table, expression: pc.Expression) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(table, Path(folder) / "a.parquet")
        try:
            expected = filter_table(table, expression)
        except pa.ArrowException:
            return
        assert text(read(path, expression)) == text(expected)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(tables(), EXPRESSIONS, st.sampled_from(["x", "i", "s"]))
def test_rows_are_those_of_memory_where_the_column_is_of_a_narrower_type_or_missing(
    table: pa.Table, expression: pc.Expression, missing: str
) -> None:
    wider = {"y": pa.float64(), "i": pa.int64(), "s": pa.large_string()}
    wide = pa.schema([pa.field(one.name, wider.get(one.name, one.type)) for one in table.schema])
    index = table.column_names.index(missing)
    table = table.set_column(index, missing, pa.nulls(table.num_rows, table.schema.field(missing).type))
    with tempfile.TemporaryDirectory() as folder:
        path = write(table.drop_columns([missing]), Path(folder) / "a.parquet")
        try:
            expected = filter_table(table.cast(wide), expression)
        except pa.ArrowException:
            return
        assert text(read(path, expression, asked_schema=wide)) == text(expected)


@pytest.mark.parametrize(
    ("column", "expression", "kept"),
    [
        ("i", pc.field("c") > 4, [1, 2]),
        ("i", pc.field("c") == 4, [1]),
        ("i", pc.field("c").isin([0, 8]), [0, 2]),
        ("u", pc.field("c") >= pa.scalar(2**63, pa.uint64()), [2]),
        ("d", pc.field("c") == dt.date(1970, 1, 2), [0]),
        ("t", pc.field("c") < pa.scalar(3, pa.timestamp("ms")), [0]),
        ("x", pc.field("c") > 4.0, [1, 2]),
        ("s", pc.field("c") == "c", [0]),
        ("z", pc.field("c") > b"f", [2]),
        ("nulls", pc.field("c").is_valid(), [1]),
        ("nulls", pc.field("c").is_null(), [0, 2]),
    ],
)
def test_row_groups_without_a_row_are_left_out(
    tmp_path: Path, column: str, expression: pc.Expression, kept: list[int]
) -> None:
    numbers = list(range(9))
    columns = {
        "i": pa.array(numbers, pa.int16()),
        "u": pa.array([2**63 + one - 6 for one in numbers], pa.uint64()),
        "d": pa.array(numbers, pa.int32()).cast(pa.date32()),
        "t": pa.array(numbers, pa.timestamp("ms")),
        "x": pa.array(numbers, pa.float32()),
        "s": pa.array(list("abcdefghi")),
        "z": pa.array([one.encode() for one in "abcdefghi"]),
        "nulls": pa.array([None, None, None, 1, 1, 1, None, None, None], pa.int64()),
    }
    path = write(pa.table({"c": columns[column]}), tmp_path / "a.parquet")
    assert kept_groups(path, expression, ["c"]) == kept


@pytest.mark.parametrize(
    "expression",
    [pc.field("x") != 3.0, ~(pc.field("x") < 10), pc.is_nan(pc.field("x")), pc.field("x").is_null(nan_is_null=True)],
    ids=str,
)
def test_nan_beside_a_number_is_not_lost(tmp_path: Path, expression: pc.Expression) -> None:
    for number, kind in enumerate((pa.float64(), pa.float32())):
        path = write(pa.table({"x": pa.array([3.0, NAN], kind)}), tmp_path / f"{number}.parquet")
        assert read(path, expression).num_rows == 1


def test_statistics_that_another_writer_has_cut_short_say_nothing(tmp_path: Path) -> None:
    long = "a" * 40
    path = write(pa.table({"s": [long]}), tmp_path / "a.parquet")
    assert kept_groups(path, pc.field("s") == "b", ["s"]) == []
    # What a writer of strings of bounded length leaves behind, the upper bound cut like the lower one.
    data = path.read_bytes()
    other = data.replace(b"parquet-cpp-arrow", b"somebody-elses-17")
    path.write_bytes(other)
    assert kept_groups(path, pc.field("s") == "b", ["s"]) == [0]


def test_many_columns_of_floats_are_not_combined(tmp_path: Path) -> None:
    names = [f"x{index}" for index in range(12)]
    path = write(pa.table({name: [1.0, 2.0] for name in [*names]} | {"i": [1, 2]}), tmp_path / "a.parquet")
    expression = pc.field("i") > 5
    for name in names:
        expression = expression & (pc.field(name) > 0)
    assert kept_groups(path, expression, [*names, "i"]) == []


@pytest.mark.parametrize("is_negated", [False, True])
async def test_comparisons_with_nan_are_left_to_the_rows(tmp_path: Path, is_negated: bool) -> None:
    table = pa.table({"i": pa.array([-3], pa.int32()), "x": [1.5]})
    pq.write_table(table, tmp_path / "a.parquet")
    for name in table.column_names:
        condition = pc.field(name) < float("nan")
        condition = ~condition if is_negated else condition
        read = aiodata.read_parquet(str(tmp_path)).filter(condition).with_options(runtime="local")
        assert await read.count() == table.filter(condition).num_rows
