"""SplitFeed: a consumer that leaves is out, at whatever moment it leaves, and nobody takes it for lost."""

from __future__ import annotations

import gc
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import aiodata
from tests.batching.services import LocalService, splits_of
from tests.splits import leave_by_break, read_all


async def called(service: LocalService, method: str, times: int) -> None:
    while sum(name == method for name, _ in service.calls) < times:
        await checkpoint()


@pytest.mark.parametrize("on_split_lost", ["raise", "wait", "redistribute"])
async def test_consumer_that_leaves_before_it_knows_its_lease_is_not_lost(on_split_lost: Any) -> None:
    ds = aiodata.range(100, num_blocks=4)
    options = aiodata.SplitOptions(on_split_lost=on_split_lost)
    with anyio.fail_after(10):
        async with splits_of(ds, 2, options=options) as (service, (first, second)):
            read: list[int] = []

            async def read_first() -> None:
                read.extend(await read_all(first))

            async with anyio.create_task_group() as group:
                group.start_soon(read_first)
                await called(service, "start_epoch", 1)
                service.held.add("join")
                async with anyio.create_task_group() as joining:
                    # With it all have arrived: the epoch begins.
                    joining.start_soon(leave_by_break, second)
                    await called(service, "join", 2)
                    joining.cancel_scope.cancel()
                await called(service, "leave", 1)
                service.release()
            # It was given nothing, and the other one's epoch has come to its end.
            assert sorted(read) == list(range(100))
            assert service.service.stats().phase == "ended"
            gc.collect()
            read.clear()
            async with anyio.create_task_group() as group:
                group.start_soon(read_first)
                other = await read_all(second)
            assert sorted(read + other) == list(range(100))
            assert service.service.stats().epoch == 1


async def test_consumer_that_leaves_while_it_waits_for_a_busy_split_does_not_get_it_later() -> None:
    ds = aiodata.range(100, num_blocks=4)
    with anyio.fail_after(10):
        async with splits_of(ds, 1) as (service, (split,)):
            async with split.aiter_batches(batch_size=10) as batches:
                await anext(batches)
                async with anyio.create_task_group() as waiting:
                    waiting.start_soon(read_all, split)
                    await called(service, "join", 2)
                    waiting.cancel_scope.cancel()
                await called(service, "leave", 1)
            assert service.service.stats().absent == (0,)
            assert sorted(await read_all(split)) == list(range(100))
