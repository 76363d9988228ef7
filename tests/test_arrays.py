"""How values become Arrow arrays, whatever the number of rows."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from aiodata.arrays import to_array
from aiodata.block import as_block, from_rows

MATRIX = pa.fixed_shape_tensor(pa.float64(), [2, 2])


def objects(*values: Any) -> np.ndarray[Any, Any]:
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        array[index] = value
    return array


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: [np.zeros((2, 2)) for _ in range(n)],
        lambda n: [torch.zeros((2, 2), dtype=torch.float64) for _ in range(n)],
        lambda n: objects(*(np.zeros((2, 2)) for _ in range(n))),
        lambda n: np.array([np.zeros((2, 2)) for _ in range(n)], dtype=object),
        lambda n: np.zeros((n, 2, 2)),
        lambda n: torch.zeros((n, 2, 2), dtype=torch.float64),
        lambda n: np.ma.array(np.zeros((n, 2, 2))),
    ],
    ids=["list", "torch list", "object array", "array of objects", "array", "torch", "masked"],
)
def test_equal_arrays_of_many_dimensions_are_tensors(make: Any, num_rows: int) -> None:
    array = to_array("x", make(num_rows))
    assert array.type == MATRIX
    assert array.to_pylist() == [[0.0] * 4] * num_rows


@pytest.mark.parametrize("lengths", [[2], [2, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("as_objects", [False, True])
def test_arrays_of_one_dimension_are_lists_also_if_of_one_length(lengths: list[int], *, as_objects: bool) -> None:
    rows = [np.arange(length) for length in lengths]
    array = to_array("x", np.array(rows, dtype=object) if as_objects else rows)
    assert array.type == pa.list_(pa.int64())
    assert array.to_pylist() == [list(range(length)) for length in lengths]


def test_none_among_arrays_is_null() -> None:
    vectors = np.arange(6.0).reshape(2, 3)
    assert to_array("x", [None, *vectors]).to_pylist() == [None, [0, 1, 2], [3, 4, 5]]
    matrices = to_array("x", [None, np.ones((2, 2)), None])
    assert matrices.type == MATRIX
    assert matrices.to_pylist() == [None, [1.0] * 4, None]


def test_arrays_of_other_shapes_are_refused_with_the_shapes() -> None:
    for rows in ([np.zeros((1, 2)), np.zeros((2, 2))], [np.zeros(2), np.zeros((2, 2))], [1.0, np.zeros((2, 2))]):
        with pytest.raises(ValueError, match=r"column 'x' has arrays of shapes \(.*\(2, 2\).*pad them, or flatten"):
            to_array("x", rows)


def test_rows_with_tensors_are_tensors() -> None:
    assert from_rows([{"img": np.zeros((2, 2))}] * 3).schema.field("img").type == MATRIX


def test_arrays_of_numbers_that_no_type_holds_are_refused() -> None:
    assert to_array("x", [np.array([1], np.int8), np.array([2], np.int16)]).type == pa.list_(pa.int16())
    with pytest.raises(ValueError, match=r"column 'x' has arrays of types .*'float64', 'int64'"):
        to_array("x", [np.array([1]), np.array([0.5])])


@pytest.mark.parametrize("dtype", ["int8", "uint64", "float16", "float32", "bool", "M8[us]", "m8[ms]", "U3"])
def test_masked_values_are_null(dtype: str) -> None:
    data = np.array([1, 0, 1]).astype(dtype)
    array = to_array("x", np.ma.array(data, mask=[False, True, False]))
    assert array.type == pa.array(data).type
    assert array.is_null().to_pylist() == [False, True, False]
    assert array.drop_null().equals(pa.array(data[[0, 2]]))


def test_masked_tensor_is_null_and_masked_value_in_one_too() -> None:
    mask = np.array([[True, True], [True, False], [False, False]])
    array = to_array("x", np.ma.array(np.arange(6).reshape(3, 2), mask=mask))
    assert array.type == pa.fixed_shape_tensor(pa.int64(), [2])
    assert array.to_pylist() == [None, [None, 3], [4, 5]]


def test_masked_objects_are_null() -> None:
    assert to_array("x", np.ma.array(objects("a", "b"), mask=[True, False])).to_pylist() == [None, "b"]


DAY, MOMENT, ZONED = dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, 5), dt.datetime(2024, 1, 1, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("pair", "sorts"),
    [
        ([DAY, MOMENT], "days and moments"),
        ([ZONED, MOMENT], "moments with and without a time zone"),
        ([MOMENT, ZONED], "moments with and without a time zone"),
        ([b"a", "b"], "bytes and strings"),
        ([dt.timedelta(1), 1], "durations and numbers"),
    ],
)
def test_values_that_arrow_would_change_are_refused_wherever_they_are(pair: list[Any], sorts: str) -> None:
    a, b = pair
    for values in (pair, [a, None, b], [[a], [b]], [[[a, b]]], [{"a": a}, {"a": b}], [{"a": [a]}, None, {"a": [b]}]):
        with pytest.raises(ValueError, match=rf"'x(\.a)?' has {sorts}"):
            to_array("x", values)
    assert to_array("x", [a, None, a]).null_count == 1


BYTES = np.ma.array([1, 5], mask=[False, True], dtype=np.int8)
SQUARES = np.ma.array([[1, 2], [3, 4]], mask=[[False, True], [False, False]])


@pytest.mark.parametrize(
    ("values", "kind", "rows"),
    [
        ([BYTES, None, BYTES[:1]], pa.list_(pa.int8()), [[1, None], None, [1]]),
        (objects(BYTES, BYTES[:1]), pa.list_(pa.int8()), [[1, None], [1]]),
        ([[BYTES], []], pa.list_(pa.list_(pa.int8())), [[[1, None]], []]),
        ([{"a": BYTES}, None], pa.struct([("a", pa.list_(pa.int8()))]), [{"a": [1, None]}, None]),
        ([[{"a": BYTES}]], pa.list_(pa.struct([("a", pa.list_(pa.int8()))])), [[{"a": [1, None]}]]),
        ([BYTES[0], BYTES[1]], pa.int8(), [1, None]),
        ([np.ma.array(["a", "b"], mask=[False, True])], pa.list_(pa.string()), [["a", None]]),
        ([SQUARES, np.ones((2, 2), int)], pa.fixed_shape_tensor(pa.int64(), [2, 2]), [[1, None, 3, 4], [1] * 4]),
        ([np.ma.array(np.ones((2, 2), int), mask=True)], pa.fixed_shape_tensor(pa.int64(), [2, 2]), [None]),
    ],
    ids=["list", "objects", "nested", "struct", "list of structs", "scalars", "texts", "tensors", "masked tensor"],
)
def test_masked_values_of_arrays_in_rows_are_null(values: Any, kind: pa.DataType, rows: list[Any]) -> None:
    array = to_array("x", values)
    assert array.type == kind
    assert array.to_pylist() == rows


def test_large_integers_are_unsigned() -> None:
    for values in ([2**63 + 1], [1, None, 2**63]):
        array = to_array("x", values)
        assert array.type == pa.uint64()
        assert array.to_pylist() == values
    assert to_array("x", [[2**63], None]).to_pylist() == [[2**63], None]
    assert to_array("x", [{"a": 2**63}]).type == pa.struct([("a", pa.uint64())])


@pytest.mark.parametrize(
    "values", [[1, "a"], [2**60 + 1, 0.5], [True, 1], [2**64], [-1, 2**63], [{"a": 1}, 1], [{1}, "a"]], ids=str
)
def test_values_that_do_not_go_together_are_refused_by_name(values: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"column 'x' cannot be made an Arrow array: .*of one type"):
        to_array("x", values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array(["2024-01-01T05"], "M8[h]"), pa.timestamp("s")),
        (np.array(["2024-01"], "M8[M]"), pa.date32()),
        (np.array([1], "m8[D]"), pa.duration("s")),
        (np.array([1, 2], ">i4"), pa.int32()),
        (np.array(["a"], np.dtypes.StringDType()), pa.string()),
        (np.zeros((0, 2, 3), np.float32), pa.fixed_shape_tensor(pa.float32(), [2, 3])),
        (np.zeros((2, 0), np.float32), pa.fixed_shape_tensor(pa.float32(), [0])),
        ([pd.Timestamp(1)], pa.timestamp("ns")),
    ],
    ids=str,
)
def test_values_of_types_that_arrow_lacks_have_the_next_that_it_has(values: Any, expected: pa.DataType) -> None:
    array = to_array("x", values)
    assert array.type == expected
    assert len(array) == len(values)


@pytest.mark.parametrize(
    "values",
    [np.zeros(2, complex), np.zeros(2, [("a", "i4")]), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(1) * 1j],
    ids=str,
)
def test_types_that_arrow_lacks_are_refused_by_name(values: Any) -> None:
    with pytest.raises(TypeError, match="column 'x'"):
        to_array("x", values)


def test_rows_without_columns_are_refused() -> None:
    frames: list[Any] = [pd.DataFrame(index=range(10)), pa.table({"x": [1]}).drop_columns("x"), from_rows]
    for frame in frames[:2]:
        with pytest.raises(ValueError, match="rows have no columns; keep at least one"):
            as_block(frame)
    with pytest.raises(ValueError, match="2 rows have no columns"):
        from_rows([{}, {}])
    assert as_block({}).num_rows == 0


@pytest.mark.parametrize(
    "value",
    [
        {1: [1], "1": [2]},
        pd.DataFrame([[1, 2]], columns=[0, "0"]),
        pd.DataFrame([[1, 2]], columns=["0", "0"]),
        pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["0", "0"]),
    ],
    ids=["dict", "pandas", "pandas twice", "arrow"],
)
def test_columns_of_one_name_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"several columns have one name: \['[01]'\]"):
        as_block(value)
