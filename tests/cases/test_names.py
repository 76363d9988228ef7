"""Names: exactly the columns asked for, and an error where one name is two columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import aiodata

pytestmark = pytest.mark.loops("asyncio")

TWICE = pa.Table.from_arrays([pa.array([1]), pa.array([10]), pa.array([100])], ["id", "value", "value"])


@pytest.mark.parametrize("obj", [TWICE, [TWICE], TWICE.to_batches()[0], [pa.table({"id": [1]}), TWICE]])
def test_tables_with_two_columns_of_one_name_are_refused_by_name(obj: Any) -> None:
    with pytest.raises(aiodata.OptionError, match="value"):
        aiodata.from_arrow(obj)


@pytest.mark.parametrize("items", [[{1: 5, "1": 7}], [{1: 5}, {"1": 7}]])
def test_items_whose_keys_become_one_name_are_refused_by_name(items: list[Any]) -> None:
    with pytest.raises(aiodata.OptionError, match="'1'"):
        aiodata.from_items(items)


async def test_keys_that_are_numbers_become_names(runtime: str) -> None:
    assert await aiodata.from_items([{1: 5, 2: 6}]).with_options(runtime=runtime).take() == [{"1": 5, "2": 6}]


def table_twice() -> pa.Table:
    return pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["0", "0"])


OUTPUTS: dict[str, Callable[[], Any]] = {
    "pandas, number and text": lambda: pd.DataFrame([[1, 2]], columns=[0, "0"]),
    "pandas": lambda: pd.DataFrame([[1, 2]], columns=["0", "0"]),
    "dict": lambda: {0: [1], "0": [2]},
    "table": table_twice,
    "batch": lambda: table_twice().to_batches()[0],
}


@pytest.mark.parametrize("name", OUTPUTS)
async def test_outputs_with_two_columns_of_one_name_are_an_error_of_the_function(runtime: str, name: str) -> None:
    make = OUTPUTS[name]
    ds = aiodata.range(1).map_batches(lambda _: make()).with_options(runtime=runtime)
    for ask in (ds.take, ds.count, ds.schema):
        with pytest.raises(aiodata.TaskError, match="'0'") as caught:
            await ask()
        assert caught.value.operator.startswith("map_batches")


@pytest.fixture
def dotted(tmp_path: Path) -> Path:
    """A file with a column whose name is the path of another's member."""
    table = pa.table({"a": [{"b": 1, "c": 2}], "a.b": ["x"], "a.b.c": [True], "list.element": [[5]]})
    pq.write_table(table, tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


@pytest.mark.parametrize(
    "names", [["a.b"], ["a"], ["a.b.c", "a"], ["list.element", "a.b"], ["a", "a.b", "a.b.c", "list.element"]]
)
async def test_exactly_the_columns_asked_for_are_read(runtime: str, dotted: Path, names: list[str]) -> None:
    want = pq.read_table(dotted).select(names).to_pylist()
    every = aiodata.read_parquet(dotted).with_options(runtime=runtime)
    for ds in (
        aiodata.read_parquet(dotted, columns=names).with_options(runtime=runtime),
        every.select_columns(names),
        every.map_batches(lambda batch: batch).select_columns(names),
    ):
        assert (await ds.schema()).names == names
        assert await ds.take() == want


async def test_filters_tell_a_dotted_name_from_a_member(runtime: str, dotted: Path) -> None:
    every = aiodata.read_parquet(dotted).with_options(runtime=runtime)
    for expression, num_rows in (
        (pc.field("a.b") == "x", 1),
        (pc.field("a", "b") == 1, 1),
        (pc.field("a", "b") == 2, 0),
    ):
        assert await every.filter(expression).count() == num_rows
        assert await every.filter(expression).select_columns("a.b.c").count() == num_rows
        assert await every.map_batches(lambda batch: batch).filter(expression).count() == num_rows


@pytest.mark.parametrize("names", [["a.b", "a", "a.b"], [], [1], ["a", None]], ids=str)
def test_columns_that_are_asked_for_twice_or_are_no_names_are_refused_at_once(dotted: Path, names: list[Any]) -> None:
    every = aiodata.read_parquet(dotted)
    asks: list[Callable[[], aiodata.Dataset]] = [
        lambda: aiodata.read_parquet(dotted, columns=names),
        lambda: every.select_columns(names),
        lambda: every.map_batches(lambda batch: batch).select_columns(names),
        lambda: aiodata.range(1).union(every).select_columns(names),
    ]
    for ask in asks:
        with pytest.raises(aiodata.OptionError) as caught:
            ask()
        assert f"={names}" in str(caught.value)


async def test_one_column_may_be_given_by_its_name(runtime: str, dotted: Path) -> None:
    ds = aiodata.read_parquet(dotted, columns="a.b").with_options(runtime=runtime)
    assert await ds.take() == await aiodata.read_parquet(dotted).select_columns("a.b").take() == [{"a.b": "x"}]


async def test_a_name_that_is_nearly_right_is_asked_about(runtime: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"name": ["a"], "id": [1]}), tmp_path / "a.parquet")
    ds = aiodata.read_parquet(tmp_path).with_options(runtime=runtime)
    for wrong in (ds.select_columns("nmae"), ds.filter(pc.field("nmae") == "a"), ds.union(ds).select_columns("nmae")):
        with pytest.raises(aiodata.AiodataError, match="did you mean 'name'"):
            await wrong.take()
