"""On Ray rows, types and filters are what they are in this process."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiodata
from tests.properties import oracle
from tests.properties.drawing import Case, cases, examples
from tests.properties.test_filtering import check_routes, conditions, routes, same
from tests.properties.test_reading import read


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@examples(10)
@given(case=cases(max_columns=2), data=st.data())
def test_rows_types_and_filters_are_the_same_on_ray(case: Case, data: st.DataObject) -> None:
    async def check(ds: aiodata.Dataset, table: pa.Table) -> None:
        ordered = ds.with_options(preserve_order=True)
        for one in (ordered, ordered.map_batches(same, batch_format="pyarrow", batch_size=2)):
            schema, rows = await read(one, batch_size=3)
            assert rows == oracle.rows_of(table)
            assert not rows or schema.equals(table.schema)
        condition = data.draw(conditions(table.schema))
        await check_routes(table, condition, routes(ds, condition, table.column_names))

    with case.dataset() as (ds, expected):
        if expected.table is not None:
            table = expected.table
            aiodata.run(lambda: check(ds.with_options(runtime="ray", num_cpus=2), table))
