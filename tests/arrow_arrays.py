"""Arrow arrays of all types, as hypothesis draws them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

_MOMENTS = st.integers(-(10**9), 10**9)
_TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


_LEAVES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.null(): st.none(),
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-128, 127),
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint8(): st.integers(0, 255),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.decimal128(5, 2): st.decimals(-999, 999, places=2),
    pa.decimal128(20, 0): st.integers(-(10**20) + 1, 10**20 - 1).map(Decimal),
    pa.timestamp("s"): _MOMENTS,
    pa.timestamp("ns"): st.integers(-(2**62), 2**62),
    pa.timestamp("us", "Asia/Tokyo"): st.integers(-(2**50), 2**50),
    pa.date32(): st.integers(-(10**5), 10**5),
    pa.date64(): st.integers(-(10**5), 10**5).map(lambda days: days * 86_400_000),
    pa.time32("ms"): st.integers(0, 86_399_999),
    pa.time64("ns"): st.integers(0, 86_399_999_999_999),
    pa.duration("ms"): _MOMENTS,
    pa.duration("us"): st.integers(-(2**50), 2**50),
    pa.string(): _TEXTS,
    pa.large_string(): _TEXTS,
    pa.binary(): st.binary(max_size=20),
    pa.large_binary(): st.binary(max_size=20),
    pa.binary(3): st.binary(min_size=3, max_size=3),
}
_VIEWS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string_view(): _TEXTS,
    pa.binary_view(): st.binary(max_size=20),
}


def kinds(*, with_views: bool = True) -> st.SearchStrategy[pa.DataType]:
    """Types, nested up to a depth."""
    leaves = st.sampled_from(list(_LEAVES | _VIEWS if with_views else _LEAVES))
    encoded = st.sampled_from([pa.string(), pa.large_string(), pa.int64()]).flatmap(
        lambda kind: st.sampled_from([pa.dictionary(pa.int8(), kind), pa.dictionary(pa.int32(), kind)])
    )
    tensors = st.builds(
        pa.fixed_shape_tensor,
        st.sampled_from([pa.float32(), pa.int64(), pa.uint8()]),
        st.sampled_from([[3], [2, 2], [1, 2, 3]]),
    )
    nested = st.recursive(leaves, lambda kind: _nest(kind, with_views=with_views), max_leaves=3)
    return st.one_of(nested, encoded, tensors)


def _nest(kind: st.SearchStrategy[pa.DataType], *, with_views: bool) -> st.SearchStrategy[pa.DataType]:
    options = [
        kind.map(pa.list_),
        kind.map(pa.large_list),
        st.tuples(kind, st.integers(1, 3)).map(lambda pair: pa.list_(*pair)),
        st.lists(kind, min_size=1, max_size=2).map(lambda some: pa.struct(list(zip("ab", some, strict=False)))),
        kind.map(lambda one: pa.map_(pa.string(), one)),
    ]
    return st.one_of(*options, *([kind.map(pa.list_view)] if with_views else []))


def values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """What `array_of` makes one value of; None is null."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return st.none() | _lists(kind.value_type, kind.storage_type.list_size, with_nulls=False)
    if pa.types.is_dictionary(kind):
        return st.none() | st.sampled_from(["a", "b", ""] if kind.value_type != pa.int64() else [1, 2**60 + 1])
    if pa.types.is_map(kind):
        return st.none() | st.lists(st.tuples(_TEXTS, values(kind.item_type)), max_size=3)
    if pa.types.is_struct(kind):
        return st.none() | st.fixed_dictionaries({field.name: values(field.type) for field in kind})
    if pa.types.is_fixed_size_list(kind):
        return st.none() | _lists(kind.value_type, kind.list_size)
    if kind.num_fields:
        return st.none() | _lists(kind.value_type)
    return st.none() | (_LEAVES | _VIEWS)[kind]


def _lists(kind: pa.DataType, size: int | None = None, *, with_nulls: bool = True) -> st.SearchStrategy[list[Any]]:
    element = values(kind) if with_nulls else values(kind).filter(lambda value: value is not None)
    return st.lists(element, min_size=size or 0, max_size=size or 3)


def array_of(rows: list[Any], kind: pa.DataType) -> pa.Array:
    """Make an array; moments and the like are given as their integers."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return pa.ExtensionArray.from_storage(kind, array_of(rows, kind.storage_type))
    if pa.types.is_dictionary(kind):
        encoded = pa.array(rows, kind.value_type).dictionary_encode()
        return pa.DictionaryArray.from_arrays(encoded.indices.cast(kind.index_type), encoded.dictionary)
    if pa.types.is_temporal(kind):
        return pa.array(rows, pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)
    return pa.array(_as_python(rows, kind), kind)


def _as_python(rows: list[Any], kind: pa.DataType) -> list[Any]:
    if pa.types.is_temporal(kind):
        return list(array_of(rows, kind))
    if pa.types.is_map(kind):
        return [None if row is None else [(k, _as_python([v], kind.item_type)[0]) for k, v in row] for row in rows]
    if pa.types.is_struct(kind):
        return [None if row is None else {f.name: _as_python([row[f.name]], f.type)[0] for f in kind} for row in rows]
    if kind.num_fields:
        return [None if row is None else _as_python(row, kind.value_type) for row in rows]
    return rows


@st.composite
def arrays(draw: st.DrawFn, *, with_views: bool = True) -> pa.Array:
    """Arrays of any type with up to five rows, which may be a slice of more."""
    kind = draw(kinds(with_views=with_views))
    rows = draw(st.lists(values(kind), min_size=1, max_size=6))
    start = draw(st.integers(0, len(rows) - 1))
    return array_of(rows, kind)[start:]


def shown(array: pa.Array | pa.ChunkedArray) -> str:
    """Values to compare: with NaN, nulls and the signs of zeros."""
    return repr(array.to_pylist())
