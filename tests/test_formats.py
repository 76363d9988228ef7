"""Each row of the table at the top of `aiodata.formats`, and what the formats share."""

from __future__ import annotations

import datetime as dt
import decimal
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aiodata import OptionError
from aiodata.block import as_block
from aiodata.formats import column_to_numpy, get_format

FORMATS = ["numpy", "pyarrow", "pandas", "polars"]

Array = np.ndarray[Any, Any]

NUMBERS = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
]


def buffer_of(array: pa.Array) -> Array:
    """The values' buffer as bytes."""
    return np.frombuffer(array.buffers()[-1], np.uint8)


@pytest.mark.parametrize("kind", NUMBERS, ids=str)
def test_numbers_keep_their_type_without_a_copy_and_read_only(kind: pa.DataType) -> None:
    array = pa.array([1, 2, 3], kind)
    column = column_to_numpy(array.slice(1))
    assert column.dtype == np.dtype(kind.to_pandas_dtype())
    assert column.tolist() == [2, 3]
    assert np.shares_memory(column, buffer_of(array))
    assert not column.flags.writeable


@pytest.mark.parametrize("kind", [kind for kind in NUMBERS if pa.types.is_integer(kind)], ids=str)
def test_integers_with_nulls_are_float64_with_nan(kind: pa.DataType) -> None:
    column = column_to_numpy(pa.array([1, None, 3], kind))
    assert column.dtype == np.float64
    np.testing.assert_array_equal(column, [1, np.nan, 3])


@pytest.mark.parametrize("kind", [kind for kind in NUMBERS if pa.types.is_floating(kind)], ids=str)
def test_floats_with_nulls_keep_their_type_with_nan(kind: pa.DataType) -> None:
    column = column_to_numpy(pa.array([1.5, None], kind))
    assert column.dtype == np.dtype(kind.to_pandas_dtype())
    np.testing.assert_array_equal(column, [1.5, np.nan])


def test_bools_are_bool() -> None:
    column = column_to_numpy(pa.array([True, False, True]))
    assert column.dtype == np.bool_
    assert column.tolist() == [True, False, True]


def test_bools_with_nulls_are_objects_with_none() -> None:
    column = column_to_numpy(pa.array([True, None]))
    assert column.dtype == object
    assert column.tolist() == [True, None]


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (pa.array([1, None], pa.timestamp("us")), "datetime64[us]"),
        (pa.array([1, None], pa.timestamp("ns", "UTC")), "datetime64[ns]"),
        (pa.array([1, None], pa.date32()), "datetime64[D]"),
        (pa.array([86_400_000, None], pa.date64()), "datetime64[ms]"),
        (pa.array([1, None], pa.duration("ms")), "timedelta64[ms]"),
    ],
    ids=lambda one: str(one.type) if isinstance(one, pa.Array) else None,
)
def test_times_are_datetime64_and_timedelta64_with_nat(array: pa.Array, dtype: str) -> None:
    column = column_to_numpy(array)
    assert column.dtype == np.dtype(dtype)
    assert np.isnat(column).tolist() == [False, True]
    assert column.view(np.int64)[0] in {1, 86_400_000}


@pytest.mark.parametrize("kind", [pa.int32(), pa.float64()], ids=str)
def test_fixed_size_lists_get_a_dimension_without_a_copy(kind: pa.DataType) -> None:
    array = pa.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], pa.list_(kind, 3))
    column = column_to_numpy(array.slice(1))
    assert column.dtype == np.dtype(kind.to_pandas_dtype())
    assert column.tolist() == [[4, 5, 6], [7, 8, 9]]
    assert np.shares_memory(column, buffer_of(array))


def test_nested_fixed_size_lists_get_two_dimensions() -> None:
    values = [[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [11, 12]]]
    column = column_to_numpy(pa.array(values, pa.list_(pa.list_(pa.int32(), 2), 3)))
    assert column.shape == (2, 3, 2)
    assert column.dtype == np.int32


@pytest.mark.parametrize("values", [[[1.0, 2.0], None], [[1.0, 2.0], [None, 3.0]]], ids=["row", "value"])
def test_fixed_size_lists_with_nulls_look_like_lists(values: list[Any]) -> None:
    column = column_to_numpy(pa.array(values, pa.list_(pa.float32(), 2)))
    assert column.dtype == object
    assert column.shape == (2,)
    assert [one if one is None else one.dtype for one in column] == [None if one is None else "f4" for one in values]
    np.testing.assert_array_equal(column[0], [1, 2])


@pytest.mark.parametrize("dtype", ["u1", "i4", "f2", "f4", "f8", "?"])
@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3), (4, 1, 1, 2)], ids=str)
def test_tensors_round_trip_through_a_block(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    array = as_block({"x": tensor})["x"].chunk(0)
    for back, expected in ((column_to_numpy(array), tensor), (column_to_numpy(array.slice(1, 2)), tensor[1:3])):
        assert back.dtype == tensor.dtype
        np.testing.assert_array_equal(back, expected)
        assert dtype == "?" or np.shares_memory(back, buffer_of(array))


def test_tensors_with_nulls_look_like_lists() -> None:
    storage = pa.array([[1, 2], None], pa.list_(pa.int32(), 2))
    column = column_to_numpy(pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int32(), [2]), storage))
    assert column.dtype == object
    assert column[0].tolist() == [1, 2]
    assert column[1] is None


def test_lists_are_one_array_per_row_with_none() -> None:
    column = column_to_numpy(pa.array([[1, 2], None, []], pa.list_(pa.int64())))
    assert column.dtype == object
    assert [None if one is None else (one.dtype.str, one.tolist()) for one in column] == [
        ("<i8", [1, 2]),
        None,
        ("<i8", []),
    ]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.string(), ["a", None]),
        (pa.large_string(), ["a", None]),
        (pa.binary(), [b"a", None]),
        (pa.decimal128(10, 2), [decimal.Decimal("1.25"), None]),
        (pa.struct([("a", pa.int64())]), [{"a": 1}, None]),
        (pa.time64("us"), [dt.time(1, 2, 3), None]),
        (pa.dictionary(pa.int32(), pa.string()), ["a", None]),
        (pa.null(), [None, None]),
    ],
    ids=lambda one: str(one) if isinstance(one, pa.DataType) else "",
)
def test_other_types_are_python_values_with_none(kind: pa.DataType, values: list[object]) -> None:
    column = column_to_numpy(pa.array(values, kind))
    assert column.dtype == object
    assert column.tolist() == values


@pytest.mark.parametrize("fmt", FORMATS)
def test_slice_does_not_copy(fmt: str) -> None:
    segment = pa.record_batch({"x": np.arange(10)})
    part = get_format(fmt).slice(get_format(fmt).convert(segment), 4, 7)
    column = {
        "numpy": lambda: part["x"],
        "pyarrow": lambda: part["x"].chunk(0).to_numpy(),
        "pandas": lambda: part["x"].to_numpy(),
        "polars": lambda: part["x"].to_numpy(),
    }[fmt]()
    assert column.tolist() == [4, 5, 6]
    if fmt != "pandas":  # Pandas gathers the columns of a block into one array.
        assert np.shares_memory(column, buffer_of(segment.column(0)))


@pytest.mark.parametrize("fmt", FORMATS)
def test_format_knows_its_name(fmt: str) -> None:
    assert get_format(fmt).name == fmt


def test_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        OptionError, match=r"batch_format='csv' is unknown; use one of .*numpy.*pyarrow.*pandas.*polars"
    ):
        get_format("csv")


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_missing_library_is_refused_with_the_remedy(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(OptionError, match=f"needs the package {library}: pip install {library}"):
        get_format(library)


def test_rows_that_become_objects_are_converted_a_millisecond_at_a_time() -> None:
    plain = pa.schema([("x", pa.int64()), ("v", pa.list_(pa.float32(), 8))])
    numpy = get_format("numpy")
    assert numpy.stretch(plain) is None
    one = numpy.stretch(plain.append(pa.field("s", pa.string())))
    two = numpy.stretch(plain.append(pa.field("s", pa.string())).append(pa.field("t", pa.string())))
    assert one is not None
    assert two == one // 2
