"""In every format a column has one dtype in a pass, however it is cut, and each value is what it was."""

from __future__ import annotations

import datetime as dt
import decimal
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiodata import schemas
from aiodata.batcher import Batcher
from aiodata.casts import cast_exactly
from aiodata.formats import cost, get_format
from aiodata.formats.decoding import decoded
from aiodata.kinds import plain_type
from tests.test_batcher import cut

Values = st.SearchStrategy[Any]

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
MOMENTS = st.one_of(st.integers(-(2**63) + 1, 2**63 - 1), st.integers(-(10**12), 10**12))


def of_bits(bits: int, *, signed: bool) -> Values:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.integers(low, high) | st.sampled_from([low, high, 0, 1])


def decimals(digits: int, scale: int) -> Values:
    return st.integers(-(10**digits) + 1, 10**digits - 1).map(lambda one: decimal.Decimal(one).scaleb(-scale, CONTEXT))


CONTEXT = decimal.Context(prec=80)

# Values are what Arrow keeps: integers for dates, times and moments.
LEAVES: list[tuple[pa.DataType, Values]] = [
    (pa.null(), st.none()),
    (pa.bool_(), st.booleans()),
    *((getattr(pa, f"int{bits}")(), of_bits(bits, signed=True)) for bits in (8, 16, 32, 64)),
    *((getattr(pa, f"uint{bits}")(), of_bits(bits, signed=False)) for bits in (8, 16, 32, 64)),
    *((getattr(pa, f"float{bits}")(), st.floats(width=bits, allow_nan=False)) for bits in (16, 32, 64)),
    *((kind, st.text(max_size=3)) for kind in (pa.string(), pa.large_string(), pa.string_view())),
    *((kind, st.binary(max_size=3)) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())),
    (pa.binary(2), st.binary(min_size=2, max_size=2)),
    (pa.decimal32(5, 2), decimals(5, 2)),
    (pa.decimal128(38, 5), decimals(38, 5)),
    (pa.decimal256(50, 10), decimals(50, 10)),
    (pa.date32(), st.integers(-(2**31), 2**31 - 1) | st.integers(0, 20_000)),
    (pa.date64(), st.integers(-(10**9), 10**9).map(lambda day: day * 86_400_000)),
    (pa.time32("s"), st.integers(0, 86_399)),
    (pa.time64("us"), st.integers(0, 86_399_999_999)),
    (pa.time64("ns"), st.integers(0, 86_399_999_999_999)),
    *((pa.timestamp(unit, zone), MOMENTS) for unit in PER_SECOND for zone in (None, "Asia/Tokyo")),
    *((pa.duration(unit), MOMENTS) for unit in PER_SECOND),
]


def with_nulls(values: Values) -> Values:
    return st.one_of(st.none(), values, values)


def hold(inner: tuple[pa.DataType, Values], other: tuple[pa.DataType, Values]) -> list[tuple[pa.DataType, Values]]:
    """Types that hold others."""
    (kind, values), (other_kind, other_values) = inner, other
    items, others = with_nulls(values), with_nulls(other_values)
    return [
        *(
            (make(kind), st.lists(items, max_size=3))
            for make in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view)
        ),
        (pa.list_(kind, 2), st.lists(items, min_size=2, max_size=2)),
        (pa.struct([("a", kind), ("b", other_kind)]), st.fixed_dictionaries({"a": items, "b": others})),
        (
            pa.map_(pa.string(), kind),
            st.lists(st.tuples(st.text(max_size=2), items), max_size=3, unique_by=lambda one: one[0]),
        ),
    ]


LEAF = st.sampled_from(LEAVES)
ONE_DEEP = st.tuples(LEAF, LEAF).flatmap(lambda pair: st.sampled_from(hold(*pair)))
TWO_DEEP = st.tuples(ONE_DEEP, LEAF).flatmap(lambda pair: st.sampled_from(hold(*pair)))


def encoded(array: pa.Array, encoding: str | None) -> pa.Array:
    if encoding == "dictionary":
        with suppress(pa.ArrowNotImplementedError):
            return array.dictionary_encode()
    if encoding == "runs":
        return pa.RunEndEncodedArray.from_arrays(pa.array(range(1, len(array) + 1), pa.int32()), array)
    return array


@st.composite
def columns(draw: Callable[[Values], Any]) -> tuple[pa.Array, list[Any], pa.Field]:
    """A column, its values as Arrow keeps them, and its field with what may be known of it."""
    kind, values = draw(st.one_of(LEAF, LEAF, ONE_DEEP, TWO_DEEP))
    rows = draw(st.lists(with_nulls(values) if draw(st.booleans()) else values, min_size=1, max_size=12))
    array = encoded(pa.array(rows, kind), draw(st.sampled_from([None, None, "dictionary", "runs"])))
    marks = [None, True] + [False] * all(row is not None for row in rows)
    field = schemas.mark_nulls(pa.field("x", array.type), has_nulls=draw(st.sampled_from(marks)))
    if pa.types.is_dictionary(array.type):
        field = schemas.mark_categories(field, are_known=draw(st.booleans()))
    return array, rows, field


@st.composite
def cuts(draw: Callable[[Values], Any], num_rows: int) -> list[tuple[int, int]]:
    """Ranges of rows that blocks are."""
    ends = sorted({*draw(st.lists(st.integers(1, num_rows), max_size=4)), num_rows})
    return list(zip([0, *ends[:-1]], ends, strict=True))


def kept(value: Any, kind: pa.DataType) -> Any:
    """A Python or numpy value as Arrow keeps it; NaN, NaT, NA and masked values are null."""
    if value is np.ma.masked:
        return None
    if isinstance(value, np.ndarray | list | tuple | dict):
        return kept_nested(value, kind)
    if value is None or str(value) == "<NA>" or value != value:
        return None
    if pa.types.is_temporal(kind):
        return kept_moment(value, kind)
    if isinstance(value, bool | np.bool_):
        assert pa.types.is_boolean(kind)
        return bool(value)
    if pa.types.is_integer(kind):
        assert isinstance(value, int | np.integer)
    return value.item() if isinstance(value, np.generic) else value


def kept_nested(value: Any, kind: pa.DataType) -> Any:
    parts = [value[index] for index in range(len(value))] if isinstance(value, np.ndarray) else list(value)
    if isinstance(value, dict):
        return {field.name: kept(value[field.name], field.type) for field in kind}
    if pa.types.is_map(kind):
        return [(kept(key, kind.key_type), kept(one, kind.item_type)) for key, one in parts]
    return [kept(one, kind.value_type) for one in parts]


def kept_moment(value: Any, kind: pa.DataType) -> int:
    value = getattr(value, "asm8", value)  # Of pandas' Timestamp and Timedelta.
    if isinstance(value, np.datetime64 | np.timedelta64):
        unit = "D" if pa.types.is_date32(kind) else "ms" if pa.types.is_date64(kind) else kind.unit
        assert np.datetime_data(value.dtype)[0] == unit
        return int(value.astype(np.int64))
    if pa.types.is_date(kind):
        assert type(value) is dt.date
        days = (value - EPOCH.date()).days
        return days if pa.types.is_date32(kind) else days * 86_400_000
    if isinstance(value, dt.time):
        value = dt.timedelta(
            hours=value.hour, minutes=value.minute, seconds=value.second, microseconds=value.microsecond
        )
    if isinstance(value, dt.datetime):
        assert (value.tzinfo is None) == (kind.tz is None)
        value = (value if value.tzinfo else value.replace(tzinfo=dt.UTC)) - EPOCH
    micros: int = value // dt.timedelta(microseconds=1)
    per_second = PER_SECOND[kind.unit]
    return micros * (per_second // 10**6) if per_second > 10**6 else micros // (10**6 // per_second)


def null_tensors(rows: list[Any], kind: pa.DataType) -> list[Any]:
    """Rows where null tensors are tensors of nulls, as numpy has them."""
    if not (pa.types.is_fixed_size_list(kind) and cost.is_plain(kind)):
        return [null_inner(row, kind) for row in rows]
    size = kind.list_size
    return [null_tensors([None] * size if row is None else row, kind.value_type) for row in rows]


def null_inner(row: Any, kind: pa.DataType) -> Any:
    """The same for what rows hold: lists of tensors are arrays of tensors, but structs have values."""
    if row is None:
        return None
    if pa.types.is_struct(kind):
        return {field.name: null_inner(row[field.name], field.type) for field in kind}
    if pa.types.is_map(kind):
        return [(key, null_inner(one, kind.item_type)) for key, one in row]
    return null_tensors(row, kind.value_type) if isinstance(row, list) else row


def column_values(column: Any, fmt: str, kind: pa.DataType) -> list[Any]:
    """The rows of one batch's column as Arrow keeps them."""
    if fmt == "pandas":
        if str(column.dtype) == "category":
            return [kept(one, kind) for one in column.astype(object)]
        if hasattr(column.array, "asi8"):
            return [None if null else int(one) for one, null in zip(column.array.asi8, column.isna(), strict=True)]
        return [kept(one, kind) for one in column.array]
    return [kept(column[row], kind) for row in range(len(column))]


def outcome(data: Any, fmt: Any, array: pa.Array, field: pa.Field) -> Any:
    """The column's batches, where it is cut into blocks, stretches and batches at random; or a ValueError's message."""
    table = pa.Table.from_arrays([array], schema=pa.schema([field]))
    blocks = [table.slice(start, stop - start) for start, stop in data.draw(cuts(len(array)))]
    size, eagerly = data.draw(st.none() | st.integers(1, len(array))), data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "_OBJECTS_PER_STRETCH", data.draw(st.integers(1, 30)))
        patch.setattr(cost, "_COPIES_PER_STRETCH", data.draw(st.integers(1, 30)))
        with no_panic(field):
            try:
                return [batch["x"] for batch in cut(Batcher(fmt, size), blocks, eagerly=eagerly)]
            except ValueError as error:
                return str(error)


@contextmanager
def no_panic(of: object) -> Iterator[None]:
    """Have hypothesis see panics of polars, which are no Exceptions."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise AssertionError(f"{of}: {error}") from error
        raise


def is_nanoseconds_refusal(outcome: Any, kind: pa.DataType) -> bool:
    """Whether these are times that Python has not, which are refused wherever Python's are made."""
    is_refused = isinstance(outcome, str)
    if is_refused:
        assert "time64[ns]" in str(kind)
        assert re.match(r"column 'x' is .*non-zero nanoseconds", outcome)
    return is_refused


SETTINGS = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.slow
@pytest.mark.parametrize("writable", [False, True])
@SETTINGS
@given(column=columns(), data=st.data())
def test_numpy_columns_have_one_dtype_and_exact_values(writable: bool, column: Any, data: Any) -> None:
    array, rows, field = column
    kind = decoded(array).type
    arrays = outcome(data, get_format("numpy", writable=writable), array, field)
    if is_nanoseconds_refusal(arrays, kind):
        return
    assert len({one.dtype for one in arrays}) == 1
    assert len({one.shape[1:] for one in arrays}) == 1
    if schemas.has_nulls(field) and arrays[0].dtype.kind in "iub":
        assert {type(one) for one in arrays} == {np.ma.MaskedArray}
    assert [row for one in arrays for row in column_values(one, "numpy", kind)] == null_tensors(rows, kind)
    assert all(one.flags.writeable == writable for part in arrays for one in [part, *inner_arrays(part)])


def inner_arrays(value: Any) -> Iterator[Any]:
    """All arrays that a column of lists, structs or maps refers to."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return
    for one in value.values() if isinstance(value, dict) else value:
        if isinstance(one, np.ma.MaskedArray):
            yield from (one.data, one.mask)
        elif isinstance(one, np.ndarray):
            yield one
        if isinstance(one, np.ndarray | dict | list | tuple):
            yield from inner_arrays(one)


@pytest.mark.slow
@SETTINGS
@given(column=columns(), data=st.data())
def test_numpy_columns_with_nulls_as_nan_have_one_dtype_and_exact_values(column: Any, data: Any) -> None:
    array, rows, field = column
    kind = decoded(array).type
    arrays = outcome(data, get_format("numpy", nulls="nan"), array, field)
    if isinstance(arrays, str):
        assert re.match(r"column 'x' is .*(nanoseconds|beyond 2\*\*53|values in rows are)", arrays)
        return
    assert len({one.dtype for one in arrays}) == 1
    assert not any(isinstance(one, np.ma.MaskedArray) for part in arrays for one in [part, *inner_arrays(part)])
    if cost.is_counted(kind):
        assert (arrays[0].dtype == np.float64) == (schemas.has_nulls(field) is not False)
        assert [None if one != one else one for part in arrays for one in part.tolist()] == rows


@pytest.mark.slow
@SETTINGS
@given(column=columns(), data=st.data())
def test_pandas_columns_have_one_dtype_and_exact_values(column: Any, data: Any) -> None:
    pytest.importorskip("pandas")
    array, rows, field = column
    kind = decoded(array).type
    series = outcome(data, get_format("pandas", writable=data.draw(st.booleans())), array, field)
    if is_nanoseconds_refusal(series, kind):
        return
    assert len({one.dtype for one in series}) == 1
    got = [row for one in series for row in column_values(one, "pandas", kind)]
    assert got == [null_inner(row, kind) for row in rows]


@pytest.mark.slow
@SETTINGS
@given(column=columns(), data=st.data())
def test_polars_columns_have_one_dtype_and_exact_values(column: Any, data: Any) -> None:
    polars = pytest.importorskip("polars")
    array, rows, field = column
    kind = decoded(array).type
    series = outcome(data, get_format("polars", writable=data.draw(st.booleans())), array, field)
    assert isinstance(series, str) or "decimal256" not in str(kind)
    if isinstance(series, str):
        assert re.match(r"column 'x' is .*(decimals have 38 digits|would result in out of bounds)", series)
        return
    assert len({one.dtype for one in series}) == 1
    with no_panic(kind):
        whole = polars.concat(series).to_arrow()
    assert as_kept(whole, kind).equals(as_kept(pa.array(rows, kind), kind))


def as_kept(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Values in one type of several that hold them."""
    plain = plain_type(kind, keep_nested_dictionaries=False)
    # Polars has moments for these, which are no days to `cast_exactly`.
    return array.cast(plain) if "date64" in str(kind) and array.type != kind else cast_exactly(array, plain)


@pytest.mark.slow
@SETTINGS
@given(column=columns(), data=st.data())
def test_tensors_have_one_dtype_and_exact_values(column: Any, data: Any) -> None:
    pytest.importorskip("torch")
    array, rows, field = column
    kind = decoded(array).type
    tensors = outcome(data, get_format("torch"), array, field)
    if isinstance(tensors, str):
        assert re.match(r"column 'x' is .*(torch has no tensors for|with nulls, which|beyond 2\*\*53|nanosec)", tensors)
        return
    assert len({one.dtype for one in tensors}) == 1
    assert [row for one in tensors for row in nan_as_null(one.tolist())] == null_tensors(rows, kind)


def nan_as_null(value: Any) -> Any:
    """Nested lists with None for NaN."""
    return [nan_as_null(one) for one in value] if isinstance(value, list) else None if value != value else value
