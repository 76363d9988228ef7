"""Failures that a run goes on after: as little as possible is lost, all of it is told, and its file is named."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import aiodata
from tests.conftest import collect

pytestmark = pytest.mark.usefixtures("clean")

Batch = dict[str, Any]
BAD = {0, 6, 7, 55, 99}


def check(batch: Batch) -> Batch:
    for one in batch["id"].tolist():
        if one in BAD:
            raise ValueError(f"bad {one}")
    return {"id": batch["id"], "x": batch["id"] * 0.5}


async def check_later(batch: Batch) -> Batch:
    return check(batch)


class Check:
    """Fails with the same rows."""

    def __call__(self, batch: Batch) -> Batch:
        return check(batch)


def fail(batch: Batch) -> Batch:
    raise ValueError("always")


def same(batch: Batch) -> Batch:
    return batch


class Same:
    """Changes nothing, in an actor."""

    def __call__(self, batch: Batch) -> Batch:
        return batch


def numbers(runtime: str, **options: Any) -> aiodata.Dataset:
    return aiodata.range(100, num_blocks=3).with_options(runtime=runtime, **options)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(one.levelno, one.getMessage()) for one in caplog.records if one.name == "aiodata"]


@pytest.mark.parametrize("fn", [check, check_later, Check])
async def test_just_the_bad_rows_are_dropped_and_each_is_listed(runtime: str, fn: Callable[..., Any]) -> None:
    ds = numbers(runtime).map_batches(fn, batch_size=16, on_error="skip_row", concurrency=1)
    assert sorted(await collect(ds)) == [one for one in range(100) if one not in BAD]
    stats = ds.stats()
    assert (stats.errored_rows, stats.errored_blocks) == (len(BAD), 0)
    assert {line.rpartition(" ")[2] for line in stats.errors} == {str(one) for one in BAD}
    assert all(f"row {line.rpartition(' ')[2]}: ValueError" in line for line in stats.errors)


async def test_bad_rows_stay_with_nulls(runtime: str) -> None:
    schema = pa.schema({"id": pa.int64(), "x": pa.float64()})
    ds = numbers(runtime).map_batches(check, batch_size=16, on_error="null", schema=schema)
    rows = await ds.take(100)
    assert rows == [{"id": one, "x": None if one in BAD else one / 2} for one in range(100)]
    assert ds.stats().errored_rows == len(BAD)


async def ask_count(ds: aiodata.Dataset) -> aiodata.Dataset:
    assert await ds.count() == 95
    return ds


async def ask_take(ds: aiodata.Dataset) -> aiodata.Dataset:
    assert len(await ds.take(100)) == 95
    return ds


async def ask_take_batch(ds: aiodata.Dataset) -> aiodata.Dataset:
    assert len((await ds.take_batch(100))["id"]) == 95
    return ds


async def ask_materialize(ds: aiodata.Dataset) -> aiodata.Dataset:
    made = await ds.materialize()
    assert made.stats() == ds.stats()
    return made


@pytest.mark.parametrize("ask", [ask_count, ask_take, ask_take_batch, ask_materialize])
async def test_verbs_that_return_values_leave_the_list_in_the_statistics(
    runtime: str, ask: Callable[[aiodata.Dataset], Any], caplog: pytest.LogCaptureFixture
) -> None:
    ds = numbers(runtime).map_batches(check, batch_size=16, on_error="skip_row")
    assert ds.stats() == aiodata.range(1).stats(), "nothing has run"
    asked = await ask(ds)
    assert asked.stats().errored_rows == len(asked.stats().errors) == 5
    assert "skipped: map_batches(check) failed on range" in str(asked.stats())
    [first, summary] = warnings_in(caplog)
    assert first == (logging.WARNING, f"the run goes on after a failure: {asked.stats().errors[0]}")
    assert summary[0] == logging.WARNING
    assert summary[1].startswith(f"the run went on after 5 failed rows; the first: {asked.stats().errors[0]}")


async def test_rows_before_a_limit_are_listed_with_it(runtime: str) -> None:
    ds = numbers(runtime).map_batches(check, batch_size=4, on_error="skip_row")
    assert [row["id"] for row in await ds.take(3)] == [1, 2, 3]
    assert "map_batches(check) failed on range, block at 0, row 0: ValueError: bad 0" in ds.stats().errors


@pytest.mark.parametrize("verb", ["count", "take", "take_batch", "materialize"])
async def test_run_that_loses_all_says_so_loudly_and_once(
    runtime: str, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    ds = numbers(runtime, max_errored_blocks=-1).map_batches(fail, schema=pa.schema({"id": pa.int64()}))
    await getattr(ds, verb)()
    assert ds.stats().errored_blocks == len(ds.stats().errors) >= 3
    [first, (level, text)] = warnings_in(caplog)
    assert first[0] == logging.WARNING
    assert level == logging.ERROR
    assert text.startswith(f"no row is left: the run went on after {ds.stats().errored_blocks} failures; the first: ")
    assert "ValueError: always" in text


async def test_run_that_skips_nothing_warns_of_nothing(runtime: str, caplog: pytest.LogCaptureFixture) -> None:
    ds = numbers(runtime, max_errored_blocks=-1).map_batches(same, on_error="skip_row")
    assert await ds.count() == 100
    assert warnings_in(caplog) == []
    assert (ds.stats().errors, ds.stats().errored_rows) == ((), 0)


@pytest.mark.parametrize("verb", ["schema", "count"])
async def test_files_that_cannot_be_read_are_listed_by_questions_too(
    runtime: str, verb: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "good.parquet")
    (tmp_path / "bad.parquet").write_text("this is no Parquet file")
    ds = aiodata.read_parquet(tmp_path).with_options(runtime=runtime, max_errored_blocks=-1)
    await getattr(ds, verb)()
    [line] = ds.stats().errors
    assert "bad.parquet" in line
    assert ds.stats().errored_blocks == 1
    assert "bad.parquet" in warnings_in(caplog)[-1][1]


async def test_question_that_needs_no_run_leaves_empty_statistics(runtime: str) -> None:
    ds = numbers(runtime).map_batches(check, on_error="skip_row")
    await ds.count()
    assert ds.stats().errors
    plain = numbers(runtime)
    await collect(plain)
    assert plain.stats().operators
    await plain.count()
    assert plain.stats() == ds.limit(1).stats()


@pytest.mark.parametrize("value", ["skip", None, 1])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(aiodata.OptionError, match="'raise', 'skip_row', 'null'"):
        aiodata.range(1).map_batches(same, on_error=value)


@pytest.mark.parametrize("on_error", ["skip_row", "null"])
def test_generators_are_refused(on_error: str) -> None:
    def numbers(batch: Batch) -> Any:
        yield batch

    async def later(batch: Batch) -> Any:
        yield batch

    for fn in (numbers, later):
        with pytest.raises(aiodata.OptionError, match="generator function"):
            aiodata.range(1).map_batches(fn, on_error=on_error)


def test_nulls_need_a_schema_that_may_have_them() -> None:
    with pytest.raises(aiodata.OptionError, match="give schema="):
        aiodata.range(1).map_batches(same, on_error="null")
    strict = pa.schema([pa.field("id", pa.int64(), nullable=False)])
    with pytest.raises(aiodata.OptionError, match=r"columns \['id'\]"):
        aiodata.range(1).map_batches(same, on_error="null", schema=strict)


@pytest.fixture
def small_files(tmp_path: Path) -> Path:
    """Twenty files of five rows: id, from 0 on."""
    for index in range(20):
        pq.write_table(pa.table({"id": range(5 * index, 5 * index + 5)}), tmp_path / f"part-{index:02}.parquet")
    return tmp_path


def rebatched(ds: aiodata.Dataset) -> aiodata.Dataset:
    return ds.map_batches(same, batch_size=7, num_cpus=1).map_batches(same, batch_size=30, num_cpus=0.5)


CHAINS: dict[str, Callable[[aiodata.Dataset], aiodata.Dataset]] = {
    "tasks": lambda ds: ds.map_batches(same, num_cpus=1),
    "actors": lambda ds: ds.map_batches(Same, concurrency=1).map_batches(same, num_cpus=1),
    "batches": rebatched,
    "limit": lambda ds: ds.limit(80).map_batches(same, num_cpus=1),
    "select": lambda ds: rebatched(ds).select_columns("id"),
    "union": lambda ds: ds.union(aiodata.range(3)).map_batches(same, batch_size=9, num_cpus=1),
    "async": lambda ds: ds.map_batches(check_nothing, batch_size=3, num_cpus=1),
}


async def check_nothing(batch: Batch) -> Batch:
    return batch


def fail_with_53(batch: Batch) -> Batch:
    if 53 in batch["id"]:
        raise ValueError("bad")
    return batch


@pytest.mark.parametrize("chain", CHAINS)
async def test_file_row_group_and_row_are_named_behind_any_number_of_stages(
    runtime: str, small_files: Path, chain: str
) -> None:
    ds = CHAINS[chain](aiodata.read_parquet(small_files)).with_options(runtime=runtime)
    ds = ds.map_batches(fail_with_53, batch_size=16, num_cpus=0.25, on_error="skip_row")
    ids = await collect(ds)
    assert 53 not in ids
    [line] = ds.stats().errors
    path = small_files / "part-10.parquet"
    assert line == f"map_batches(fail_with_53) failed on {path}, row group 0, row 3: ValueError: bad"


async def test_row_group_is_named_of_those_that_are_read_together(runtime: str, tmp_path: Path) -> None:
    path = tmp_path / "one.parquet"
    pq.write_table(pa.table({"id": range(100)}), path, row_group_size=10)
    ds = rebatched(aiodata.read_parquet(path)).with_options(runtime=runtime)
    ds = ds.map_batches(fail_with_53, batch_size=16, num_cpus=0.25, on_error="skip_row")
    assert await ds.count() == 99
    [line] = ds.stats().errors
    assert line == f"map_batches(fail_with_53) failed on {path}, row group 5, row 3: ValueError: bad"


async def test_file_is_named_behind_a_stage_and_a_filter(runtime: str, small_files: Path) -> None:
    ds = rebatched(aiodata.read_parquet(small_files)).filter(pc.field("id") != 51)
    ds = ds.with_options(runtime=runtime).map_batches(fail_with_53, batch_size=16, num_cpus=0.25, on_error="skip_row")
    assert len(await collect(ds)) == 98
    [line] = ds.stats().errors
    path = small_files / "part-10.parquet"
    assert line == f"map_batches(fail_with_53) failed on {path}, row group 0: ValueError: bad"


async def test_batch_of_several_files_names_the_first_and_the_last(runtime: str, small_files: Path) -> None:
    ds = rebatched(aiodata.read_parquet(small_files)).with_options(runtime=runtime, preserve_order=True)
    ds = ds.map_batches(fail_with_53, batch_size=20, num_cpus=0.25)
    with pytest.raises(aiodata.TaskError) as caught:
        await collect(ds)
    assert caught.value.source == " to ".join(
        f"{small_files / f'part-{index:02}.parquet'}, row group 0" for index in (8, 11)
    )


async def test_materialized_rows_keep_their_file(runtime: str, small_files: Path) -> None:
    kept = await rebatched(aiodata.read_parquet(small_files).with_options(runtime=runtime)).materialize()
    ds = kept.map_batches(fail_with_53, batch_size=16, on_error="skip_row")
    assert await ds.count() == 99
    assert f"{small_files / 'part-10.parquet'}, row group 0, row 3: " in ds.stats().errors[0]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["ray"], indirect=True)
async def test_consumers_of_splits_are_told_what_was_skipped(runtime: str, caplog: pytest.LogCaptureFixture) -> None:
    ds = numbers(runtime).map_batches(check, batch_size=8, on_error="skip_row")
    seen: list[int] = []
    told: list[aiodata.IterationStats] = []

    async def consume(split: aiodata.SplitIterator) -> None:
        async with split.aiter_batches(batch_size=8) as batches:
            async for batch in batches:
                seen.extend(batch["id"].tolist())
            told.append(batches.stats())

    async with anyio.create_task_group() as group:
        for split in ds.streaming_split(2):
            group.start_soon(consume, split)
    assert sorted(seen) == [one for one in range(100) if one not in BAD]
    assert [(one.errored_rows, len(one.errors)) for one in told] == [(5, 5), (5, 5)]
    texts = [text for _, text in warnings_in(caplog)]
    assert sum(text.startswith("the run goes on after a failure: ") for text in texts) == 2
    assert sum(text.startswith("the run went on after 5 failed rows; ") for text in texts) == 2
