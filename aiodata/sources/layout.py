"""Layout: where columns are in a Parquet file, and what they take once they are decoded.

What a row group takes in its file says little of that: a column with a dictionary may be hundreds of times as large
once it is decoded. The width of most types is known, so the footer's number of values gives the size. For strings with
a dictionary it gives an estimate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

_OFFSET_BYTES = 4
_VALIDITY_BYTES = 1 / 8

# Bounds of up to this many bytes take little of a page.
_SHORT_BYTES = 64

# Encodings whose values may be far larger than what they take in the file.
_COMPACT = frozenset({"PLAIN_DICTIONARY", "RLE_DICTIONARY", "DELTA_BYTE_ARRAY"})


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the columns of a schema are in a file, and what they take once they are decoded.

    A leaf is a column of the file: what a schema has at the ends of its nested types.

    Attributes:
        row_bytes: Bytes per row of what has a fixed width and one value per row.
        repeated: Leaves in lists, each with its bytes per value.
        variable: Leaves of strings and bytes.
        leaves: The leaves of each column.
        has_dictionaries: Whether a leaf stays a dictionary.
    """

    row_bytes: float
    repeated: tuple[tuple[int, float], ...]
    variable: tuple[int, ...]
    leaves: dict[str, range]
    has_dictionaries: bool

    @classmethod
    def of(cls, schema: pa.Schema, names: Sequence[str] | None = None) -> Layout:
        """Return the layout of some columns of a file, whose schema this is; None: of all."""
        wanted = set(schema.names if names is None else names)
        row_bytes, next_leaf = 0.0, 0
        repeated: list[tuple[int, float]] = []
        variable: list[int] = []
        leaves: dict[str, range] = {}
        for field in schema:
            ends = list(_leaves(field.type, 0.0, is_repeated=False))
            if field.name in wanted:
                leaves[field.name] = range(next_leaf, next_leaf + len(ends))
                for leaf, (value_bytes, is_repeated, is_variable) in enumerate(ends, next_leaf):
                    if is_repeated:
                        repeated.append((leaf, value_bytes))
                    else:
                        row_bytes += value_bytes
                    if is_variable:
                        variable.append(leaf)
            next_leaf += len(ends)
        has_dictionaries = any(_has_dictionary(schema.field(name).type) for name in leaves)
        return cls(row_bytes, tuple(repeated), tuple(variable), leaves, has_dictionaries)

    def num_bytes(self, group: Any) -> tuple[float, bool]:
        """Return what a row group takes once it is decoded, and whether that is sure to be enough."""
        size = group.num_rows * self.row_bytes
        for leaf, value_bytes in self.repeated:
            size += group.column(leaf).num_values * value_bytes
        is_sure = True
        for leaf in self.variable:
            more, leaf_is_sure = _variable_bytes(group.column(leaf))
            size += more
            is_sure = is_sure and leaf_is_sure
        return size, is_sure


def _leaves(kind: pa.DataType, outer: float, *, is_repeated: bool) -> Iterator[tuple[float, bool, bool]]:
    """Yield the leaves of a type: bytes per value, whether in a list, whether of variable width.

    What nested types take themselves, `outer`, is counted with their first leaf.
    """
    types = pa.types
    outer += _VALIDITY_BYTES
    if isinstance(kind, pa.BaseExtensionType):
        yield from _leaves(kind.storage_type, outer - _VALIDITY_BYTES, is_repeated=is_repeated)
    elif types.is_struct(kind):
        for index in range(kind.num_fields):
            yield from _leaves(kind.field(index).type, 0.0 if index else outer, is_repeated=is_repeated)
    elif types.is_map(kind):
        yield from _leaves(kind.key_type, outer + _OFFSET_BYTES, is_repeated=True)
        yield from _leaves(kind.item_type, 0.0, is_repeated=True)
    elif hasattr(kind, "value_type") and not types.is_dictionary(kind) and not types.is_run_end_encoded(kind):
        yield from _leaves(kind.value_type, outer + 2 * _OFFSET_BYTES, is_repeated=True)
    elif types.is_dictionary(kind):
        yield outer + kind.index_type.bit_width / 8, is_repeated, False
    elif types.is_null(kind):
        yield outer, is_repeated, False
    else:
        try:
            width = kind.bit_width / 8
        except ValueError:
            yield outer + _OFFSET_BYTES, is_repeated, True
        else:
            yield outer + width, is_repeated, False


def _has_dictionary(kind: pa.DataType) -> bool:
    inner = [kind.field(index).type for index in range(kind.num_fields)]
    return bool(pa.types.is_dictionary(kind)) or any(map(_has_dictionary, inner))


def _variable_bytes(chunk: Any) -> tuple[float, bool]:
    """Return the bytes of a leaf's strings, without their offsets, and whether there are no more.

    Of a dictionary the entries are not known one by one. But the compressed indices tell how many different ones there
    are at least, and what is not indices is entries.
    """
    num_values, uncompressed = chunk.num_values, chunk.total_uncompressed_size
    if _COMPACT.isdisjoint(chunk.encodings):
        return uncompressed, True
    dictionary_start = chunk.dictionary_page_offset
    has_pages = chunk.has_dictionary_page and dictionary_start is not None
    indices = chunk.total_compressed_size - (chunk.data_page_offset - dictionary_start) if has_pages else 0
    entries = max(0, uncompressed - max(0, indices))
    bits = min(24, 8 * max(0, indices) // max(1, num_values))
    statistics = chunk.statistics
    if statistics is not None and statistics.has_min_max:
        # They are in the pages, too, and would pass for indices.
        bits = bits if len(statistics.min_raw) + len(statistics.max_raw) <= _SHORT_BYTES else 0
    return max(uncompressed, num_values * entries / 2 ** max(0, bits - 1)), False
