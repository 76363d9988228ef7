"""What users of other loaders ask for, of splits: clean exits, no hang, acknowledged delivery, equal batches."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pytest
import ray

import aiodata
from aiodata.batching.consumer import Consumer
from aiodata.concurrency import Supervisor
from tests.batching.services import splits_of
from tests.conftest import PATIENCE_S, threads, until
from tests.splits import (
    Split,
    Worker,
    leave_by_break,
    read_all,
    read_and_hold,
    read_batches,
    until_stats,
)

pytestmark = pytest.mark.slow

NUM_ROWS = 400


@pytest.fixture
def worker(ray_cluster: None) -> Iterator[Any]:
    worker = Worker.remote()
    yield worker
    ray.kill(worker)


async def read_together(splits: list[Split], **options: Any) -> list[list[list[int]]]:
    """Return each split's batches of one epoch."""
    read: list[list[list[int]]] = [[] for _ in splits]

    async def one(split: Split) -> None:
        read[split.split_index] = await read_batches(split, options)

    async with anyio.create_task_group() as group:
        for split in splits:
            group.start_soon(one, split)
    return read


def ids_of(read: list[list[list[int]]]) -> list[int]:
    return sorted(row for batches in read for batch in batches for row in batch)


# Clean early exit.


async def test_twenty_early_breaks_leave_no_thread_task_or_block() -> None:
    async with splits_of(aiodata.range(NUM_ROWS, num_blocks=40), 2) as (_, splits):
        await read_together(splits)
        threads_before, tasks_before = threads(), asyncio.all_tasks()
        for _ in range(20):
            async with anyio.create_task_group() as group:
                for split in splits:
                    group.start_soon(leave_by_break, split)
        await until(lambda: asyncio.all_tasks() <= tasks_before, "tasks are left")
        assert threads() <= threads_before
        gc.collect()
        left = [one for one in gc.get_objects() if type(one) is Consumer]
        assert not left
        # The service's own is none of them.
        assert not [one for one in gc.get_objects() if type(one) is Supervisor]
        assert ids_of(await read_together(splits)) == list(range(NUM_ROWS))


async def test_next_that_is_cancelled_again_and_again_loses_and_doubles_no_row() -> None:
    chance = random.Random(5)
    async with splits_of(aiodata.range(NUM_ROWS, num_blocks=40), 2) as (_, splits):
        read: list[list[list[int]]] = [[], []]

        async def impatient(split: Split) -> None:
            batches = aiter(split.aiter_batches(batch_size=7))
            while not batches.closed:
                with anyio.move_on_after(chance.choice([0, 0.0005, 0.01])):
                    async for batch in batches:
                        read[split.split_index].append(batch["id"].tolist())
                        await anyio.lowlevel.checkpoint()

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                for split in splits:
                    group.start_soon(impatient, split)
        assert ids_of(read) == list(range(NUM_ROWS))


# No hang when a consumer dies, is late or is replaced.


@pytest.mark.ray
async def test_killed_consumer_is_replaced_and_no_epoch_hangs(worker: Any, tmp_path: Path) -> None:
    first, second = aiodata.range(NUM_ROWS, num_blocks=40).with_options(runtime="ray").streaming_split(2)
    log = tmp_path / "held"
    other: list[int] = []

    async def read_second() -> None:
        other.extend(await read_all(second))

    with anyio.fail_after(PATIENCE_S):
        call = worker.run.remote(read_and_hold, first, str(log), 3)
        async with anyio.create_task_group() as group:
            group.start_soon(read_second)
            await until(lambda: log.exists(), "it holds no batch")
            ray.kill(worker)
        with pytest.raises(ray.exceptions.ActorDiedError):
            await call
        held = [int(line) for line in log.read_text().split()]
        replaced = await read_all(first)
        assert not set(other) & set(held)
        assert not set(other) & set(replaced)
        assert set(held) | set(other) | set(replaced) == set(range(NUM_ROWS))
        # The next epoch has all rows, for both.
        assert ids_of(await read_together([first, second])) == list(range(NUM_ROWS))
        assert (await first.stats()).epoch == 1


async def test_second_consumer_of_a_split_opens_no_barrier_and_takes_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiodata.coordination.coordinator._BUSY_AFTER_S", 0.1)
    async with splits_of(aiodata.range(NUM_ROWS, num_blocks=40), 2) as (_, (first, second)):
        read: list[list[list[int]]] = [[], []]

        async def read_one(split: Split) -> None:
            read[split.split_index] = await read_batches(split, {})

        async with anyio.create_task_group() as group:
            group.start_soon(read_one, first)
            await until_stats(first, lambda stats: stats.absent == (1,))
            with pytest.raises(aiodata.SplitBusyError, match="split 0 has a live consumer"):
                await read_all(first)
            assert (await first.stats()).absent == (1,)
            group.start_soon(read_one, second)
        assert ids_of(read) == list(range(NUM_ROWS))


async def test_late_consumer_is_waited_for_and_misses_nothing() -> None:
    async with splits_of(aiodata.range(NUM_ROWS, num_blocks=40), 2) as (_, splits):
        for _ in range(3):
            read: list[list[int]] = []

            async def early(read: list[list[int]] = read) -> None:
                read.append(await read_all(splits[0]))

            async with anyio.create_task_group() as group:
                group.start_soon(early)
                stats = await until_stats(splits[0], lambda stats: stats.absent == (1,))
                assert stats.phase != "running"
                assert not read
                late = await read_all(splits[1])
            assert sorted(read[0] + late) == list(range(NUM_ROWS))


# Acknowledged delivery.


@pytest.mark.ray
async def test_what_a_killed_consumer_had_in_hand_is_not_done(worker: Any, tmp_path: Path) -> None:
    (split,) = aiodata.range(NUM_ROWS, num_blocks=40).with_options(runtime="ray").streaming_split(1)
    log = tmp_path / "held"
    with anyio.fail_after(PATIENCE_S):
        call = worker.run.remote(read_and_hold, split, str(log), 3)
        await until(lambda: log.exists(), "it holds no batch")
        received = [int(line) for line in log.read_text().split()]
        finished, in_hand = received[:20], received[20:]
        assert len(in_hand) == 10
        ray.kill(worker)
        with pytest.raises(ray.exceptions.ActorDiedError):
            await call
        replaced = await read_all(split)
    assert set(in_hand) <= set(replaced)
    assert set(finished) | set(replaced) == set(range(NUM_ROWS))
    assert len(set(replaced)) == len(replaced)
    # It had said what it was done with when it asked for the batch in hand; some of that may have been on its way.
    assert len(set(replaced) & set(finished)) <= 20


@pytest.mark.parametrize("options", [{}, {"collate_fn": dict}, {"local_shuffle_buffer_size": 20}], ids=str)
async def test_rows_count_as_done_when_the_next_batch_is_asked_for_and_not_when_they_are_sent(
    monkeypatch: pytest.MonkeyPatch, options: Any
) -> None:
    # Whatever is done is told at once.
    monkeypatch.setattr("aiodata.batching.split_feed._REPORT_EVERY_S", 0.0)
    async with splits_of(aiodata.range(100, num_blocks=10), 1) as (service, (split,)):
        async with split.aiter_batches(batch_size=10, prefetch_batches=1, **options) as batches:
            for number in range(1, 6):
                await anext(batches)
                for _ in range(60):
                    await anyio.lowlevel.checkpoint()
                stats = service.service.stats().splits[0]
                # The batch in hand was delivered, and so were some after it.
                assert stats.rows >= 10 * number
                assert stats.acked_rows <= 10 * (number - 1)
            async for _ in batches:
                stats = service.service.stats().splits[0]
                assert stats.acked_rows < 100
        # It has left in good order.
        assert service.service.stats().phase == "ended"


# Equal batches, and nothing dropped in silence.


@pytest.mark.parametrize("num_splits", [2, 3, 8])
async def test_local_shuffle_over_uneven_blocks_gives_all_the_same_number_of_full_batches(num_splits: int) -> None:
    sizes = [1, 300, 7, 90, 3, 2, 500, 100]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    tables = [pa.table({"id": range(at, at + size)}) for at, size in zip(starts, sizes, strict=True)]
    async with splits_of(aiodata.from_arrow(tables), num_splits, equal=True) as (service, splits):
        for options in ({}, {"local_shuffle_buffer_size": 50, "local_shuffle_seed": 3}):
            whole = await read_together(splits, batch_size=16, **options)
            rows = [sum(map(len, batches)) for batches in whole]
            assert rows == [1003 // num_splits] * num_splits
            assert {len(batch) for batches in whole for batch in batches[:-1]} == {16}
            assert len({len(batches) for batches in whole}) == 1
            # The rows that nobody had are told of.
            assert service.service.stats().dropped_rows == 1003 - sum(rows)
            even = await read_together(splits, batch_size=16, drop_last=True, **options)
            assert {len(batch) for batches in even for batch in batches} == {16}
            assert {len(batches) for batches in even} == {1003 // num_splits // 16}
