"""Laws of the local shuffle: nothing is lost or doubled, the order is random, and the seed's alone."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata.batcher import Batcher
from aiodata.batching.shuffle import ShuffleBuffer
from aiodata.block import as_block
from aiodata.formats import get_format
from tests.strategies import Shape, blocks_of, expected_rows, num_rows_of, shapes, table_of

BUFFER_ROWS = st.integers(1, 30)
BATCH_ROWS = st.integers(1, 12)


def settle(buffer: ShuffleBuffer) -> Iterator[pa.Table]:
    """Make the shuffles that are due; yield what leaves."""
    while buffer.is_due:
        yield buffer.accept(buffer.job()())


def shuffle_all(buffer: ShuffleBuffer, blocks: list[pa.Table], *, is_end_known: bool = False) -> list[pa.Table]:
    """All that leaves the buffer; the end of the blocks is known before or after the shuffle that the last one fills.

    Args:
        buffer: The buffer, new.
        blocks: What goes in.
        is_end_known: Whether it is known with the last block that it is the last.
    """
    tables: list[pa.Table] = []
    todo = [block for block in blocks if block.num_rows]
    while todo:
        head = todo[0].slice(0, buffer.rows_wanted)
        buffer.push(head)
        todo = [todo[0].slice(head.num_rows), *todo[1:]] if head.num_rows < todo[0].num_rows else todo[1:]
        if is_end_known and not todo:
            buffer.finish()
        tables += settle(buffer)
    buffer.finish()
    tables += settle(buffer)
    assert buffer.rows_wanted == 0
    return tables


def batches_of(tables: list[pa.Table], size: int) -> list[pa.Table]:
    batcher = Batcher(get_format("pyarrow"), size)
    for table in tables:
        batcher.push(table)
    batcher.finish()
    batches = []
    while (batch := batcher.next_at_once()) is not None:
        batches.append(batch)
    return batches


def ids_in(tables: list[pa.Table]) -> list[int]:
    return [one for table in tables for one in table["id"].to_pylist()]


def values_in(tables: list[pa.Table]) -> list[str]:
    """The rows as text, sorted: values of some types have no order, or no equality."""
    return sorted(repr(row) for table in tables for row in table.to_pylist())


@settings(max_examples=50, deadline=None)
@given(shape=shapes(), buffer_rows=BUFFER_ROWS, size=BATCH_ROWS, is_end_known=st.booleans())
def test_batches_are_the_rows_and_full_but_the_last(
    shape: Shape, buffer_rows: int, size: int, is_end_known: bool
) -> None:
    tables = shuffle_all(ShuffleBuffer(buffer_rows, size, [0, 0]), blocks_of(shape), is_end_known=is_end_known)
    batches = batches_of(tables, size)
    rows = [tuple(row.values()) for batch in batches for row in batch.to_pylist()]
    assert sorted(rows, key=lambda row: row[0]) == expected_rows(range(num_rows_of(shape)))
    assert [batch.num_rows for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert not batches or 0 < batches[-1].num_rows <= size
    assert all(table.num_rows % size == 0 for table in tables[:-1])


@settings(max_examples=50, deadline=None)
@given(
    shape=shapes(), cuts=st.lists(st.integers(1, 20)), buffer_rows=BUFFER_ROWS, size=BATCH_ROWS, epoch=st.integers(0, 9)
)
def test_order_is_the_same_however_blocks_divide_the_rows(
    shape: Shape, cuts: list[int], buffer_rows: int, size: int, epoch: int
) -> None:
    rest = table_of(range(num_rows_of(shape)))
    recut = []
    for cut in cuts:
        recut.append(rest.slice(0, cut))
        rest = rest.slice(cut)
    first = shuffle_all(ShuffleBuffer(buffer_rows, size, [7, epoch]), blocks_of(shape), is_end_known=False)
    second = shuffle_all(ShuffleBuffer(buffer_rows, size, [7, epoch]), [*recut, rest], is_end_known=True)
    assert [table.to_pylist() for table in first] == [table.to_pylist() for table in second]


def test_order_is_the_same_whether_or_not_the_end_is_known_when_the_last_row_fills_the_buffer() -> None:
    blocks = [table_of(range(10))]
    first, second = (
        shuffle_all(ShuffleBuffer(10, 2, [0]), blocks, is_end_known=is_end_known) for is_end_known in (False, True)
    )
    assert [table.num_rows for table in first] == [2, 8]
    assert first == second


@settings(max_examples=50, deadline=None)
@given(total=st.integers(0, 200), buffer_rows=BUFFER_ROWS, size=BATCH_ROWS)
def test_each_batch_is_drawn_from_a_full_buffer_and_as_many_are_as_can_be(
    total: int, buffer_rows: int, size: int
) -> None:
    buffer = ShuffleBuffer(buffer_rows, size, [0])
    drawn = 0
    for pushed in range(1, total + 1):
        buffer.push(table_of([0]))
        for table in settle(buffer):
            assert table.num_rows >= size
            assert pushed - drawn - (table.num_rows - size) >= buffer_rows
            drawn += table.num_rows
            assert pushed - drawn < max(buffer_rows, size)


@settings(max_examples=50, deadline=None)
@given(total=st.integers(0, 300), buffer_rows=BUFFER_ROWS, size=BATCH_ROWS)
def test_shuffles_are_of_twice_the_rows_that_leave_at_most(total: int, buffer_rows: int, size: int) -> None:
    buffer = ShuffleBuffer(buffer_rows, size, [0])
    drawn = shuffled = 0
    for pushed in range(1, total + 1):
        buffer.push(table_of([0]))
        for table in settle(buffer):
            shuffled += pushed - drawn
            drawn += table.num_rows
    assert shuffled <= 2 * drawn + max(buffer_rows, size)


def test_first_batch_needs_no_more_rows_than_the_buffer_and_the_batch() -> None:
    assert ShuffleBuffer(100, 8, [0]).rows_wanted == 100
    assert ShuffleBuffer(8, 100, [0]).rows_wanted == 100


def test_large_buffer_of_small_batches_is_shuffled_many_batches_at_a_time() -> None:
    tables = shuffle_all(ShuffleBuffer(1000, 1, [0]), [table_of(range(10_000))])
    assert [table.num_rows for table in tables] == [1, *[1001] * 8, 1991]


def test_seed_of_the_epoch_changes_the_order() -> None:
    orders = {
        tuple(ids_in(shuffle_all(ShuffleBuffer(20, 4, [seed, epoch]), [table_of(range(100))])))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_shuffles_of_one_pass_differ() -> None:
    block = table_of(range(50))
    buffer = ShuffleBuffer(50, 50, [3])
    orders = []
    for _ in range(3):
        while buffer.rows_wanted:
            buffer.push(block.slice(0, buffer.rows_wanted))
        orders.append(tuple(ids_in([buffer.job()().drawn])))
        buffer.accept(buffer.job()())
    assert len(set(orders)) == 3


def test_job_may_run_again_and_later() -> None:
    buffer = ShuffleBuffer(6, 2, [1, 2])
    buffer.push(table_of(range(6)))
    job = buffer.job()
    first, again, other = job(), job(), buffer.job()()
    assert first.drawn.equals(again.drawn)
    assert first.drawn.equals(other.drawn)
    assert first.kept.equals(again.kept)
    assert buffer.is_due
    buffer.finish()
    assert buffer.accept(again).equals(first.drawn)
    assert buffer.job()().drawn.num_rows == 4


def test_every_row_is_as_likely_to_leave_first_as_any_other() -> None:
    # 5 of 20 rows leave, 4000 times: each row 1000 times, give or take a standard deviation of 27.
    counts = np.zeros(20)
    for seed in range(4000):
        buffer = ShuffleBuffer(20, 5, [seed])
        buffer.push(pa.table({"id": np.arange(20)}))
        counts[buffer.job()().drawn["id"].to_numpy()] += 1
    assert counts.sum() == 20_000
    assert 850 < counts.min() <= counts.max() < 1150


def test_rows_move_about_as_far_as_the_buffer_is_long() -> None:
    total, buffer_rows = 20_000, 1000
    order = ids_in(shuffle_all(ShuffleBuffer(buffer_rows, 10, [5]), [pa.table({"id": np.arange(total)})]))
    moved = np.abs(np.array(order) - np.arange(total))
    assert buffer_rows / 4 < moved.mean() < 2 * buffer_rows
    # Neighbours that stay neighbours: about 2 of n pairs in a random order of n rows.
    assert (np.diff(order) == 1).mean() < 0.01
    assert (moved == 0).mean() < 0.01
    # Rows leave the buffer sooner or later, few of them much later.
    assert moved.max() < 20 * buffer_rows


ROWS = 60

TYPES: dict[str, pa.Array] = {
    "int": pa.array([None, 1, 2] * 20),
    "bool": pa.array([None, True, False] * 20),
    "float16": pa.array([np.float16(1), np.float16(2)] * 30, pa.float16()),
    "decimal": pa.array([None, Decimal("1.50"), Decimal("2.25")] * 20),
    "timestamp": pa.array([None, datetime(2020, 1, 1), datetime(2021, 1, 1)] * 20),
    "string": pa.array([None, "", "text"] * 20),
    "large_string": pa.array([None, "", "text"] * 20, pa.large_string()),
    "binary": pa.array([None, b"", b"bytes"] * 20),
    "null": pa.nulls(ROWS),
    "list": pa.array([None, [], [1, None], [2]] * 15),
    "list_of_strings": pa.array([None, [], ["a", None], ["text"]] * 15),
    "fixed_size_list": pa.array([None, [1.0, 2.0], [3.0, None]] * 20, pa.list_(pa.float32(), 2)),
    "struct": pa.array([None, {"a": 1, "b": "x"}, {"a": None, "b": "y"}] * 20),
    "map": pa.array([None, [], [("key", 1)]] * 20, pa.map_(pa.string(), pa.int64())),
    "dictionary": pa.array([None, "a", "b"] * 20).dictionary_encode(),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(ROWS * 4.0).reshape(ROWS, 2, 2)),
    "dense_union": pa.UnionArray.from_dense(
        pa.array([0, 1] * 30, pa.int8()),
        pa.array(np.arange(ROWS) // 2, pa.int32()),
        [pa.array(range(30)), pa.array(["text"] * 30)],
    ),
}

# Types that leave as others, because Arrow can not gather them without holding on to more than the rows.
# Arrow cannot gather these as they are, or would refer to all of a dictionary.
ODD_TYPES: dict[str, pa.Array] = {
    "string_view": pa.array([None, "a", "much longer than a view"] * 20, pa.string_view()),
    "binary_view": pa.array([None, b"a", b"much longer than a view"] * 20, pa.binary_view()),
    "list_of_views": pa.array([None, ["a"]] * 30, pa.list_(pa.string_view())),
    "large_list_of_views": pa.array([None, ["a"]] * 30, pa.large_list(pa.string_view())),
    "fixed_size_list_of_views": pa.array([None, ["a"]] * 30, pa.list_(pa.string_view(), 1)),
    "map_of_views": pa.array([None, [("a", "b")]] * 30, pa.map_(pa.string(), pa.string_view())),
    "dictionary_of_views": pa.DictionaryArray.from_arrays(
        pa.array([0, 1, None] * 20), pa.array(["a", "b"], pa.string_view())
    ),
    "list_view": pa.array([None, [], [1, 2]] * 20, pa.list_view(pa.int64())),
    "run_ends": pc.run_end_encode(pa.array([1, 1, 2] * 20)),
    "list_of_dictionary": pa.array([None, ["a"], ["b", "a"]] * 20, pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    "struct_of_run_ends": pa.StructArray.from_arrays([pc.run_end_encode(pa.array(["a"] * ROWS))], ["a"]),
}

EVERY_TYPE = TYPES | ODD_TYPES


def on_foreign_memory(table: pa.Table) -> tuple[pa.Table, weakref.ref[Any]]:
    """A table on the memory of a numpy array, as a block from an object store is, and what tells of its end."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    memory = np.frombuffer(sink.getvalue(), np.uint8).copy()
    return pa.ipc.open_stream(pa.py_buffer(memory)).read_all(), weakref.ref(memory)


@pytest.mark.parametrize("name", EVERY_TYPE)
def test_rows_of_any_type_are_shuffled_and_leave_as_that_type(name: str) -> None:
    array = EVERY_TYPE[name]
    block = pa.table({"id": np.arange(ROWS), "x": array})
    tables = shuffle_all(ShuffleBuffer(10, 3, [1]), [block.slice(0, 7), block.slice(7, 30), block.slice(37)])
    assert values_in(tables) == values_in([block])
    assert len(tables) > 3
    for table in tables:
        table.validate(full=True)
        assert table.schema == pa.schema([("id", pa.int64()), ("x", array.type)])


@pytest.mark.parametrize("name", EVERY_TYPE)
def test_neither_the_rows_that_left_nor_those_that_stay_pin_a_block(name: str) -> None:
    block, dead = on_foreign_memory(pa.table({"x": EVERY_TYPE[name]}))
    buffer = ShuffleBuffer(ROWS, 4, [1])
    buffer.push(block)
    assert dead() is not None or name == "null"
    left = buffer.accept(buffer.job()())
    del block
    assert dead() is None
    assert left.num_rows == 4
    assert buffer.rows_wanted == ROWS + 4


@pytest.mark.parametrize("name", EVERY_TYPE)
def test_rows_that_stay_do_not_pin_those_that_left(name: str) -> None:
    def addresses(table: pa.Table) -> set[int]:
        [array] = table["x"].chunks
        buffers = array.buffers() + (array.dictionary.buffers() if hasattr(array, "dictionary") else [])
        return {buffer.address for buffer in buffers if buffer is not None and buffer.size}

    buffer = ShuffleBuffer(ROWS, 20, [1])
    buffer.push(pa.table({"x": EVERY_TYPE[name]}))
    result = buffer.job()()
    assert not addresses(result.drawn) & addresses(result.kept)
    assert name == "null" or addresses(result.kept)


def test_blocks_from_polars_are_shuffled() -> None:
    frame = pl.DataFrame({"s": ["a", "b", None] * 20, "l": [["a"], [], None] * 20})
    frame = frame.with_columns(pl.col("s").cast(pl.Categorical).alias("c"), pl.struct("s").alias("t"))
    frame = frame.with_columns(pl.col("s").cast(pl.Enum(["b", "a"])).alias("e"))
    tables = shuffle_all(
        ShuffleBuffer(10, 3, [1]), [as_block(frame[start : start + 15]) for start in range(0, ROWS, 15)]
    )
    assert values_in(tables) == values_in([as_block(frame)])
    expected = pl.DataFrame(pl.from_arrow(as_block(frame))).schema
    assert all(pl.DataFrame(pl.from_arrow(table)).schema == expected for table in tables)


def test_fields_keep_their_metadata_and_nullability() -> None:
    fields = [
        pa.field("id", pa.int64(), nullable=False, metadata={"unit": "1"}),
        pa.field("s", pa.string_view(), metadata={"a": "b"}),
    ]
    block = pa.table({"id": [1, 2], "s": ["a", "b"]}).cast(pa.schema(fields, metadata={"table": "t"}))
    [table] = shuffle_all(ShuffleBuffer(2, 2, [0]), [block])
    assert table.schema.equals(block.schema, check_metadata=True)


def test_blocks_whose_schemas_differ_slightly_are_shuffled_together() -> None:
    integers = pa.array(range(10), pa.int32())
    blocks = [
        pa.table({"x": pa.nulls(10), "y": ["a"] * 10}),
        pa.table({"y": ["b"] * 10, "x": integers}),
        pa.table({"x": integers}),
        pa.table({"x": integers, "y": pa.array(["view"] * 10, pa.string_view())}),
        pa.table({"x": [0.5] * 10, "y": pa.array(["large"] * 10, pa.large_string())}),
    ]
    tables = shuffle_all(ShuffleBuffer(8, 4, [0]), blocks)
    rows, found = (
        sorted((str(row["x"] and float(row["x"])), str(row.get("y"))) for table in some for row in table.to_pylist())
        for some in (blocks, tables)
    )
    assert found == rows


def test_types_that_do_not_go_together_are_a_value_error_of_the_job() -> None:
    buffer = ShuffleBuffer(2, 1, [0])
    buffer.push(pa.table({"x": [1]}))
    buffer.push(pa.table({"x": ["a"]}))
    with pytest.raises(ValueError, match=r"column 'x' has types that do not go together: "):
        buffer.job()()


def test_dictionaries_too_many_for_their_index_type_leave_as_several_arrays() -> None:
    kind = pa.dictionary(pa.int8(), pa.string())
    blocks = [pa.table({"x": pa.array([None, *(f"{block}-{one}" for one in range(99))], kind)}) for block in range(8)]
    tables = shuffle_all(ShuffleBuffer(200, 50, [0]), blocks)
    assert values_in(tables) == values_in(blocks)
    assert any(table["x"].num_chunks > 1 for table in tables)
    assert all(table.schema == pa.schema([("x", kind)]) for table in tables)
    assert [table.to_pylist() for table in tables] == [
        table.to_pylist() for table in shuffle_all(ShuffleBuffer(200, 50, [0]), [pa.concat_tables(blocks)])
    ]


def test_dictionaries_of_blocks_that_have_passed_do_not_add_up() -> None:
    blocks = [pa.table({"x": pa.array([f"{block}-{one}" for one in range(50)])}) for block in range(20)]
    encoded = [pa.table({"x": block["x"].dictionary_encode()}) for block in blocks]
    tables = shuffle_all(ShuffleBuffer(50, 10, [0]), encoded)
    assert values_in(tables) == values_in(blocks)
    assert all(len(chunk.dictionary) <= table.num_rows for table in tables for chunk in table["x"].chunks)


def test_ordered_dictionary_keeps_its_values_and_their_order() -> None:
    values = [f"{one}" for one in range(100)]
    block = pa.table({"x": pa.DictionaryArray.from_arrays(pa.array([5, None, 3]), values, ordered=True)})
    [table] = shuffle_all(ShuffleBuffer(3, 3, [0]), [block])
    [chunk] = table["x"].chunks
    assert chunk.type.ordered
    assert chunk.dictionary.to_pylist() == values


def test_bytes_are_those_of_the_rows_in_the_buffer() -> None:
    buffer = ShuffleBuffer(8, 4, [0])
    block = pa.table({"x": np.arange(100)})
    buffer.push(block.slice(0, 3))
    buffer.push(block.slice(3, 5))
    assert buffer.num_bytes == 64
    buffer.accept(buffer.job()())
    assert buffer.num_bytes == 32


def test_more_rows_than_wanted_are_refused_and_none_is_added() -> None:
    buffer = ShuffleBuffer(4, 2, [0])
    buffer.push(table_of([0]))
    with pytest.raises(ValueError, match="a block of 4 rows, where 3 are wanted; push a slice"):
        buffer.push(table_of(range(4)))
    assert buffer.rows_wanted == 3
    buffer.finish()
    with pytest.raises(ValueError, match="where 0 are wanted"):
        buffer.push(table_of([0]))


def test_block_without_rows_is_no_block() -> None:
    buffer = ShuffleBuffer(1, 1, [0])
    buffer.push(pa.table({"other": pa.array([], pa.string())}))
    buffer.push(table_of([0]))
    buffer.push(table_of([]))
    assert buffer.job()().drawn.equals(table_of([0]))


def test_rows_without_columns_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="rows but no columns; select at least one"):
        ShuffleBuffer(2, 1, [0]).push(table_of([0]).select([]))


def test_job_that_is_not_due_is_refused() -> None:
    buffer = ShuffleBuffer(4, 2, [0])
    buffer.push(table_of([0]))
    with pytest.raises(RuntimeError, match="no shuffle is due; push 3 more rows"):
        buffer.job()


def test_result_is_accepted_once() -> None:
    buffer = ShuffleBuffer(4, 2, [0])
    buffer.push(table_of(range(4)))
    result = buffer.job()()
    buffer.accept(result)
    with pytest.raises(ValueError, match="the result of shuffle 0, and 1 is due"):
        buffer.accept(result)


def test_empty_stream_ends_without_a_shuffle() -> None:
    buffer = ShuffleBuffer(4, 2, [0])
    buffer.finish()
    assert not buffer.is_due
    assert buffer.rows_wanted == 0


def test_repr_shows_how_full_it_is() -> None:
    buffer = ShuffleBuffer(4, 2, [0])
    buffer.push(table_of([0]))
    assert repr(buffer) == "<ShuffleBuffer rows=1/4 shuffles=0 finished=False>"
