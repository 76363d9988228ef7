"""Coordinator: losses that come when something else has gone wrong already, or is about to end."""

from __future__ import annotations

import logging

import anyio
import pytest

from aiodata import SplitLostError
from aiodata.coordination import Coordinator, Lease
from aiodata.options import OnSplitLost
from aiodata.stats import RunStats
from tests.coordination.consumers import FakeExecution, hosting, join_all, settled, virtual


@pytest.mark.parametrize("mode", ["wait", "redistribute"])
@virtual
async def test_loss_after_a_failure_is_none_of_the_next_epoch(mode: OnSplitLost) -> None:
    async with hosting(FakeExecution(1, endless=True), 2, on_split_lost=mode) as hosted:
        (first, _), (_, token) = await join_all(hosted.coordinator, 2)
        hosted.coordinator.fail(ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            await hosted.coordinator.next_bundles(first, 0)
        hosted.coordinator.notify_split_finished(first)
        again, _ = await hosted.coordinator.join(0)
        hosted.tokens.release(token)
        # With `redistribute`, the next epoch begins without the lost one.
        assert await hosted.coordinator.start_epoch(again, 100) == ((1,) if mode == "wait" else ())


@virtual
async def test_who_has_heard_of_one_loss_does_not_hear_of_a_second_one_in_the_same_epoch() -> None:
    async with hosting(FakeExecution(1, endless=True), 3, on_split_lost="raise") as hosted:
        (_, first), (_, second), (lease, _) = await join_all(hosted.coordinator, 3)
        hosted.tokens.release(first)
        await anyio.sleep(1)
        with pytest.raises(SplitLostError, match="split 0"):
            await hosted.coordinator.next_bundles(lease, 0)
        hosted.coordinator.notify_split_finished(lease)
        again, _ = await hosted.coordinator.join(2)
        hosted.tokens.release(second)
        assert await hosted.coordinator.start_epoch(again, 100) == (0, 1)


@pytest.mark.parametrize("timeout_s", [None, 1000.0])
@virtual
async def test_who_waits_for_the_next_epoch_hears_of_the_first_of_two_losses(timeout_s: float | None) -> None:
    execution = FakeExecution(1, endless=True)
    async with hosting(execution, 3, on_split_lost="raise", barrier_timeout_s=timeout_s) as hosted:
        (_, first), (_, second), (lease, _) = await join_all(hosted.coordinator, 3)
        hosted.coordinator.notify_split_finished(lease)
        again, _ = await hosted.coordinator.join(2)
        assert await hosted.coordinator.start_epoch(again, 1) == (0, 1)
        hosted.tokens.release(first)
        await anyio.sleep(0.05)
        hosted.tokens.release(second)
        await anyio.sleep(1)
        with pytest.raises(SplitLostError, match="split 0"):
            await hosted.coordinator.start_epoch(again, 100)


@virtual
async def test_wait_of_two_calls_counts_once() -> None:
    async with hosting(FakeExecution(endless=True), 1) as hosted:
        [(lease, _)] = await join_all(hosted.coordinator, 1)
        async with anyio.create_task_group() as group:
            for sequence in range(2):
                group.start_soon(hosted.coordinator.next_bundles, lease, sequence)
            await anyio.sleep(5)
            hosted.coordinator.notify_split_finished(lease)
        assert hosted.coordinator.stats(RunStats()).splits[0].wait_s == pytest.approx(5)


@virtual
async def test_rows_that_go_to_nobody_are_told(caplog: pytest.LogCaptureFixture) -> None:
    async with hosting(FakeExecution(3), 1, on_split_lost="redistribute") as hosted:
        [(lease, token)] = await join_all(hosted.coordinator, 1)
        await hosted.coordinator.next_bundles(lease, 0)
        assert (await hosted.coordinator.next_bundles(lease, 1)).is_end
        with caplog.at_level(logging.WARNING, "aiodata"):
            hosted.tokens.release(token)
            await anyio.sleep(1)
            await settled()
    assert "epoch 0: 3 rows of a lost consumer went to nobody" in caplog.text


async def conclude(coordinator: Coordinator, lease: Lease, done: list[int]) -> None:
    await coordinator.conclude(lease)
    done.append(lease.split_index)


@virtual
async def test_end_of_an_epoch_comes_when_all_have_come_to_it_or_have_left() -> None:
    done: list[int] = []
    async with hosting(FakeExecution(1, 1, 1), 3, on_split_lost="raise") as hosted:
        leases = [lease for lease, _ in await join_all(hosted.coordinator, 3)]
        for sequence, is_end in enumerate([False, True]):
            for lease in leases:
                assert (await hosted.coordinator.next_bundles(lease, sequence)).is_end is is_end
        async with anyio.create_task_group() as group:
            group.start_soon(conclude, hosted.coordinator, leases[0], done)
            await settled()
            hosted.coordinator.notify_split_finished(leases[1])
            await settled()
            assert not done
            group.start_soon(conclude, hosted.coordinator, leases[2], done)
        assert sorted(done) == [0, 2]
        # Asked once more, for example since the answer was lost, it says the same; also when the epoch is over.
        await hosted.coordinator.conclude(leases[0])
        for lease in leases:
            hosted.coordinator.notify_split_finished(lease)
        await settled()
        await hosted.coordinator.conclude(leases[0])


@virtual
async def test_who_waits_for_the_end_of_an_epoch_hears_of_a_loss() -> None:
    async with hosting(FakeExecution(1, 1), 2, on_split_lost="raise") as hosted:
        (first, _), (second, token) = await join_all(hosted.coordinator, 2)
        for lease in (first, second):
            await hosted.coordinator.next_bundles(lease, 0)
        async with anyio.create_task_group() as group:
            group.start_soon(expect_loss, hosted.coordinator, first)
            await anyio.sleep(100)
            hosted.tokens.release(token)


async def expect_loss(coordinator: Coordinator, lease: Lease) -> None:
    with pytest.raises(SplitLostError, match="the consumer of split 1 is gone"):
        await coordinator.conclude(lease)


@virtual
async def test_who_waits_for_the_end_of_an_epoch_hears_of_its_failure() -> None:
    async with hosting(FakeExecution(1, 1), 2, on_split_lost="raise") as hosted:
        (first, _), _ = await join_all(hosted.coordinator, 2)
        async with anyio.create_task_group() as group:

            async def fail() -> None:
                await settled()
                hosted.coordinator.fail(ZeroDivisionError())

            group.start_soon(fail)
            with pytest.raises(ZeroDivisionError):
                await hosted.coordinator.conclude(first)
