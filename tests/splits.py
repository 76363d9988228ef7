"""Consumers of splits for the tests: coroutine functions, and the processes that run them.

Workers import this module, so it imports little.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
import ray

import aiodata
from tests.conftest import PATIENCE_S

Split = aiodata.SplitIterator

# What leaves early is given batches of so many rows.
BATCH_ROWS = 10


class _Worker:
    async def run(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return await function(*args)


# A process with an event loop, for consumers.
Worker = ray.remote(num_cpus=0)(_Worker)


async def together(*calls: Any) -> list[Any]:
    """Wait for calls of workers, in a task group: one that fails does not leave the others unread."""
    results: list[Any] = [None] * len(calls)

    async def wait(index: int, call: Any) -> None:
        results[index] = await call

    async with anyio.create_task_group() as group:
        for index, call in enumerate(calls):
            group.start_soon(wait, index, call)
    return results


async def until_stats(split: Split, condition: Callable[[aiodata.CoordinatorStats], bool]) -> aiodata.CoordinatorStats:
    """Wait until the coordinator's state is such; return its statistics."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            stats = await split.stats()
            if condition(stats):
                return stats
            await anyio.sleep(0.01)


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

    with suppress(ZeroDivisionError):
        await fail()
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
    with suppress(asyncio.CancelledError):
        await task
    return ids


async def leave_while_waiting(split: Split) -> list[int]:
    """Be cancelled in a wait for the first batch, which is larger than what comes soon."""
    batches = aiter(split.aiter_batches(batch_size=1000 * BATCH_ROWS))

    async def cancel_when_it_runs(scope: anyio.CancelScope) -> None:
        await until_stats(split, lambda stats: any(operator.rows for operator in stats.run.operators))
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


async def read_batches(split: Split, options: dict[str, Any]) -> list[list[int]]:
    return [batch["id"].tolist() async for batch in split.aiter_batches(**options)]


@dataclass(frozen=True, slots=True)
class Alternated:
    """What one epoch of training and validation has read.

    Attributes:
        trained: The ids of the training epoch.
        validated: The ids of the validation, which was left early.
        gap_s: How long the first training batch took to come after the validation before it, in seconds.
    """

    trained: list[int]
    validated: list[int]
    gap_s: float


async def alternate(train: Split, validate: Split) -> list[Alternated]:
    """Train for two epochs, with an early end of validation after each."""
    epochs: list[Alternated] = []
    for _ in range(2):
        trained: list[int] = []
        gap_s = 0.0
        started = time.perf_counter()
        async for batch in train.aiter_batches(batch_size=BATCH_ROWS):
            gap_s = gap_s or time.perf_counter() - started
            trained.extend(batch["id"].tolist())
        epochs.append(Alternated(trained, await leave_by_break(validate), gap_s))
    return epochs


async def read_and_hold(split: Split, path: str, num_batches: int) -> None:
    """Take so many batches of 10 rows, write their ids to a file, and never come back."""
    ids: list[int] = []
    async for batch in split.aiter_batches(batch_size=BATCH_ROWS):
        ids += batch["id"].tolist()
        if len(ids) == num_batches * BATCH_ROWS:
            # All of it is there as soon as the file is.
            unfinished = anyio.Path(f"{path}.part")
            await unfinished.write_text(" ".join(map(str, ids)))
            await unfinished.rename(path)
            await anyio.sleep_forever()
