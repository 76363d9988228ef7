"""What a function returns has the types of its first rows, or fails, however its input is cut and whoever is first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiodata
from tests.properties import oracle
from tests.properties.drawing import examples

Batch = dict[str, Any]

# What a function may return for some rows: columns of other types, with nulls, of other shapes, or other columns.
MADE: dict[str, Callable[[Any], dict[str, Any]]] = {
    "int32": lambda ids: {"x": ids.astype(np.int32)},
    "int64": lambda ids: {"x": ids},
    "whole": lambda ids: {"x": ids.astype(float)},
    "float": lambda ids: {"x": ids + 0.5},
    "large": lambda ids: {"x": ids + 2**60 + 1},
    "masked": lambda ids: {"x": np.ma.array(ids, mask=ids % 2 == 0)},
    "nulls": lambda ids: {"x": [None] * len(ids)},
    "null type": lambda ids: {"x": pa.nulls(len(ids))},
    "text": lambda ids: {"x": [f"t{one}" for one in ids]},
    "large text": lambda ids: {"x": pa.array([f"t{one}" for one in ids], pa.large_string())},
    "categories": lambda ids: {"x": pa.array([f"t{one}" for one in ids]).dictionary_encode()},
    "lists": lambda ids: {"x": [np.arange(one % 3) for one in ids]},
    "empty lists": lambda ids: {"x": [[] for _ in ids]},
    "lists of nulls": lambda ids: {"x": [[None] for _ in ids]},
    "vectors": lambda ids: {"x": np.ones((len(ids), 2))},
    "some vectors": lambda ids: {"x": [None, *np.ones((len(ids) - 1, 2))]},
    "structs": lambda ids: {"x": [{"a": int(one)} for one in ids]},
    "more members": lambda ids: {"x": [{"a": int(one), "b": "b"} for one in ids]},
    "null members": lambda ids: {"x": [{"a": None} for _ in ids]},
    "seconds": lambda ids: {"x": ids.astype("M8[s]")},
    "nanoseconds": lambda ids: {"x": ids.astype("M8[ns]")},
    "new column": lambda ids: {"x": ids, "y": ids},
    "other order": lambda ids: {"y": ids, "x": ids},
    "nothing": lambda ids: {},
    "no rows": lambda ids: {"x": ids[:0]},
}


@pytest.mark.slow
@examples(120)
@given(
    made=st.lists(st.sampled_from(sorted(MADE)), min_size=1, max_size=5),
    rows_each=st.integers(1, 4),
    num_blocks=st.integers(1, 6),
    preserve_order=st.booleans(),
    is_twice=st.booleans(),
)
def test_types_that_change_give_one_outcome_for_any_cpus(
    made: list[str], rows_each: int, num_blocks: int, preserve_order: bool, is_twice: bool
) -> None:
    num_rows = rows_each * len(made)

    def change(batch: Batch) -> Any:
        parts = [MADE[made[one // rows_each]](np.array([one])) for one in batch["id"].tolist()]
        yield from parts

    async def outcome(ds: aiodata.Dataset) -> Any:
        try:
            schema = await ds.schema()
            batches = [batch async for batch in ds.aiter_batches(batch_size=2, batch_format="pyarrow")]
            assert await ds.count() == sum(batch.num_rows for batch in batches)
        except aiodata.TaskError:
            # Of several errors any may be told, but whether there is one does not depend on chance.
            return "an error"
        for batch in batches:
            assert batch.schema == schema
        rows = [row for batch in batches for row in oracle.rows_of(batch)]
        return schema, rows if preserve_order else sorted(rows)

    def run(num_cpus: int, blocks: int) -> Any:
        ds = aiodata.range(num_rows, num_blocks=blocks).map_batches(change)
        if is_twice:
            ds = ds.map_batches(lambda table: table, batch_format="pyarrow")
        ds = ds.with_options(runtime="local", num_cpus=num_cpus, preserve_order=preserve_order)
        return aiodata.run(lambda: outcome(ds))

    first = run(1, 1)
    for num_cpus in (1, 2, 16):
        assert run(num_cpus, num_blocks) == first
