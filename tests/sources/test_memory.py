"""Sources in memory: every row once, in blocks of about the size that was asked for."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiodata
from aiodata.plan.source import raise_it
from aiodata.sources.memory import RangeSource, TableSource, split_table

pytestmark = pytest.mark.loops("asyncio")

MIB = 1 << 20


def ids_of(source: RangeSource, num_tasks: int) -> list[list[int]]:
    """The ids of each piece."""
    return [
        [one for chunk in piece.read(0, 0, MIB) for one in chunk.table["id"].to_pylist()]
        for piece in source.pieces(num_tasks, raise_it)
    ]


@settings(max_examples=100, deadline=None)
@given(num_rows=st.integers(0, 500), num_blocks=st.none() | st.integers(1, 40), num_tasks=st.integers(1, 20))
def test_pieces_of_a_range_are_its_ids_in_equal_parts(num_rows: int, num_blocks: int | None, num_tasks: int) -> None:
    pieces = ids_of(RangeSource(num_rows, num_blocks), num_tasks)
    assert [one for piece in pieces for one in piece] == list(range(num_rows))
    sizes = {len(piece) for piece in pieces}
    assert max(sizes) - min(sizes) <= 1
    assert len(pieces) == max(1, min(num_rows, num_blocks or num_tasks))


@settings(max_examples=50, deadline=None)
@given(row=st.integers(0, 10))
def test_range_is_read_from_any_row(row: int) -> None:
    [piece] = RangeSource(10, 1).pieces(1, raise_it)
    [chunk] = piece.read(0, row, MIB)
    assert chunk.table["id"].to_pylist() == list(range(row, 10))
    assert (chunk.unit, chunk.row, chunk.origin.rows) == (0, row, (row, 10))


def test_large_range_is_divided_into_blocks_of_a_mebibyte() -> None:
    pieces = RangeSource(10 * MIB // 8, None).pieces(1, raise_it)
    assert len(pieces) == 10
    assert {piece.weight for piece in pieces} == {MIB}


def test_range_knows_its_schema_and_rows() -> None:
    source = RangeSource(10**12, None)
    assert source.count_rows(raise_it) == 10**12
    assert source.schema(raise_it) == pa.schema([("id", pa.int64())])
    assert source.bundles() is None
    assert source.name == "range(1000000000000)"


def test_large_block_of_a_range_is_made_in_parts() -> None:
    [_, piece] = RangeSource(10**13, 2).pieces(1, raise_it)
    chunks = piece.read(0, 3, MIB)
    for start in (5 * 10**12 + 3, 5 * 10**12 + 3 + (1 << 22)):
        chunk = next(chunks)
        assert (chunk.table["id"][0].as_py(), chunk.table.num_rows, chunk.ends_block) == (start, 1 << 22, False)
        assert chunk.row == start - 5 * 10**12


@pytest.mark.parametrize("num_blocks", [None, 1, 3, 10**12])
@pytest.mark.parametrize("preserve_order", [True, False])
async def test_first_rows_of_an_immense_range_come_at_once(num_blocks: int | None, preserve_order: bool) -> None:
    ds = aiodata.range(10**12, num_blocks=num_blocks).with_options(runtime="local", preserve_order=preserve_order)
    assert await ds.limit(3).take(1) == [{"id": 0}]
    assert await ds.count() == 10**12
    doubled = ds.map_batches(lambda batch: {"id": batch["id"] * 2}, batch_size=100)
    assert await doubled.take(2) == [{"id": 0}, {"id": 2}]
    async for batch in doubled.aiter_batches(batch_size=10):
        assert len(batch["id"]) == 10
        break


def test_range_piece_pickles_small() -> None:
    [piece, *_] = RangeSource(10**9, 4).pieces(4, raise_it)
    assert pickle.loads(pickle.dumps(piece)) == piece
    assert len(pickle.dumps(piece)) < 200
    assert piece.bind(()) is piece


def test_empty_range_keeps_its_schema() -> None:
    [piece] = RangeSource(0, None).pieces(4, raise_it)
    [chunk] = piece.read(0, 0, MIB)
    assert (chunk.table.num_rows, chunk.table.schema) == (0, RangeSource(0, None).schema(raise_it))


def test_sources_in_memory_leave_columns_and_filters_to_the_transforms() -> None:
    for source in (RangeSource(1, None), TableSource("t", (pa.table({"id": [1]}),))):
        assert source.with_columns(("id",)) is None
        assert source.with_filter(pc.field("id") > 0) is None


def test_tables_are_their_own_blocks() -> None:
    tables = (pa.table({"x": [1, 2]}), pa.table({"x": [3]}))
    source = TableSource("from_arrow", tables)
    bundles = list(source.bundles() or ())
    assert all(bundle.ref.table.equals(table) for bundle, table in zip(bundles, tables, strict=True))
    assert [(bundle.start, bundle.stop) for bundle in bundles] == [(0, 2), (0, 1)]
    assert source.count_rows(raise_it) == 3
    assert source.pieces(4, raise_it) == ()


def test_schema_of_tables_has_the_columns_of_all() -> None:
    source = TableSource("t", (pa.table({"x": [1]}), pa.table({"x": pa.nulls(1), "y": ["a"]})))
    assert source.schema(raise_it) == pa.schema([("x", pa.int64()), ("y", pa.string())])


@settings(max_examples=100, deadline=None)
@given(num_rows=st.integers(0, 300), block_bytes=st.integers(1, 1000))
def test_split_table_is_the_table_in_blocks_of_that_size(num_rows: int, block_bytes: int) -> None:
    table = pa.table({"id": np.arange(num_rows)})
    blocks = split_table(table, block_bytes)
    assert [one for block in blocks for one in block["id"].to_pylist()] == list(range(num_rows))
    assert all(block.nbytes <= max(8, block_bytes) for block in blocks)


def test_split_table_does_not_copy() -> None:
    table = pa.table({"id": np.arange(100)})
    addresses = {block["id"].chunk(0).buffers()[1].address for block in split_table(table, 80)}
    assert addresses == {table["id"].chunk(0).buffers()[1].address}


@pytest.mark.parametrize("table", [pa.table({"x": [1]}), pa.table({"x": pa.array([], pa.int64())})])
def test_small_table_is_one_block(table: pa.Table) -> None:
    [block] = split_table(table, MIB)
    assert block is table


async def test_moments_that_do_not_fit_the_unit_of_others_are_an_error_whatever_is_asked() -> None:
    far = pa.table({"x": pa.array([2**60], pa.timestamp("us"))})
    ds = aiodata.from_arrow([pa.table({"x": pa.array([1], pa.timestamp("ns"))}), far]).with_options(runtime="local")
    for ask in (ds.schema, ds.count, ds.take):
        with pytest.raises(aiodata.SourceError, match=r"table 1: does not fit .*'x' is timestamp\[us\], but .*ns"):
            await ask()
