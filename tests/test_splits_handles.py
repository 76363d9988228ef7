"""Handles of splits: small, for any process, and what they can be asked."""

from __future__ import annotations

import asyncio
import gc
import pickle
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray import cloudpickle

import aiodata
from aiodata.split import SplitIterator
from tests.conftest import PATIENCE_S, stored_bytes, until
from tests.split_consumers import coordinator_of

# What is tried is in other processes: one event loop suffices here.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("same_store"),
    pytest.mark.loops("asyncio"),
]

Batch = dict[str, Any]

NUM_ROWS = 1000
BATCH_ROWS = 10
ALL = list(range(NUM_ROWS))
MAX_BYTES = 4096


async def rows(split: SplitIterator) -> list[int]:
    return [row async for batch in split.aiter_batches(batch_size=BATCH_ROWS) for row in batch["id"].tolist()]


async def all_rows(*splits: SplitIterator) -> list[int]:
    return sorted(row for part in await asyncio.gather(*map(rows, splits)) for row in part)


@ray.remote(num_cpus=0)
def rows_in_task(holder: dict[str, list[SplitIterator]]) -> list[int]:
    return asyncio.run(rows(holder["splits"][0]))


class _Actor:
    async def rows(self, split: SplitIterator) -> list[int]:
        return await rows(split)


Actor: Any = ray.remote(num_cpus=0)(_Actor)


def thousand_files(folder: Path) -> aiodata.Dataset:
    for index in range(1000):
        pq.write_table(pa.table({"id": [index]}), folder / f"part-{index:04}.parquet")
    return aiodata.read_parquet([str(path) for path in sorted(folder.iterdir())])


def hundred_megabytes(_: Path) -> aiodata.Dataset:
    return aiodata.from_arrow(pa.table({"id": np.arange(13_000_000)}))


@pytest.mark.parametrize("make", [thousand_files, hundred_megabytes])
async def test_handle_is_small_whatever_the_dataset(tmp_path: Path, make: Any) -> None:
    hints = [ray.NodeID.from_random().hex() if index % 2 else None for index in range(1000)]
    for split in make(tmp_path).streaming_split(1000, locality_hints=hints)[-2:]:
        assert len(pickle.dumps(split)) < MAX_BYTES
        assert len(cloudpickle.dumps(split)) < MAX_BYTES
        assert repr(pickle.loads(pickle.dumps(split))) == repr(split)


async def test_splits_are_consumed_in_a_task_an_actor_and_the_driver_at_once() -> None:
    splits = aiodata.range(NUM_ROWS, num_blocks=20).streaming_split(3)
    actor = Actor.remote()
    parts = await asyncio.gather(
        rows_in_task.remote({"splits": [splits[0]]}), actor.rows.remote(splits[1]), rows(splits[2])
    )
    assert sorted(row for part in parts for row in part) == ALL


@pytest.fixture
async def free_store() -> int:
    gc.collect()
    await until(lambda: ray.available_resources().get("CPU") == 2, "Ray's CPUs are not free")
    return stored_bytes()


async def test_coordinator_its_execution_and_its_blocks_go_with_the_last_handle(free_store: int) -> None:
    handles = aiodata.range(10**6, num_blocks=100).map_batches(pad, batch_size=None).streaming_split(2)
    actor_id = coordinator_of(handles[0])._actor_id
    first = aiter(handles[0].aiter_batches(batch_size=BATCH_ROWS))
    second = aiter(handles[1].aiter_batches(batch_size=BATCH_ROWS))
    await asyncio.gather(anext(first), anext(second))
    assert is_alive(actor_id)
    del first, second, handles
    gc.collect()
    await until(lambda: not is_alive(actor_id), "the coordinator is still there")
    await until(lambda: ray.available_resources().get("CPU") == 2, "its execution goes on")
    await until(lambda: stored_bytes() <= free_store, "its blocks are still there")


def pad(batch: Batch) -> Batch:
    return {"id": batch["id"], "pad": batch["id"] * 2}


def is_alive(actor_id: Any) -> bool:
    info = ray._private.state.actors(actor_id.hex())
    return bool(info) and info["State"] != "DEAD"


class _Gate:
    """Counts the calls of a user's function, which wait here until they may go on."""

    def __init__(self) -> None:
        self.calls = 0
        self.opened = asyncio.Event()

    async def enter(self) -> None:
        self.calls += 1
        await self.opened.wait()

    async def open(self) -> None:
        self.opened.set()

    async def num_calls(self) -> int:
        return self.calls


Gate: Any = ray.remote(num_cpus=0)(_Gate)


def gated(gate: Any) -> aiodata.Dataset:
    def call(batch: Batch) -> Batch:
        ray.get(gate.enter.remote())
        return {"id": batch["id"], "twice": batch["id"] * 2.0}

    return aiodata.range(NUM_ROWS, num_blocks=1).map_batches(call, batch_size=None)


async def reach(gate: Any, num_calls: int) -> None:
    with anyio.fail_after(PATIENCE_S):
        while await gate.num_calls.remote() < num_calls:
            pass


async def test_schema_is_unknown_before_the_first_block_of_an_epoch_and_known_from_then_on() -> None:
    gate = Gate.remote()
    split = gated(gate).streaming_split(1)[0]
    batches = aiter(split.aiter_batches(batch_size=BATCH_ROWS))
    async with anyio.create_task_group() as group:
        group.start_soon(anext, batches)
        await reach(gate, 1)
        with pytest.raises(RuntimeError, match="after the first batch, or before the epoch begins") as caught:
            await split.schema()
        assert type(caught.value) is aiodata.EpochError
        await gate.open.remote()
    assert (await split.schema()).names == ["id", "twice"]
    await batches.aclose()
    assert (await split.schema()).names == ["id", "twice"]
    # One call for the block, and none for the schema.
    assert await gate.num_calls.remote() == 1


async def test_two_who_ask_for_the_schema_share_a_short_run_and_an_epoch_waits_for_it() -> None:
    gate = Gate.remote()
    splits = gated(gate).streaming_split(2)
    found: list[int] = []
    schemas: list[pa.Schema] = []

    async def ask(split: SplitIterator) -> None:
        schemas.append(await split.schema())

    async def consume() -> None:
        found.extend(await all_rows(*splits))

    async with anyio.create_task_group() as group:
        for split in splits:
            group.start_soon(ask, split)
        await reach(gate, 1)
        group.start_soon(consume)
        with anyio.fail_after(PATIENCE_S):
            while (await splits[0].stats()).phase != "running":
                pass
        assert await gate.num_calls.remote() == 1
        await gate.open.remote()
    assert [schema.names for schema in schemas] == [["id", "twice"]] * 2
    assert sorted(found) == ALL
    assert await gate.num_calls.remote() == 2
    assert (await splits[0].schema()).names == ["id", "twice"]
    assert await gate.num_calls.remote() == 2


async def test_tags_and_options_come_back_for_each_split() -> None:
    ds = aiodata.range(NUM_ROWS).with_options(num_cpus=1, preserve_order=True)
    splits = ds.streaming_split(3)
    tags = [await split.dataset_tag() for split in splits]
    assert [tag["split_index"] for tag in tags] == ["0", "1", "2"]
    assert len({tag["dataset"] for tag in tags}) == 1
    assert [await split.options() for split in splits] == [
        aiodata.ExecutionOptions(runtime="ray", num_cpus=1, preserve_order=True)
    ] * 3
    other = ds.streaming_split(1)[0]
    assert (await other.dataset_tag())["dataset"] != tags[0]["dataset"]


async def test_stats_have_rows_waits_and_what_is_held_ahead_for_each_split() -> None:
    splits = aiodata.range(NUM_ROWS, num_blocks=20).streaming_split(2)
    async with (
        splits[0].aiter_batches(batch_size=BATCH_ROWS, prefetch_batches=20) as batches,
        anyio.create_task_group() as group,
    ):
        others: list[int] = []

        async def consume_rest() -> None:
            others.extend(await rows(splits[1]))

        group.start_soon(consume_rest)
        held = [*(await anext(batches))["id"].tolist()]
        # The other one gets all that this one has not asked for.
        with anyio.fail_after(PATIENCE_S):
            while (await splits[0].stats()).splits[1].acked_rows == 0:
                pass
        stats = await splits[0].stats()
        assert stats.phase == "running"
        assert stats.splits[0].unacked_rows >= BATCH_ROWS
        async for batch in batches:
            held += batch["id"].tolist()
    stats = await splits[1].stats()
    assert sorted(held + others) == ALL
    assert [split.split_index for split in stats.splits] == [0, 1]
    assert [split.rows for split in stats.splits] == [len(held), len(others)]
    assert [split.bytes for split in stats.splits] == [8 * len(held), 8 * len(others)]
    assert sum(split.bundles for split in stats.splits) == 20
    assert all(split.wait_s > 0 and split.unacked_rows == 0 for split in stats.splits)
    assert all(split.prefetched_bytes == 0 for split in stats.splits)
    assert 0 < stats.overhead_s < 1
    assert stats.run.operators[0].rows == NUM_ROWS
    assert stats.dropped_rows == 0
    assert str(NUM_ROWS) in str(stats).replace(",", "")
