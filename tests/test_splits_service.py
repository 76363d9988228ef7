"""Named coordinators, from any driver; the barrier; and what consumers are told when the coordinator is gone."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import anyio
import pytest
import ray
from ray.util import list_named_actors

import aiodata
from aiodata import SplitOptions
from aiodata.split import SplitIterator
from tests.conftest import PATIENCE_S, until
from tests.split_consumers import coordinator_of

# What is tried is in other processes: one event loop suffices here.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("same_store"),
    pytest.mark.loops("asyncio"),
]

NUM_ROWS = 1000

# That the coordinator is gone is known within so many seconds.
TOLD_S = 30.0


@pytest.fixture
async def name() -> AsyncIterator[str]:
    """Return a name, and end what has it."""
    name = f"numbers-{uuid.uuid4().hex}"
    yield name
    if name in names():
        await (await aiodata.attach(name)).aclose()


def names() -> list[str]:
    return [actor["name"] for actor in list_named_actors(all_namespaces=True)]


async def rows(split: SplitIterator) -> list[int]:
    return [row for batch in [b async for b in split.aiter_batches(batch_size=10)] for row in batch["id"].tolist()]


async def all_rows(splits: list[SplitIterator]) -> list[int]:
    """Return the rows of one epoch, consumed in this process."""
    found: list[list[int]] = [[] for _ in splits]

    async def fill(index: int) -> None:
        found[index] = await rows(splits[index])

    async with anyio.create_task_group() as group:
        for index in range(len(splits)):
            group.start_soon(fill, index)
    return sorted(row for part in found for row in part)


async def outcome(awaitable: Awaitable[Any], outcomes: list[Exception]) -> None:
    try:
        await awaitable
    except Exception as error:  # noqa: BLE001 - the test looks at it.
        outcomes.append(error)


async def run_driver(program: str, *args: str) -> str:
    """Run a program that joins the cluster as another driver; return what it prints."""
    address = ray.get_runtime_context().gcs_address
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, address, *args, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


CREATE = """
import sys
import numpy as np
import pyarrow as pa
import ray
import aiodata

ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
table = pa.table({"id": np.arange(1000), "pad": pa.FixedSizeListArray.from_arrays(np.zeros(8_000_000), 8_000)})
aiodata.from_arrow(table).streaming_split(2, name=sys.argv[2])
"""

CONSUME = """
import asyncio
import sys
import ray
import aiodata

async def main():
    service = await aiodata.attach(sys.argv[2])
    rows = []
    async def consume(split):
        async for batch in split.aiter_batches(batch_size=10):
            rows.extend(batch["id"].tolist())
    await asyncio.gather(*map(consume, service.splits))
    print(sorted(rows) == list(range(1000)))

ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
asyncio.run(main())
"""


async def test_service_outlives_its_creator_with_the_data_that_only_that_one_had(name: str) -> None:
    await run_driver(CREATE, name)
    for _ in range(2):
        assert (await run_driver(CONSUME, name)).split() == ["True"]
    service = await aiodata.attach(name)
    assert await all_rows(service.splits) == list(range(NUM_ROWS))
    assert (await service.splits[1].stats()).epoch == 2
    await service.aclose()
    assert name not in names()


async def test_closing_a_service_ends_its_execution_its_process_and_its_consumers_and_frees_its_name(name: str) -> None:
    splits = aiodata.range(10**6, num_blocks=1000).streaming_split(2, name=name)
    service = await aiodata.attach(name)
    outcomes: list[Exception] = []
    async with anyio.create_task_group() as group:
        group.start_soon(outcome, rows(splits[0]), outcomes)
        async with splits[1].aiter_batches(batch_size=10) as batches:
            await anext(batches)
            async with service:
                pass
            with pytest.raises(aiodata.CoordinatorLostError):
                async for _ in batches:
                    pass
    assert [type(error) for error in outcomes] == [aiodata.CoordinatorLostError]
    await service.aclose()
    await until(lambda: ray.available_resources().get("CPU") == 2, "the execution goes on")
    with pytest.raises(aiodata.CoordinatorLostError, match="streaming_split"):
        await rows(splits[0])
    again = aiodata.range(NUM_ROWS).streaming_split(2, name=name)
    assert await all_rows(again) == list(range(NUM_ROWS))


async def test_name_that_is_taken_and_one_that_is_unknown_are_errors_that_name_it(name: str) -> None:
    with pytest.raises(aiodata.CoordinatorLostError, match=name):
        await aiodata.attach(name)
    splits = aiodata.range(NUM_ROWS).streaming_split(1, name=name)
    with pytest.raises(aiodata.OptionError, match=f"name='{name}' can not be given: .*Attach to the one that has it"):
        aiodata.range(NUM_ROWS).streaming_split(1, name=name)
    assert sorted(await rows(splits[0])) == list(range(NUM_ROWS))
    ray.kill(coordinator_of(splits[0]))
    await until(lambda: name not in names(), "the name is not free")
    with pytest.raises(aiodata.CoordinatorLostError, match=name):
        await aiodata.attach(name)


def stuck(batch: dict[str, Any]) -> dict[str, Any]:
    """Make no further block for a long time: who asks for one waits."""
    if batch["id"][0] >= 500:
        time.sleep(60)
    return batch


@pytest.mark.parametrize("state", ["at the barrier", "waiting for a block", "with batches ahead"])
async def test_consumers_are_told_that_the_coordinator_was_killed_in_whatever_state(state: str) -> None:
    ds = aiodata.range(NUM_ROWS, num_blocks=20)
    if state == "waiting for a block":
        ds = ds.map_batches(stuck, batch_size=50)
    splits = ds.streaming_split(2)
    outcomes: list[Exception] = []
    consumed: list[int] = []
    held = anyio.Event()

    async def hold_first(split: SplitIterator) -> None:
        """Keep the first batch in hand, while others are fetched, until the coordinator is gone."""
        async with split.aiter_batches(batch_size=10, prefetch_batches=50) as batches:
            async for batch in batches:
                consumed.append(len(batch["id"]))
                if state == "with batches ahead":
                    await held.wait()

    async with anyio.create_task_group() as group:
        for split in splits[: 1 if state == "at the barrier" else 2]:
            group.start_soon(outcome, hold_first(split), outcomes)
        with anyio.fail_after(PATIENCE_S):
            if state == "at the barrier":
                while (await splits[0].stats()).absent != (1,):
                    pass
            elif state == "with batches ahead":
                await until(lambda: len(consumed) == 2, "no batch has come")
            else:
                # All that there will be for now.
                await until(lambda: sum(consumed) == 500, "not all rows have come")
        killed_s = time.monotonic()
        ray.kill(coordinator_of(splits[0]))
        held.set()
    assert time.monotonic() - killed_s < TOLD_S
    assert {type(error) for error in outcomes} == {aiodata.CoordinatorLostError}
    assert len(outcomes) == (1 if state == "at the barrier" else 2)


async def test_barrier_names_the_absent_splits_in_warnings_and_then_in_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = SplitOptions(barrier_warn_s=0.5, barrier_timeout_s=1.8)
    splits = aiodata.range(NUM_ROWS).streaming_split(3, options=options)
    outcomes: list[Exception] = []
    with caplog.at_level(logging.WARNING, logger="aiodata"):
        await outcome(rows(splits[1]), outcomes)
    assert [type(error) for error in outcomes] == [aiodata.BarrierTimeoutError]
    assert "2 splits (0, 2) of 3" in str(outcomes[0])
    warnings = [record.getMessage() for record in caplog.records if record.name == "aiodata"]
    assert warnings
    assert all("2 splits (0, 2)" in warning for warning in warnings)
    # It has left the barrier, and can come again.
    assert await all_rows(splits) == list(range(NUM_ROWS))


async def test_second_consumer_of_a_split_is_told_which_one_it_is_and_the_first_one_loses_nothing() -> None:
    splits = aiodata.range(NUM_ROWS, num_blocks=20).streaming_split(2)
    found: list[int] = []
    busy: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def other() -> None:
            found.extend(await rows(splits[1]))

        group.start_soon(other)
        async with splits[0].aiter_batches(batch_size=10) as batches:
            found.extend((await anext(batches))["id"].tolist())
            await outcome(rows(splits[0]), busy)
            async for batch in batches:
                found.extend(batch["id"].tolist())
    assert [type(error) for error in busy] == [aiodata.SplitBusyError]
    assert "split 0" in str(busy[0])
    assert sorted(found) == list(range(NUM_ROWS))
