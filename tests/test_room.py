"""A call that yields more than there is room for: it waits, whatever it is, and the run keeps to its byte budget."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

import aiodata
from tests.conftest import until

pytestmark = pytest.mark.usefixtures("clean")

MIB = 1 << 20
BUDGET = 10 * MIB
NUM_CALLS, NUM_BLOCKS = 6, 8

# Tasks of a stage in flight on two CPUs, each of which may have made one block more than it was given room for; and one
# block of the task that goes on whatever the budget says.
MAX_BLOCKS_MORE = 4 + 1

Batch = dict[str, Any]


def block(call: int, number: int) -> Batch:
    return {"id": np.array([call * NUM_BLOCKS + number]), "pad": np.zeros((1, 2 * MIB), np.uint8)}


def generator(batch: Batch) -> Iterator[Batch]:
    for number in range(NUM_BLOCKS):
        yield block(int(batch["id"][0]), number)


def returns_generator(batch: Batch) -> Iterator[Batch]:
    return generator(batch)


async def async_generator(batch: Batch) -> AsyncIterator[Batch]:
    for made in generator(batch):
        await anyio.lowlevel.checkpoint()
        yield made


class GeneratorClass:
    """It has an instance per actor."""

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        return generator(batch)


def all_at_once(batch: Batch) -> Batch:
    made = list(generator(batch))
    return {name: np.concatenate([one[name] for one in made]) for name in made[0]}


def again(batch: Batch) -> Iterator[Batch]:
    """Cut each block in two, and pad the parts as before."""
    for part in range(2):
        yield {"id": batch["id"] * 2 + part, "pad": batch["pad"]}


def dataset(runtime: str, fn: Any, **options: Any) -> aiodata.Dataset:
    kwargs: dict[str, Any] = {"concurrency": 1} if fn is GeneratorClass else {}
    ds = aiodata.range(NUM_CALLS, num_blocks=NUM_CALLS).map_batches(fn, batch_size=1, **kwargs)
    return ds.with_options(runtime=runtime, num_cpus=2, max_object_store_bytes=BUDGET, **options)


async def read(ds: aiodata.Dataset, pause_s: float = 0.0) -> tuple[list[int], int]:
    """Return the rows' ids, and the peak of the budget."""
    ids: list[int] = []
    async with ds.aiter_batches(batch_size=1) as batches:
        async for batch in batches:
            ids += batch["id"].tolist()
            await anyio.sleep(pause_s)
        budget = batches.stats().budget
    assert budget is not None
    assert budget.limit_bytes == BUDGET
    return ids, budget.peak_live_bytes


def live_bytes(batches: aiodata.BatchIterator) -> int:
    budget = batches.stats().budget
    return 0 if budget is None else budget.live_bytes


@pytest.mark.parametrize("preserve_order", [False, True])
@pytest.mark.parametrize(
    "fn", [generator, returns_generator, async_generator, GeneratorClass, all_at_once], ids=lambda fn: fn.__name__
)
async def test_calls_that_make_more_than_the_budget_keep_to_it(
    runtime: str, fn: Callable[..., Any], preserve_order: bool
) -> None:
    ids, peak = await read(dataset(runtime, fn, preserve_order=preserve_order))
    assert (ids if preserve_order else sorted(ids)) == list(range(NUM_CALLS * NUM_BLOCKS))
    assert peak <= BUDGET + MAX_BLOCKS_MORE * 2 * MIB


async def test_slow_consumer_has_no_more_made_than_there_is_room_for(runtime: str) -> None:
    ids, peak = await read(dataset(runtime, generator), pause_s=0.02)
    assert sorted(ids) == list(range(NUM_CALLS * NUM_BLOCKS))
    assert peak <= BUDGET + MAX_BLOCKS_MORE * 2 * MIB


async def test_two_such_stages_in_a_row_keep_to_it(runtime: str) -> None:
    ds = dataset(runtime, generator).map_batches(again, batch_size=1, num_cpus=1)
    ids, peak = await read(ds)
    assert sorted(ids) == list(range(2 * NUM_CALLS * NUM_BLOCKS))
    assert peak <= BUDGET + 2 * MAX_BLOCKS_MORE * 2 * MIB


async def test_consumer_that_keeps_every_block_gets_all(runtime: str) -> None:
    kept = []
    async with dataset(runtime, generator).aiter_bundles() as bundles:
        async for bundle in bundles:
            kept.append(bundle)
            # Meanwhile all that there is room for is made, and waits.
            await anyio.sleep(0.02)
    assert sum(bundle.num_rows for bundle in kept) == NUM_CALLS * NUM_BLOCKS


async def test_pass_begun_while_another_one_waits_for_its_consumer_gets_through(runtime: str) -> None:
    async with dataset(runtime, generator).aiter_batches(batch_size=1) as batches:
        await anext(batches)
        ids, _ = await read(dataset(runtime, generator))
        assert sorted(ids) == list(range(NUM_CALLS * NUM_BLOCKS))
        rest = [batch["id"][0] async for batch in batches]
    assert len(rest) == NUM_CALLS * NUM_BLOCKS - 1


async def test_pass_is_left_at_once_while_its_calls_wait(runtime: str) -> None:
    async with dataset(runtime, generator).aiter_batches(batch_size=1) as batches:
        first = await anext(batches)
        assert first["id"][0] % NUM_BLOCKS == 0
        await until(lambda: live_bytes(batches) >= BUDGET - 4 * MIB, "nothing waits", within_s=60)
        started = anyio.current_time()
    assert anyio.current_time() - started < 5.0
