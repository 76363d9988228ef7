"""A filter means one thing, wherever it is evaluated: what pyarrow says of all rows in memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiodata
from aiodata.plan.filtering import show_expression
from tests.properties import oracle
from tests.properties.drawing import POOLS, Case, array_of, cases, examples
from tests.properties.test_reading import read

OPERATORS: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a == b,
    lambda a, b: a != b,
    lambda a, b: a < b,
    lambda a, b: a <= b,
    lambda a, b: a > b,
    lambda a, b: a >= b,
]
CASTS = [pa.int64(), pa.float64(), pa.string(), pa.float32(), pa.date32(), pa.timestamp("us"), pa.bool_()]
Draw = st.DrawFn


def _leaves(schema: pa.Schema) -> list[tuple[Any, pa.DataType]]:
    """Columns, and members of structs, with their types."""
    found: list[tuple[Any, pa.DataType]] = []
    for field in schema:
        found.append((pc.field(field.name), field.type))
        if pa.types.is_struct(field.type):
            found += [(pc.field(field.name, one.name), one.type) for one in field.type]
    return found


def _scalar(draw: Draw, kind: pa.DataType) -> Any:
    """A value that a column of that type may have, more or less."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if kind not in POOLS:
        alike = [one for one in POOLS if type(one) is type(kind) and one.id == kind.id]
        if pa.types.is_decimal(kind) and alike:
            value = draw(st.sampled_from(POOLS[alike[0]]))
            return pa.scalar(value, alike[0])
        return draw(st.sampled_from([1, "a", 2.5, None]))
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_null(kind):
        return draw(st.sampled_from([1, "a", 2.5]))
    return array_of([draw(st.sampled_from(POOLS[kind]))], kind)[0]


@st.composite
def conditions(draw: Draw, schema: pa.Schema, depth: int = 2) -> Any:
    """Filters on columns of a schema; some make no sense."""
    shape = draw(st.sampled_from(["leaf", "leaf", "not", "and", "or"])) if depth else "leaf"
    if shape == "not":
        return ~draw(conditions(schema, depth - 1))
    if shape in ("and", "or"):
        a, b = draw(conditions(schema, depth - 1)), draw(conditions(schema, depth - 1))
        return a & b if shape == "and" else a | b
    field, kind = draw(st.sampled_from(_leaves(schema)))
    what = draw(st.sampled_from(["compare"] * 4 + ["isin", "null", "nan", "cast", "fields"]))
    if what == "null":
        return field.is_null(nan_is_null=draw(st.booleans()) and pa.types.is_floating(kind))
    if what == "nan":
        return pc.is_nan(field)
    compare = draw(st.sampled_from(OPERATORS))
    if what == "fields":
        return compare(field, draw(st.sampled_from(_leaves(schema)))[0])
    if what == "cast":
        target = draw(st.sampled_from(CASTS))
        return compare(field.cast(target, safe=draw(st.booleans())), _scalar(draw, target))
    if draw(st.integers(0, 9)) == 0:
        kind = draw(st.sampled_from(list(POOLS)))
    if what == "isin":
        return field.isin(_several(draw, kind))
    return compare(field, _scalar(draw, kind))


def _several(draw: Draw, kind: pa.DataType) -> Any:
    """Values that a column of that type may have."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if kind not in POOLS or isinstance(kind, pa.BaseExtensionType):
        return draw(st.sampled_from([[1, 2], ["a"], []]))
    return array_of(draw(st.lists(st.sampled_from([*POOLS[kind], None]), max_size=3)), kind)


def _oracle(table: pa.Table, condition: Any) -> Any:
    """The rows that pyarrow keeps, as a table; or None where it cannot evaluate this on such columns, or values."""
    try:
        table.schema.empty_table().filter(condition)
    except (pa.ArrowException, TypeError, ValueError):
        return "nonsense"
    try:
        return table.filter(condition)
    except pa.ArrowException:
        return "value"


def same(table: pa.Table) -> pa.Table:
    return table


def routes(ds: aiodata.Dataset, condition: Any, names: list[str]) -> dict[str, aiodata.Dataset]:
    """The ways for rows to a filter."""
    mapped = ds.map_batches(same, batch_format="pyarrow")
    return {
        "pushed down": ds.filter(condition),
        "after a function": mapped.filter(condition),
        "after a selection": ds.select_columns(names).filter(condition),
        "before a selection": ds.filter(condition).select_columns(names),
        "twice": ds.filter(condition).filter(condition),
    }


def _text(condition: Any) -> str:
    """The beginning of what an error shows of an expression."""
    return show_expression(condition)[:30]


async def check_routes(table: pa.Table, condition: Any, found: dict[str, aiodata.Dataset]) -> None:
    """Check that the rows are the same by each way, or that the same mistake is told."""
    wanted = _oracle(table, condition)
    for name, way in found.items():
        ordered = way.with_options(preserve_order=True)
        if isinstance(wanted, pa.Table):
            _, rows = await read(ordered, batch_size=None)
            assert rows == oracle.rows_of(wanted), name
            assert await way.count() == wanted.num_rows, name
            continue
        if wanted == "nonsense" and (table.num_rows or name != "after a function"):
            for ask in (way.schema, way.count, way.take):
                with pytest.raises(aiodata.OptionError) as caught:
                    await ask()
                assert re.search(r"filter\(|filter=", str(caught.value)), name
                assert _text(condition) in str(caught.value), name


@pytest.mark.slow
@examples(200)
@given(case=cases(max_columns=2), data=st.data())
def test_filters_keep_the_same_rows_wherever_they_are_evaluated(case: Case, data: st.DataObject) -> None:
    with case.dataset() as (ds, expected):
        if expected.table is None:
            return
        table = expected.table
        condition = data.draw(conditions(table.schema))
        found = routes(ds, condition, table.column_names)
        aiodata.run(lambda: check_routes(table, condition, found))
