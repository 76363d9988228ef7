"""Whatever files, or tables, hold: all rows come as one schema, which is known before, however they are cut."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiodata
from tests.properties import oracle
from tests.properties.drawing import Case, Expected, cases, examples

CPUS = (1, 2, 16)


async def read(ds: aiodata.Dataset, **options: Any) -> tuple[pa.Schema, list[str]]:
    """The schema that all batches have, and the rows."""
    batches = [batch async for batch in ds.aiter_batches(batch_format="pyarrow", **options)]
    for batch in batches:
        batch.validate(full=True)
        assert batch.schema.equals(batches[0].schema, check_metadata=True)
    schema = await ds.schema()
    if batches:
        assert batches[0].schema.equals(schema)
    return schema, [row for batch in batches for row in oracle.rows_of(batch)]


async def reason(ask: Callable[[], Awaitable[Any]]) -> str:
    """The source's error that a question ends in."""
    try:
        answer = await ask()
    except aiodata.SourceError as error:
        return str(error)
    raise AssertionError(f"no error, but {answer}")


async def check_refusal(ds: aiodata.Dataset, expected: Expected) -> None:
    """Check that types that do not go together are told whatever is asked, and values that do not fit when read."""
    told = await reason(lambda: read(ds))
    if expected.schema is None:
        assert "types that do not go together" in told
        assert {told} == {await reason(ds.schema), await reason(ds.count), await reason(ds.take)}
    else:
        assert "does not fit" in told


SHUFFLES = st.sampled_from([None, None, 1, 3, 100])
SIZES = st.sampled_from([None, 1, 2, 3, 5, 256])


@pytest.mark.slow
@examples(80)
@given(case=cases(goes_together=False), size=SIZES, shuffle=SHUFFLES, in_order=st.booleans())
def test_rows_and_schema_are_those_of_all_files_together(
    case: Case, size: int | None, shuffle: int | None, in_order: bool
) -> None:
    async def check(ds: aiodata.Dataset, expected: Expected) -> None:
        ds = ds.with_options(preserve_order=in_order)
        if expected.table is None:
            for cpus in CPUS:
                await check_refusal(ds.with_options(num_cpus=cpus), expected)
            return
        wanted = oracle.rows_of(expected.table)
        for cpus in CPUS:
            schema, rows = await read(
                ds.with_options(num_cpus=cpus),
                batch_size=size,
                **({} if shuffle is None or size is None else {"local_shuffle_buffer_size": shuffle}),
            )
            assert schema.equals(expected.schema)
            if in_order and (shuffle is None or size is None):
                assert rows == wanted
            assert sorted(rows) == sorted(wanted)
            assert await ds.count() == len(wanted)

    with case.dataset() as (ds, expected):
        aiodata.run(lambda: check(ds, expected))


@pytest.mark.slow
@examples(60)
@given(case=cases(), data=st.data())
def test_selections_and_limits_give_the_same_columns_and_rows(case: Case, data: st.DataObject) -> None:
    async def check(ds: aiodata.Dataset, table: pa.Table) -> None:
        names = data.draw(st.permutations(table.column_names))
        names = names[: data.draw(st.integers(1, len(names)))]
        limit = data.draw(st.none() | st.integers(0, table.num_rows + 1))
        changed = ds.select_columns(names).with_options(preserve_order=True)
        if limit is not None:
            changed = changed.limit(limit)
        schema, rows = await read(changed, batch_size=data.draw(SIZES))
        wanted = table.select(names).slice(0, limit)
        assert schema.equals(wanted.schema)
        assert rows == oracle.rows_of(wanted)
        assert await changed.count() == wanted.num_rows

    with case.dataset() as (ds, expected):
        if expected.table is not None:
            table = expected.table
            aiodata.run(lambda: check(ds, table))


FORMATS = ["numpy", "pandas", "polars", "torch"]


def _dtypes(batch: Any) -> dict[str, str]:
    columns = batch if isinstance(batch, dict) else {name: batch[name] for name in batch.columns}
    return {name: f"{type(column).__name__} {column.dtype} {column.shape[1:]}" for name, column in columns.items()}


def _shown(batch: Any) -> list[str]:
    columns = batch.values() if isinstance(batch, dict) else [batch[name] for name in batch.columns]
    return [repr(row) for row in zip(*map(_values, columns), strict=True)]


def _values(column: Any) -> list[Any]:
    # Pandas cannot show moments out of Python's range, nor can polars.
    if hasattr(column, "to_physical"):
        return oracle.kept(column.to_arrow())
    moments = getattr(getattr(column, "array", None), "asi8", None)
    return list(column if moments is None else moments)


@pytest.mark.slow
@examples(100)
@given(
    case=cases(goes_together=True),
    fmt=st.sampled_from(FORMATS),
    data=st.data(),
)
def test_each_format_has_one_dtype_per_column_in_all_batches_for_any_cpus(
    case: Case, fmt: str, data: st.DataObject
) -> None:
    async def outcome(ds: aiodata.Dataset, size: int | None) -> Any:
        try:
            batches = [batch async for batch in ds.aiter_batches(batch_size=size, batch_format=fmt)]
        except (aiodata.AiodataError, ValueError) as error:
            return type(error).__name__, str(error).partition(":")[0]
        dtypes = [_dtypes(batch) for batch in batches]
        assert all(one == dtypes[0] for one in dtypes)
        return dtypes[:1], [row for batch in batches for row in _shown(batch)]

    async def check(ds: aiodata.Dataset) -> None:
        ds = ds.with_options(preserve_order=True)
        first = await outcome(ds.with_options(num_cpus=1), None)
        for cpus in CPUS:
            assert await outcome(ds.with_options(num_cpus=cpus), data.draw(SIZES)) == first

    with case.dataset() as (ds, expected):
        if expected.table is not None:
            aiodata.run(lambda: check(ds))
