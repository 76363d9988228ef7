"""INT96: how old files keep timestamps, and how they are read without a digit or a century going missing.

These have no unit. Read as nanoseconds, years before 1677 and after 2262 come out as others; read as microseconds,
digits are cut off. Neither says so. Both readings of a timestamp together tell whether one is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_US = pa.timestamp("us")
_NS = pa.timestamp("ns")

# Microseconds that have a number of nanoseconds, either way.
_MAX_US = (2**63 - 1) // 1000


class Int96File:
    """A Parquet file with such timestamps, which stands for a `ParquetFile` where row groups are read."""

    def __init__(self, handle: Any, metadata: pq.FileMetaData, exact: Sequence[str], schema: pa.Schema) -> None:
        """Read the columns `exact`, of which `schema` says the unit: a column that is to be in ns is, others in us."""
        self._us = pq.ParquetFile(handle, metadata=metadata, coerce_int96_timestamp_unit="us")
        self._ns = pq.ParquetFile(handle, metadata=metadata, coerce_int96_timestamp_unit="ns")
        self._exact = list(exact)
        self._as_ns = {name for name in exact if schema.field(name).type == _NS}

    @property
    def metadata(self) -> pq.FileMetaData:
        """The file's metadata."""
        return self._us.metadata

    def read_row_groups(self, groups: list[int], *, columns: list[str] | None, use_threads: bool) -> pa.Table:
        """Read row groups as `ParquetFile.read_row_groups` does.

        Raises:
            ValueError: A timestamp does not fit the unit that it is read in.
        """
        table = self._us.read_row_groups(groups, columns=columns, use_threads=use_threads)
        return self._exactly(table, self._ns.read_row_groups(groups, columns=self._exact, use_threads=use_threads))

    def iter_batches(
        self, batch_size: int, *, row_groups: list[int], columns: list[str] | None, use_threads: bool
    ) -> Iterator[pa.RecordBatch]:
        """Read row groups as `ParquetFile.iter_batches` does.

        Raises:
            ValueError: A timestamp does not fit the unit that it is read in.
        """
        batches, others = (
            file.iter_batches(batch_size, row_groups=row_groups, columns=names, use_threads=use_threads)
            for file, names in ((self._us, columns), (self._ns, self._exact))
        )
        for batch, other in zip(batches, others, strict=True):
            table = self._exactly(pa.Table.from_batches([batch]), pa.Table.from_batches([other]))
            yield from table.combine_chunks().to_batches()

    def _exactly(self, table: pa.Table, ns: pa.Table) -> pa.Table:
        for name in self._exact:
            index = table.column_names.index(name)
            pairs = zip(_timestamps(table.column(index), _US), _timestamps(ns.column(name), _NS), strict=True)
            for us_values, ns_values in pairs:
                _check(name, us_values, ns_values, as_ns=name in self._as_ns)
            if name in self._as_ns:
                table = table.set_column(index, name, ns.column(name))
        return table


def _check(name: str, us: pa.Array, ns: pa.Array, *, as_ns: bool) -> None:
    if len(us) != len(ns):
        raise ValueError(f"column {name!r} has {len(us)} timestamps and {len(ns)}")
    us_numbers, ns_numbers = (np.asarray(one.drop_null().view(pa.int64())) for one in (us, ns))
    # A product that does not fit wraps around in the same way as what Arrow reads as ns.
    is_wrong = np.abs(us_numbers) > _MAX_US if as_ns else us_numbers * 1000 != ns_numbers
    if is_wrong.any():
        remedy = (
            "is not within what nanoseconds can say; read it as timestamp('us')"
            if as_ns
            else "has digits below a microsecond; read the column as timestamp('ns') by schema=, or leave it out"
        )
        raise ValueError(f"column {name!r}: the INT96 timestamp {us.drop_null()[int(is_wrong.argmax())]} {remedy}")


def _timestamps(column: pa.ChunkedArray | pa.Array, kind: pa.DataType) -> Iterator[pa.Array]:
    """Yield the timestamps of a type in a column, which may be nested."""
    if isinstance(column, pa.ChunkedArray):
        yield from _timestamps(column.combine_chunks(), kind)
    elif column.type == kind:
        yield column
    elif pa.types.is_struct(column.type):
        for field in column.flatten():
            yield from _timestamps(field, kind)
    elif pa.types.is_map(column.type):
        yield from _timestamps(column.keys, kind)
        yield from _timestamps(column.items, kind)
    elif hasattr(column.type, "value_type") and hasattr(column, "flatten"):
        yield from _timestamps(column.flatten(), kind)
