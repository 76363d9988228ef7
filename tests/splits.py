"""Consumers of splits for the tests: coroutine functions, and the processes that run them.

Workers import this module, so it imports little.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import ray

import aiodata

Split = aiodata.SplitIterator

# What leaves early is given batches of so many rows.
BATCH_ROWS = 10


@ray.remote(num_cpus=0)
class Worker:
    """A process with an event loop, for consumers."""

    async def run(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return await function(*args)


async def together(*calls: Any) -> list[Any]:
    """Wait for calls of workers, in a task group: one that fails does not leave the others unread."""
    results: list[Any] = [None] * len(calls)

    async def wait(index: int, call: Any) -> None:
        results[index] = await call

    async with anyio.create_task_group() as group:
        for index, call in enumerate(calls):
            group.start_soon(wait, index, call)
    return results


async def read_all(split: Split, **options: Any) -> list[int]:
    """Return the ids of one whole epoch."""
    ids: list[int] = []
    async for batch in split.aiter_batches(**options):
        ids += batch["id"].tolist()
    return ids


async def leave_by_break(split: Split) -> list[int]:
    async for batch in split.aiter_batches(batch_size=BATCH_ROWS):
        return list(batch["id"].tolist())
    return []


async def leave_by_exception(split: Split) -> list[int]:
    ids: list[int] = []

    async def fail() -> None:
        async for batch in split.aiter_batches(batch_size=BATCH_ROWS):
            ids.extend(batch["id"].tolist())
            raise ZeroDivisionError

    try:
        await fail()
    except ZeroDivisionError:
        pass
    return ids


async def leave_by_aclose(split: Split) -> list[int]:
    batches = aiter(split.aiter_batches(batch_size=BATCH_ROWS))
    batch = await anext(batches)
    await batches.aclose()
    assert await anext(batches, None) is None
    return list(batch["id"].tolist())


async def leave_async_with(split: Split) -> list[int]:
    async with split.aiter_batches(batch_size=BATCH_ROWS) as batches:
        async for batch in batches:
            return list(batch["id"].tolist())
    return []


async def leave_by_cancellation(split: Split) -> list[int]:
    ids: list[int] = []
    got_one = anyio.Event()

    async def consume() -> None:
        async for batch in split.aiter_batches(batch_size=BATCH_ROWS):
            ids.extend(batch["id"].tolist())
            got_one.set()

    task = asyncio.create_task(consume())
    await got_one.wait()
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    return ids


async def leave_while_waiting(split: Split) -> list[int]:
    """Be cancelled in a wait for the first batch, which is larger than what comes soon."""
    batches = aiter(split.aiter_batches(batch_size=1000 * BATCH_ROWS))

    async def cancel_when_it_runs(scope: anyio.CancelScope) -> None:
        while not (await split.stats()).run.operators:
            await anyio.sleep(0.01)
        await anyio.sleep(0.2)
        scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(cancel_when_it_runs, group.cancel_scope)
        await anext(batches)
    return []


async def leave_without_closing(split: Split) -> list[int]:
    """Nothing is closed or awaited: the iterator is dropped with the frame."""
    batches = aiter(split.aiter_batches(batch_size=BATCH_ROWS))
    return list((await anext(batches))["id"].tolist())


async def read_for_ever(split: Split) -> list[int]:
    while True:
        await read_all(split, batch_size=BATCH_ROWS)


async def read_epochs(split: Split, num_epochs: int, seed: int, leave_early: float) -> list[tuple[list[int], bool]]:
    """Read several epochs at random speeds; return for each what was read, and whether that was all there was.

    Args:
        split: What to read.
        num_epochs: How many.
        seed: Decides when to wait, and when to leave.
        leave_early: How likely it is that an epoch is left early.
    """
    chance = random.Random(seed)
    epochs: list[tuple[list[int], bool]] = []
    for _ in range(num_epochs):
        leave_after = chance.randrange(60) if chance.random() < leave_early else None
        ids: list[int] = []
        async for batch in split.aiter_batches(batch_size=7):
            ids.extend(batch["id"].tolist())
            if leave_after is not None and len(ids) >= leave_after:
                break
            await anyio.sleep(chance.choice([0, 0, 0, 0.002]))
        epochs.append((ids, leave_after is None))
    return epochs


@ray.remote(num_cpus=0)
def return_inside_the_loop(split: Split) -> list[int]:
    """A task whose program ends with the iterator open."""
    return asyncio.run(leave_by_break(split))


@ray.remote(num_cpus=0)
def stop_the_loop(split: Split) -> list[int]:
    """A task whose event loop stops for good while the pass runs; it is neither closed nor are its tasks cancelled."""
    loop = asyncio.new_event_loop()

    async def first() -> tuple[Any, Any]:
        batches = aiter(split.aiter_batches(batch_size=BATCH_ROWS))
        return batches, await anext(batches)

    _, batch = loop.run_until_complete(first())
    return list(batch["id"].tolist())
