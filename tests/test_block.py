"""What becomes a block, how, and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from aiodata.block import as_block, concat_blocks, from_rows


class ArrayLike:
    """What torch and jax tensors look like to numpy."""

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return self._values


@pytest.mark.parametrize(
    "value",
    [
        pa.table({"x": [1, 2]}),
        pa.record_batch({"x": [1, 2]}),
        {"x": [1, 2]},
        {"x": np.array([1, 2])},
        {"x": pa.array([1, 2])},
        {"x": pa.chunked_array([[1], [2]])},
        {"x": ArrayLike([1, 2])},
        pd.DataFrame({"x": [1, 2]}),
        pd.DataFrame({"x": [1, 2]}, index=[7, 8]),
        pl.DataFrame({"x": [1, 2]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_columns_of_any_kind_become_a_table(value: object) -> None:
    block = as_block(value)
    assert isinstance(block, pa.Table)
    assert block.to_pydict() == {"x": [1, 2]}
    assert block.schema.metadata is None


def test_table_is_its_own_block() -> None:
    table = pa.table({"x": [1]})
    assert as_block(table) is table


def test_numpy_column_is_not_copied() -> None:
    values = np.arange(1000)
    buffer = as_block({"x": values})["x"].chunk(0).buffers()[1]
    assert np.shares_memory(values, np.frombuffer(buffer, np.int64))


@pytest.mark.parametrize("array", [np.asfortranarray(np.arange(6).reshape(2, 3)), ArrayLike([[0, 1, 2], [3, 4, 5]])])
def test_array_of_many_dimensions_becomes_a_tensor_column(array: Any) -> None:
    column = as_block({"x": array})["x"]
    assert isinstance(column.type, pa.FixedShapeTensorType)
    assert column.type.shape == [3]
    np.testing.assert_array_equal(column.chunk(0).to_numpy_ndarray(), [[0, 1, 2], [3, 4, 5]])


def test_tensor_column_without_rows_keeps_its_shape() -> None:
    block = as_block({"x": np.zeros((0, 2, 3), np.float32)})
    assert block.num_rows == 0
    assert block.schema == as_block({"x": np.zeros((1, 2, 3), np.float32)}).schema


def test_tensor_column_of_bools_keeps_its_values() -> None:
    assert as_block({"mask": np.array([[True, False], [False, True]])})["mask"].to_pylist() == [
        [True, False],
        [False, True],
    ]


@pytest.mark.parametrize("value", [None, 1, "text", [1, 2], [{"x": 1}]])
def test_what_has_no_columns_is_refused_with_what_works(value: object) -> None:
    with pytest.raises(TypeError, match=rf"{type(value).__name__}; give a dict of arrays, a pyarrow.Table"):
        as_block(value)


@pytest.mark.parametrize("value", [1, "text", b"bytes", np.array(1.0), None], ids=repr)
def test_column_that_is_one_value_is_refused_by_name(value: object) -> None:
    with pytest.raises(TypeError, match=r"column 'x' must be an array or a list with one value per row"):
        as_block({"x": value})


def test_columns_of_different_lengths_are_refused_with_the_lengths() -> None:
    with pytest.raises(ValueError, match=r"one length, not \{'x': 1, 'y': 2\}"):
        as_block({"x": [1], "y": [1, 2]})


def test_rows_that_are_dicts_become_columns_in_order_of_appearance() -> None:
    table = from_rows([{"a": 1}, {"b": "x", "a": 2}])
    assert table.column_names == ["a", "b"]
    assert table.to_pylist() == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]


@pytest.mark.parametrize("rows", [[1, 2], ["a", None], [[1], [2, 3]], []], ids=repr)
def test_rows_of_other_kinds_become_the_column_item(rows: list[object]) -> None:
    assert from_rows(rows).to_pydict() == {"item": rows}


def test_blocks_join_without_a_copy() -> None:
    blocks = [pa.table({"x": np.arange(start, start + 3)}) for start in (0, 3)]
    joined = concat_blocks(blocks)
    assert joined["x"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert [chunk.buffers()[1].address for chunk in joined["x"].chunks] == [
        block["x"].chunk(0).buffers()[1].address for block in blocks
    ]


def test_one_block_joins_to_itself() -> None:
    block = pa.table({"x": [1]})
    assert concat_blocks([block]) is block


def test_missing_column_is_null_in_a_join() -> None:
    joined = concat_blocks([pa.table({"x": [1], "y": ["a"]}), pa.table({"x": pa.nulls(1)})])
    assert joined.to_pydict() == {"x": [1, None], "y": ["a", None]}


def test_types_that_do_not_go_together_are_named() -> None:
    with pytest.raises(ValueError, match=r"'x' has types that do not go together: int64 in block 1, string in block 2"):
        concat_blocks([pa.table({"x": [1]}), pa.table({"x": ["a"]})])
