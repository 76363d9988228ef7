"""SplitFeed: a consumer that leaves is out, at whatever moment it leaves, and nobody takes it for lost."""

from __future__ import annotations

import gc
import logging
import random
import re
import threading
from collections import defaultdict
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import aiodata
from aiodata.batching import split_feed
from tests.batching.services import LocalService, splits_of
from tests.conftest import PATIENCE_S
from tests.splits import Split, leave_by_break, read_all


async def called(service: LocalService, method: str, times: int) -> None:
    while sum(name == method for name, _ in service.calls) < times:
        await checkpoint()


@pytest.mark.parametrize("on_split_lost", ["raise", "wait", "redistribute"])
async def test_consumer_that_leaves_before_it_knows_its_lease_is_not_lost(on_split_lost: Any) -> None:
    ds = aiodata.range(100, num_blocks=4)
    options = aiodata.SplitOptions(on_split_lost=on_split_lost)
    with anyio.fail_after(PATIENCE_S):
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
    with anyio.fail_after(PATIENCE_S):
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


async def be_unsteady(split: Split, service: LocalService, chance: random.Random, read: dict[int, list[int]]) -> None:
    """Read epoch after epoch, being cancelled at any moment, leaving at any batch."""
    while True:
        with anyio.move_on_after(chance.choice([float("inf"), float("inf"), 0.0, 0.0005, 0.005])):
            batches_left = chance.choice([1, 5, 1000, 1000])
            async for batch in split.aiter_batches(batch_size=7):
                # While somebody holds a batch, its epoch is the latest one.
                read[service.service.stats().epoch] += batch["id"].tolist()
                batches_left -= 1
                if not batches_left:
                    break
                for _ in range(chance.choice([0, 0, 1, 20])):
                    await checkpoint()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
async def test_consumers_that_leave_at_any_moment_share_each_epoch_and_leave_all_as_it_was(seed: int) -> None:
    chance = random.Random(seed)
    num_splits = chance.choice([1, 2, 3, 8])
    is_equal = chance.random() < 0.5
    options = aiodata.SplitOptions(on_split_lost=chance.choice(["wait", "raise", "redistribute"]))
    read: dict[int, list[int]] = defaultdict(list)
    ds = aiodata.range(24 * 7, num_blocks=24)
    with anyio.fail_after(PATIENCE_S):
        async with splits_of(ds, num_splits, equal=is_equal, options=options) as (service, splits):
            async with anyio.create_task_group() as group:
                for split in splits:
                    group.start_soon(be_unsteady, split, service, random.Random(chance.random()), read)
                while service.service.stats().epoch < 15:
                    await checkpoint()
                group.cancel_scope.cancel()
            for ids in read.values():
                assert len(set(ids)) == len(ids)
                assert set(ids) <= set(range(24 * 7))
            while service.service.stats().absent != tuple(range(num_splits)):
                await checkpoint()
            last: list[int] = []

            async def read_last(split: Split) -> None:
                last.extend(await read_all(split))

            async with anyio.create_task_group() as group:
                for split in splits:
                    group.start_soon(read_last, split)
            assert sorted(last) == list(range(24 * 7))


async def test_consumer_that_waits_for_long_says_what_its_coordinator_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    def wait(batch: Any) -> Any:
        gate.wait()
        return batch

    monkeypatch.setattr(split_feed, "_ASK_WHY_S", 0.01)
    ds = aiodata.range(100).map_batches(wait)
    with anyio.fail_after(PATIENCE_S):
        async with splits_of(ds, 1) as (service, (split,)), anyio.create_task_group() as group:
            read: list[int] = []

            async def read_it() -> None:
                read.extend(await read_all(split))

            group.start_soon(read_it)
            await called(service, "latest_warning", 2)
            assert caplog.messages == [], "there is nothing to be said"
            logging.getLogger("aiodata").warning("no task can start")
            while len(caplog.messages) < 2:
                await checkpoint()
            gate.set()
    assert sorted(read) == list(range(100))
    assert re.fullmatch(
        r"split 0 has waited \d+ s for rows; its coordinator says: no task can start", caplog.messages[1]
    )


async def take_by_hand(service: LocalService, split_index: int) -> tuple[Any, list[Any]]:
    """Be a consumer that is done with nothing; return its token, and what it has got up to the end of the data."""
    lease, token = await service.call("join", split_index, f"by hand {split_index}")
    assert await service.call("start_epoch", lease, 10.0) == ()
    bundles: list[Any] = []
    for sequence in range(100):
        delivery, _ = await service.call("next_bundles", lease, sequence, 1, 0, 0)
        bundles += delivery.bundles
        if delivery.is_end:
            break
    return token, bundles


RAISE = aiodata.SplitOptions(on_split_lost="raise")


@pytest.mark.parametrize("is_equal", [True, False])
async def test_end_is_told_to_nobody_whose_epoch_another_can_still_leave_a_gap_in(is_equal: bool) -> None:
    with anyio.fail_after(PATIENCE_S):
        async with splits_of(aiodata.range(100, num_blocks=10), 2, equal=is_equal, options=RAISE) as (service, splits):
            taken: list[tuple[Any, list[Any]]] = []
            ids: list[int] = []

            async def take_second() -> None:
                taken.append(await take_by_hand(service, 1))

            async def read_all_first() -> None:
                async for batch in splits[0].aiter_batches(batch_size=7):
                    ids.extend(batch["id"].tolist())

            async def read_first() -> None:
                # The last batch is not full: it comes although the other one may still be lost.
                with pytest.raises(aiodata.SplitLostError, match="the consumer of split 1 is gone"):
                    await read_all_first()

            async with anyio.create_task_group() as group:
                group.start_soon(take_second)
                group.start_soon(read_first)
                while not taken or len(ids) + sum(bundle.num_rows for bundle in taken[0][1]) < 100:
                    await checkpoint()
                await anyio.wait_all_tasks_blocked()
                # Killed now, it would be done with nothing.
                taken.clear()


async def test_cancelled_wait_for_the_others_end_can_be_gone_on_with() -> None:
    with anyio.fail_after(PATIENCE_S):
        async with splits_of(aiodata.range(100, num_blocks=10), 2, options=RAISE) as (service, splits):
            first, second = (aiter(split.aiter_batches(batch_size=7)) for split in splits)
            async with first, second:
                async with anyio.create_task_group() as group:
                    group.start_soon(first.__anext__)
                    group.start_soon(second.__anext__)
                ended: list[bool] = []

                async def finish_first() -> None:
                    async for _ in first:
                        pass
                    ended.append(True)

                async with anyio.create_task_group() as group:
                    group.start_soon(finish_first)
                    await called(service, "conclude", 1)
                    group.cancel_scope.cancel()
                assert not ended
                async with anyio.create_task_group() as group:
                    group.start_soon(finish_first)
                    await anyio.wait_all_tasks_blocked()
                    assert not ended
                    assert [len(batch["id"]) async for batch in second]
                assert ended
