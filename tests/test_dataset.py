"""Dataset's verbs, on both runtimes: what they return, what they refuse, and that they change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import aiodata
from tests.conftest import collect

pytestmark = pytest.mark.loops("asyncio")

Batch = dict[str, Any]

RETURNED: dict[str, Callable[[Batch], Any]] = {
    "dict_of_arrays": lambda batch: {"id": batch["id"] * 2},
    "dict_of_lists": lambda batch: {"id": [int(one) * 2 for one in batch["id"]]},
    "dict_of_arrow_arrays": lambda batch: {"id": pa.array(batch["id"] * 2)},
    "dict_of_pandas_series": lambda batch: {"id": pd.Series(batch["id"] * 2)},
    "table": lambda batch: pa.table({"id": batch["id"] * 2}),
    "record_batch": lambda batch: pa.RecordBatch.from_pydict({"id": batch["id"] * 2}),
    "pandas": lambda batch: pd.DataFrame({"id": batch["id"] * 2}, index=batch["id"] + 7),
    "polars": lambda batch: pl.DataFrame({"id": batch["id"] * 2}),
}

WRONG: dict[str, Any] = {
    "none": None,
    "number": 5,
    "text": "rows",
    "list": [1, 2],
    "array": np.ones(3),
    "scalar_column": {"x": 1},
    "text_column": {"x": "abc"},
}


def counted(runtime: str, num_rows: int = 100, *, num_blocks: int = 4) -> aiodata.Dataset:
    return aiodata.range(num_rows, num_blocks=num_blocks).with_options(runtime=runtime, preserve_order=True)


def same(batch: Any) -> Any:
    return batch


@pytest.mark.parametrize("returned", RETURNED.values(), ids=RETURNED)
async def test_map_batches_takes_whatever_holds_columns(runtime: str, returned: Callable[[Batch], Any]) -> None:
    ds = counted(runtime).map_batches(returned, batch_size=10)
    assert await collect(ds) == [2 * one for one in range(100)]
    assert (await ds.schema()).names == ["id"]


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
async def test_map_batches_refuses_what_is_no_batch(runtime: str, value: Any) -> None:
    def wrong(_: Batch) -> Any:
        return value

    with pytest.raises(aiodata.TaskError, match=r"map_batches\(wrong\)") as caught:
        await collect(counted(runtime).map_batches(wrong))
    assert isinstance(caught.value.__cause__, TypeError)
    assert type(value).__name__ in str(caught.value) or "column 'x'" in str(caught.value)


async def test_columns_of_different_lengths_are_refused(runtime: str) -> None:
    with pytest.raises(aiodata.TaskError, match="one length") as caught:
        await collect(counted(runtime).map_batches(lambda _: {"a": [1], "b": [1, 2]}))
    assert isinstance(caught.value.__cause__, ValueError)


async def test_map_batches_with_a_generator_keeps_every_output_in_order(runtime: str) -> None:
    def repeat(batch: Batch) -> Iterator[Any]:
        yield {"id": batch["id"]}
        yield pa.table({"id": batch["id"][:0]})
        yield pl.DataFrame({"id": batch["id"] + 1000})

    ds = counted(runtime, 20, num_blocks=1).map_batches(repeat, batch_size=10)
    assert await collect(ds) == [*range(10), *range(1000, 1010), *range(10, 20), *range(1010, 1020)]


async def test_map_batches_with_a_generator_that_yields_nothing_drops_the_batch(runtime: str) -> None:
    def odd_calls(batch: Batch) -> Iterator[Batch]:
        if batch["id"][0] % 20:
            yield batch

    assert await collect(counted(runtime, 40, num_blocks=1).map_batches(odd_calls, batch_size=10)) == [
        *range(10, 20),
        *range(30, 40),
    ]


async def test_map_batches_gives_exactly_batch_size_rows(runtime: str) -> None:
    ds = counted(runtime, 95, num_blocks=1).map_batches(lambda batch: {"n": [len(batch["id"])]}, batch_size=10)
    assert await collect(ds, "n") == [10] * 9 + [5]


@pytest.mark.parametrize(
    ("batch_format", "kind"),
    [("numpy", dict), ("pyarrow", pa.Table), ("pandas", pd.DataFrame), ("polars", pl.DataFrame)],
)
async def test_map_batches_gives_the_format_asked_for(runtime: str, batch_format: str, kind: type) -> None:
    def check(batch: Any) -> Any:
        assert isinstance(batch, kind)
        return batch

    ds = counted(runtime).map_batches(check, batch_format=batch_format, batch_size=7)
    assert await collect(ds) == list(range(100))


async def test_map_batches_passes_arguments_on(runtime: str) -> None:
    def scale(batch: Batch, factor: int, *, offset: int) -> Batch:
        return {"id": batch["id"] * factor + offset}

    ds = counted(runtime).map_batches(scale, fn_args=[3], fn_kwargs={"offset": 5})
    assert await collect(ds) == [3 * one + 5 for one in range(100)]


async def test_map_batches_takes_closures_methods_and_callable_objects(runtime: str) -> None:
    class Add:
        def __init__(self, amount: int) -> None:
            self.amount = amount

        def __call__(self, batch: Batch) -> Batch:
            return {"id": batch["id"] + self.amount}

    amount = 100
    ds = counted(runtime, 5).map_batches(lambda batch: {"id": batch["id"] + amount})
    ds = ds.map_batches(Add(1000)).map_batches(Add(10_000).__call__)
    assert await collect(ds) == [11_100 + one for one in range(5)]
    assert "map_batches(Add)" in ds.explain()


async def test_function_that_can_not_be_sent_is_refused_on_ray_with_its_name(ray_cluster: None) -> None:
    generator = (one for one in range(3))

    def unsendable(batch: Batch) -> Batch:
        next(generator)
        return batch

    with pytest.raises(aiodata.OptionError, match=r"unsendable.*can not be sent to a worker"):
        await collect(counted("ray").map_batches(unsendable))


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        (lambda ds: ds.map_batches(3), "fn=3"),
        (lambda ds: ds.map_batches(same, concurrency=0), "concurrency=0"),
        (lambda ds: ds.map_batches(same, concurrency=True), "concurrency=True"),
        (lambda ds: ds.map_batches(same, concurrency=(1, 2)), "only a class"),
        (lambda ds: ds.map_batches(same, num_cpus=-1), "num_cpus=-1"),
        (lambda ds: ds.map_batches(same, fn_constructor_args=(1,)), "are for a class"),
        (lambda ds: ds.union(3), "3 must be a Dataset"),
        (lambda ds: ds.map_batches(same, batch_size=0), "batch_size=0"),
        (lambda ds: ds.map_batches(same, batch_size=True), "batch_size=True"),
        (lambda ds: ds.map_batches(same, batch_format="torchy"), "torchy"),
        (lambda ds: ds.select_columns([]), "at least one column"),
        (lambda ds: ds.filter(lambda row: True), "pyarrow.compute.Expression"),
        (lambda ds: ds.limit(-1), "n=-1"),
        (lambda ds: ds.limit(1.5), "n=1.5"),
        (lambda ds: ds.with_options(nonsense=1), "unknown option 'nonsense'"),
        (lambda ds: ds.with_options(runtime="moon"), "runtime='moon'"),
        (lambda ds: ds.with_options(num_cpus=0), "num_cpus=0"),
        (lambda ds: ds.with_options(target_block_bytes=0), "target_block_bytes=0"),
        (lambda ds: ds.with_options(close_timeout_s=0), "close_timeout_s=0"),
        (lambda ds: ds.aiter_batches(batch_size=0), "batch_size=0"),
        (lambda ds: ds.aiter_batches(batch_size=2.0), "batch_size=2.0"),
        (lambda ds: ds.aiter_batches(batch_format="x"), "batch_format='x'"),
        (lambda ds: ds.aiter_batches(prefetch_batches=-1), "prefetch_batches=-1"),
        (lambda _: aiodata.range(-1), "n=-1"),
        (lambda _: aiodata.range(5, num_blocks=0), "num_blocks=0"),
        (lambda _: aiodata.from_arrow([]), "at least one table"),
        (lambda _: aiodata.read_parquet([]), "at least one file"),
        (lambda _: aiodata.read_parquet("x", filter="a > 3"), "a > 3"),
    ],
)
def test_value_that_can_not_work_is_refused_at_once_with_its_value(
    verb: Callable[[aiodata.Dataset], Any], words: str
) -> None:
    with pytest.raises(aiodata.OptionError) as caught:
        verb(aiodata.range(3))
    assert words in str(caught.value)


async def test_negative_number_of_rows_to_take_is_refused() -> None:
    with pytest.raises(aiodata.OptionError, match="n=-1"):
        await aiodata.range(3).take(-1)


async def test_select_columns_keeps_the_order_given(runtime: str) -> None:
    ds = aiodata.from_items([{"a": 1, "b": 2, "c": 3}]).with_options(runtime=runtime)
    assert (await ds.select_columns(["c", "a"]).schema()).names == ["c", "a"]
    assert [list(row.items()) for row in await ds.select_columns(["c", "a"]).take()] == [[("c", 3), ("a", 1)]]
    assert await ds.select_columns("b").take() == [{"b": 2}]


async def test_selecting_a_missing_column_names_it_whatever_is_asked(runtime: str) -> None:
    ds = counted(runtime).select_columns(["id", "nope"])
    message = r"select_columns\(\['id', 'nope'\]\): there is no column 'nope'; the columns are \['id'\]"
    for ask in (lambda: collect(ds), ds.schema, ds.count):
        with pytest.raises(aiodata.OptionError, match=message):
            await ask()


@pytest.mark.parametrize("n", [0, 1, 99, 100, 101, 10**9])
async def test_limit_lets_n_rows_through(runtime: str, n: int) -> None:
    expected = list(range(100))[:n]
    assert await collect(counted(runtime).limit(n)) == expected
    assert await collect(counted(runtime).limit(n).map_batches(same)) == expected
    assert await collect(counted(runtime).map_batches(same, batch_size=3).limit(n)) == expected
    assert await counted(runtime).map_batches(same).limit(n).count() == len(expected)


async def test_limit_between_two_maps_limits_what_the_second_sees(runtime: str) -> None:
    def twice(batch: Batch) -> Iterator[Batch]:
        yield batch
        yield batch

    ds = counted(runtime, num_blocks=1).map_batches(twice, batch_size=10).limit(15).map_batches(twice)
    assert sorted(await collect(ds)) == sorted([*range(10), *range(5)] * 2)
    assert await collect(ds.limit(40).limit(3)) == [0, 1, 2]


async def test_limit_without_order_lets_n_different_rows_through(runtime: str) -> None:
    ids = await collect(aiodata.range(1000, num_blocks=7).with_options(runtime=runtime).limit(300))
    assert len(ids) == len(set(ids)) == 300


async def test_filter_drops_rows_for_which_it_is_false_or_null(runtime: str) -> None:
    ds = aiodata.from_items([{"x": 1}, {"x": None}, {"x": 3}, {"x": 4}]).with_options(runtime=runtime)
    assert await collect(ds.filter(pc.field("x") > 1).filter(pc.field("x") < 4), "x") == [3]
    assert await ds.filter(pc.field("x") > 9).count() == 0
    assert (await ds.filter(pc.field("x") > 9).take_batch())["x"].tolist() == []


def test_a_column_that_is_selected_twice_is_refused_whatever_the_source() -> None:
    for ds in (aiodata.range(2), aiodata.from_items([{"id": 1}]), aiodata.read_parquet("x.parquet")):
        with pytest.raises(aiodata.OptionError, match=r"\['id'\] more than once; name each column once"):
            ds.select_columns(["id", "id"])


async def test_verbs_can_be_chained(runtime: str) -> None:
    ds = counted(runtime).filter(pc.field("id") >= 10).map_batches(lambda batch: {**batch, "y": batch["id"] * 2})
    ds = ds.select_columns("y").limit(50).filter(pc.field("y") < 30).map_batches(same, batch_size=3)
    assert await collect(ds, "y") == [20, 22, 24, 26, 28]


async def test_verb_leaves_its_dataset_unchanged(runtime: str) -> None:
    ds = counted(runtime, 10)
    before = ds.explain()
    ds.map_batches(lambda batch: {"id": batch["id"] + 1})
    ds.filter(pc.field("id") > 5)
    ds.limit(2)
    ds.select_columns("id")
    ds.with_options(preserve_order=False, runtime="local")
    assert ds.explain() == before
    assert await collect(ds) == list(range(10))


def test_later_change_of_the_arguments_given_changes_nothing() -> None:
    columns, kwargs = ["id"], {"offset": 1}

    def add(batch: Batch, offset: int) -> Batch:
        return {"id": batch["id"] + offset}

    ds = aiodata.range(1).select_columns(columns).map_batches(add, fn_kwargs=kwargs)
    explained = ds.explain()
    columns.append("nope")
    kwargs["offset"] = 100
    assert ds.explain() == explained


def test_explain_and_repr_show_the_stages() -> None:
    ds = aiodata.range(10).map_batches(same).limit(3).select_columns("id")
    assert ds.explain().splitlines() == [
        "range(10) -> map_batches(same) -> limit(3)    one task reads and transforms",
        "limit(3)                                      narrows row ranges, then ends what is before it",
        "select_columns(['id'])                        tasks transform blocks",
    ]
    assert repr(ds) == "<Dataset range(10) -> map_batches(same) -> limit(3) | limit(3) | select_columns(['id'])>"
    assert repr(aiodata.from_items([1])) == "<Dataset from_items>"


@pytest.mark.slow
async def test_questions_are_answered_with_and_without_transforms(runtime: str) -> None:
    plain = counted(runtime)
    for ds, factor in ((plain, 1), (plain.map_batches(lambda batch: {"id": batch["id"] * 2.0}), 2)):
        assert await ds.count() == 100
        assert (await ds.schema()).names == ["id"]
        assert await ds.take(3) == [{"id": 0}, {"id": factor}, {"id": 2 * factor}]
        assert len(await ds.take()) == 20
        assert await ds.take(0) == []
        assert len(await ds.take(1000)) == 100
        assert (await ds.take_batch(3))["id"].tolist() == [0, factor, 2 * factor]
        assert (await ds.take_batch(3, batch_format="polars"))["id"].to_list() == [0, factor, 2 * factor]
        assert (await ds.take_batch(0))["id"].tolist() == []


async def test_take_gives_the_first_rows_whatever_the_order_of_a_run(runtime: str) -> None:
    ds = aiodata.range(1000, num_blocks=9).with_options(runtime=runtime, preserve_order=False)
    assert await ds.take(30) == [{"id": one} for one in range(30)]
    assert (await ds.take_batch(500, batch_format="pandas"))["id"].tolist() == list(range(500))


@pytest.mark.parametrize("num_rows", [0, 2])
async def test_take_batch_looks_as_the_batches_of_an_iteration(num_rows: int) -> None:
    whole = aiodata.range(2).with_options(runtime="local")
    with_nulls = aiodata.from_items([{"x": 1}, {"x": None}]).with_options(runtime="local")
    frame = await whole.take_batch(num_rows, batch_format="pandas")
    assert frame["id"].dtype == "int64"
    assert (await with_nulls.take_batch(num_rows, batch_format="pandas"))["x"].dtype == "Int64"
    assert isinstance((await with_nulls.take_batch(num_rows))["x"], np.ma.MaskedArray)
    batch = await whole.take_batch(num_rows)
    assert batch["id"].flags.writeable
    assert not isinstance(batch["id"], np.ma.MaskedArray)


async def test_empty_datasets_have_no_batches_and_a_schema(runtime: str) -> None:
    schema = pa.schema([("x", pa.int64()), ("s", pa.string())])
    ds = aiodata.from_arrow(schema.empty_table()).with_options(runtime=runtime)
    for empty in (ds, ds.limit(5), ds.filter(pc.field("x") > 0), counted(runtime, 10).limit(0)):
        assert await empty.count() == 0
        assert await empty.take() == []
        assert [batch async for batch in empty.aiter_batches()] == []
        assert [batch async for batch in empty.aiter_batches(batch_size=None)] == []
    assert await ds.schema() == schema
    assert (await ds.take_batch(batch_format="pyarrow")).schema == schema
    assert await ds.map_batches(same).count() == 0
    assert await counted(runtime, 0).map_batches(same).take() == []
    assert await aiodata.from_items([]).with_options(runtime=runtime).take() == []


async def test_schema_of_transformed_rows_is_known_though_a_limit_lets_none_through(runtime: str) -> None:
    ds = counted(runtime).map_batches(lambda batch: {"y": batch["id"]}).limit(0)
    assert (await ds.schema()).names == ["y"]


@pytest.mark.slow
async def test_order_is_kept_if_asked_for_through_every_stage(runtime: str) -> None:
    ds = aiodata.range(5000, num_blocks=20).with_options(runtime=runtime, preserve_order=True, target_block_bytes=1000)
    assert await collect(ds.map_batches(same, batch_size=50).limit(4000).map_batches(same)) == list(range(4000))


async def test_from_items_fills_in_what_a_row_lacks() -> None:
    ds = aiodata.from_items([{"a": 1}, {"b": "x"}, {"a": 2, "b": "y"}]).with_options(runtime="local")
    assert await ds.take() == [{"a": 1, "b": None}, {"a": None, "b": "x"}, {"a": 2, "b": "y"}]
    assert await aiodata.from_items(["a", "b"]).take() == [{"item": "a"}, {"item": "b"}]
    assert await aiodata.from_items(one for one in (1.5, None)).take() == [{"item": 1.5}, {"item": None}]


def test_items_of_types_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(aiodata.AiodataError, match="item"):
        aiodata.from_items([1, "a"])


@pytest.mark.parametrize(
    "make",
    [
        lambda table: table,
        lambda table: [table.slice(0, 1), table.slice(1)],
        lambda table: table.to_batches()[0],
        lambda table: pa.RecordBatchReader.from_batches(table.schema, table.to_batches()),
        pl.from_arrow,
        lambda table: table.to_pandas(),
        lambda table: [pl.from_arrow(table.slice(0, 2)), table.slice(2)],
    ],
    ids=["table", "tables", "record_batch", "reader", "polars", "pandas", "mixed"],
)
async def test_from_arrow_takes_whatever_speaks_arrow(runtime: str, make: Callable[[pa.Table], Any]) -> None:
    ds = aiodata.from_arrow(make(pa.table({"x": [1, 2, 3], "y": [0.5, None, 1.5]}))).with_options(runtime=runtime)
    expected = [{"x": 1, "y": 0.5}, {"x": 2, "y": None}, {"x": 3, "y": 1.5}]
    assert await ds.take() == expected
    assert await ds.take() == expected
    assert await ds.count() == 3


def test_from_arrow_refuses_what_holds_no_columns() -> None:
    with pytest.raises(aiodata.OptionError, match="obj=5 cannot be read: cannot make a block of int"):
        aiodata.from_arrow(5)


@pytest.mark.parametrize("num_blocks", [1, 3, 10, 100])
async def test_range_has_the_number_of_blocks_asked_for(runtime: str, num_blocks: int) -> None:
    blocks = [
        batch["id"].tolist() async for batch in counted(runtime, num_blocks=num_blocks).aiter_batches(batch_size=None)
    ]
    assert [one for block in blocks for one in block] == list(range(100))
    assert len(blocks) == num_blocks
