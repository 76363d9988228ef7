"""Casts that change no value, and those that are refused."""

from __future__ import annotations

import decimal
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, given, settings

from aiodata.casts import cast_exactly
from aiodata.kinds import unify_types
from tests.arrow_arrays import arrays, kinds, shown

VECTOR = pa.fixed_shape_tensor(pa.float64(), [3])
MATRIX = pa.fixed_shape_tensor(pa.float64(), [2, 2])


def dated(value: int, kind: pa.DataType) -> pa.Array:
    return pa.array([value], pa.int64()).view(kind)


@settings(max_examples=200, deadline=None)
@given(array=arrays(), other=kinds())
def test_values_survive_a_cast_to_the_common_type_and_back(array: pa.Array, other: pa.DataType) -> None:
    kind = unify_types(array.type, other)
    assume(kind is not None)
    try:
        cast = cast_exactly(array, kind)
    except ValueError as error:
        assume("out of bounds" not in str(error))
        raise
    cast.validate(full=True)
    assert cast.type == kind
    if not pa.types.is_struct(kind):
        assert shown(cast_exactly(cast, array.type)) == shown(array)


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (pa.array([2**53 + 1]), pa.float64()),
        (pa.array([2**63 - 1]), pa.float64()),
        (pa.array([2**64 - 1], pa.uint64()), pa.float64()),
        (pa.array([2**24 + 1]), pa.float32()),
        (pa.array([0.1]), pa.float32()),
        (pa.array([1e300]), pa.float32()),
        (pa.array([0.1]), pa.float16()),
        (pa.array([1.5]), pa.int64()),
        (pa.array([-0.0]), pa.int64()),
        (pa.array([math.nan]), pa.int64()),
        (pa.array([math.inf]), pa.int64()),
        (pa.array([2.0**63]), pa.int64()),
        (pa.array([300]), pa.int8()),
        (pa.array([-1]), pa.uint64()),
        (pa.array([[300]]), pa.list_(pa.int8())),
        (pa.array([{"a": 300}]), pa.struct([("a", pa.int8())])),
        (pa.array([{"a": 1, "b": 2}]), pa.struct([("a", pa.int64())])),
        (pa.array([decimal.Decimal("1.25")]), pa.decimal128(5, 1)),
        (pa.array([123456]), pa.decimal128(6, 2)),
        (pa.array([decimal.Decimal("1.25")]), pa.float64()),
        (pa.array([1.25]), pa.decimal128(5, 2)),
        (dated(2**40, pa.timestamp("s")), pa.timestamp("ns")),
        (dated(1001, pa.timestamp("ms")), pa.timestamp("s")),
        (dated(0, pa.timestamp("us")), pa.timestamp("us", "UTC")),
        (dated(0, pa.timestamp("ms")), pa.date64()),
        (dated(5, pa.date64()), pa.date32()),
        (dated(5, pa.time64("us")), pa.time32("ms")),
        (pa.array(["1"]), pa.int64()),
        (pa.array([], pa.string()), pa.int64()),
        (pa.array([1]), pa.string()),
        (pa.array([True]), pa.int8()),
        (pa.array([1]), pa.bool_()),
        (pa.array([b"a"]), pa.string()),
        (pa.array([b"ab"]), pa.binary(3)),
        (pa.array([b"ab"], pa.binary(2)), pa.binary(3)),
        (pa.array(["a"]), pa.dictionary(pa.int8(), pa.string(), ordered=True)),
        (pa.array([[1, 2]]), pa.list_(pa.int64(), 3)),
        (pa.array([[1.0, 2.0]]), VECTOR),
        (pa.array([[[1.0, 2.0], None]]), MATRIX),
        (pa.array([[None]]), pa.list_(pa.field("item", pa.int64(), nullable=False))),
        (pa.array([1]), pa.null()),
    ],
    ids=str,
)
def test_a_cast_that_would_change_values_is_refused(array: pa.Array, kind: pa.DataType) -> None:
    with pytest.raises(ValueError, match="fit"):
        cast_exactly(array, kind)


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (pa.array([2**60, None]), pa.float64()),
        (pa.array([1.0, None, math.nan, -0.0, math.inf]), pa.float32()),
        (pa.array([1.0, None]), pa.float16()),
        (pa.array([1.0, -(2.0**63)]), pa.int64()),
        (pa.array([1, None]), pa.decimal128(5, 2)),
        (pa.array([[1.0, 2.0, 3.0], None]), VECTOR),
        (pa.array([None, [[1.0, 2.0], [3.0, 4.0]]]), MATRIX),
        (pa.array([None, [1.0, 2.0, 3.0, 4.0]], pa.list_(pa.float64(), 4)), MATRIX),
        (pa.array([None, None]), MATRIX),
        (pa.array([["a", None], None]), pa.list_view(pa.string_view())),
        (pa.array([[], None], pa.list_(pa.int8())), pa.list_(pa.int8(), 0)),
        (pa.array([[("a", 1), ("b", None)], None], pa.map_(pa.string(), pa.int64())), pa.map_(pa.string(), pa.int8())),
        (pa.array([{"a": 1}, None]), pa.struct([("b", pa.string()), ("a", pa.int8())])),
        (pa.array(["a", None, "b"]).dictionary_encode(), pa.dictionary(pa.int16(), pa.large_string())),
        (pa.array([None, None], pa.string()), pa.null()),
    ],
    ids=str,
)
def test_what_fits_is_cast_also_from_a_slice(array: pa.Array, kind: pa.DataType) -> None:
    for rows in (array, array[1:], array[:0]):
        cast = cast_exactly(rows, kind)
        cast.validate(full=True)
        assert cast.type == kind
        assert cast.null_count == rows.null_count
        values = cast.to_pylist()
        assert len(values) == len(rows)
        back: Any = rows.to_pylist()
        if not pa.types.is_struct(kind) and not kind.equals(MATRIX) and not pa.types.is_decimal(kind):
            assert repr(values) == repr(back) or values == back


def test_column_of_that_type_is_itself() -> None:
    column = pa.chunked_array([[1], [2]])
    assert cast_exactly(column, pa.int64()) is column
    assert cast_exactly(column, pa.int8()).num_chunks == 2


def test_values_that_null_lists_cover_do_not_matter() -> None:
    covered = pa.ListArray.from_arrays(
        pa.array([0, 1, 2], pa.int32()), pa.array([300, 3]), mask=pa.array([True, False])
    )
    assert cast_exactly(covered, pa.list_(pa.int8())).to_pylist() == [None, [3]]


def test_error_has_the_value_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"double does not fit int8: 1.5 is none of its values"):
        cast_exactly(pa.array([1.0, 1.5]), pa.int8())
