"""What a function hands back is what it was given, and nobody can write to what it has made."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import assume, settings
from hypothesis import given as drawn

from aiodata.block import Given, as_block
from aiodata.formats import BatchFormat, get_format
from tests.arrow_arrays import arrays, shown

FORMATS = [name for name in get_args(BatchFormat) if name != "torch"]
# Polars has no such thing, and panics.
PANICS = (BaseException,)


def given_of(table: pa.Table, batch_format: str = "numpy", *, read_only: bool = False) -> Given:
    """What a function is given that is called with these rows."""
    rows_format = get_format(batch_format)

    def convert(rows: pa.Table) -> Any:
        [segment] = rows.combine_chunks().to_batches()
        return rows_format.convert(segment)

    batch = convert(table)
    if read_only:
        for column in batch.values():
            column.flags.writeable = False
    return Given(batch, lambda: table, convert)


def returned(table: pa.Table, function: Callable[[Any], Any], batch_format: str = "numpy") -> pa.Table:
    """The block that a function's output becomes."""
    given = given_of(table, batch_format)
    block = as_block(function(given.batch), given=given)
    block.validate(full=True)
    return block


def addresses(table: pa.Table) -> set[int]:
    buffers = [buffer for column in table.columns for chunk in column.chunks for buffer in chunk.buffers()]
    return {buffer.address for buffer in buffers if buffer is not None and buffer.size}


@pytest.mark.parametrize("batch_format", FORMATS)
@settings(max_examples=60, deadline=None)
@drawn(array=arrays())
def test_identity_changes_nothing(batch_format: str, array: pa.Array) -> None:
    table = pa.table({"x": array})
    try:
        given = given_of(table, batch_format)
    except PANICS:
        assume(False)
    block = as_block(given.batch, given=given)
    block.validate(full=True)
    assert block.schema == table.schema
    assert shown(block["x"]) == shown(table["x"])


@settings(max_examples=60, deadline=None)
@drawn(array=arrays())
def test_columns_that_stay_have_their_types_beside_new_ones(array: pa.Array) -> None:
    table = pa.table({"x": array})
    # Arrow cannot make lists of some types numpy's.
    assume("fixed_size_binary" not in str(array.type) or pa.types.is_fixed_size_binary(array.type))
    try:
        given = given_of(table)
    except ValueError:
        assume(False)  # A time of day with nanoseconds, which is refused.
    block = as_block({**given.batch, "renamed": given.batch["x"], "new": np.zeros(len(array))}, given=given)
    block.validate(full=True)
    assert block.schema.types == [array.type, array.type, pa.float64()]
    assert shown(block["x"]) == shown(block["renamed"]) == shown(table["x"])


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.list_(pa.int64()), pa.float32(), pa.bool_()], ids=str)
def test_array_that_nobody_can_write_to_comes_back_without_a_copy(kind: pa.DataType) -> None:
    values: dict[pa.DataType, list[Any]] = {
        pa.string(): ["a", None],
        pa.list_(pa.int64()): [None, None],
        pa.bool_(): [True, None],
    }
    table = pa.table({"x": pa.array(values.get(kind, [1, None]), kind)})
    given = given_of(table, read_only=True)
    assert addresses(as_block(given.batch, given=given)) == addresses(table)


def test_arrow_tables_come_back_without_a_copy() -> None:
    table = pa.table({"x": [1, 2, 3], "s": ["a", "b", "c"]})
    given = given_of(table, "pyarrow")
    assert as_block(given.batch, given=given) is given.batch
    block = as_block(given.batch.slice(1).append_column("y", [pa.array([7, 8])]), given=given)
    assert addresses(table) < addresses(block)


def written_to(make: Callable[[np.ndarray[Any, Any]], Any]) -> pa.Table:
    """The block of what is made of an array that its function goes on to write to."""
    buffer = np.arange(4)
    block = returned(pa.table({"x": [4, 5, 6, 7]}), lambda _: make(buffer))
    buffer[:] = -1
    return block


def read_only_view(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    view = array[:]
    view.flags.writeable = False
    return view


@pytest.mark.parametrize(
    "make",
    [
        lambda array: {"x": array},
        lambda array: {"x": array[::-1][::-1]},
        lambda array: {"x": read_only_view(array)},
        lambda array: {"x": np.ma.array(array, copy=False)},
        lambda array: {"x": torch.from_numpy(array)},
        lambda array: {"x": pa.array(array)},
        lambda array: {"x": pd.Series(array, copy=False)},
        lambda array: {"x": pl.Series(array)},
        lambda array: pd.DataFrame({"x": array}, copy=False),
        lambda array: pl.DataFrame({"x": array}),
        lambda array: pa.table({"x": array}),
        lambda array: pa.table({"x": read_only_view(array)}),
        lambda array: pa.RecordBatch.from_arrays([pa.array(array)], ["x"]),
        lambda array: pa.table({"x": pa.Array.from_buffers(pa.int64(), 4, [None, pa.py_buffer(array)])}),
    ],
)
def test_block_does_not_change_with_what_it_was_made_of(make: Callable[[np.ndarray[Any, Any]], Any]) -> None:
    assert written_to(make)["x"].to_pylist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "make",
    [
        lambda array: {"x": array.reshape(2, 2)},
        lambda array: {"x": torch.from_numpy(array).reshape(2, 2)},
        lambda array: {"x": [array[:2], array[2:]]},
        lambda array: {"x": np.array([array[:2], array[2:]], dtype=object)},
        lambda array: pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(array.reshape(2, 2))}),
        lambda array: pa.table({"x": pa.ListArray.from_arrays([0, 2, 4], pa.array(array))}),
        lambda array: pa.table({"x": pa.StructArray.from_arrays([pa.array(array)], ["a"])}),
        lambda array: pa.table({"x": pa.DictionaryArray.from_arrays([0, 1, 2], pa.array(array))}),
    ],
)
def test_nested_block_does_not_change_with_what_it_was_made_of(make: Callable[[np.ndarray[Any, Any]], Any]) -> None:
    assert "-1" not in str(written_to(make)["x"].to_pylist())


def test_values_changed_in_place_are_not_taken_for_untouched() -> None:
    table = pa.table({"s": [{"a": 1}, {"a": 2}], "l": [[{"b": 1}], [{"b": 2}]], "n": [[[1]], [[2]]]})

    def replace(batch: Any) -> Any:
        batch["s"][0]["a"] = 7
        batch["l"][1][0]["b"] = 7
        return batch

    block = returned(table, replace)
    assert block.to_pydict() == {"s": [{"a": 7}, {"a": 2}], "l": [[{"b": 1}], [{"b": 7}]], "n": [[[1]], [[2]]]}
    assert block.schema == table.schema


def test_array_put_in_the_place_of_another_is_not_taken_for_it() -> None:
    def replace(batch: Any) -> Any:
        batch["x"] = np.broadcast_to(np.array(9), 2)
        return batch

    assert returned(pa.table({"x": [1, 2]}), replace).to_pydict() == {"x": [9, 9]}


def test_pandas_column_changed_in_place_is_not_taken_for_untouched() -> None:
    def change(frame: Any) -> Any:
        frame.loc[0, "x"] = 7.5
        return frame

    table = pa.table({"x": [1.0, None, float("nan")], "y": pa.array([1, None, 3], pa.int8())})
    block = returned(table, change, "pandas")
    assert block["x"].to_pylist() == [7.5, None, None]
    assert block["y"].equals(table["y"])


def test_struct_member_that_a_function_adds_stays() -> None:
    def add(batch: Any) -> Any:
        return {"s": [{**row, "b": "new"} for row in batch["s"]]}

    block = returned(pa.table({"s": pa.array([{"a": 1}], pa.struct([("a", pa.int8())]))}), add)
    assert block.to_pylist() == [{"s": {"a": 1, "b": "new"}}]


@pytest.mark.parametrize(
    "rows", [[[[1, None]], [], None, [[3, 4], [5, 6]]], [[[1, 2]], [[3, 4]]]], ids=["ragged", "equal"]
)
@pytest.mark.parametrize("batch_format", ["numpy", "pandas"])
def test_lists_of_fixed_size_lists_come_back_whatever_rows_share_a_batch(batch_format: str, rows: list[Any]) -> None:
    table = pa.table({"x": pa.array(rows, pa.list_(pa.list_(pa.int64(), 2)))})
    block = returned(table, lambda batch: {"x": batch["x"].copy()}, batch_format)
    assert block.schema == table.schema
    assert block["x"].to_pylist() == rows


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.timestamp("us", "Asia/Tokyo"), [dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 2)]),
        (pa.date64(), [dt.date(2024, 1, 1), dt.date(2024, 1, 2)]),
        (pa.time32("s"), [dt.time(1), dt.time(2)]),
        (pa.large_string(), ["a", "b"]),
        (pa.dictionary(pa.int8(), pa.string()), ["a", "b"]),
        (pa.dictionary(pa.int8(), pa.string(), ordered=True), ["a", "b"]),
        (pa.large_binary(), [b"a", b"b"]),
        (pa.binary(1), [b"a", b"b"]),
        (pa.decimal128(20, 4), [decimal.Decimal(1), decimal.Decimal(2)]),
        (pa.map_(pa.string(), pa.int32()), [[("a", 1)], []]),
        (pa.struct([("a", pa.int8())]), [{"a": 1}, {"a": 2}]),
        (pa.list_(pa.float32(), 2), [[1.0, 2.0], [3.0, 4.0]]),
        (pa.large_list(pa.int16()), [[1], [2, 3]]),
        (pa.list_(pa.struct([("m", pa.map_(pa.string(), pa.int8()))])), [[{"m": [("a", 1)]}], []]),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_format", FORMATS)
def test_rows_in_another_order_have_the_type_that_they_went_in_with(
    kind: pa.DataType, values: list[Any], batch_format: str
) -> None:
    if pa.types.is_dictionary(kind):
        array = pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.int8()), pa.array(["b", "a"]), ordered=kind.ordered)
    else:
        array = pa.array(values, kind)

    def reverse(batch: Any) -> Any:
        if batch_format == "numpy":
            return {"x": batch["x"][::-1]}
        if batch_format == "pyarrow":
            return batch.take([1, 0])
        return batch[::-1]

    block = returned(pa.table({"x": array}), reverse, batch_format)
    assert block.schema.field("x").type == array.type
    assert block["x"].to_pylist() == array.to_pylist()[::-1]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (pa.int64(), np.array([1.0, 2.0])),
        (pa.int64(), np.array([1, 2], np.int32)),
        (pa.float32(), np.array([1.0, 2.0])),
        (pa.timestamp("us", "UTC"), np.array([1, 2], "M8[s]")),
        (pa.string(), np.array([1, 2])),
        (pa.list_(pa.int32()), np.array([[1], [2]], np.int32)),
    ],
    ids=str,
)
def test_another_dtype_that_a_function_gives_a_column_stays(before: pa.DataType, after: np.ndarray[Any, Any]) -> None:
    table = pa.table({"x": pa.nulls(2, before)})
    assert returned(table, lambda _: {"x": after}).schema == as_block({"x": after}).schema


def test_python_values_have_the_width_of_the_column_where_they_fit() -> None:
    table = pa.table({"x": pa.array([1, 2], pa.int16())})
    assert returned(table, lambda batch: {"x": batch["x"].tolist()}).schema == table.schema
    assert returned(table, lambda batch: {"x": [None] * 2}).schema == table.schema
    assert returned(table, lambda batch: {"x": []}).schema == table.schema
    assert returned(table, lambda batch: {"x": [70_000]}).schema.field("x").type == pa.int64()


def test_categories_that_went_in_are_those_that_come_out() -> None:
    colours = pa.DictionaryArray.from_arrays(pa.array([0, 2], pa.int8()), pa.array(["red", "green", "blue"]))
    block = returned(pa.table({"x": colours}), lambda batch: {"x": batch["x"][1:]})
    assert block["x"].chunk(0).dictionary.to_pylist() == ["red", "green", "blue"]


def test_permuted_tensors_come_back_permuted() -> None:
    kind = pa.fixed_shape_tensor(pa.int64(), [2, 3], permutation=[1, 0])
    tensors = pa.ExtensionArray.from_storage(kind, pa.array([list(range(6)), [7] * 6], kind.storage_type))
    block = returned(pa.table({"x": tensors}), lambda batch: {"x": batch["x"] * 1})
    assert block["x"].type == kind
    assert block["x"].combine_chunks().storage.equals(tensors.storage)


def test_polars_strings_are_ones_that_arrow_can_filter() -> None:
    block = returned(pa.table({"x": [1]}), lambda _: pl.DataFrame({"s": ["a"]}), "polars")
    assert block.schema.field("s").type == pa.large_string()


def test_marks_of_what_went_in_are_not_those_of_what_comes_out() -> None:
    schema = pa.schema([pa.field("x", pa.int64(), metadata={"aiodata.nulls": "none"})], metadata={"pandas": "{}"})
    table = pa.table([[1]], schema=schema)
    for block in (returned(table, lambda batch: batch, "pyarrow"), as_block(table)):
        assert not block.schema.field("x").metadata
        assert not block.schema.metadata


@pytest.mark.parametrize("batch_format", ["numpy", "pandas"])
@pytest.mark.parametrize(
    "array",
    [
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef", None], pa.binary(16))),
        pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None], pa.int8())),
        pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float32(), [2]), pa.array([[1.0, float("nan")], None], pa.list_(pa.float32(), 2))
        ),
        # Python has the first of these moments, and numpy stands in for the second.
        pa.array([{"at": 0}, {"at": 253_402_300_799}], pa.struct([("at", pa.timestamp("s", "Asia/Tokyo"))])),
        pa.array([{"at": 253_402_300_799}], pa.struct([("at", pa.timestamp("us", "+09:30"))])),
        pa.array([[0, 2**62]], pa.list_(pa.duration("s"))),
    ],
    ids=lambda array: str(array.type),
)
def test_copies_have_the_types_and_nulls_of_what_they_were_made_of(batch_format: str, array: pa.Array) -> None:
    table = pa.table({"x": array})
    block = returned(table, lambda batch: {name: values.copy() for name, values in batch.items()}, batch_format)
    assert block.schema == table.schema
    assert block["x"].combine_chunks().equals(table["x"].combine_chunks()) or "nan" in str(array)
    assert [chunk.null_count for chunk in block["x"].chunks] == [array.null_count]
