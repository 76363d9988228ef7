"""A function that changes nothing changes nothing: no value, no type, in any format and of any sort of function."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiodata
from tests.properties import oracle
from tests.properties.drawing import Case, cases, examples
from tests.properties.test_reading import read

# What docs/types.md says that a format refuses.
REFUSED = {
    "numpy": r"nanoseconds",
    "pandas": r"nanoseconds",
    "polars": r"38 digits|out of bounds|overflow|no type for|nanoseconds|zone|interval",
    "pyarrow": r"(?!)",
}


def same(batch: Any) -> Any:
    return batch


def copied(batch: Any) -> Any:
    """Other arrays, or another frame, of the same values."""
    if isinstance(batch, dict):
        return {name: values.copy() for name, values in batch.items()}
    if isinstance(batch, pa.Table):
        return pa.table([pa.concat_arrays(column.chunks) for column in batch.columns], schema=batch.schema)
    return batch.clone() if hasattr(batch, "clone") else batch.copy()


def yielded(batch: Any) -> Iterator[Any]:
    yield batch


async def awaited(batch: Any) -> Any:
    return batch


async def yielded_later(batch: Any) -> AsyncIterator[Any]:
    yield batch


@pytest.mark.slow
@examples(150)
@given(
    case=cases(),
    fmt=st.sampled_from(sorted(REFUSED)),
    fn=st.sampled_from([same, copied, yielded, awaited, yielded_later]),
    batch_size=st.sampled_from([None, 1, 2, 7]),
)
def test_identity_changes_neither_values_nor_types(
    case: Case, fmt: str, fn: Callable[[Any], Any], batch_size: int | None
) -> None:
    async def check(ds: aiodata.Dataset, table: pa.Table) -> None:
        mapped = ds.map_batches(fn, batch_format=fmt, batch_size=batch_size).with_options(preserve_order=True)
        try:
            schema, rows = await read(mapped, batch_size=3)
        except aiodata.TaskError as error:
            refusal = error.reason
        else:
            refusal = ""
        if refusal:
            assert re.search(REFUSED[fmt], refusal)
            return
        assert rows == oracle.rows_of(table)
        # Text that a function made may be any; what it only hands on is JSON still.
        if rows and not (fn is copied and pa.json_() in table.schema.types):
            assert schema.equals(table.schema)
        assert await mapped.count() == len(rows)

    with case.dataset() as (ds, expected):
        if expected.table is not None:
            table = expected.table
            aiodata.run(lambda: check(ds, table))
