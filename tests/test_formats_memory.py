"""Whose memory batches are in: writing to them does not reach the rows they come from, or is not possible."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aiodata.batcher import Batcher
from aiodata.formats import get_format
from aiodata.schemas import has_nulls, mark_nulls
from tests.test_batcher import cut
from tests.types_table import TYPES, with_null

ARRAYS = [(label, array) for label, arrays in TYPES.items() for array in (arrays[0], with_null(arrays[0]))]
IDS = [f"{label}-{array.null_count}" for label, array in ARRAYS]


def buffers_of(array: pa.Array) -> Iterator[pa.Buffer]:
    """All memory that an array refers to."""
    yield from (one for one in array.buffers() if one is not None and one.size)
    if pa.types.is_dictionary(array.type):
        yield from buffers_of(array.dictionary)


def arrays_in(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    """All arrays that a column refers to, itself included."""
    if isinstance(value, np.ma.MaskedArray):
        yield from (np.asarray(value.data), np.ma.getmaskarray(value))
    elif isinstance(value, np.ndarray):
        yield value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        for one in value:
            yield from arrays_in(one)


def reaches(column: Any, array: pa.Array) -> bool:
    """Whether a column of numpy refers to the memory of an array."""
    memory = [np.frombuffer(one, np.uint8) for one in buffers_of(array)]
    return any(np.may_share_memory(one, other) for one in arrays_in(column) for other in memory)


@pytest.mark.parametrize("nulls", ["mask", "nan"])
@pytest.mark.parametrize("array", [array for _, array in ARRAYS], ids=IDS)
def test_writable_arrays_are_private_and_others_are_read_only(array: pa.Array, nulls: str) -> None:
    segment = pa.record_batch({"x": array})
    private, shared = (get_format("numpy", nulls=nulls, writable=one).convert(segment)["x"] for one in (True, False))
    assert not reaches(private, array)
    assert all(one.flags.writeable for one in arrays_in(private))
    assert not any(one.flags.writeable for one in arrays_in(shared))


def test_numbers_are_shared_where_they_are_read_only() -> None:
    array = pa.array([1, 2])
    assert reaches(get_format("numpy").convert(pa.record_batch({"x": array}))["x"], array)


@pytest.mark.parametrize("array", [array for _, array in ARRAYS], ids=IDS)
def test_arrays_in_frames_of_pandas_are_private_or_read_only(array: pa.Array) -> None:
    pytest.importorskip("pandas")
    segment = pa.record_batch({"x": array})
    private, shared = (get_format("pandas", writable=one).convert(segment)["x"] for one in (True, False))
    if private.dtype == object:
        assert not reaches(private.to_numpy(), array)
        assert not any(one.flags.writeable for value in shared for one in arrays_in(value))
    elif isinstance(private.array.dtype, np.dtype):
        assert not reaches(private.to_numpy(), array)


@pytest.mark.parametrize("size", [1, 3, 7, None])
@pytest.mark.parametrize("fmt", ["numpy", "pandas", "polars", "torch"])
def test_what_torch_writes_to_a_batch_reaches_neither_the_source_nor_another_batch(fmt: str, size: int | None) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip(fmt)
    numbers = {"int": pa.array(range(7), pa.int64()), "float": pa.array([0.5] * 7)}
    table = pa.table(numbers | {"small": pa.array(range(7), pa.int8())})
    expected: list[list[Any]] = [list(range(7)), [0.5] * 7, list(range(7))]
    field = mark_nulls(pa.field("int", pa.int64()), has_nulls=False)
    table = table.cast(pa.schema([field, *list(table.schema)[1:]]))
    batches = cut(Batcher(get_format(fmt, writable=True), size), [table])
    columns = [[np.asarray(batch[name]) for batch in batches] for name in table.column_names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It is read-only to numpy, which torch only warns of.
        for parts in columns:
            torch.from_numpy(parts[0]).add_(100)
    assert table.to_pydict() == dict(zip(table.column_names, expected, strict=True))
    changed = len(columns[0][0])
    for parts, values in zip(columns, expected, strict=True):
        assert np.concatenate(parts).tolist() == [one + 100 for one in values[:changed]] + values[changed:]


def test_writable_stretches_are_copied_in_less_than_a_millisecond_and_have_many_batches() -> None:
    schema = pa.schema([("a", pa.int64()), ("b", pa.float64()), ("c", pa.float32()), ("d", pa.int64())])
    rows = get_format("numpy", writable=True).stretch(schema)
    assert rows is not None
    assert rows * 28 <= 2**21 < (rows + 1000) * 28
    assert rows > 100 * 256


def test_tables_of_pyarrow_have_no_marks_of_ours_but_those_of_others() -> None:
    field = mark_nulls(pa.field("x", pa.int64(), metadata={"unit": "m"}), has_nulls=True)
    schema = pa.schema([field])
    assert has_nulls(schema.field("x"))
    fmt = get_format("pyarrow")
    table = fmt.convert(pa.RecordBatch.from_arrays([pa.array([1])], schema=schema))
    assert table.schema.field("x").metadata == {b"unit": b"m"}
    unmarked = pa.record_batch({"x": [1]})
    assert fmt.convert(unmarked).schema.equals(unmarked.schema, check_metadata=True)
