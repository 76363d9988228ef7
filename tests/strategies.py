"""What hypothesis draws in more than one file: shapes of blocks, and the tables and rows that go with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from aiodata.bundle import BlockMetadata, InlineBlock, RefBundle

# Blocks as the sizes of their chunks; both may be empty.
Shape = list[list[int]]

Row = tuple[Any, ...]

SCHEMA = pa.schema([("id", pa.int64()), ("s", pa.string()), ("v", pa.list_(pa.float32(), 2))])


def shapes(*, max_blocks: int = 6, max_chunks: int = 4, max_rows: int = 9) -> st.SearchStrategy[Shape]:
    chunks = st.lists(st.integers(0, max_rows), max_size=max_chunks)
    return st.lists(chunks, max_size=max_blocks)


def expected_rows(ids: Iterable[int]) -> list[Row]:
    """The rows of `table_of(ids)` as Python values."""
    return [(one, None if one % 3 == 0 else f"s{one}", [float(one), 0.5]) for one in ids]


def table_of(ids: Sequence[int]) -> pa.Table:
    """One chunk of rows with these ids."""
    columns = list(zip(*expected_rows(ids), strict=True)) if ids else [(), (), ()]
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_batches([pa.record_batch(arrays, schema=SCHEMA)])


def blocks_of(shape: Shape) -> list[pa.Table]:
    """Blocks of that shape, with ids that count up over all of them."""
    blocks, first = [], 0
    for sizes in shape:
        chunks = []
        for size in sizes:
            chunks += table_of(range(first, first + size)).to_batches()
            first += size
        blocks.append(pa.Table.from_batches(chunks, schema=SCHEMA))
    return blocks


def num_rows_of(shape: Shape) -> int:
    return sum(map(sum, shape))


def bundle_of(*ids: int) -> RefBundle:
    """A bundle whose block lives here."""
    table = pa.table({"id": pa.array(ids, pa.int64())})
    return RefBundle.whole(InlineBlock(table), BlockMetadata(table.num_rows, table.nbytes, table.schema, "memory"))


def ids_of(bundle: RefBundle) -> list[int]:
    """The ids in a bundle's range of rows."""
    ids: list[int] = bundle.ref.table["id"].to_pylist()
    return ids[bundle.start : bundle.stop]
