"""What functions return has one schema and its own memory, for any number of CPUs, batch size and kind of function."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

import aiodata
from tests.conftest import collect

pytestmark = pytest.mark.loops("asyncio")

Batch = dict[str, Any]
NUM_CPUS = [1, 4, 16]


async def outcome(ds: aiodata.Dataset) -> tuple[str, int]:
    """The schema and the number of rows, by whatever is asked; or which error."""
    try:
        schema = await ds.schema()
        batches = [batch async for batch in ds.aiter_batches(batch_size=7, batch_format="pyarrow")]
        num_rows = sum(batch.num_rows for batch in batches)
        assert {str(batch.schema) for batch in batches} <= {str(schema)}
        assert await ds.count() == len(await ds.take(1000)) == num_rows
    except aiodata.TaskError as error:
        return f"error about {error.operator}", 0
    return " ".join(f"{field.name}: {field.type}" for field in schema), num_rows


def lacking_some(batch: Batch) -> Batch:
    """Embeddings, of which later ones are missing."""
    vectors = np.zeros((len(batch["id"]), 3))
    return {"x": vectors if batch["id"][0] < 35 else [None, *vectors[1:]]}


def after(start: int, early: Callable[[int], Any], late: Callable[[int], Any]) -> Callable[[Batch], Batch]:
    """A function whose values are of one sort for ids below a number, and of another from it on."""
    return lambda batch: {"x": [early(int(i)) if i < start else late(int(i)) for i in batch["id"]]}


TENSOR = pa.fixed_shape_tensor(pa.float64(), [3])
CHANGING: dict[str, tuple[Callable[[Batch], Any], tuple[str, int]]] = {
    "embeddings, later missing": (lacking_some, (f"x: {TENSOR}", 100)),
    "embeddings, first missing": (after(50, lambda _: None, lambda _: np.zeros(3)), ("x: list<item: double>", 100)),
    "ints after nulls": (after(50, lambda _: None, int), ("x: int64", 100)),
    "strings after nulls": (after(50, lambda _: None, str), ("x: string", 100)),
    "lists after empty ones": (after(50, lambda _: [], lambda i: [i]), ("x: list<item: int64>", 100)),
    "structs of nulls first": (after(50, lambda _: {"a": None}, lambda i: {"a": i}), ("x: struct<a: int64>", 100)),
    "whole floats after ints": (after(50, int, float), ("x: int64", 100)),
    "fractions after ints": (after(50, int, lambda i: i + 0.5), ("error", 0)),
    "strings after ints": (after(50, int, str), ("error", 0)),
    "wide after narrow": (
        lambda batch: {"x": batch["id"].astype("i4" if batch["id"][0] < 50 else "i8")},
        ("x: int32", 100),
    ),
    "a column that is new": (
        lambda batch: {"x": batch["id"]} | ({} if batch["id"][0] < 50 else {"z": batch["id"]}),
        ("error", 0),
    ),
    "a column that is gone": (
        lambda batch: {"x": batch["id"]} | ({} if batch["id"][0] >= 50 else {"z": batch["id"]}),
        ("x: int64 z: int64", 100),
    ),
    "columns in another order": (
        lambda batch: dict(sorted({"x": batch["id"], "z": batch["id"]}.items(), reverse=bool(batch["id"][0] >= 50))),
        ("x: int64 z: int64", 100),
    ),
    "other shapes": (lambda batch: {"x": np.zeros((len(batch["id"]), 2 + (batch["id"][0] >= 50)))}, ("error", 0)),
    "no rows first": (lambda batch: {"x": [str(one) for one in batch["id"] if one >= 50]}, ("x: string", 50)),
    "no columns first": (lambda batch: {} if batch["id"][0] < 50 else {"y": batch["id"]}, ("y: int64", 50)),
    "an empty frame first": (
        lambda batch: pd.DataFrame({"s": [str(one) for one in batch["id"] if one >= 50]}),
        ("s: large_string", 50),
    ),
    "an empty polars frame first": (
        lambda batch: pl.DataFrame({"s": [str(one) for one in batch["id"] if one >= 50]}),
        ("s: large_string", 50),
    ),
    "other categories": (
        lambda batch: pd.DataFrame({"c": pd.Categorical(["a" if one < 50 else "b" for one in batch["id"]])}),
        ("c: dictionary<values=large_string, indices=int8, ordered=0>", 100),
    ),
    "large unsigned": (lambda batch: {"h": [2**63 + int(one) for one in batch["id"]]}, ("h: uint64", 100)),
    "arrays of any length": (
        lambda batch: {"x": [np.arange(one % 3) for one in batch["id"]]},
        ("x: list<item: int64>", 100),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGING)
def test_outcome_is_the_same_for_any_number_of_cpus_and_batch_size(name: str) -> None:
    fn, (schema, num_rows) = CHANGING[name]

    async def check() -> None:
        seen = set()
        for num_cpus in NUM_CPUS:
            for batch_size, num_blocks in ((1, 2), (5, 4), (10, 1)):
                ds = aiodata.range(100, num_blocks=num_blocks).map_batches(fn, batch_size=batch_size)
                seen.add(await outcome(ds.with_options(runtime="local", num_cpus=num_cpus)))
        [(found, rows)] = seen
        assert (found.split(" about")[0], rows) == (schema, num_rows)

    aiodata.run(check)


async def test_what_follows_a_function_sees_the_types_of_its_first_rows(runtime: str) -> None:
    ds = aiodata.range(100, num_blocks=4).with_options(runtime=runtime)
    late = ds.map_batches(lambda batch: {} if batch["id"][0] < 50 else {"y": batch["id"]}, batch_size=10)
    assert await late.count() == 50
    assert await late.select_columns("y").count() == 50
    assert await late.filter(pc.field("y") >= 90).count() == 10
    assert await late.union(late).map_batches(lambda batch: batch, batch_size=3).count() == 100
    assert [row["y"] for row in await late.with_options(preserve_order=True).take(1)] == [50]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
async def test_arrays_of_one_shape_are_tensors_for_any_batch_size(
    runtime: str, batch_size: int, make: Callable[[tuple[int, int]], Any], *, as_array: bool
) -> None:
    def matrices(batch: Batch) -> Batch:
        rows = [make((2, 2)) for _ in batch["id"]]
        if not as_array:
            return {"x": rows}
        array = np.empty(len(rows), object)
        array[:] = rows
        return {"x": array}

    ds = aiodata.range(3, num_blocks=1).map_batches(matrices, batch_size=batch_size).with_options(runtime=runtime)
    assert [batch["x"].shape async for batch in ds.aiter_batches()] == [(3, 2, 2)]
    assert [batch["x"].shape async for batch in ds.aiter_batches(batch_size=1)] == [(1, 2, 2)] * 3


async def test_items_with_matrices_are_tensors_and_ragged_ones_are_lists(runtime: str) -> None:
    ds = aiodata.from_items([{"img": np.zeros((2, 2)), "ids": np.arange(i)} for i in range(3)])
    ds = ds.with_options(runtime=runtime, preserve_order=True)
    for batch_size in (1, 3):
        batches = [batch async for batch in ds.aiter_batches(batch_size=batch_size)]
        assert {batch["img"].shape[1:] for batch in batches} == {(2, 2)}
        assert [list(ids) for batch in batches for ids in batch["ids"]] == [[], [0], [0, 1]]


@pytest.mark.parametrize("batch_size", [2, 3])
async def test_matrices_of_other_shapes_are_an_error_that_names_column_shapes_and_remedy(
    runtime: str, batch_size: int
) -> None:
    ds = aiodata.range(3, num_blocks=1).with_options(runtime=runtime)
    ds = ds.map_batches(lambda batch: {"x": [np.zeros((1 + i, 2)) for i in batch["id"]]}, batch_size=batch_size)
    with pytest.raises(aiodata.TaskError, match=r"'x'.*\(1, 2\).*\(2, 2\).*pad them"):
        await ds.take()


def frame_of(buffer: np.ndarray[Any, Any]) -> pd.DataFrame:
    return pd.DataFrame({"id": buffer}, copy=False)


# What makes an output of a buffer that the function goes on to write to.
OUTPUTS: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
    "array": lambda buffer: {"id": buffer},
    "tensor": lambda buffer: {"id": torch.from_numpy(buffer)},
    "arrow": lambda buffer: pa.table({"id": pa.array(buffer)}),
    "pandas": frame_of,
    "polars": lambda buffer: pl.DataFrame({"id": buffer}),
    "slices": lambda buffer: {"id": [buffer[i : i + 1] for i in range(len(buffer))]},
    "matrix": lambda buffer: {"id": buffer.reshape(-1, 1)},
}


class Reusing:
    """A function that writes all its outputs to one buffer."""

    def __init__(self, output: str) -> None:
        self._output = OUTPUTS[output]
        self._buffer = np.empty(1000, np.int64)

    def __call__(self, batch: Batch) -> Any:
        out = self._buffer[: len(batch["id"])]
        out[:] = batch["id"]
        return self._output(out)


class ReusingInGenerator(Reusing):
    """The same, an output per row."""

    def __call__(self, batch: Batch) -> Iterator[Any]:
        for row in batch["id"]:
            yield super().__call__({"id": [row]})


class ReusingAsync(Reusing):
    """The same, asynchronously."""

    async def __call__(self, batch: Batch) -> Any:
        return super().__call__(batch)


class ReusingInAsyncGenerator(Reusing):
    """The same, an output per row, asynchronously."""

    async def __call__(self, batch: Batch) -> AsyncIterator[Any]:
        for row in batch["id"]:
            yield super().__call__({"id": [row]})


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", [Reusing, ReusingInGenerator, ReusingAsync, ReusingInAsyncGenerator])
async def test_function_may_write_to_what_it_has_returned(kind: type[Reusing], output: str) -> None:
    ds = aiodata.range(200).with_options(runtime="local", num_cpus=1)
    for fn, arguments in ((kind, (output,)), (kind(output), ())):
        ids = await collect(ds.map_batches(fn, batch_size=10, fn_constructor_args=arguments))
        assert sorted(np.ravel(ids).tolist()) == list(range(200))


@pytest.mark.ray
@pytest.mark.slow
async def test_actor_may_write_to_what_it_has_returned(ray_cluster: None) -> None:
    ds = aiodata.range(200).with_options(runtime="ray")
    for kind in (Reusing, ReusingInAsyncGenerator):
        ids = await collect(ds.map_batches(kind, batch_size=10, fn_constructor_args=("array",)))
        assert sorted(ids) == list(range(200))


@pytest.mark.parametrize(
    ("batch_format", "drop"),
    [
        ("pandas", lambda batch: batch.drop(columns=["id"])),
        ("polars", lambda batch: batch.drop("id")),
        ("pyarrow", lambda batch: batch.drop_columns(["id"])),
        ("pandas", lambda batch: batch[[]]),
        ("pyarrow", lambda batch: batch.select([])),
    ],
)
async def test_rows_without_columns_are_an_error_of_the_function(runtime: str, batch_format: str, drop: Any) -> None:
    ds = aiodata.range(10).map_batches(drop, batch_format=batch_format).with_options(runtime=runtime)
    for ask in (ds.count, ds.take):
        with pytest.raises(aiodata.TaskError, match=r"rows have no columns; keep at least one") as caught:
            await ask()
        assert caught.value.operator.startswith("map_batches")


async def test_large_unsigned_ids_come_through(runtime: str) -> None:
    items = [{"id": 2**63 + 1}, {"id": None}, {"id": 5}]
    ds = aiodata.from_items(items).with_options(runtime=runtime, preserve_order=True)
    assert (await ds.schema()).field("id").type == pa.uint64()
    assert await ds.map_batches(lambda batch: batch, batch_size=1).take() == items
