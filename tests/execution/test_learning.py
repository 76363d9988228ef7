"""The schema of what functions return: that of their first rows in the order of the input, whoever is first in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiodata
from aiodata.execution.learning import SchemaLearning
from aiodata.plan.output_schema import Learned
from aiodata.plan.transforms import FilterRows, MapBatches
from tests.conftest import PATIENCE_S, collect

INT, FLOAT = pa.schema([("x", pa.int64())]), pa.schema([("x", pa.float64())])

Batch = dict[str, Any]

# What a function may return for one row.
KINDS: dict[str, Callable[[int], Any]] = {
    "int": lambda row: {"x": np.array([row])},
    "whole": lambda row: {"x": np.array([float(row)])},
    "fraction": lambda row: {"x": np.array([row + 0.5])},
    "null": lambda row: {"x": [None]},
    "string": lambda row: {"x": [str(row)]},
    "new column": lambda row: {"x": np.array([row]), "y": np.array([row])},
    "nothing": lambda row: {},
    "no rows": lambda row: {"x": []},
}


def learned(*schemas: pa.Schema | None) -> Learned:
    return Learned(schemas, is_final=None not in schemas, num_rows=1)


def test_functions_are_what_is_learnt() -> None:
    learning = SchemaLearning([MapBatches(dict), FilterRows(None), MapBatches(dict, schema=INT)])
    assert (learning.schemas, learning.is_complete) == ((None, None, INT), False)
    assert learning.adopt(learned(FLOAT, None, INT))
    assert (learning.schemas, learning.is_complete) == ((FLOAT, None, INT), True)
    assert SchemaLearning([FilterRows(None)]).is_complete


def test_a_task_that_knows_nothing_yet_agrees_with_everybody() -> None:
    learning = SchemaLearning([MapBatches(dict), MapBatches(dict)])
    assert learning.adopt(learned(INT, None))
    assert learning.agrees_with(learned(None, None), began_at_head=True)
    assert learning.agrees_with(learned(INT, FLOAT), began_at_head=True)
    assert not learning.agrees_with(learned(FLOAT, None), began_at_head=True)
    assert learning.adopt(learned(INT, FLOAT))
    assert learning.schemas == (INT, FLOAT)


class LateFirst:
    """A function whose first call in the order of the input returns last: when the second has been made."""

    __name__ = "late_first"

    def __init__(self, folder: Path, kinds: list[str]) -> None:
        self._folder = folder
        self._kinds = kinds

    def __call__(self, batch: Batch) -> Any:
        [row] = batch["id"].tolist()
        (self._folder / f"called {row}").touch()
        deadline = time.monotonic() + PATIENCE_S
        while row == 0 and not (self._folder / "called 1").exists():
            assert time.monotonic() < deadline, "the second call is never made"
            time.sleep(0.002)  # In a worker, which has nothing else to wait for than a file.
        return KINDS[self._kinds[row]](row)

    @property
    def num_calls(self) -> int:
        return len(list(self._folder.iterdir()))


async def outcome(ds: aiodata.Dataset) -> Any:
    """Types and rows, or which error."""
    try:
        schema = await ds.schema()
        rows: dict[Any, int] = {}
        async for batch in ds.aiter_batches(batch_size=2, batch_format="pyarrow"):
            assert batch.schema == schema
            for row in batch.to_pylist():
                key = tuple(row.items())
                rows[key] = rows.get(key, 0) + 1
    except aiodata.AiodataError as error:
        return type(error), str(error), None
    return schema, rows


async def test_first_rows_set_the_types_though_later_ones_come_earlier(runtime: str, tmp_path: Path) -> None:
    fn = LateFirst(tmp_path, ["int", "whole", "whole", "whole"])
    ds = aiodata.range(4, num_blocks=4).map_batches(fn, batch_size=1).with_options(runtime=runtime, num_cpus=2)
    batches = [batch async for batch in ds.aiter_batches(batch_size=1)]
    assert sorted(int(batch["x"][0]) for batch in batches) == [0, 1, 2, 3]
    assert {batch["x"].dtype for batch in batches} == {np.dtype(np.int64)}


async def test_what_does_not_go_with_the_first_rows_fails_though_it_comes_earlier(runtime: str, tmp_path: Path) -> None:
    fn = LateFirst(tmp_path, ["int", "fraction", "whole", "whole"])
    ds = aiodata.range(4, num_blocks=4).map_batches(fn, batch_size=1).with_options(runtime=runtime, num_cpus=2)
    with pytest.raises(aiodata.TaskError, match=r"'x' is double, but int64 .*schema=") as caught:
        await collect(ds)
    assert caught.value.operator == "map_batches(late_first)"


async def test_order_is_kept_where_the_first_rows_come_late(tmp_path: Path) -> None:
    for index, num_rows in enumerate([0, 3, 2]):
        ids = pa.array([10 * index + row for row in range(num_rows)], pa.int64())
        pq.write_table(pa.table({"id": ids}), tmp_path / f"{index}.parquet")
    ds = aiodata.read_parquet(tmp_path).map_batches(lambda table: table, batch_format="pyarrow")
    ds = ds.with_options(runtime="local", num_cpus=2, preserve_order=True)
    for _ in range(40):  # Which task ends first is chance.
        assert await collect(ds) == [10, 11, 12, 20, 21]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3])
async def test_values_after_nulls_reach_the_next_function_of_the_same_task(batch_size: int | None) -> None:
    def change(batch: Batch) -> Any:
        for one in batch["id"].tolist():
            yield {"x": pa.nulls(1) if one < 3 else pa.array([f"t{one}"])}

    made = aiodata.range(5, num_blocks=1).map_batches(change).map_batches(lambda batch: batch, batch_size=batch_size)
    ds = made.with_options(runtime="local", preserve_order=True)
    assert (await ds.schema()).field("x").type == pa.string()
    assert await collect(ds, "x") == [None, None, None, "t3", "t4"]


async def test_actors_agree_like_tasks(runtime: str) -> None:
    class Model:
        def __call__(self, batch: Batch) -> Any:
            return {"x": batch["id"] if batch["id"][0] < 10 else batch["id"].astype(float)}

    ds = aiodata.range(40, num_blocks=8).map_batches(Model, batch_size=5, concurrency=2).with_options(runtime=runtime)
    assert (await ds.schema()).field("x").type == pa.int64()
    dtypes = {batch["x"].dtype async for batch in ds.aiter_batches(batch_size=7)}
    assert dtypes == {np.dtype(np.int64)}


async def test_functions_of_a_union_agree_before_anything_is_sent(runtime: str) -> None:
    ints = aiodata.range(20, num_blocks=2).map_batches(lambda batch: {"x": batch["id"].astype(np.int32)})
    floats = aiodata.range(20, num_blocks=2).map_batches(lambda batch: {"x": batch["id"] / 2, "y": batch["id"]})
    ds = ints.union(floats).with_options(runtime=runtime)
    schema = await ds.schema()
    assert schema == pa.schema([("x", pa.float64()), ("y", pa.int64())])
    rows = 0
    async for batch in ds.aiter_batches(batch_size=3, batch_format="pyarrow"):
        assert batch.schema == schema
        rows += len(batch)
    assert rows == 40
    # What comes after the union sees one schema, too.
    twice = ds.map_batches(lambda table: table, batch_format="pyarrow").filter(pa.compute.field("y").is_null())
    assert await twice.count() == 20


async def test_union_of_types_that_do_not_go_together_is_an_error_that_names_them(runtime: str) -> None:
    texts = aiodata.from_items([{"id": "a"}])
    ds = aiodata.range(3).union(texts).with_options(runtime=runtime)
    for ask in (ds.schema, ds.count, ds.take):
        with pytest.raises(aiodata.TaskError, match=r"column 'id'.* int64 in branch 0, string in branch 1"):
            await ask()


@settings(max_examples=60, deadline=None)
@given(kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=6), preserve_order=st.booleans())
def test_outcome_does_not_depend_on_cpus(kinds: list[str], preserve_order: bool) -> None:
    def change(batch: Batch) -> Any:
        [row] = batch["id"].tolist()
        return KINDS[kinds[row]](row)

    made = aiodata.range(len(kinds), num_blocks=len(kinds)).map_batches(change, batch_size=1)
    seen = [
        aiodata.run(outcome, made.with_options(runtime="local", num_cpus=cpus, preserve_order=preserve_order))
        for cpus in (1, 2, 8)
    ]
    # Of several errors, any may be told; but whether there is one does not depend on the CPUs.
    if all(len(one) == 2 for one in seen):
        assert seen[0] == seen[1] == seen[2]
    else:
        assert {len(one) for one in seen} == {3}
