"""Kinds: which Arrow type holds the values of two others, and which ones Arrow's kernels can all work with.

Types are compared, never values, so that the outcome is the same however rows are divided among blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
from pyarrow import types

_UNITS = ("s", "ms", "us", "ns")
# Bits of the whole numbers that a float of so many bits has all of.
_EXACT_BITS = {16: 11, 32: 24, 64: 53}
_DECIMAL_DIGITS = {32: 9, 64: 18, 128: 38, 256: 76}


def unify_types(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Return the type that holds every value of both exactly, or None where there is none.

    Values keep their sort: a number is no text, a day is no moment, and a moment with a time zone is none without.

    Example:
        >>> unify_types(pa.int32(), pa.uint32())
        DataType(int64)
    """
    if a.equals(b) or types.is_null(b):
        return a
    if types.is_null(a):
        return b
    if is_extension(a) or is_extension(b):
        return _unify_extensions(a, b)
    for is_kind, unify in _FAMILIES:
        if is_kind(a) or is_kind(b):
            return unify(a, b)
    return None


def unify_all_types(kinds: Sequence[pa.DataType]) -> pa.DataType | None:
    """Return the type that holds every value of all of them exactly, or None where there is none.

    Whether there is one does not depend on their order; that of the members of a struct does.
    """
    # Some triples go together in one order alone: int64 and uint64 fit a decimal each, but no integer type has both.
    ordered = _unify_in_turn(sorted(kinds, key=str))
    return ordered if ordered is None else _unify_in_turn(kinds) or ordered


def plain_type(kind: pa.DataType, *, keep_nested_dictionaries: bool = True) -> pa.DataType:
    """Return the type as which Arrow's kernels can gather, filter and join values: most often the same.

    Args:
        kind: Any type.
        keep_nested_dictionaries: False: dictionaries inside of other types become their values, as rows that were
            gathered would refer to the whole dictionary.

    Example:
        >>> plain_type(pa.list_(pa.string_view()))
        ListType(list<item: large_string>)
    """
    return _plain(kind, keep_nested_dictionaries, is_nested=False)


def is_extension(kind: pa.DataType) -> bool:
    """Whether it is an extension type, which has a storage."""
    return isinstance(kind, pa.BaseExtensionType)


def is_text(kind: pa.DataType) -> bool:
    """Whether it is one of the three types of strings."""
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether it is one of the four types of byte strings."""
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def is_list_like(kind: pa.DataType) -> bool:
    """Whether it is one of the five types of lists; a map is none."""
    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def is_permuted(kind: pa.DataType) -> bool:
    """Whether the values of a tensor lie in another order than that of its dimensions."""
    return any(axis != place for place, axis in enumerate(kind.permutation or ()))


def are_alike_tensors(a: pa.DataType, b: pa.DataType) -> bool:
    """Whether two types are tensors that differ in nothing but the type of their values."""
    if not (isinstance(a, pa.FixedShapeTensorType) and isinstance(b, pa.FixedShapeTensorType)):
        return False
    orders = [kind.permutation if is_permuted(kind) else None for kind in (a, b)]
    return bool(a.shape == b.shape and a.dim_names == b.dim_names and orders[0] == orders[1])


def integer_digits(kind: pa.DataType) -> int:
    """Return how many decimal digits the integers of a type have at most."""
    bits = kind.bit_width - (1 if types.is_signed_integer(kind) else 0)
    return len(str(2**bits))


def _unify_in_turn(kinds: Sequence[pa.DataType]) -> pa.DataType | None:
    unified: pa.DataType | None = pa.null()
    for kind in kinds:
        unified = None if unified is None else unify_types(unified, kind)
    return unified


def _unify_extensions(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if isinstance(a, pa.FixedShapeTensorType) and isinstance(b, pa.FixedShapeTensorType):
        value = unify_types(a.value_type, b.value_type)
        if value is None or not are_alike_tensors(a, b):
            return None
        return pa.fixed_shape_tensor(value, a.shape, dim_names=a.dim_names, permutation=a.permutation)
    if is_extension(a) and is_extension(b):
        return None
    extension, other = (a, b) if is_extension(a) else (b, a)
    return extension if other.equals(extension.storage_type) else None


def _unify_encoded(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Unify where one of them is a dictionary, or run-end encoded."""
    if types.is_dictionary(a) and types.is_dictionary(b):
        value = unify_types(a.value_type, b.value_type)
        width = 64 if max(map(_index_bits, (a, b))) > 32 else 32
        index = pa.int64() if width == 64 else pa.int32()
        return None if value is None else pa.dictionary(index, value, ordered=a.ordered and b.ordered)
    return unify_types(*(one.value_type if hasattr(one, "value_type") and _is_encoded(one) else one for one in (a, b)))


def _index_bits(kind: pa.DataType) -> int:
    """Return how many bits a signed index for a dictionary needs."""
    return int(kind.index_type.bit_width) + (0 if types.is_signed_integer(kind.index_type) else 1)


def _unify_numbers(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if not (_is_number(a) and _is_number(b)):
        return None
    if types.is_decimal(a) or types.is_decimal(b):
        return _unify_decimals(a, b)
    if types.is_floating(a) or types.is_floating(b):
        bits = max(one.bit_width if types.is_floating(one) else _float_bits(one) for one in (a, b))
        return {16: pa.float16(), 32: pa.float32(), 64: pa.float64()}.get(bits)
    if types.is_signed_integer(a) == types.is_signed_integer(b):
        return max(a, b, key=lambda one: one.bit_width)
    bits = max(one.bit_width * (1 if types.is_signed_integer(one) else 2) for one in (a, b))
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits)


def _float_bits(integer: pa.DataType) -> int:
    bits = integer.bit_width - (1 if types.is_signed_integer(integer) else 0)
    return next((width for width, exact in _EXACT_BITS.items() if bits <= exact), 128)


def _unify_decimals(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if types.is_floating(a) or types.is_floating(b):
        return None
    scale = max(one.scale if types.is_decimal(one) else 0 for one in (a, b))
    whole = max(one.precision - one.scale if types.is_decimal(one) else integer_digits(one) for one in (a, b))
    least = max(one.bit_width for one in (a, b) if types.is_decimal(one))
    for bits, digits in _DECIMAL_DIGITS.items():
        if bits >= least and whole + scale <= digits:
            make: Callable[[int, int], pa.DataType] = getattr(pa, f"decimal{bits}")
            return make(whole + scale, scale)
    return None


def _unify_times(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Unify moments, durations, times of day or days."""
    if types.is_date(a) and types.is_date(b):
        return pa.date64()
    if not any(all(map(is_kind, (a, b))) for is_kind in (types.is_timestamp, types.is_duration, types.is_time)):
        return None
    unit = max(a.unit, b.unit, key=_UNITS.index)
    if types.is_timestamp(a):
        return pa.timestamp(unit, a.tz) if a.tz == b.tz else None
    if types.is_duration(a):
        return pa.duration(unit)
    return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)


def _unify_texts(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    # Views have no limit for all values together, as strings of 32-bit offsets do.
    return pa.large_string() if is_text(a) and is_text(b) else None


def _unify_bytes(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if not (is_bytes(a) and is_bytes(b)):
        return None
    is_small = all(types.is_binary(one) or types.is_fixed_size_binary(one) for one in (a, b))
    return pa.binary() if is_small else pa.large_binary()


def _unify_lists(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if not (is_list_like(a) and is_list_like(b)):
        return None
    field = _unify_fields(a.value_field, b.value_field)
    if field is None:
        return None
    if type(a) is type(b) and not types.is_fixed_size_list(a):
        make = next(make for is_kind, make in _LIST_TYPES if is_kind(a))
        return make(field)
    if types.is_fixed_size_list(a) and types.is_fixed_size_list(b) and a.list_size == b.list_size:
        return pa.list_(field, a.list_size)
    is_large = any(types.is_large_list(one) or types.is_large_list_view(one) for one in (a, b))
    return pa.large_list(field) if is_large else pa.list_(field)


def _unify_structs(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if not (types.is_struct(a) and types.is_struct(b)):
        return None
    members = [{field.name: field for field in one} for one in (a, b)]
    if any(len(one) < kind.num_fields for one, kind in zip(members, (a, b), strict=True)):
        return None
    fields = []
    for name in {**members[0], **members[1]}:
        present = [one[name] for one in members if name in one]
        field = present[0].with_nullable(True) if len(present) == 1 else _unify_fields(*present)
        if field is None:
            return None
        fields.append(field)
    return pa.struct(fields)


def _unify_maps(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if not (types.is_map(a) and types.is_map(b)):
        return None
    key, item = _unify_fields(a.key_field, b.key_field), _unify_fields(a.item_field, b.item_field)
    return None if key is None or item is None else pa.map_(key, item, a.keys_sorted and b.keys_sorted)


def _unify_fields(a: pa.Field, b: pa.Field) -> pa.Field | None:
    kind = unify_types(a.type, b.type)
    return None if kind is None else a.with_type(kind).with_nullable(a.nullable or b.nullable)


def _is_encoded(kind: pa.DataType) -> bool:
    return bool(types.is_dictionary(kind) or types.is_run_end_encoded(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(types.is_temporal(kind) and not types.is_interval(kind))


_FAMILIES: tuple[
    tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType, pa.DataType], pa.DataType | None]], ...
] = (
    (_is_encoded, _unify_encoded),
    (_is_number, _unify_numbers),
    (_is_time, _unify_times),
    (is_text, _unify_texts),
    (is_bytes, _unify_bytes),
    (is_list_like, _unify_lists),
    (types.is_struct, _unify_structs),
    (types.is_map, _unify_maps),
)

_LIST_TYPES: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Field], pa.DataType]], ...] = (
    (types.is_list, pa.list_),
    (types.is_large_list, pa.large_list),
    (types.is_list_view, pa.list_view),
    (types.is_large_list_view, pa.large_list_view),
)


def _plain(kind: pa.DataType, keeps: bool, *, is_nested: bool) -> pa.DataType:
    def plain(field: pa.Field) -> pa.Field:
        return field.with_type(_plain(field.type, keeps, is_nested=True))

    if types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_dictionary(kind):
        values = _plain(kind.value_type, keeps, is_nested=True)
        return values if is_nested and not keeps else pa.dictionary(kind.index_type, values, kind.ordered)
    if types.is_run_end_encoded(kind):
        return _plain(kind.value_type, keeps, is_nested=is_nested)
    if types.is_struct(kind):
        return pa.struct([plain(field) for field in kind])
    if types.is_map(kind):
        return pa.map_(plain(kind.key_field), plain(kind.item_field), kind.keys_sorted)
    if types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_field), kind.list_size)
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(plain(kind.value_field))
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(plain(kind.value_field))
    return kind
