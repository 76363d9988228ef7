"""What is expected of types and values: the rules in docs, written down once more, in Python and pyarrow alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Context, Decimal
from typing import Any

import pyarrow as pa
from pyarrow import types

_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY_MS = 86_400_000
_DIGITS = {32: 9, 64: 18, 128: 38, 256: 76}
_EXACT = Context(prec=100)


def plain(kind: pa.DataType) -> pa.DataType:
    """The type as which a source yields a type: no views, no runs."""
    if types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_run_end_encoded(kind):
        return plain(kind.value_type)
    if types.is_struct(kind):
        return pa.struct([field.with_type(plain(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(kind.key_type, plain(kind.item_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_type), kind.list_size)
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(plain(kind.value_type))
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(plain(kind.value_type))
    return kind


def unify(kinds: Sequence[pa.DataType]) -> pa.DataType | None:
    """The type that holds all values of these; None: there is none."""
    result: pa.DataType | None = pa.null()
    for kind in kinds:
        result = None if result is None else _unify(result, kind)
    return result


def _unify(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if a.equals(b) or types.is_null(b):
        return a
    if types.is_null(a):
        return b
    for one, other in ((a, b), (b, a)):
        if isinstance(one, pa.BaseExtensionType):
            return one if other.equals(one.storage_type) else None
    if types.is_dictionary(a) or types.is_dictionary(b):
        value = _unify(*(one.value_type if types.is_dictionary(one) else one for one in (a, b)))
        both = types.is_dictionary(a) and types.is_dictionary(b)
        return pa.dictionary(pa.int32(), value) if both and value is not None else value
    for is_kind, rule in _RULES:
        if is_kind(a) and is_kind(b):
            return rule(a, b)
    return None


def _numbers(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    integers = [one for one in (a, b) if types.is_integer(one)]
    decimals = [one for one in (a, b) if types.is_decimal(one)]
    floats = [one for one in (a, b) if types.is_floating(one)]
    if floats and decimals:
        return None
    if decimals:
        whole = [one.precision - one.scale for one in decimals]
        whole += [len(str(2 ** (one.bit_width - types.is_signed_integer(one)))) for one in integers]
        scale = max(one.scale for one in decimals)
        least = max(one.bit_width for one in decimals)
        fits = [bits for bits in _DIGITS if bits >= least and max(whole) + scale <= _DIGITS[bits]]
        return getattr(pa, f"decimal{fits[0]}")(max(whole) + scale, scale) if fits else None
    if floats:
        bits = [one.bit_width for one in floats]
        for one in integers:
            digits = one.bit_width - types.is_signed_integer(one)
            bits.append(next((width for width, exact in ((16, 11), (32, 24), (64, 53)) if digits <= exact), 128))
        return {16: pa.float16(), 32: pa.float32(), 64: pa.float64()}.get(max(bits))
    if types.is_signed_integer(a) == types.is_signed_integer(b):
        return a if a.bit_width >= b.bit_width else b
    bits_ = max(one.bit_width * (1 if types.is_signed_integer(one) else 2) for one in (a, b))
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits_)


def _lists(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    value = _unify(a.value_type, b.value_type)
    if value is None:
        return None
    if types.is_fixed_size_list(a) and types.is_fixed_size_list(b) and a.list_size == b.list_size:
        return pa.list_(value, a.list_size)
    is_large = types.is_large_list(a) or types.is_large_list(b)
    return pa.large_list(value) if is_large else pa.list_(value)


def _structs(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    members: dict[str, list[pa.DataType]] = {}
    for field in [*a, *b]:
        members.setdefault(field.name, []).append(field.type)
    unified = {name: unify(kinds) for name, kinds in members.items()}
    return None if None in unified.values() else pa.struct(list(unified.items()))


def _maps(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    key, item = _unify(a.key_type, b.key_type), _unify(a.item_type, b.item_type)
    return None if key is None or item is None else pa.map_(key, item)


def _finer(a: pa.DataType, b: pa.DataType) -> str:
    unit: str = max(a.unit, b.unit, key=list(_UNITS).index)
    return unit


def _time(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    unit = _finer(a, b)
    return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)


def _bytes(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    return pa.large_binary() if any(map(types.is_large_binary, (a, b))) else pa.binary()


def is_number(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def is_bytes(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind))


_RULES: tuple[tuple[Callable[[Any], bool], Callable[[Any, Any], pa.DataType | None]], ...] = (
    (is_number, _numbers),
    (types.is_timestamp, lambda a, b: pa.timestamp(_finer(a, b), a.tz) if a.tz == b.tz else None),
    (types.is_duration, lambda a, b: pa.duration(_finer(a, b))),
    (types.is_time, _time),
    (types.is_date, lambda a, b: pa.date64()),
    (is_text, lambda a, b: pa.large_string()),
    (is_bytes, _bytes),
    (is_list, _lists),
    (types.is_struct, _structs),
    (types.is_map, _maps),
)


class DoesNotFit(Exception):
    """A value of one type is none of the other, as the year 9999 in nanoseconds."""


def convert(value: Any, source: pa.DataType, target: pa.DataType) -> Any:
    """A value as Arrow keeps it (integers for dates and times), made one of another type."""
    if value is None or source.equals(target) or isinstance(target, pa.BaseExtensionType):
        return value
    if types.is_dictionary(source) or types.is_run_end_encoded(source):
        return convert(value, source.value_type, target)
    if types.is_dictionary(target):
        return convert(value, source, target.value_type)
    if types.is_date(source):
        return value * _DAY_MS if types.is_date64(target) else value // _DAY_MS
    if types.is_temporal(source):
        return _in_64_bits(value * _UNITS[target.unit] // _UNITS[source.unit])
    if types.is_decimal(target):
        return Decimal(value).quantize(Decimal(1).scaleb(-target.scale), context=_EXACT)
    if types.is_floating(target):
        return float(value)
    if types.is_struct(source):
        members = {field.name: field.type for field in source}
        return {
            field.name: convert(value[field.name], members[field.name], field.type) if field.name in members else None
            for field in target
        }
    if types.is_map(source):
        return [
            (convert(k, source.key_type, target.key_type), convert(v, source.item_type, target.item_type))
            for k, v in value
        ]
    if source.num_fields:
        return [convert(one, source.value_type, target.value_type) for one in value]
    return value


def _in_64_bits(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise DoesNotFit
    return value


def kept(array: Any) -> list[Any]:
    """The values of an array, or chunked array, as Arrow keeps them: all that there is to compare, but the type."""
    if isinstance(array, pa.ChunkedArray):
        return [value for chunk in array.chunks for value in kept(chunk)]
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return kept(array.storage)
    if types.is_dictionary(kind):
        values = kept(array.dictionary)
        return [None if index is None else values[index] for index in array.indices.to_pylist()]
    if types.is_temporal(kind) and not types.is_interval(kind):
        return list(array.view(pa.int32() if kind.bit_width == 32 else pa.int64()).to_pylist())
    is_null = array.is_null().to_pylist()
    if types.is_struct(kind):
        members = {field.name: kept(child) for field, child in zip(kind, array.flatten(), strict=True)}
        return [
            None if null else {name: values[row] for name, values in members.items()}
            for row, null in enumerate(is_null)
        ]
    if types.is_map(kind):
        keys, items, offsets = kept(array.keys), kept(array.items), array.offsets.to_pylist()
        return [
            None if null else list(zip(keys[start:stop], items[start:stop], strict=True))
            for null, start, stop in zip(is_null, offsets[:-1], offsets[1:], strict=True)
        ]
    if kind.num_fields:
        return [None if null else kept(array[row].values) for row, null in enumerate(is_null)]
    return list(array.to_pylist())


def rows_of(table: pa.Table) -> list[str]:
    """The rows of a table, to compare: with NaN, and the signs of zeros."""
    columns = [kept(column) for column in table.columns]
    return [repr(row) for row in zip(*columns, strict=True)]
