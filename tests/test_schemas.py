"""One schema for all blocks of a dataset."""

from __future__ import annotations

import pyarrow as pa
import pytest

from aiodata.schemas import (
    SchemaError,
    check_names,
    conform,
    has_known_categories,
    has_nulls,
    mark_categories,
    mark_nulls,
    near_miss,
    unify_schemas,
    with_plain_types,
)


def test_schemas_have_one_with_columns_in_order_of_appearance() -> None:
    a = pa.schema([("x", pa.int8()), ("y", pa.null())], metadata={"pandas": "..."})
    b = pa.schema([("z", pa.string()), ("y", pa.string()), ("x", pa.int16())])
    unified = unify_schemas([("a", a), ("b", b)])
    assert unified == pa.schema([("x", pa.int16()), ("y", pa.string()), ("z", pa.string())])
    assert unified.metadata is None
    assert unify_schemas([("b", b), ("a", a)]) == unified.empty_table().select(["z", "y", "x"]).schema


def test_types_that_do_not_go_together_are_named_with_their_sources() -> None:
    named = [("a.parquet", pa.schema([("x", pa.int64())])), ("b.parquet", pa.schema([("x", pa.string())]))]
    with pytest.raises(SchemaError, match=r"column 'x' .* int64 in a.parquet, string in b.parquet; make one type"):
        unify_schemas(named)


def test_two_columns_of_one_name_are_refused() -> None:
    schema = pa.schema([("x", pa.int8()), ("x", pa.int8())])
    with pytest.raises(SchemaError, match=r"a.parquet has several columns of one name: \['x'\]"):
        unify_schemas([("a.parquet", schema)])


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([False, False], False),
        ([False, True], True),
        ([True, None], True),
        ([False, None], None),
        ([None, None], None),
    ],
)
def test_nulls_are_known_of_a_column_where_all_say_so(marks: list[bool | None], expected: bool | None) -> None:
    schemas = [pa.schema([mark_nulls(pa.field("x", pa.int8()), has_nulls=mark)]) for mark in marks]
    assert has_nulls(unify_schemas([("", schema) for schema in schemas]).field("x")) is expected


def test_column_that_one_lacks_has_nulls() -> None:
    field = mark_nulls(pa.field("x", pa.int8(), nullable=False), has_nulls=False)
    unified = unify_schemas([("a", pa.schema([field])), ("b", pa.schema([("y", pa.int8())]))])
    assert has_nulls(unified.field("x")) is True
    assert unified.field("x").nullable


def test_categories_are_known_where_all_say_so() -> None:
    field = pa.field("x", pa.dictionary(pa.int8(), pa.string()))
    known, unknown = pa.schema([mark_categories(field, are_known=True)]), pa.schema([field])
    assert has_known_categories(unify_schemas([("a", known), ("b", known)]).field("x"))
    assert not has_known_categories(unify_schemas([("a", known), ("b", unknown)]).field("x"))


def test_table_that_has_the_schema_is_itself() -> None:
    table = pa.table({"x": [1], "y": ["a"]})
    assert conform(table, table.schema) is table
    marked = pa.schema([mark_nulls(table.schema.field(0), has_nulls=False), table.schema.field(1)])
    conformed = conform(table, marked)
    assert conformed.schema.equals(marked, check_metadata=True)
    assert conformed["y"].chunk(0).buffers()[2].address == table["y"].chunk(0).buffers()[2].address


def test_table_gets_exactly_the_schema() -> None:
    schema = pa.schema([("a", pa.float64()), ("b", pa.list_(pa.string())), ("c", pa.large_string())])
    table = conform(pa.table({"c": ["x", None], "a": [1, 2]}), schema)
    assert table.schema.equals(schema, check_metadata=True)
    assert table.to_pydict() == {"a": [1.0, 2.0], "b": [None, None], "c": ["x", None]}


def test_column_that_the_schema_lacks_is_named() -> None:
    with pytest.raises(SchemaError, match=r"column 'y' \(string\) is new: .* had \['x'\]; return the same"):
        conform(pa.table({"x": [1], "y": ["a"]}), pa.schema([("x", pa.int64())]))


def test_value_that_the_schema_cannot_hold_is_named() -> None:
    with pytest.raises(SchemaError, match=r"column 'x' is double, but int64 .*1.5.*schema="):
        conform(pa.table({"x": [1.5]}), pa.schema([("x", pa.int64())]))


def test_nulls_in_a_column_that_has_none_are_refused() -> None:
    schema = pa.schema([pa.field("x", pa.int64(), nullable=False)])
    for table in (pa.table({"x": [None]}), pa.table({"x": pa.array([1, None], pa.int8())}), pa.table({"y": [1]})):
        with pytest.raises(SchemaError, match="column"):
            conform(table, schema)


def test_plain_types_lose_notes_of_other_libraries_alone() -> None:
    field = mark_nulls(pa.field("x", pa.string_view(), metadata={"_PL_CATEGORICAL2": "1"}), has_nulls=False)
    table = with_plain_types(pa.table([pa.array(["a"], pa.string_view())], schema=pa.schema([field])))
    assert table.schema.field("x").type == pa.large_string()
    assert dict(table.schema.field("x").metadata) == {b"aiodata.nulls": b"none"}
    assert with_plain_types(table) is table


def test_names_become_strings_and_are_one_each() -> None:
    assert check_names([1, "a"]) == ("1", "a")
    with pytest.raises(ValueError, match=r"several columns have one name: \['1'\]; rename"):
        check_names([1, "1"])


def test_unknown_name_is_told_what_it_may_be() -> None:
    assert near_miss("nmae", ["id", "name"]) == "; did you mean 'name'? The columns are ['id', 'name']"
    assert near_miss("q", [f"column{i}" for i in range(50)]).endswith("'column19', ... 30 more]")
