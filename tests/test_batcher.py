"""Laws of batching: nothing is lost, doubled or reordered, and every batch but the last is full."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata.batcher import Batcher
from aiodata.formats import cost, get_format
from aiodata.schemas import mark_nulls
from tests.strategies import Row, Shape, blocks_of, expected_rows, num_rows_of, shapes

FORMATS = ["numpy", "pyarrow", "pandas", "polars"]


def rows_in(batch: Any, fmt: str) -> list[Row]:
    """The rows of a batch of any format as Python values."""
    match fmt:
        case "numpy":
            columns = [batch[name].tolist() for name in ("id", "s", "v")]
        case "pandas":
            strings = [None if one != one else one for one in batch["s"]]
            columns = [batch["id"].tolist(), strings, [list(map(float, one)) for one in batch["v"]]]
        case "polars":
            columns = [batch[name].to_list() for name in ("id", "s", "v")]
        case _:
            columns = [batch[name].to_pylist() for name in ("id", "s", "v")]
    return list(zip(*columns, strict=True))


def drain(batcher: Batcher) -> list[Any]:
    batches = []
    while (batch := batcher.next_at_once()) is not None:
        batches.append(batch)
    return batches


def cut(batcher: Batcher, blocks: list[pa.Table], *, eagerly: bool = True) -> list[Any]:
    """All batches of the blocks, taken after each block or only at the end."""
    batches = []
    for block in blocks:
        batcher.push(block)
        if eagerly:
            batches += drain(batcher)
    batcher.finish()
    return batches + drain(batcher)


@pytest.mark.parametrize("fmt", FORMATS)
@settings(max_examples=40, deadline=None)
@given(
    shape=shapes(), size=st.integers(1, 12), drop_last=st.booleans(), eagerly=st.booleans(), stretch=st.integers(1, 40)
)
def test_batches_are_the_input_in_equal_parts(
    fmt: str, shape: Shape, size: int, drop_last: bool, eagerly: bool, stretch: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "_OBJECTS_PER_STRETCH", stretch)
        patch.setattr(cost, "_COPIES_PER_STRETCH", stretch)
        batcher = Batcher(get_format(fmt), size, drop_last=drop_last)
        batches = [rows_in(batch, fmt) for batch in cut(batcher, blocks_of(shape), eagerly=eagerly)]
    total = num_rows_of(shape)
    kept = total - total % size if drop_last else total
    assert [row for batch in batches for row in batch] == expected_rows(range(kept))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert not batches or 0 < len(batches[-1]) <= size
    assert batcher.rows == kept


@pytest.mark.parametrize("fmt", FORMATS)
@settings(max_examples=25, deadline=None)
@given(shape=shapes())
def test_without_batch_size_each_block_with_rows_is_a_batch(fmt: str, shape: Shape) -> None:
    batcher = Batcher(get_format(fmt), None)
    batches = cut(batcher, blocks_of(shape))
    assert [len(rows_in(batch, fmt)) for batch in batches] == [sum(sizes) for sizes in shape if sum(sizes)]
    assert [row for batch in batches for row in rows_in(batch, fmt)] == expected_rows(range(num_rows_of(shape)))
    assert batcher.rows == num_rows_of(shape)


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), size=st.integers(1, 12))
def test_batch_comes_as_soon_as_its_rows_are_there(shape: Shape, size: int) -> None:
    batcher = Batcher(get_format("numpy"), size)
    pushed = 0
    for block in blocks_of(shape):
        batcher.push(block)
        pushed += block.num_rows
        drain(batcher)
        assert batcher.rows == pushed - pushed % size


def test_strings_are_converted_a_stretch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_OBJECTS_PER_STRETCH", 10)
    fmt = get_format("numpy")
    lengths: list[int] = []

    class Spy:
        name, join_copies, library = fmt.name, fmt.join_copies, fmt.library
        stretch, slice, join = fmt.stretch, fmt.slice, fmt.join

        def convert(self, segment: pa.RecordBatch) -> Any:
            lengths.append(segment.num_rows)
            return fmt.convert(segment)

    [*_, last] = cut(Batcher(Spy(), 4), [pa.table({"s": [str(one) for one in range(21)]})])
    assert last["s"].tolist() == ["20"]
    assert lengths == [8, 8, 5]


def test_finish_is_news_only_once() -> None:
    batcher = Batcher(get_format("numpy"), 2)
    assert [batcher.finish(), batcher.finish()] == [True, False]
    assert batcher.next() is None


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("value", [1, 1.5, "a", True], ids=["int", "float", "string", "bool"])
def test_block_of_nulls_joins_one_with_values(fmt: str, value: object) -> None:
    blocks = [pa.table({"x": [value, value]}), pa.table({"x": pa.nulls(2)})]
    [batch] = cut(Batcher(get_format(fmt), 4), blocks)
    values = batch["x"].to_pylist() if fmt == "pyarrow" else list(batch["x"])
    assert [None if str(one) in {"nan", "--", "<NA>", "None"} else one for one in values] == [value] * 2 + [None] * 2


@pytest.mark.parametrize("fmt", FORMATS)
def test_columns_in_another_order_join(fmt: str) -> None:
    blocks = [pa.table({"x": [1], "y": [10]}), pa.table({"y": [20], "x": [2]})]
    [batch] = cut(Batcher(get_format(fmt), 2), blocks)
    x, y = ([int(str(one)) for one in batch[name]] for name in ("x", "y"))
    assert (x, y) == ([1, 2], [10, 20])


@pytest.mark.parametrize("fmt", FORMATS)
def test_tensors_with_and_without_nulls_join(fmt: str) -> None:
    kind = pa.list_(pa.float32(), 2)
    blocks = [pa.table({"v": pa.array([[1.0, 2.0]], kind)}), pa.table({"v": pa.array([None, [3.0, 4.0]], kind)})]
    [batch] = cut(Batcher(get_format(fmt), 3), blocks)
    values = batch["v"].to_pylist() if fmt == "pyarrow" else list(batch["v"])
    # Numpy's tensors are dense: a null one is full of NaN.
    assert [None if one is None or np.isnan(one[0]) else list(map(float, one)) for one in values] == [
        [1, 2],
        None,
        [3, 4],
    ]


@pytest.mark.parametrize("fmt", FORMATS)
def test_types_that_do_not_go_together_are_a_value_error_that_says_so(fmt: str) -> None:
    blocks = [pa.table({"x": [1]}), pa.table({"x": pa.array([[1, 2]], pa.list_(pa.int64(), 2))})]
    with pytest.raises(ValueError, match=r"'x' is fixed_size_list.*, but int64 in the rows before"):
        cut(Batcher(get_format(fmt), 2), blocks)


def test_tensors_of_two_shapes_are_a_value_error_that_names_the_column() -> None:
    blocks = [
        pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((1, width)))}) for width in (2, 3)
    ]
    with pytest.raises(ValueError, match=r"'image'.*shape=\[3\].*shape=\[2\].* in the rows before"):
        cut(Batcher(get_format("numpy"), 2), blocks)


@pytest.mark.parametrize("fmt", FORMATS)
def test_blocks_of_other_types_become_of_the_first_ones(fmt: str) -> None:
    known = pa.schema([mark_nulls(pa.field("x", pa.int64()), has_nulls=True)])
    blocks = [pa.table({"x": [1]}, schema=known), pa.table({"x": [2]}), pa.table({"x": pa.array([3], pa.int8())})]
    batches = cut(Batcher(get_format(fmt), 1), blocks)
    columns = [batch["x"] for batch in batches]
    assert len({(type(one), str(getattr(one, "dtype", None) or one.type)) for one in columns}) == 1
    assert [int(str(one[0])) for one in columns] == [1, 2, 3]


def test_values_that_the_first_blocks_type_cannot_hold_are_a_value_error_that_names_the_column() -> None:
    blocks = [pa.table({"x": pa.array([1], pa.int8())}), pa.table({"x": [2**60]})]
    with pytest.raises(ValueError, match=r"'x' is int64, but int8 in the rows before"):
        cut(Batcher(get_format("numpy"), 2), blocks)


@pytest.mark.parametrize("size", [1, None])
def test_rows_without_columns_are_a_value_error(size: int | None) -> None:
    block = pa.table({"x": [1, 2]}).select([])
    with pytest.raises(ValueError, match="rows but no columns; select at least one"):
        cut(Batcher(get_format("numpy"), size), [block])
