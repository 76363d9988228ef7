"""Decoding: about so many bytes at a time, whatever a row group weighs in its file; each row once, from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aiodata
from aiodata.plan.pieces import Chunk, Piece
from aiodata.sources.decoding import Decoder
from aiodata.sources.files import check_paths
from aiodata.sources.layout import Layout
from aiodata.sources.parquet import ParquetSource
from tests.sources.test_parquet import damage_chunk

pytestmark = pytest.mark.loops("asyncio")

MIB = 1 << 20


def piece_of(path: Path, **arguments: Any) -> Piece:
    [piece] = ParquetSource(check_paths(path, None), **arguments).pieces(1)
    return piece


def write(path: Path, column: pa.Array, **options: Any) -> Path:
    pq.write_table(pa.table({"c": column}), path, **options)
    return path


def repeat(values: list[Any], count: int, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(values, kind).take(pa.array(np.arange(count) % len(values)))


SMALL_FILES: dict[str, pa.Array] = {
    "strings_of_a_dictionary": repeat([c * 1024 for c in "abc"], 20_000),
    "structs": repeat([{"a": 1, "b": 2.0}], 1_000_000),
    "lists": repeat([[7] * 1000, []], 4000),
    "numbers": repeat([5], 2_000_000),
    "strings_in_structs": repeat([{"s": "x" * 4096}], 4000),
    "long_then_short": pa.concat_arrays([repeat(["y" * 8192], 2000), repeat(["", "x"], 100_000)]),
}


@pytest.mark.parametrize("column", SMALL_FILES.values(), ids=SMALL_FILES)
def test_row_group_that_decodes_to_hundreds_of_times_its_size_is_read_in_parts(
    tmp_path: Path, column: pa.Array
) -> None:
    path = write(tmp_path / "a.parquet", column, row_group_size=len(column))
    assert path.stat().st_size * 20 < column.nbytes > 10 * MIB
    start = pa.total_allocated_bytes()
    held, rows, sizes = 0, 0, []
    for chunk in piece_of(path).read(0, 0, MIB // 2):
        held = max(held, pa.total_allocated_bytes() - start)
        rows += chunk.table.num_rows
        sizes.append(chunk.table.nbytes)
    assert rows == len(column)
    assert sum(sizes) >= column.nbytes * 0.99
    assert max(sizes) <= 2 * MIB
    assert held <= 4 * MIB


@pytest.mark.parametrize("column", SMALL_FILES.values(), ids=SMALL_FILES)
def test_what_a_footer_says_is_no_less_than_what_is_decoded(tmp_path: Path, column: pa.Array) -> None:
    path = write(tmp_path / "a.parquet", column, row_group_size=len(column))
    metadata = pq.read_metadata(path)
    size, is_sure = Layout.of(pq.read_schema(path)).num_bytes(metadata.row_group(0))
    assert not is_sure or size * 1.01 >= column.nbytes


async def test_first_rows_of_such_a_row_group_come_soon_and_little_is_held(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", repeat([c * 1024 for c in "abc"], 50_000), row_group_size=50_000)
    ds = aiodata.read_parquet(tmp_path).with_options(
        runtime="local", max_object_store_bytes=16 << 20, target_block_bytes=MIB
    )
    start = pa.total_allocated_bytes()
    async with ds.aiter_bundles() as bundles:
        await anext(bundles)
        assert pa.total_allocated_bytes() - start <= 17 * MIB
    assert len(await ds.limit(10).take()) == 10


class CountedFile:
    """A Parquet file that counts how often it is read."""

    def __init__(self, file: pq.ParquetFile, *, fails_above: int | None = None) -> None:
        self.metadata = file.metadata
        self.num_reads = 0
        self.batch_sizes: list[int] = []
        self._file = file
        self._fails_above = fails_above

    def read_row_groups(self, groups: list[int], **options: Any) -> pa.Table:
        self.num_reads += 1
        if self._fails_above is not None:
            raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
        return self._file.read_row_groups(groups, **options)

    def iter_batches(self, batch_size: int, **options: Any) -> Any:
        self.batch_sizes.append(batch_size)
        if self._fails_above is not None and batch_size > self._fails_above:
            raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
        return self._file.iter_batches(batch_size, **options)


def decoder_of(path: Path, chunk_bytes: int, **arguments: Any) -> tuple[Decoder, CountedFile]:
    file = pq.ParquetFile(path)
    counted = CountedFile(file, **arguments)
    return Decoder(str(path), counted, None, Layout.of(file.schema_arrow), chunk_bytes), counted


def test_small_row_groups_are_read_many_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.array(range(80_000)), row_group_size=100)
    decoder, counted = decoder_of(path, 100_000)
    decoded = list(decoder.decode(range(800)))
    assert pa.concat_tables(one.table for one in decoded)["c"].to_pylist() == list(range(80_000))
    assert counted.num_reads == len(decoded) <= 8
    assert max(one.table.nbytes for one in decoded) <= 110_000


def test_nested_column_that_is_too_large_to_read_at_once_is_read_in_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.array([{"s": str(one)} for one in range(5000)]), row_group_size=2500)
    decoder, _ = decoder_of(path, MIB, fails_above=100)
    rows = [row["c"]["s"] for one in decoder.decode(range(2)) for row in one.table.to_pylist()]
    assert rows == [str(one) for one in range(5000)]


def test_plain_columns_are_decoded_many_rows_at_a_time(tmp_path: Path) -> None:
    names = pa.array([f"s{number}" for number in range(20_000)])
    column = names.take(pa.array(np.random.default_rng(0).integers(0, 20_000, 100_000)))
    decoder, counted = decoder_of(write(tmp_path / "a.parquet", column, row_group_size=100_000), MIB)
    assert sum(one.table.num_rows for one in decoder.decode(range(1))) == 100_000
    assert counted.num_reads + len(counted.batch_sizes) == 1
    assert all(size >= 8192 for size in counted.batch_sizes)


KINDS: list[pa.Array] = [
    pa.array(range(60)),
    pa.array([str(one) * (one % 5) for one in range(60)]),
    pa.array([[one] * (one % 4) for one in range(60)]),
    pa.array([None if one % 7 == 0 else {"a": one, "b": str(one)} for one in range(60)]),
    pa.array([str(one % 3) for one in range(60)]).dictionary_encode(),
]


def rows_from(piece: Piece, unit: int, row: int, chunk_bytes: int) -> tuple[list[Any], list[Chunk]]:
    chunks = list(piece.read(unit, row, chunk_bytes))
    return [value for chunk in chunks for value in chunk.table["c"].to_pylist()], chunks


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(KINDS), st.integers(1, 25), st.booleans(), st.data())
def test_reading_goes_on_from_wherever_it_ended(
    tmp_path: Path, column: pa.Array, group_rows: int, has_filter: bool, data: st.DataObject
) -> None:
    table = pa.table({"c": column, "i": range(60)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=group_rows)
    wanted = ((pc.field("i") < 20) | (pc.field("i") > 41)) & (pc.field("i") != 50)
    arguments: dict[str, Any] = {"filter": wanted} if has_filter else {}
    piece = piece_of(tmp_path, columns=("c",), **arguments)
    sizes = st.sampled_from([1, 100, 400, 2000, MIB])
    expected, chunks = rows_from(piece, 0, 0, data.draw(sizes))
    assert expected == [row["c"] for row in (table.filter(wanted) if has_filter else table).to_pylist()]
    done = 0
    for chunk in chunks:
        cut = data.draw(st.integers(0, chunk.table.num_rows))
        rest, _ = rows_from(piece, chunk.unit, chunk.row + cut, data.draw(sizes))
        assert rest == expected[done + cut :]
        done += chunk.table.num_rows


def test_rows_of_row_groups_that_are_read_together_are_named_by_their_own(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.array(range(25)), row_group_size=10)
    [chunk] = piece_of(tmp_path).read(0, 0, MIB)
    path = tmp_path / "a.parquet"
    for start, count, source, rows in (
        (0, 25, "row groups 0 to 2", (0, 25)),
        (3, 4, "row group 0", (3, 7)),
        (10, 10, "row group 1", (0, 10)),
        (12, 13, "row groups 1 to 2", (2, 15)),
        (20, 0, "row group 2", (0, 0)),
    ):
        origin = chunk.origin.slice(start, count)
        assert (origin.source, origin.rows) == (f"{path}, {source}", rows)
    assert chunk.origin.slice(12, 13).slice(9, 2).source == f"{path}, row group 2"


@pytest.mark.parametrize("chunk_bytes", [100, MIB])
def test_row_group_that_cannot_be_read_is_named_and_those_before_it_are_read(tmp_path: Path, chunk_bytes: int) -> None:
    path = write(tmp_path / "a.parquet", pa.array(range(1000)), row_group_size=100, compression="zstd")
    damage_chunk(path, group=5, column=0)
    chunks = piece_of(path).read(0, 0, chunk_bytes)
    rows: list[int] = []

    def read_all() -> None:
        for chunk in chunks:
            rows.extend(chunk.table["c"].to_pylist())

    with pytest.raises(aiodata.SourceError, match=r"a\.parquet: row group 5 cannot be read as Parquet"):
        read_all()
    assert rows == list(range(500))


def test_rows_of_which_no_column_is_read_go_on_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "k=1").mkdir()
    pq.write_table(pa.table({"c": range(50)}), tmp_path / "k=1" / "a.parquet", row_group_size=20)
    piece = piece_of(tmp_path, columns=("k",))
    assert [
        sum(chunk.table.num_rows for chunk in piece.read(unit, row, 1)) for unit, row in ((0, 0), (0, 25), (1, 5))
    ] == [
        50,
        25,
        25,
    ]
