"""Rows, bundles and materialized datasets; whole blocks and huge batches; consumers that never wait, or block."""

from __future__ import annotations

import asyncio
import random
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray

import aiodata
from tests.conftest import collect, stored_bytes, until

pytestmark = pytest.mark.usefixtures("clean")

local_only = pytest.mark.parametrize("runtime", ["local"])

FORMATS = ["numpy", "pyarrow", "pandas", "polars", *(["torch"] if find_spec("torch") else [])]

Batch = dict[str, Any]


def counted(runtime: str, num_rows: int = 100, *, num_blocks: int = 4) -> aiodata.Dataset:
    return aiodata.range(num_rows, num_blocks=num_blocks).with_options(runtime=runtime, preserve_order=True)


def doubled(runtime: str, log: Path | None = None) -> aiodata.Dataset:
    """A hundred rows in four blocks, that a function makes; it notes its calls in a file, from any process."""

    def double(batch: Batch) -> Batch:
        if log is not None:
            with log.open("a") as file:
                file.write("call\n")
        return {"id": batch["id"] * 2}

    return counted(runtime).map_batches(double)


def num_calls(log: Path) -> int:
    return len(log.read_text().split()) if log.exists() else 0


def ids_in(batch: Any) -> list[int]:
    return [int(one) for one in (batch["id"].to_pylist() if isinstance(batch, pa.Table) else batch["id"])]


async def row_ids(rows: aiodata.Rows | aiodata.RowIterator) -> list[int]:
    return [row["id"] async for row in rows]


def hold_the_loop(seconds: float) -> None:
    """What a consumer's own code may do."""
    time.sleep(seconds)


class Ticker:
    """Counts the turns of the loop that another task gets."""

    def __init__(self) -> None:
        self.turns = 0

    async def run(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0)


@pytest.fixture
async def ticker() -> AsyncIterator[Ticker]:
    one = Ticker()
    task = asyncio.create_task(one.run())
    yield one
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.slow
async def test_rows_are_those_of_take(runtime: str, parquet_dir: Path) -> None:
    ds = aiodata.read_parquet(parquet_dir).with_options(runtime=runtime, preserve_order=True)
    assert [row async for row in ds.aiter_rows()] == await ds.take(10_000)


@local_only
async def test_rows_of_nested_and_missing_values_are_python_objects(runtime: str) -> None:
    rows = [{"a": 1, "b": "x", "c": [1.5, None], "d": {"e": None}}, {"a": None, "b": None, "c": None, "d": None}]
    assert [row async for row in aiodata.from_items(rows).with_options(runtime=runtime).aiter_rows()] == rows


@local_only
async def test_rows_of_many_columns_come_as_well(runtime: str) -> None:
    # More columns than values are converted in one go.
    table = pa.table({f"c{index}": [index, -index, None] for index in range(3000)})
    rows = [row async for row in aiodata.from_arrow(table).with_options(runtime=runtime).aiter_rows()]
    assert rows == table.to_pylist()


@local_only
async def test_no_rows_are_an_empty_pass(runtime: str) -> None:
    rows = counted(runtime).filter(pc.field("id") < 0).aiter_rows()
    for _ in range(2):
        assert await row_ids(rows) == []


@local_only
async def test_rows_give_a_full_pass_each_time(runtime: str) -> None:
    rows = counted(runtime).aiter_rows()
    async for row in rows:
        assert row == {"id": 0}
        break
    for epoch in (1, 2):
        async with rows as iterator:
            assert await row_ids(iterator) == list(range(100))
            assert iterator.stats().epoch == epoch


async def test_breaking_out_of_rows_ends_the_run(runtime: str) -> None:
    others = asyncio.all_tasks()
    async for row in counted(runtime, 100_000, num_blocks=20).aiter_rows():
        assert row["id"] == 0
        break
    await until(lambda: asyncio.all_tasks() == others, "tasks are left")


@local_only
async def test_closed_rows_are_at_their_end(runtime: str) -> None:
    others = asyncio.all_tasks()
    rows = aiter(counted(runtime).aiter_rows())
    assert [await anext(rows) for _ in range(3)] == [{"id": 0}, {"id": 1}, {"id": 2}]
    for _ in range(2):
        await rows.aclose()
        assert asyncio.all_tasks() == others
        with pytest.raises(StopAsyncIteration):
            await anext(rows)
    with pytest.raises(aiodata.ClosedError):
        await rows.__aenter__()


@local_only
async def test_leaving_async_with_closes_rows(runtime: str) -> None:
    others = asyncio.all_tasks()
    async with counted(runtime).aiter_rows() as rows:
        assert await anext(rows) == {"id": 0}
    assert asyncio.all_tasks() == others
    with pytest.raises(StopAsyncIteration):
        await anext(rows)


@pytest.mark.slow
async def test_cancelled_next_loses_no_row(runtime: str) -> None:
    for turns in range(12 if runtime == "local" else 6):
        chance = random.Random(turns)
        ids: list[int] = []
        async with counted(runtime, 700).aiter_rows() as rows:
            while True:
                # A row that is there needs no wait, so most attempts are made where the next batch is due.
                if chance.random() < 0.5:
                    attempt = asyncio.create_task(next_row(rows))
                    for _ in range(chance.randrange(turns + 1)):
                        await asyncio.sleep(0)
                    attempt.cancel()
                    with suppress(asyncio.CancelledError):
                        if (row := await attempt) is None:
                            break
                        ids.append(row["id"])
                elif (row := await next_row(rows)) is None:
                    break
                else:
                    ids.append(row["id"])
        assert ids == list(range(700))


@local_only
async def test_failure_reaches_whoever_iterates_over_rows_after_the_rows_before(runtime: str) -> None:
    def fail(batch: Batch) -> Batch:
        if 50 in batch["id"]:
            raise ValueError("bad row")
        return batch

    ids: list[int] = []

    async def take_all() -> None:
        async for row in rows:
            ids.append(row["id"])  # noqa: PERF401 - what there is until the failure.

    rows = aiter(counted(runtime).map_batches(fail).aiter_rows())
    with pytest.raises(aiodata.TaskError, match="bad row"):
        await take_all()
    assert ids == list(range(len(ids)))
    assert len(ids) <= 50
    with pytest.raises(StopAsyncIteration):
        await anext(rows)


@local_only
@pytest.mark.slow
async def test_consumer_that_never_waits_for_rows_lets_the_loop_run(runtime: str, ticker: Ticker) -> None:
    num_rows = 50_000
    turns: list[int] = [ticker.turns async for _ in counted(runtime, num_rows, num_blocks=1).aiter_rows()]
    assert len(turns) == num_rows
    # The row numbers at which the other task had got a turn since the row before.
    seen = [number for number, (one, other) in enumerate(pairwise(turns)) if other > one]
    assert max(other - one for one, other in pairwise([0, *seen, num_rows])) < num_rows / 5


@local_only
@pytest.mark.slow
async def test_consumer_that_never_waits_for_batches_lets_the_loop_run(runtime: str, ticker: Ticker) -> None:
    num_batches = 20_000
    batches = counted(runtime, num_batches, num_blocks=1).aiter_batches(batch_size=1)
    turns: list[int] = [ticker.turns async for _ in batches]
    assert len(turns) == num_batches
    seen = [number for number, (one, other) in enumerate(pairwise(turns)) if other > one]
    assert max(other - one for one, other in pairwise([0, *seen, num_batches])) < num_batches / 5


async def test_bundles_are_references_and_no_block_is_fetched(runtime: str) -> None:
    async with doubled(runtime).aiter_bundles() as iterator:
        bundles = [bundle async for bundle in iterator]
        stats = iterator.stats()
    assert all(isinstance(bundle, aiodata.RefBundle) for bundle in bundles)
    assert [bundle.num_rows for bundle in bundles] == [25] * 4
    assert (stats.rows, stats.batches) == (100, 4)
    assert (stats.blocks, stats.bytes, stats.peak_prefetched_bytes) == (0, 0, 0)
    blocks = [block_of(bundle) for bundle in bundles]
    assert [one for block in blocks for one in block["id"].to_pylist()] == list(range(0, 200, 2))
    assert [(block.num_rows, block.schema) for block in blocks] == [
        (bundle.metadata.num_rows, bundle.metadata.schema) for bundle in bundles
    ]


@local_only
async def test_bundles_of_a_limit_are_ranges_of_their_blocks(runtime: str) -> None:
    stored = await counted(runtime).materialize()
    bundles = [bundle async for bundle in stored.limit(60).aiter_bundles()]
    assert [(bundle.start, bundle.stop, bundle.metadata.num_rows) for bundle in bundles] == [
        (0, 25, 25),
        (0, 25, 25),
        (0, 10, 25),
    ]


@local_only
async def test_bundles_of_what_is_in_memory_are_its_tables(runtime: str) -> None:
    table = pa.table({"id": range(10)})
    async for bundle in aiodata.from_arrow(table).with_options(runtime=runtime).aiter_bundles():
        assert bundle.ref.table is table


async def test_leaving_bundles_early_ends_the_run(runtime: str) -> None:
    others = asyncio.all_tasks()
    ds = counted(runtime, 10_000, num_blocks=50)
    async for bundle in ds.aiter_bundles():
        assert bundle.num_rows == 200
        break
    await until(lambda: asyncio.all_tasks() == others, "tasks are left")
    iterator = aiter(ds.aiter_bundles())
    await anext(iterator)
    await iterator.aclose()
    assert asyncio.all_tasks() == others
    with pytest.raises(StopAsyncIteration):
        await anext(iterator)


@pytest.mark.slow
async def test_cancelled_next_loses_no_bundle(runtime: str) -> None:
    for turns in range(15 if runtime == "local" else 5):
        starts: list[int] = []
        async with counted(runtime, 200, num_blocks=10).aiter_bundles() as bundles:
            while True:
                attempt = asyncio.create_task(anext(bundles, None))
                for _ in range(turns):
                    await asyncio.sleep(0)
                attempt.cancel()
                bundle = None
                with suppress(asyncio.CancelledError):
                    bundle = await attempt
                if bundle is None and (bundle := await anext(bundles, None)) is None:
                    break
                starts.append(block_of(bundle)["id"][0].as_py())
                del bundle
        assert starts == list(range(0, 200, 20)), f"after {turns} turns"


@local_only
async def test_empty_datasets_have_no_bundles(runtime: str) -> None:
    for ds in (counted(runtime).limit(0), counted(runtime, 0), counted(runtime).filter(pc.field("id") < 0)):
        assert [bundle async for bundle in ds.aiter_bundles()] == []


async def test_passes_over_a_materialized_dataset_run_no_task(runtime: str, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    stored = await doubled(runtime, log).materialize()
    made = num_calls(log)
    assert made == 4
    for _ in range(2):
        async with stored.aiter_batches(batch_size=7) as batches:
            assert [one async for batch in batches for one in ids_in(batch)] == list(range(0, 200, 2))
        assert [(one.name, one.tasks, one.rows) for one in batches.stats().operators] == [("materialized", 0, 100)]
        assert batches.stats().runtime == runtime
    assert [row async for row in stored.aiter_rows()] == await stored.take(200)
    assert num_calls(log) == made


async def test_materialized_rows_are_those_of_the_dataset_in_source_order(runtime: str, parquet_dir: Path) -> None:
    ds = aiodata.read_parquet(parquet_dir).with_options(runtime=runtime, preserve_order=False)
    stored = await ds.materialize()
    assert await stored.take(10_000) == await ds.take(10_000)
    assert await stored.schema() == await ds.schema()


async def test_materialized_dataset_knows_its_rows_and_schema_without_a_run(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await doubled(runtime, tmp_path / "calls").materialize()

    def refuse(_: object) -> None:
        raise AssertionError("a run was started")

    monkeypatch.setattr("aiodata.execution.run.choose_runtime", refuse)
    assert await stored.count() == 100
    assert await stored.limit(30).count() == 30
    assert await stored.schema() == pa.schema([("id", pa.int64())])


async def test_verbs_go_on_from_a_materialized_dataset(runtime: str, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    stored = await doubled(runtime, log).materialize()
    made = num_calls(log)
    assert await collect(stored.map_batches(lambda batch: {"id": batch["id"] + 1}, batch_size=8)) == list(
        range(1, 201, 2)
    )
    assert await collect(stored.limit(30)) == list(range(0, 60, 2))
    assert await collect(stored.filter(pc.field("id") >= 150)) == list(range(150, 200, 2))
    assert await collect(stored.limit(30).map_batches(lambda batch: {"id": -batch["id"]}).limit(3)) == [0, -2, -4]
    assert (await stored.select_columns("id").take(1)) == [{"id": 0}]
    with pytest.raises(aiodata.OptionError, match="nothing"):
        await collect(stored.select_columns("nothing"))
    assert num_calls(log) == made
    assert repr(stored) == "<Dataset materialized>"


async def test_materialized_dataset_of_a_limit_has_its_rows_alone(runtime: str) -> None:
    stored = await counted(runtime).limit(60).materialize()
    assert await stored.count() == 60
    assert await collect(stored) == list(range(60))
    again = await stored.limit(30).materialize()
    del stored
    assert await collect(again, batch_size=7) == list(range(30))
    assert await collect(again.map_batches(lambda batch: batch)) == list(range(30))


async def test_materialized_dataset_without_rows_has_a_schema(runtime: str) -> None:
    for ds in (counted(runtime).limit(0), counted(runtime).filter(pc.field("id") < 0)):
        stored = await ds.materialize()
        assert await stored.count() == 0
        assert (await stored.schema()).names == ["id"]
        assert await stored.take() == []
        assert await collect(stored.map_batches(lambda batch: batch)) == []


@local_only
async def test_materialized_dataset_may_be_iterated_by_many_at_once(runtime: str) -> None:
    stored = await doubled(runtime).materialize()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(collect(stored, batch_size=size)) for size in (3, 50, 1000)]
    assert [task.result() for task in tasks] == [list(range(0, 200, 2))] * 3


async def test_failure_while_materializing_is_that_of_the_run(runtime: str) -> None:
    def fail(_: Batch) -> Batch:
        raise ValueError("bad row")

    with pytest.raises(aiodata.TaskError, match="bad row"):
        await counted(runtime).map_batches(fail).materialize()


@local_only
async def test_local_blocks_live_as_long_as_the_dataset(runtime: str) -> None:
    stored = await counted(runtime).map_batches(lambda batch: {"id": batch["id"] + 1}).materialize()
    tables = [weakref.ref(bundle.ref.table) async for bundle in stored.aiter_bundles()]
    assert await collect(stored) == list(range(1, 101))
    assert all(table() is not None for table in tables)
    del stored
    await until(lambda: all(table() is None for table in tables), "blocks are left")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", [pytest.param("ray", marks=pytest.mark.ray)])
@pytest.mark.usefixtures("ray_cluster")
async def test_stored_blocks_live_as_long_as_the_dataset(runtime: str) -> None:
    before = stored_bytes()
    ds = aiodata.range(1_000_000, num_blocks=4).with_options(runtime=runtime)
    stored = await ds.map_batches(lambda batch: {"id": batch["id"] * 2}).materialize()
    await until(lambda: stored_bytes() >= before + 8_000_000, "the blocks are not in the store")
    limited = stored.limit(10)
    del stored
    assert await collect(limited) == list(range(0, 20, 2))
    assert stored_bytes() >= before + 8_000_000
    del limited
    await until(lambda: stored_bytes() <= before, "blocks are left in the store")


@pytest.mark.parametrize("runtime", [pytest.param("ray", marks=pytest.mark.ray)])
@pytest.mark.usefixtures("ray_cluster")
async def test_blocks_in_rays_store_are_refused_by_the_local_runtime_with_the_remedy(runtime: str) -> None:
    stored = (await doubled(runtime).materialize()).with_options(runtime="local")
    for ds in (stored, stored.map_batches(lambda batch: batch), stored.limit(3)):
        with pytest.raises(aiodata.OptionError, match=r"runtime='local' can not reach blocks in Ray's .*runtime='ray'"):
            await collect(ds)
    assert await stored.count() == 100


@pytest.mark.parametrize("runtime", [pytest.param("ray", marks=pytest.mark.ray)])
@pytest.mark.usefixtures("ray_cluster")
async def test_blocks_in_this_process_are_usable_on_ray(runtime: str) -> None:
    stored = (await doubled("local").materialize()).with_options(runtime=runtime)
    assert await collect(stored) == list(range(0, 200, 2))
    assert await collect(stored.map_batches(lambda batch: {"id": batch["id"] // 2})) == list(range(100))


@local_only
async def test_loop_lag_is_measured_if_asked_for(runtime: str) -> None:
    held_s = 0.03
    async with counted(runtime).with_options(measure_loop_lag=True).aiter_batches(batch_size=50) as batches:
        await anext(batches)
        hold_the_loop(held_s)
        await anext(batches)
        with pytest.raises(StopAsyncIteration):
            await anext(batches)
    lag = batches.stats().loop_lag
    assert lag is not None
    # A timer of 5 ms falls due six times meanwhile; the first of them is the latest.
    assert lag.samples >= 5
    assert lag.max_s > held_s - 0.01
    assert lag == batches.stats().loop_lag
    async with counted(runtime).aiter_batches() as unmeasured:
        await anext(unmeasured)
        assert unmeasured.stats().loop_lag is None


async def test_statistics_of_a_pass_add_up(runtime: str) -> None:
    batches = doubled(runtime).aiter_batches(batch_size=30)
    for epoch in range(2):
        iterator = aiter(batches)
        before = iterator.stats()
        assert (before.runtime, before.epoch, before.rows, before.first_batch_s) == ("", epoch, 0, None)
        assert [len(batch["id"]) async for batch in iterator] == [30, 30, 30, 10]
        stats = iterator.stats()
        assert (stats.runtime, stats.epoch, stats.rows, stats.batches, stats.blocks) == (runtime, epoch, 100, 4, 4)
        assert stats.bytes == sum(one.bytes for one in stats.operators) == 800
        assert stats.prefetched_bytes == 0
        assert 0 < stats.peak_prefetched_bytes <= 800
        assert stats.first_batch_s is not None
        assert 0 < stats.first_batch_s <= stats.elapsed_s
        assert stats.wait_s + stats.format_s + stats.user_s == pytest.approx(stats.elapsed_s, abs=0.05)
        assert stats == iterator.stats()


async def test_nothing_is_held_after_the_end_or_after_closing(runtime: str) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"local_shuffle_buffer_size": 20},
        {"collate_fn": ids_in},
        {"finalize_fn": ids_in},
        {"max_prefetch_bytes": 1},
    ]
    for options in variants:
        batches = counted(runtime).aiter_batches(batch_size=7, **options)
        iterator = aiter(batches)
        async for _ in iterator:
            assert iterator.stats().prefetched_bytes <= 800
        assert iterator.stats().prefetched_bytes == 0
        iterator = aiter(batches)
        await anext(iterator)
        await iterator.aclose()
        assert iterator.stats().prefetched_bytes == 0
        assert iterator.stats().rows == 7


@pytest.mark.slow
async def test_whole_blocks_come_in_every_format(runtime: str) -> None:
    stored = await counted(runtime).materialize()
    for batch_format in FORMATS:
        batches = stored.aiter_batches(batch_size=None, batch_format=batch_format)
        blocks = [ids_in(batch) async for batch in batches]
        assert blocks == [list(range(start, start + 25)) for start in range(0, 100, 25)], batch_format


@local_only
async def test_whole_blocks_of_many_chunks_are_one_batch_each() -> None:
    chunks = [pa.table({"id": range(start, start + 5)}) for start in range(0, 50, 5)]
    tables = [pa.concat_tables(chunks[:6]), pa.table({"id": pa.array([], pa.int64())}), pa.concat_tables(chunks[6:])]
    ds = aiodata.from_arrow(tables).with_options(runtime="local")
    for batch_format in FORMATS:
        batches = ds.aiter_batches(batch_size=None, batch_format=batch_format)
        assert [ids_in(batch) async for batch in batches] == [list(range(30)), list(range(30, 50))], batch_format


@pytest.mark.slow
async def test_batch_larger_than_all_rows_holds_them_all_in_every_format(runtime: str) -> None:
    stored = await counted(runtime).materialize()
    for batch_format in FORMATS:
        for batch_size in (101, 10**15):
            batches = stored.aiter_batches(batch_size=batch_size, batch_format=batch_format)
            assert [ids_in(batch) async for batch in batches] == [list(range(100))], batch_format
            dropped = stored.aiter_batches(
                batch_size=batch_size, batch_format=batch_format, drop_last=True, max_prefetch_bytes=1
            )
            assert [batch async for batch in dropped] == []


@pytest.mark.slow
async def test_batches_of_many_blocks_are_full_in_every_format(runtime: str) -> None:
    ds = await counted(runtime, 500, num_blocks=40).materialize()
    for batch_format in FORMATS:
        for options in ({}, {"max_prefetch_bytes": 1}):
            batches = ds.aiter_batches(batch_size=180, batch_format=batch_format, **options)  # type: ignore[arg-type]
            assert [ids_in(batch) async for batch in batches] == [
                list(range(180)),
                list(range(180, 360)),
                list(range(360, 500)),
            ]


@local_only
@pytest.mark.slow
async def test_batches_of_megabytes_that_many_blocks_make_are_joined_in_every_format() -> None:
    # 30 blocks of half a MiB: a batch of 20 is joined in a thread, where joining copies.
    ds = counted("local", 30 << 16, num_blocks=30)
    for batch_format in FORMATS:
        batches = ds.aiter_batches(batch_size=20 << 16, batch_format=batch_format)
        sizes, total = [], 0
        async for batch in batches:
            sizes.append(len(batch) if batch_format in {"pandas", "polars"} else len(batch["id"]))
            total += int(pc.sum(batch["id"]).as_py() if batch_format == "pyarrow" else batch["id"].sum())
        assert sizes == [20 << 16, 10 << 16]
        assert total == sum(range(30 << 16))


@pytest.mark.slow
async def test_consumer_that_blocks_the_loop_gets_every_row(runtime: str) -> None:
    ds = counted(runtime, num_blocks=5).map_batches(lambda batch: batch, batch_size=5)
    variants: list[dict[str, Any]] = [{}, {"collate_fn": lambda batch: batch}, {"prefetch_batches": 0}]
    for options in variants:
        ids: list[int] = []
        async for batch in ds.aiter_batches(batch_size=10, **options):
            hold_the_loop(0.01)
            ids += ids_in(batch)
        assert ids == list(range(100))


async def next_row(rows: aiodata.RowIterator) -> dict[str, Any] | None:
    """The next row, or None at the end: a task can not raise StopAsyncIteration."""
    return await anext(rows, None)


def block_of(bundle: aiodata.RefBundle) -> pa.Table:
    return ray.get(bundle.ref) if isinstance(bundle.ref, ray.ObjectRef) else bundle.ref.table
