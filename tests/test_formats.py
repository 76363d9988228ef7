"""How Arrow arrays look as numpy arrays and tensors, and what the formats share; docs/types.md has the whole table."""

from __future__ import annotations

import datetime as dt
import decimal
import pickle
import sys
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata import OptionError
from aiodata.block import as_block
from aiodata.formats import get_format
from aiodata.formats.columns import column_to_numpy
from aiodata.formats.polars import PolarsFormat
from aiodata.schemas import mark_categories, mark_nulls

FORMATS = ["numpy", "pyarrow", "pandas", "polars", "torch"]

Array = np.ndarray[Any, Any]

INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
FLOATS = {pa.float16(): "f2", pa.float32(): "f4", pa.float64(): "f8"}
NUMBERS = [*INTEGERS, *FLOATS]


def buffer_of(array: pa.Array) -> Array:
    """The values' buffer as bytes."""
    return np.frombuffer(array.buffers()[-1], np.uint8)


def permuted(shape: list[int], permutation: list[int]) -> pa.Array:
    """Two tensors that count up in memory, where their shape is `shape`."""
    kind = pa.fixed_shape_tensor(pa.int32(), shape, permutation=permutation)
    values = pa.array(np.arange(2 * np.prod(shape), dtype=np.int32))
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(values, kind.storage_type.list_size))


@pytest.fixture
def torch() -> Iterator[Any]:
    """Torch, giving each warning as often as there is reason to."""
    module = pytest.importorskip("torch")
    module.set_warn_always(True)
    yield module
    module.set_warn_always(False)


def tensors(dtypes: Any = None, **columns: Any) -> dict[str, Any]:
    """These columns as tensors."""
    batch: dict[str, Any] = get_format("torch", dtypes).convert(pa.record_batch(columns))
    return batch


@pytest.mark.parametrize("kind", NUMBERS, ids=str)
def test_numbers_and_fixed_size_lists_keep_their_type_without_a_copy_and_read_only(kind: pa.DataType) -> None:
    array = pa.array([1, 2, 3, 4], kind)
    for rows, expected in ((array, [2, 3, 4]), (pa.FixedSizeListArray.from_arrays(array, 2), [[3, 4]])):
        column = column_to_numpy(rows.slice(1))
        assert column.dtype == np.dtype(kind.to_pandas_dtype())
        assert column.tolist() == expected
        assert np.shares_memory(column, buffer_of(array))
        assert not column.flags.writeable


@pytest.mark.parametrize("dtype", ["u1", "i4", "f2", "f4", "f8", "?"])
@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3), (4, 1, 1, 2)], ids=str)
def test_tensors_round_trip_through_a_block(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    array = as_block({"x": tensor})["x"].chunk(0)
    for back, expected in ((column_to_numpy(array), tensor), (column_to_numpy(array.slice(1, 2)), tensor[1:3])):
        assert back.dtype == tensor.dtype
        np.testing.assert_array_equal(back, expected)
        assert dtype == "?" or np.shares_memory(back, buffer_of(array))


@pytest.mark.parametrize(
    ("shape", "permutation", "strides"),
    [([2, 3], [1, 0], (1, 3)), ([2, 3, 4], [1, 2, 0], (4, 1, 12)), ([2, 3, 4], [2, 0, 1], (1, 12, 4))],
    ids=str,
)
def test_tensors_are_permuted_as_their_type_says(shape: list[int], permutation: list[int], strides: Any) -> None:
    array = permuted(shape, permutation)
    column = column_to_numpy(array)
    assert column.shape == (2, *(shape[axis] for axis in permutation))
    assert column.strides == (4 * np.prod(shape), *(4 * stride for stride in strides))
    assert np.shares_memory(column, buffer_of(array.storage))
    np.testing.assert_array_equal(column_to_numpy(array.slice(1)), column[1:])


def objects(*values: Any) -> Array:
    return np.fromiter(values, object, count=len(values))


def masked(values: Any, kind: Any, mask: Any = None) -> Array:
    """A masked array; zeros are masked unless there is a mask."""
    data = np.array(values, kind)
    return np.ma.MaskedArray(data, data == 0 if mask is None else mask)


def fixed(*rows: Any, kind: pa.DataType | None = None, size: int = 2) -> pa.Array:
    return pa.array(rows, pa.list_(kind or pa.int32(), size))


NESTED = fixed([[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [11, 12]], kind=pa.list_(pa.int32(), 2), size=3)
TENSOR = pa.fixed_shape_tensor(pa.int32(), [2])

TABLE: dict[str, tuple[pa.Array, Array]] = {
    **{f"{kind} with nulls": (pa.array([1, None], kind), masked([1, 0], kind.to_pandas_dtype())) for kind in INTEGERS},
    "integers that float64 would round": (pa.array([2**60 + 1, None]), masked([2**60 + 1, 0], "i8")),
    **{f"{one} with nulls": (pa.array([1, None], one), np.array([1, np.nan], dtype)) for one, dtype in FLOATS.items()},
    "bool": (pa.array([True, False]), np.array([True, False])),
    "bool with nulls": (pa.array([True, None]), masked([True, False], "?")),
    "date32": (pa.array([1, None], pa.date32()), np.array([1, None], "M8[D]")),
    "date64": (pa.array([86_400_000, None], pa.date64()), np.array([86_400_000, None], "M8[ms]")),
    "timestamp": (pa.array([1, None], pa.timestamp("us")), np.array([1, None], "M8[us]")),
    "timestamp with a time zone": (pa.array([1, None], pa.timestamp("s", "Asia/Tokyo")), np.array([1, None], "M8[s]")),
    "duration": (pa.array([1, None], pa.duration("ms")), np.array([1, None], "m8[ms]")),
    "nested fixed-size lists": (NESTED, np.arange(1, 13, dtype=np.int32).reshape(2, 3, 2)),
    "fixed-size lists with null rows": (fixed([1, 2], None), masked([[1, 2], [0, 0]], "i4", [[0, 0], [1, 1]])),
    "fixed-size lists with null integers": (fixed([1, None]), masked([[1, 0]], "i4")),
    "fixed-size lists with null floats": (fixed([1, None], kind=pa.float32()), np.array([[1, np.nan]], "f4")),
    "null fixed-size lists of floats": (fixed([1, 2], None, kind=pa.float32()), np.array([[1, 2], [np.nan] * 2], "f4")),
    "null fixed-size lists of times": (fixed(None, kind=pa.timestamp("s")), np.array([["NaT", "NaT"]], "M8[s]")),
    "fixed-size lists of times": (fixed([1, 2], kind=pa.timestamp("s")), np.array([[1, 2]], "M8[s]")),
    "tensors with nulls": (TENSOR.wrap_array(fixed(None, [1, 2])), masked([[0, 0], [1, 2]], "i4", [[1, 1], [0, 0]])),
    "lists": (pa.array([[1, 2], None, []]), objects(np.array([1, 2]), None, np.array([], int))),
    "lists with nulls": (pa.array([[1, None], [2]]), objects(masked([1, 0], "i8"), np.array([2]))),
    "lists of bools with nulls": (pa.array([[True, None]]), objects(masked([True, False], "?"))),
    "lists of tensors": (
        pa.array([[[1, 2]], None], pa.list_(pa.list_(pa.int8(), 2))),
        objects(np.array([[1, 2]], "i1"), None),
    ),
    "lists of lists": (pa.array([[[1], None], None]), objects(objects(np.array([1]), None), None)),
    "dictionary of numbers": (pa.array([1, 2, 1]).dictionary_encode(), np.array([1, 2, 1])),
    "dictionary with nulls": (pa.array([1, None]).dictionary_encode(), masked([1, 0], "i8")),
    "run-end encoded": (pa.RunEndEncodedArray.from_arrays([2, 3], [1, 2]), np.array([1, 1, 2])),
    "extension": (pa.array([1, None], pa.bool8()), masked([1, 0], "i1")),
    "no bools": (pa.array([], pa.bool_()), np.array([], bool)),
    "no strings": (pa.array([], pa.string()), objects()),
    "no fixed-size lists": (fixed(None).slice(1), np.zeros((0, 2), np.int32)),
    "no tensors": (permuted([2, 3], [1, 0]).slice(2), np.zeros((0, 3, 2), np.int32)),
    **{
        str(kind): (pa.array([value, None], kind), objects(value, None))
        for kind, value in {
            **dict.fromkeys((pa.string(), pa.large_string(), pa.string_view()), "a"),
            pa.dictionary(pa.int32(), pa.string()): "a",
            **dict.fromkeys((pa.binary(), pa.binary(1)), b"a"),
            pa.decimal128(10, 2): decimal.Decimal("1.25"),
            pa.time32("s"): dt.time(1, 2, 3),
            pa.time64("us"): dt.time(1, 2, 3, 4),
            pa.struct([("a", pa.int64())]): {"a": 1},
            pa.map_(pa.string(), pa.int64()): [("a", 1), ("b", None)],
            pa.null(): None,
        }.items()
    },
}


def look_of(one: Any) -> Any:
    """An array's type, shape, and what its values look like in turn."""
    if isinstance(one, np.ma.MaskedArray):
        return one.mask.tolist(), look_of(one.data)
    if isinstance(one, np.ndarray):
        return one.dtype.str, one.shape, [look_of(value) for value in one.ravel()]
    return one if one == one else "NaN or NaT"


@pytest.mark.parametrize(("array", "expected"), TABLE.values(), ids=TABLE.keys())
def test_columns_look_as_the_table_says(array: pa.Array, expected: Array) -> None:
    assert look_of(column_to_numpy(array)) == look_of(expected)


def as_array(column: Any) -> Array:
    """A column of numbers of any format, without a copy."""
    return np.asarray(column.chunk(0) if isinstance(column, pa.ChunkedArray) else column)


@pytest.mark.parametrize("fmt", FORMATS)
def test_slice_does_not_copy_and_join_does_where_it_is_said_to(fmt: str) -> None:
    pytest.importorskip(fmt)
    segment, converter = pa.record_batch({"x": np.arange(10)}), get_format(fmt)
    rows = converter.convert(segment)
    part, whole = (converter.slice(rows, start, 7) for start in (4, 0))
    assert as_array(part["x"]).tolist() == [4, 5, 6]
    assert np.shares_memory(as_array(part["x"]), as_array(whole["x"])) or fmt == "pandas"  # Pandas 2 copies.
    # Pandas gathers the columns of a block into one array, tensors are copies.
    assert np.shares_memory(as_array(part["x"]), buffer_of(segment.column(0))) == (fmt not in {"pandas", "torch"})
    joined = converter.join([part, whole])["x"]
    first = joined.get_chunks()[0] if fmt == "polars" else joined
    assert np.shares_memory(as_array(part["x"]), as_array(first)) != converter.join_copies


def values_of(one: Any) -> Any:
    """A column of any format, or a value in it, as Python has it; None for what stands for null."""
    one = one.to_pylist() if isinstance(one, pa.ChunkedArray) else one.tolist() if hasattr(one, "tolist") else one
    one = None if str(one) == "<NA>" else one  # Of pandas; that it equals something cannot be asked.
    if isinstance(one, list | tuple) or hasattr(one, "to_list"):
        return [values_of(value) for value in one]
    return None if one is None or one != one else one


TENSORS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int64(): st.integers(-9, 9),
    pa.float32(): st.integers(-9, 9).map(float) | st.none(),
    pa.bool_(): st.booleans(),
    pa.list_(pa.int16(), 2): st.lists(st.integers(0, 9), min_size=2, max_size=2),
}

COLUMNS: dict[pa.DataType, st.SearchStrategy[Any]] = TENSORS | {
    pa.int8(): st.integers(-9, 9) | st.none(),
    pa.string(): st.text(max_size=3) | st.none(),
    pa.list_(pa.string()): st.lists(st.text(max_size=3) | st.none(), max_size=3) | st.none(),
    pa.list_(pa.float64(), 1): st.lists(st.just(0.5) | st.none(), min_size=1, max_size=1) | st.none(),
    pa.map_(pa.string(), pa.int8()): st.lists(st.tuples(st.text(max_size=2), st.integers(0, 9)), max_size=2),
}


@pytest.mark.parametrize(
    ("fmt", "kind"), [(fmt, kind) for fmt in FORMATS for kind in (TENSORS if fmt == "torch" else COLUMNS)], ids=str
)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_stretches_sliced_and_joined_are_the_rows_converted_at_once(fmt: str, kind: pa.DataType, data: Any) -> None:
    pytest.importorskip(fmt)
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    values = data.draw(st.lists(COLUMNS[kind], min_size=sum(sizes), max_size=sum(sizes)))
    segment, converter, pieces = pa.record_batch({"x": pa.array(values, kind)}), get_format(fmt), []
    for start, size in zip(accumulate(sizes, initial=0), sizes, strict=False):
        rows, middle = converter.convert(segment.slice(start, size)), data.draw(st.integers(1, size))
        pieces += [converter.slice(rows, 0, middle), converter.slice(rows, middle, size)]
    assert values_of(converter.join(pieces)["x"]) == values_of(converter.convert(segment)["x"])


@pytest.mark.parametrize("fmt", FORMATS)
def test_format_knows_its_name(fmt: str) -> None:
    pytest.importorskip(fmt)
    assert get_format(fmt).name == fmt


def test_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=rf"batch_format='csv' is unknown; use one of .*{'.*'.join(FORMATS)}"):
        get_format("csv")


@pytest.mark.parametrize("library", ["pandas", "polars", "torch"])
def test_missing_library_is_refused_with_the_remedy(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(OptionError, match=f"needs the package {library}: pip install {library}"):
        get_format(library)


@pytest.mark.parametrize(
    "array",
    [
        *(pa.array([1, 2, 3], kind) for kind in NUMBERS),
        pa.array([1, None], pa.float16()),
        pa.array([True, False]),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)),
        pa.array([[True], [False]], pa.list_(pa.bool_(), 1)),
        pa.array([1, 2, 1]).dictionary_encode(),
        permuted([2, 3], [1, 0]),
    ],
    ids=lambda one: f"{one.type}-{one.null_count}",
)
def test_tensors_are_what_numpy_has_but_can_be_written_to(torch: Any, array: pa.Array) -> None:
    expected = column_to_numpy(array).copy()
    for dtype in (None, torch.float64):
        tensor = tensors(dtype, x=array)["x"]
        assert tensor.dtype == (dtype or torch.from_numpy(expected).dtype)
        np.testing.assert_array_equal(tensor.numpy(), expected)
        assert tensor.is_contiguous()
        tensor.zero_()
        np.testing.assert_array_equal(column_to_numpy(array), expected)


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (pa.array(["a"]), "string"),
        (pa.array([[1], []]), "list<item: int64>"),
        (pa.array([1], pa.timestamp("us")), r"timestamp\[us\]"),
        (pa.array([decimal.Decimal(1)]), "decimal128"),
        (pa.array([{"a": 1}]), "struct"),
        (pa.array([1], pa.time32("s")), "time32"),
        (pa.nulls(1), "null"),
    ],
)
@pytest.mark.usefixtures("torch")
def test_what_torch_has_no_tensors_for_is_a_value_error_with_the_remedy(array: pa.Array, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"'x' is {kind}.*select_columns.*map_batches.*collate_fn"):
        tensors(x=array)


def test_batches_of_tensors_know_nothing_of_each_other(torch: Any) -> None:
    rows = tensors(x=np.arange(100_000.0))
    one, other = (get_format("torch").slice(rows, start, start + 3)["x"] for start in (0, 3))
    assert len(pickle.dumps(one)) < 1000
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * one).sum()
    other.zero_()
    loss.backward()
    assert weight.grad.tolist() == one.tolist() == [0, 1, 2]


def test_dtypes_are_for_all_columns_or_those_named(torch: Any) -> None:
    columns = {"x": pa.array([1.5, None]), "y": pa.array([1, 2])}
    assert {one.dtype for one in tensors(torch.bfloat16, **columns).values()} == {torch.bfloat16}
    assert [one.dtype for one in tensors({"y": torch.int8}, **columns).values()] == [torch.float64, torch.int8]
    with torch.device("meta"):
        one = tensors({"x": torch.float16, "y": torch.bfloat16}, x=[1e9], y=[1.0])
    assert one["x"].isinf()
    assert one["y"].is_cpu


NULLS = {
    "int": pa.array([1, None]),
    "bool": pa.array([True, None]),
    "null tensor": pa.array([[1, 2], None], pa.list_(pa.int64(), 2)),
    "null in a tensor": pa.array([[1, None]], pa.list_(pa.int64(), 2)),
}


@pytest.mark.parametrize("array", NULLS.values(), ids=NULLS)
@pytest.mark.usefixtures("torch")
def test_nulls_that_nobody_foresaw_are_a_value_error_with_the_remedies(array: pa.Array) -> None:
    with pytest.raises(ValueError, match=r"'x' is .* with nulls.*map_batches.*dtypes={'x': torch.float64}"):
        tensors(x=array)


@pytest.mark.parametrize("array", NULLS.values(), ids=NULLS)
def test_nulls_are_nan_in_a_float_type_that_was_asked_for(torch: Any, array: pa.Array) -> None:
    column = column_to_numpy(array)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        tensor = tensors({"x": dtype}, x=array)["x"]
        assert tensor.dtype == dtype
        assert tensor.isnan().tolist() == column.mask.tolist()  # type: ignore[attr-defined]


def with_mark(array: pa.Array, *, has_nulls: bool) -> pa.RecordBatch:
    field = mark_nulls(pa.field("x", array.type), has_nulls=has_nulls)
    return pa.RecordBatch.from_arrays([array], schema=pa.schema([field]))


@pytest.mark.parametrize("array", [*NULLS.values(), pa.array([1, 2]), pa.array([True, False])], ids=str)
def test_columns_known_to_have_nulls_are_float64_tensors_in_every_stretch(torch: Any, array: pa.Array) -> None:
    for rows in (array, array[:1], array[:0]):
        tensor = get_format("torch").convert(with_mark(rows, has_nulls=True))["x"]
        assert tensor.dtype == torch.float64
    with pytest.raises(ValueError, match=r"'x' is int64: .*beyond 2\*\*53.*map_batches"):
        get_format("torch").convert(with_mark(pa.array([2**53 + 1]), has_nulls=True))


@pytest.mark.parametrize("values", [[1, 2], [True, False], [1, None], [None, None]], ids=str)
def test_numpy_has_nan_for_null_in_every_stretch_if_asked(values: list[Any]) -> None:
    fmt, array = get_format("numpy", nulls="nan"), pa.array(values, pa.bool_() if values[0] is True else pa.int64())
    for rows in (array, array[:1], array[:0]):
        column = fmt.convert(pa.record_batch({"x": rows}))["x"]
        assert (column.dtype, type(column)) == (np.float64, np.ndarray)
        assert [None if one != one else one for one in column] == rows.to_pylist()
    if None not in values:
        assert fmt.convert(with_mark(array, has_nulls=False))["x"].dtype.kind in "bi"


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64(), pa.list_(pa.int64()), pa.list_(pa.int64(), 1)], ids=str)
def test_numpy_rounds_nothing_for_nan(kind: pa.DataType) -> None:
    value = [2**53 + 1] if kind.num_fields else 2**53 + 1
    with pytest.raises(ValueError, match=r"'x' is .*beyond 2\*\*53.*nulls='mask'"):
        get_format("numpy", nulls="nan").convert(pa.record_batch({"x": pa.array([value], kind)}))


def test_nulls_that_can_not_be_had_are_refused_with_the_remedy() -> None:
    with pytest.raises(OptionError, match=r"nulls='nan' goes with batch_format='numpy', not with 'pandas'"):
        get_format("pandas", nulls="nan")
    with pytest.raises(OptionError, match=r"nulls='none' is unknown; use one of \('mask', 'nan'\)"):
        get_format("numpy", nulls="none")


@pytest.mark.parametrize("fmt", ["numpy", "polars", "torch"])
def test_columns_of_one_name_are_a_value_error_that_names_it(fmt: str) -> None:
    pytest.importorskip(fmt)
    segment = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])
    with pytest.raises(ValueError, match=r"columns share a name: \['x'\]; rename them"):
        get_format(fmt).convert(segment)


@pytest.mark.parametrize(
    "array",
    [
        pa.array([decimal.Decimal("1.25")], pa.decimal256(50, 2)),
        pa.array([[decimal.Decimal("1.25")]], pa.list_(pa.decimal256(50, 2))),
        pa.array([pa.MonthDayNano([1, 2, 3])]),
        pa.array([[], []], pa.list_(pa.int8(), 0)),
        pa.array([1], pa.timestamp("us", "+09:30")),
        pa.array([2**60], pa.timestamp("s")),
    ],
    ids=lambda one: str(one.type),
)
def test_what_polars_would_panic_at_is_a_value_error_that_names_the_column(array: pa.Array) -> None:
    pytest.importorskip("polars")
    with pytest.raises(ValueError, match=r"column 'x' is "):
        get_format("polars").convert(pa.record_batch({"y": [1] * len(array), "x": array}))


def test_categories_are_those_of_the_schema_not_of_the_stretch() -> None:
    pandas = pytest.importorskip("pandas")
    array = pa.array(["a", "b", None, "a"]).dictionary_encode()
    plain = pa.field("x", array.type)
    for field, kind in ((mark_categories(plain, are_known=True), "category"), (plain, "str")):
        segment = pa.RecordBatch.from_arrays([array], schema=pa.schema([field]))
        for start in range(4):
            column = get_format("pandas").convert(segment.slice(start, 1))["x"]
            assert str(column.dtype) == kind or (kind == "str" and pandas.__version__ < "3")
            assert kind == "str" or column.cat.categories.tolist() == ["a", "b"]


def test_dtypes_that_can_not_work_are_refused_with_the_remedy(torch: Any) -> None:
    with pytest.raises(OptionError, match=r"dtypes=torch.int8 goes with batch_format='torch', not with 'numpy'"):
        get_format("numpy", torch.int8)
    for wrong in ("float32", {"x": np.float32}, {"x": None}):
        with pytest.raises(OptionError, match=r"dtypes=.* must be a torch.dtype, or a mapping of columns to one each"):
            get_format("torch", wrong)
    with pytest.raises(ValueError, match=r"dtypes names columns that are not there: \['z'\]; there are \['x'\]"):
        tensors({"z": torch.int8}, x=[1])
    for dtype in (torch.int64, torch.bool):
        with pytest.raises(ValueError, match=r"'x' has nulls or NaN, but torch.* fill them, or ask for a float type"):
            tensors(dtype, x=[1, None])


def test_tensors_of_a_type_that_numpy_lacks_slice_and_join(torch: Any) -> None:
    fmt = get_format("torch", torch.bfloat16)
    rows = fmt.convert(pa.record_batch({"x": np.arange(4)}))
    pieces = [fmt.slice(rows, start, start + 2) for start in (2, 0)]
    joined = fmt.join(pieces)["x"]
    assert (joined.dtype, joined.tolist()) == (torch.bfloat16, [2, 3, 0, 1])
    pieces[0]["x"].zero_()
    assert [one["x"]._version for one in pieces] == [1, 0]


def stretch_of(fmt: str, *kinds: pa.DataType, dtypes: Any = None) -> int | None:
    """The rows of columns of these types that are converted in one go."""
    return get_format(fmt, dtypes).stretch(pa.schema([(f"c{index}", kind) for index, kind in enumerate(kinds)]))


IMAGE = pa.fixed_shape_tensor(pa.uint8(), [224, 224, 3])
STRUCT = pa.struct([("a", pa.string()), ("b", pa.int8())])


@pytest.mark.parametrize(
    ("fmt", "rows", "kinds"),
    [
        ("numpy", None, [pa.int64(), pa.timestamp("us"), pa.list_(pa.float32(), 8), IMAGE]),
        ("numpy", 262_144, [pa.bool_(), pa.date32()]),
        ("numpy", 4096, [pa.string(), pa.decimal128(9), pa.time32("s")]),
        ("numpy", 1024, [STRUCT]),
        ("numpy", 409, [pa.list_(pa.string())]),
        ("numpy", 8, [pa.list_(pa.time32("s"), 510)]),
        ("pyarrow", None, [pa.string()]),
        ("pandas", 262_144, [pa.int64(), pa.bool_(), pa.dictionary(pa.int8(), pa.string())]),
        ("pandas", 4096, [pa.date32(), pa.binary()]),
        ("pandas", 2048, [pa.list_(pa.int64()), IMAGE]),
        ("polars", None, [pa.int64(), pa.bool_(), pa.list_(pa.int8()), pa.decimal128(9), IMAGE]),
        ("polars", 32_768, [pa.string(), STRUCT]),
        ("polars", 4096, [pa.list_(pa.string())]),
        ("torch", 262_144, [pa.int8(), pa.float64(), pa.list_(pa.int8(), 8)]),
        ("torch", 13, [IMAGE, IMAGE.storage_type]),
    ],
)
def test_stretch_is_what_converts_within_a_millisecond(fmt: str, rows: int | None, kinds: list[pa.DataType]) -> None:
    pytest.importorskip(fmt)
    assert [stretch_of(fmt, kind) for kind in kinds] == [rows] * len(kinds)
    assert [stretch_of(fmt, kind, kind) for kind in kinds] == [rows and rows // 2] * len(kinds)


def test_stretch_has_rows_worth_the_time_that_many_columns_take() -> None:
    assert [stretch_of("numpy", *[kind] * 500) for kind in (pa.string(), pa.bool_())] == [64, 524]
    assert stretch_of("pandas", *[pa.float64()] * 5000) == 512


def test_casts_count_as_what_they_make(torch: Any) -> None:
    assert stretch_of("torch", IMAGE, dtypes=torch.float64) == 1
    assert stretch_of("torch", pa.int64(), dtypes=torch.bfloat16) == 32_768


def test_stretch_is_that_of_the_schema_asked_about() -> None:
    fmt = get_format("numpy")
    schemas = [pa.schema([("x", kind)]) for kind in (pa.string(), pa.int64(), pa.bool_())]
    assert [fmt.stretch(schema) for schema in schemas * 2] == [4096, None, 262_144] * 2


def test_slices_of_nested_columns_leave_their_neighbours_behind() -> None:
    pytest.importorskip("polars")
    segment = pa.record_batch({"x": [["a", "b"]] * 1000}).slice(500, 2)
    mended = PolarsFormat()._mend(segment.column("x"), pa.list_(pa.string()))
    assert mended.equals(segment.column("x"))
    assert mended.get_total_buffer_size() < 100
