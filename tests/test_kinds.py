"""Which type holds the values of two, and which types are plain."""

from __future__ import annotations

from itertools import permutations

import pyarrow as pa
import pytest
from hypothesis import assume, given, settings

from aiodata.kinds import plain_type, unify_all_types, unify_types
from tests.arrow_arrays import kinds

ZONED = pa.timestamp("us", "Asia/Tokyo")


def tensor(*shape: int, kind: pa.DataType | None = None) -> pa.DataType:
    return pa.fixed_shape_tensor(kind or pa.float32(), shape)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (pa.null(), ZONED, ZONED),
        (pa.int8(), pa.int32(), pa.int32()),
        (pa.int32(), pa.uint32(), pa.int64()),
        (pa.int8(), pa.uint8(), pa.int16()),
        (pa.int64(), pa.uint64(), None),
        (pa.float16(), pa.float64(), pa.float64()),
        (pa.int16(), pa.float32(), pa.float32()),
        (pa.int32(), pa.float32(), pa.float64()),
        (pa.int64(), pa.float64(), None),
        (pa.int64(), pa.bool_(), None),
        (pa.int64(), pa.string(), None),
        (pa.int64(), pa.decimal128(10, 2), pa.decimal128(21, 2)),
        (pa.float64(), pa.decimal128(10, 2), None),
        (pa.decimal128(38, 0), pa.decimal128(10, 5), pa.decimal256(43, 5)),
        (pa.decimal256(76, 0), pa.decimal128(10, 5), None),
        (pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("ns")),
        (pa.timestamp("us"), ZONED, None),
        (pa.timestamp("us", "UTC"), ZONED, None),
        (pa.date32(), pa.date64(), pa.date64()),
        (pa.date32(), pa.timestamp("s"), None),
        (pa.time32("s"), pa.time64("us"), pa.time64("us")),
        (pa.duration("s"), pa.duration("ms"), pa.duration("ms")),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.string(), pa.string_view(), pa.large_string()),
        (pa.string(), pa.binary(), None),
        (pa.binary(2), pa.binary(3), pa.binary()),
        (pa.dictionary(pa.int8(), pa.string()), pa.large_string(), pa.large_string()),
        (
            pa.dictionary(pa.int8(), pa.string(), ordered=True),
            pa.dictionary(pa.int16(), pa.string()),
            pa.dictionary(pa.int32(), pa.string()),
        ),
        (pa.run_end_encoded(pa.int32(), pa.int8()), pa.int16(), pa.int16()),
        (pa.list_(pa.int8(), 2), pa.list_(pa.int16(), 2), pa.list_(pa.int16(), 2)),
        (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3), pa.list_(pa.int8())),
        (pa.list_(pa.int8()), pa.large_list(pa.null()), pa.large_list(pa.int8())),
        (pa.list_(pa.int64()), pa.list_(pa.float64()), None),
        (
            pa.struct([("a", pa.int8()), ("b", pa.null())]),
            pa.struct([("c", pa.int8()), ("a", pa.int16())]),
            pa.struct([("a", pa.int16()), ("b", pa.null()), ("c", pa.int8())]),
        ),
        (pa.map_(pa.string(), pa.int8()), pa.map_(pa.string(), pa.int16()), pa.map_(pa.string(), pa.int16())),
        (tensor(2, 3), tensor(3, 2), None),
        (tensor(2), tensor(2, kind=pa.float64()), tensor(2, kind=pa.float64())),
        (tensor(2), pa.list_(pa.float32()), None),
        (tensor(2), pa.list_(pa.float32(), 2), tensor(2)),
        (pa.uuid() if hasattr(pa, "uuid") else tensor(1), pa.string(), None),
    ],
    ids=str,
)
def test_two_types_have_the_one_that_holds_both_exactly(
    a: pa.DataType, b: pa.DataType, expected: pa.DataType | None
) -> None:
    assert unify_types(a, b) == expected
    other = unify_types(b, a)
    assert (other is None) == (expected is None)
    if expected is not None and not pa.types.is_struct(expected):
        assert other == expected


@settings(max_examples=150, deadline=None)
@given(a=kinds(), b=kinds())
def test_unifying_with_the_outcome_changes_nothing(a: pa.DataType, b: pa.DataType) -> None:
    both = unify_types(a, b)
    assume(both is not None)
    assert unify_types(both, a) == both
    assert unify_types(both, b) == both
    assert unify_types(a, a) == a


def test_whether_many_types_go_together_does_not_depend_on_their_order() -> None:
    for some in ([pa.int64(), pa.uint64(), pa.decimal128(5, 2)], [pa.int64(), pa.int8(), pa.float64()]):
        assert len({unify_all_types(order) for order in permutations(some)}) == 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.string_view(), pa.large_string()),
        (pa.struct([("a", pa.binary_view())]), pa.struct([("a", pa.large_binary())])),
        (pa.map_(pa.string(), pa.string_view()), pa.map_(pa.string(), pa.large_string())),
        (pa.list_view(pa.int8()), pa.list_(pa.int8())),
        (pa.large_list_view(pa.string_view()), pa.large_list(pa.large_string())),
        (pa.list_(pa.string_view(), 2), pa.list_(pa.large_string(), 2)),
        (pa.run_end_encoded(pa.int32(), pa.string()), pa.string()),
        (pa.dictionary(pa.int8(), pa.string_view()), pa.dictionary(pa.int8(), pa.large_string())),
        (pa.int8(), pa.int8()),
    ],
    ids=str,
)
def test_a_plain_type_has_no_views(kind: pa.DataType, expected: pa.DataType) -> None:
    assert plain_type(kind) == expected


def test_dictionaries_inside_of_other_types_are_kept_unless_asked() -> None:
    kind = pa.list_(pa.dictionary(pa.int8(), pa.string()))
    assert plain_type(kind) == kind
    assert plain_type(kind, keep_nested_dictionaries=False) == pa.list_(pa.string())
