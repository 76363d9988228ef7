"""What converting costs: how many rows to convert in one go, and what makes a type costly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import pyarrow as pa

# What may be converted in one go: 0.1 to 0.8 ms of work, so that nothing holds an event loop (or, in a thread, the
# interpreter) for long. A Python object takes 25 ns (a string) to 200 ns (a dict, an array), a word of 8 bytes that is
# copied 0.2 ns (as it is) to 3 ns (an integer among nulls).
_OBJECTS_PER_STRETCH = 4096
_COPIES_PER_STRETCH = 262_144

# A column takes 1 to 3 µs per stretch, however few its rows: as long as 64 strings or 512 words. With more columns than
# these a stretch grows with their number, so that the rows have a fair share of the time.
_COLUMNS_OF_OBJECTS = 64
_COLUMNS_OF_COPIES = 512

# How long a list is, is a guess.
_VALUES_PER_LIST = 8


T = TypeVar("T")


class PerSchema(Generic[T]):
    """Remembers what was last made of a schema: with many columns that takes as long as converting them."""

    def __init__(self) -> None:
        """Start with no schema."""
        self._made: tuple[pa.Schema, T] | None = None

    def of(self, schema: pa.Schema, make: Callable[[pa.Schema], T]) -> T:
        """Return what `make` makes of `schema`, marks in its fields included."""
        made = self._made
        if made is None or not schema.equals(made[0], check_metadata=True):
            made = self._made = (schema, make(schema))
        return made[1]


class Costed:
    """Knows how many rows to convert in one go."""

    def __init__(self) -> None:
        """Start with no schema."""
        self._costed: PerSchema[int | None] = PerSchema()

    def stretch(self, schema: pa.Schema) -> int | None:
        """Rows of `schema` to convert in one go; None: all of them."""
        return self._costed.of(schema, self._num_rows)

    def _num_rows(self, schema: pa.Schema) -> int | None:
        objects, words = map(sum, zip((0.0, 0.0), *map(self._cost, schema), strict=True))
        limits = []
        if objects:
            limits.append(_OBJECTS_PER_STRETCH * max(1, len(schema) / _COLUMNS_OF_OBJECTS) / objects)
        if words:
            limits.append(_COPIES_PER_STRETCH * max(1, len(schema) / _COLUMNS_OF_COPIES) / words)
        return max(1, int(min(limits))) if limits else None

    def _cost(self, field: pa.Field) -> tuple[float, float]:
        """Return how many Python objects a row's value makes, and how many words are copied for it."""
        raise NotImplementedError


def is_plain(kind: pa.DataType) -> bool:
    """Whether values of this type are numbers, bools, dates or moments, or blocks of a fixed shape of these."""
    kind = getattr(kind, "storage_type", kind)
    if pa.types.is_fixed_size_list(kind):
        return not isinstance(kind.value_type, pa.BaseExtensionType) and is_plain(kind.value_type)
    return bool(pa.types.is_primitive(kind) and not (pa.types.is_time(kind) or pa.types.is_interval(kind)))


def is_counted(kind: pa.DataType) -> bool:
    """Whether these are integers or bools, which have no value that could stand for null."""
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def weigh(kind: pa.DataType, weigh_leaf: Callable[[pa.DataType], float], *, count_containers: bool = False) -> float:
    """Sum up the leaves in a value, and for what holds them one each and one per field, as often as a row has them."""
    kind = getattr(kind, "storage_type", kind)
    if not kind.num_fields:
        return weigh_leaf(kind)
    is_one = pa.types.is_struct(kind) or pa.types.is_union(kind)
    times = kind.list_size if pa.types.is_fixed_size_list(kind) else 1 if is_one else _VALUES_PER_LIST
    fields = [kind.field(i).type for i in range(kind.num_fields)]
    values = times * sum(weigh(one, weigh_leaf, count_containers=count_containers) for one in fields)
    return values + (1 + len(fields) if count_containers else 0)


def count_objects(kind: pa.DataType) -> float:
    """Return how many Python objects a value of this type becomes, about."""
    return weigh(kind, lambda leaf: 0 if is_plain(leaf) else 1, count_containers=True)


def count_words(kind: pa.DataType, *, least: float = 0) -> float:
    """Return how many words of 8 bytes the numbers in a value of this type take, about, and at least so many each."""
    return weigh(kind, lambda leaf: max(least, leaf.bit_width / 64 if is_plain(leaf) else 0))
