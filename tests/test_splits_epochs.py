"""Epochs of splits on Ray: each row once per epoch, whoever reads how fast; equal shares; every way to read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import anyio
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

import aiodata
from tests.conftest import until
from tests.splits import Split, Worker, alternate, read_all, read_batches, read_epochs, together, until_stats

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("clean"), pytest.mark.loops("asyncio")]

NUM_ROWS = 400
NUM_EPOCHS = 20


@pytest.fixture
def runtime(ray_cluster: None) -> str:
    return "ray"


@pytest.fixture(scope="module")
def workers(ray_cluster: None) -> Iterator[list[Any]]:
    workers = [Worker.remote() for _ in range(2)]
    yield workers
    for worker in workers:
        ray.kill(worker)


def numbers(num_rows: int = NUM_ROWS, num_blocks: int = 16, **options: Any) -> aiodata.Dataset:
    return aiodata.range(num_rows, num_blocks=num_blocks).with_options(runtime="ray", **options)


async def read_split(workers: list[Any], splits: list[Split], function: Any, *args: Any) -> list[Any]:
    """Have each split read in a worker; several of them share one."""
    calls = [workers[split.split_index % len(workers)].run.remote(function, split, *args) for split in splits]
    return await together(*calls)


@pytest.mark.parametrize("num_splits", [1, 2, 8])
async def test_every_row_comes_once_in_each_epoch(workers: list[Any], num_splits: int) -> None:
    splits = numbers().streaming_split(num_splits)
    read = await read_split(workers, splits, read_epochs, NUM_EPOCHS, num_splits, 0.0)
    for epoch in range(NUM_EPOCHS):
        assert sorted(chain(*[one[epoch][0] for one in read])) == list(range(NUM_ROWS))
    assert (await splits[0].stats()).epoch == NUM_EPOCHS - 1


@pytest.mark.parametrize("num_splits", [1, 2, 8])
async def test_no_row_comes_twice_where_some_leave_early(workers: list[Any], num_splits: int) -> None:
    splits = numbers().streaming_split(num_splits)
    read = await read_split(workers, splits, read_epochs, NUM_EPOCHS, 10 + num_splits, 0.4)
    for epoch in range(NUM_EPOCHS):
        ids = Counter(chain(*[one[epoch][0] for one in read]))
        assert max(ids.values(), default=1) == 1
        assert set(ids) <= set(range(NUM_ROWS))
        if all(is_complete for _, is_complete in (one[epoch] for one in read)):
            assert len(ids) == NUM_ROWS


async def test_training_goes_on_at_once_after_each_validation_that_is_left_early(workers: list[Any]) -> None:
    """Two workers use both pipelines, each of which wants all CPUs."""

    def slowly(batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.02)
        return batch

    train = numbers(400, 20).map_batches(slowly, batch_size=20).streaming_split(2)
    validate = numbers(40_000, 200).map_batches(slowly, batch_size=20).streaming_split(2)
    with anyio.fail_after(100):
        calls = [worker.run.remote(alternate, *both) for worker, *both in zip(workers, train, validate, strict=True)]
        outcomes = await together(*calls)
    for epoch in range(2):
        trained = [ids for outcome in outcomes for ids in outcome[epoch].trained]
        assert sorted(trained) == list(range(400))
        validated = [set(outcome[epoch].validated) for outcome in outcomes]
        assert all(validated)
        assert not validated[0] & validated[1]
    # It was left behind at its beginning.
    assert (await validate[0].stats()).run.operators[-1].rows < 20_000


def host_threads() -> int:
    """Threads of the newest process on this cluster that hosts a coordinator."""
    hosts = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::Host")]
    return int(max(hosts, key=lambda one: one.create_time()).num_threads())


async def test_coordinator_has_as_many_threads_for_64_waiting_consumers_as_for_one() -> None:
    num_threads: dict[int, int] = {}
    for num_splits in (2, 65):
        splits = numbers().streaming_split(num_splits)
        async with anyio.create_task_group() as group:
            for split in splits[1:]:
                group.start_soon(read_all, split)
            await until_stats(splits[0], lambda stats: stats.absent == (0,))
            num_threads[num_splits] = host_threads()
            await read_all(splits[0])
    # Ray starts some as they are needed, whoever needs them.
    assert num_threads[65] <= num_threads[2] + 8


async def test_error_of_a_map_function_reaches_all_and_the_next_epoch_begins(workers: list[Any], tmp_path: Any) -> None:
    marker = tmp_path / "failed"
    path = str(marker)

    def fail_once(batch: dict[str, Any]) -> dict[str, Any]:
        if 250 in batch["id"] and not pa.fs.LocalFileSystem().get_file_info(path).is_file:
            open(path, "w").close()
            raise ValueError("row 250")
        return batch

    splits = numbers(task_max_retries=0).map_batches(fail_once).streaming_split(2)

    async def read_and_tell(split: Split) -> tuple[str, list[int]]:
        try:
            await read_all(split)
        except aiodata.TaskError as error:
            return repr(error.__cause__), await read_all(split)
        return "no error", []

    outcomes = await read_split(workers, splits, read_and_tell)
    assert [cause for cause, _ in outcomes] == ["ValueError('row 250')"] * 2
    assert sorted(outcomes[0][1] + outcomes[1][1]) == list(range(NUM_ROWS))


def uneven(path: Any) -> aiodata.Dataset:
    """Files and row groups of many sizes: 1,003 rows."""
    at = 0
    for index, num_rows in enumerate([1, 500, 7, 90, 3, 2, 300, 100]):
        pq.write_table(pa.table({"id": range(at, at + num_rows)}), path / f"{index}.parquet", row_group_size=120)
        at += num_rows
    return aiodata.read_parquet(path).with_options(runtime="ray")


@pytest.mark.parametrize("num_splits", [2, 3])
async def test_equal_splits_have_equal_rows_and_equal_batches(
    workers: list[Any], tmp_path: Any, num_splits: int
) -> None:
    splits = uneven(tmp_path).streaming_split(num_splits, equal=True)
    options = {"batch_size": 16, "drop_last": True, "local_shuffle_buffer_size": 64}
    for _ in range(2):
        whole = await read_split(workers, splits, read_batches, {"batch_size": 16})
        rows = [[row for batch in batches for row in batch] for batches in whole]
        assert [len(one) for one in rows] == [1003 // num_splits] * num_splits
        assert len(set(chain(*rows))) == 1003 - 1003 % num_splits
        assert (await splits[0].stats()).dropped_rows == 1003 % num_splits
        even = await read_split(workers, splits, read_batches, options)
        assert {len(batch) for batches in even for batch in batches} == {16}
        assert [len(batches) for batches in even] == [1003 // num_splits // 16] * num_splits


async def test_batches_of_a_split_are_like_those_of_a_dataset() -> None:
    ds = numbers(1003, 9)
    splits = ds.streaming_split(2)

    async def both(read: Callable[[Split], Any]) -> list[list[Any]]:
        outcomes: list[list[Any]] = [[], []]

        async def one(split: Split) -> None:
            outcomes[split.split_index] = [item async for item in read(split)]

        async with anyio.create_task_group() as group:
            for split in splits:
                group.start_soon(one, split)
        return outcomes

    def rows(outcomes: list[list[Any]]) -> list[int]:
        return [int(row) for batches in outcomes for batch in batches for row in batch]

    exact = await both(lambda split: split.aiter_batches(batch_size=64, collate_fn=lambda batch: batch["id"]))
    for batches in exact:
        # They come as their collation ends: the short one is the last to be cut, but may overtake another.
        shortest, *others = sorted(len(batch) for batch in batches)
        assert others == [64] * (len(batches) - 1)
        assert 1 <= shortest <= 64
    assert sorted(rows(exact)) == list(range(1003))

    dropped = await both(
        lambda split: split.aiter_batches(batch_size=64, drop_last=True, collate_fn=lambda batch: batch["id"])
    )
    assert {len(batch) for batches in dropped for batch in batches} == {64}

    shuffled = await both(
        lambda split: split.aiter_batches(
            batch_size=64, local_shuffle_buffer_size=256, local_shuffle_seed=1, collate_fn=lambda batch: batch["id"]
        )
    )
    assert sorted(rows(shuffled)) == list(range(1003))
    assert any(np.diff(batch).min() < 0 for batches in shuffled for batch in batches)

    tensors = await both(lambda split: split.aiter_torch_batches(batch_size=100, device="cpu"))
    assert sorted(row for batches in tensors for batch in batches for row in batch["id"].tolist()) == list(range(1003))

    dicts = await both(lambda split: split.aiter_rows())
    assert sorted(row["id"] for split in dicts for row in split) == list(range(1003))

    bundles = await both(lambda split: split.aiter_bundles())
    assert sum(bundle.num_rows for split in bundles for bundle in split) == 1003
    tables = [ray.get(bundle.ref) for split in bundles for bundle in split]
    assert sorted(row for table in tables for row in table["id"].to_pylist()) == list(range(1003))


async def test_order_within_a_split_is_kept_if_asked_for(workers: list[Any]) -> None:
    splits = numbers(1000, 40, preserve_order=True).streaming_split(2)
    read = await read_split(workers, splits, read_all)
    assert all(ids == sorted(ids) for ids in read)
    assert sorted(read[0] + read[1]) == list(range(1000))


class AddThousand:
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"id": batch["id"] + 1000}


async def test_splits_share_any_plan(workers: list[Any]) -> None:
    limited = await read_split(workers, numbers().limit(77).streaming_split(2), read_all)
    assert len(set(limited[0] + limited[1])) == 77
    union = numbers(100).union(numbers(100).map_batches(AddThousand, concurrency=1))
    united = await read_split(workers, union.streaming_split(2), read_all)
    assert sorted(united[0] + united[1]) == [*range(100), *range(1000, 1100)]


async def test_two_consumers_of_one_process_share_an_epoch() -> None:
    splits = numbers().streaming_split(2)
    for _ in range(3):
        read: list[list[int]] = []

        async def one(split: Split, read: list[list[int]] = read) -> None:
            read.append(await read_all(split, batch_size=10))

        async with anyio.create_task_group() as group:
            for split in splits:
                group.start_soon(one, split)
        assert sorted(chain(*read)) == list(range(NUM_ROWS))


async def test_epoch_without_rows_ends_for_all(workers: list[Any]) -> None:
    splits = numbers().filter(pc.field("id") < 0).streaming_split(2)
    assert await read_split(workers, splits, read_all) == [[], []]


async def test_store_is_empty_between_epochs(workers: list[Any]) -> None:
    ds = numbers(2_000_000, 8)
    splits = ds.streaming_split(2)
    before = ray.available_resources().get("object_store_memory", 0.0)
    for _ in range(2):
        sizes = await read_split(workers, splits, read_epochs, 1, 0, 1.0)
        assert all(ids for ((ids, _),) in sizes)
        await until(
            lambda: ray.available_resources().get("object_store_memory", 0.0) >= before, "blocks are in the store"
        )
