"""Coordinator: splits share an execution's bundles, whatever each of them does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from anyio.streams.memory import MemoryObjectSendStream

from aiodata import EpochError
from aiodata.bundle import RefBundle
from aiodata.concurrency.supervise import unwrap
from aiodata.coordination import Coordinator, Delivery
from tests.strategies import bundle_of, ids_of


class FakeExecution:
    """Sends bundles of one row each; with `endless` it then stays, and an error it raises."""

    def __init__(self, num_bundles: int, *, endless: bool = False, error: Exception | None = None) -> None:
        self.bundles = [bundle_of(one) for one in range(num_bundles)]
        self.endless = endless
        self.error = error
        self.started = 0
        self.running = 0

    async def __call__(self, output: MemoryObjectSendStream[RefBundle]) -> None:
        self.started += 1
        self.running += 1
        try:
            async with output:
                for bundle in self.bundles:
                    await output.send(bundle)
                if self.error is not None:
                    raise self.error
                if self.endless:
                    await anyio.sleep_forever()
        finally:
            self.running -= 1


@asynccontextmanager
async def serving(execution: FakeExecution, num_splits: int = 1, num_epochs: int = 1) -> AsyncIterator[Coordinator]:
    coordinator = Coordinator(execution, num_splits)
    async with anyio.create_task_group() as group:
        group.start_soon(coordinator.serve, num_epochs)
        yield coordinator
        group.cancel_scope.cancel()


async def consume(coordinator: Coordinator, split: int, rows: list[int], *, turns: int = 0) -> None:
    """Take one epoch's bundles, doing something else for so many turns of the loop after each."""
    epoch = await coordinator.start_epoch(split)
    sequence = 0
    while not (delivery := await coordinator.next_bundles(epoch, split, sequence)).is_end:
        rows += [row for bundle in delivery.bundles for row in ids_of(bundle)]
        sequence += 1
        for _ in range(turns):
            await asyncio.sleep(0)
    coordinator.notify_split_finished(epoch, split)


@pytest.mark.parametrize("num_splits", [1, 2, 5])
@pytest.mark.parametrize("num_bundles", [0, 1, 23])
async def test_splits_share_all_rows_exactly_once(num_splits: int, num_bundles: int) -> None:
    execution = FakeExecution(num_bundles)
    rows: list[list[int]] = [[] for _ in range(num_splits)]
    async with serving(execution, num_splits) as coordinator, anyio.create_task_group() as group:
        for split in range(num_splits):
            group.start_soon(partial(consume, coordinator, split, rows[split], turns=split))
    assert sorted(row for part in rows for row in part) == list(range(num_bundles))
    assert all(part == sorted(part) for part in rows)
    assert execution.started == 1
    assert execution.running == 0


async def test_slow_split_holds_up_no_other() -> None:
    execution = FakeExecution(10)
    async with serving(execution, 2) as coordinator:
        assert await coordinator.start_epoch(0) == 0
        rows: list[int] = []
        with anyio.fail_after(2):
            async with anyio.create_task_group() as group:
                group.start_soon(consume, coordinator, 1, rows)
        assert rows == list(range(10))


async def test_epoch_starts_when_every_split_has_arrived() -> None:
    execution = FakeExecution(1, endless=True)
    async with serving(execution, 2) as coordinator:
        await coordinator.start_epoch(1)
        await coordinator.start_epoch(1)
        await anyio.wait_all_tasks_blocked()
        assert execution.started == 0
        await coordinator.start_epoch(0)
        await anyio.wait_all_tasks_blocked()
        assert execution.started == 1


async def test_cancelled_next_bundles_loses_nothing() -> None:
    execution = FakeExecution(5)
    async with serving(execution, 2) as coordinator:
        epoch = await coordinator.start_epoch(0)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(coordinator.next_bundles, epoch, 0, 0)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        await coordinator.start_epoch(1)
        await anyio.wait_all_tasks_blocked()
        # The first bundle was assigned to the split while nobody waited for it.
        rows = [ids_of(bundle) for n in range(5) for bundle in (await coordinator.next_bundles(epoch, 0, n)).bundles]
        assert rows == [[0], [1], [2], [3], [4]]
        assert await coordinator.next_bundles(epoch, 0, 5) == Delivery((), is_end=True)


async def test_repeated_sequence_returns_same_bundle() -> None:
    async with serving(FakeExecution(3)) as coordinator:
        epoch = await coordinator.start_epoch(0)
        first = await coordinator.next_bundles(epoch, 0, 0)
        assert (await coordinator.next_bundles(epoch, 0, 0)).bundles[0] is first.bundles[0]
        second = await coordinator.next_bundles(epoch, 0, 1)
        assert ids_of(second.bundles[0]) == [1]
        with pytest.raises(EpochError, match="the next one is 2"):
            await coordinator.next_bundles(epoch, 0, 0)


async def test_last_bundle_can_be_asked_for_again_until_the_next_one_is() -> None:
    async with serving(FakeExecution(1)) as coordinator:
        epoch = await coordinator.start_epoch(0)
        for _ in range(3):
            answer = await coordinator.next_bundles(epoch, 0, 0)
            assert [ids_of(bundle) for bundle in answer.bundles] == [[0]]
        assert (await coordinator.next_bundles(epoch, 0, 1)).is_end
        assert (await coordinator.next_bundles(epoch, 0, 1)).is_end


async def test_pending_call_of_a_finished_split_is_at_its_end() -> None:
    execution = FakeExecution(0, endless=True)
    answers: list[Delivery] = []

    async def ask(coordinator: Coordinator) -> None:
        answers.append(await coordinator.next_bundles(0, 0, 0))

    async with serving(execution, 2) as coordinator:
        await coordinator.start_epoch(0)
        await coordinator.start_epoch(1)
        async with anyio.create_task_group() as group:
            group.start_soon(ask, coordinator)
            await anyio.wait_all_tasks_blocked()
            coordinator.notify_split_finished(0, 0)
        assert answers == [Delivery((), is_end=True)]
        assert execution.running == 1


async def test_execution_is_cancelled_when_all_splits_have_finished() -> None:
    execution = FakeExecution(3, endless=True)
    async with serving(execution, 2) as coordinator:
        for split in range(2):
            await coordinator.start_epoch(split)
        await coordinator.next_bundles(0, 0, 0)
        coordinator.notify_split_finished(0, 0)
        await anyio.wait_all_tasks_blocked()
        assert execution.running == 1
        coordinator.notify_split_finished(0, 1)
        await anyio.wait_all_tasks_blocked()
        assert execution.running == 0


async def test_splits_that_finish_before_the_start_leave_nothing_running() -> None:
    execution = FakeExecution(0, endless=True)
    async with serving(execution) as coordinator:
        await coordinator.start_epoch(0)
        coordinator.notify_split_finished(0, 0)
        await anyio.wait_all_tasks_blocked()
        assert execution.running == 0


async def test_second_epoch_runs() -> None:
    execution = FakeExecution(4)
    async with serving(execution, 2, num_epochs=2) as coordinator:
        for epoch in range(2):
            rows: list[int] = []
            async with anyio.create_task_group() as group:
                for split in range(2):
                    group.start_soon(consume, coordinator, split, rows)
            assert sorted(rows) == [0, 1, 2, 3]
            assert execution.started == epoch + 1
            await anyio.wait_all_tasks_blocked()


async def test_split_that_finished_arrives_at_the_next_epoch() -> None:
    execution = FakeExecution(4)
    epochs: list[int] = []

    async def arrive(coordinator: Coordinator) -> None:
        epochs.append(await coordinator.start_epoch(0))

    async with serving(execution, 2, num_epochs=2) as coordinator:
        for split in range(2):
            await coordinator.start_epoch(split)
        coordinator.notify_split_finished(0, 0)
        async with anyio.create_task_group() as group:
            group.start_soon(arrive, coordinator)
            await anyio.wait_all_tasks_blocked()
            coordinator.notify_split_finished(0, 1)
    assert epochs == [1]


async def test_word_of_a_stale_epoch_is_harmless() -> None:
    execution = FakeExecution(4)
    async with serving(execution, num_epochs=2) as coordinator:
        first: list[int] = []
        await consume(coordinator, 0, first)
        await anyio.wait_all_tasks_blocked()
        assert await coordinator.start_epoch(0) == 1
        for _ in range(2):
            coordinator.notify_split_finished(0, 0)
            coordinator.notify_split_finished(99, 0)
        assert await coordinator.next_bundles(0, 0, 17) == Delivery((), is_end=True)
        second: list[int] = []
        await consume(coordinator, 0, second)
        assert first == second == [0, 1, 2, 3]


async def test_repeated_finish_is_harmless() -> None:
    execution = FakeExecution(4)
    async with serving(execution, 2) as coordinator:
        for split in range(2):
            await coordinator.start_epoch(split)
        for _ in range(3):
            coordinator.notify_split_finished(0, 0)
        rows: list[int] = []
        await consume(coordinator, 1, rows)
        assert rows == [0, 1, 2, 3]


async def test_future_epoch_is_refused() -> None:
    async with serving(FakeExecution(1)) as coordinator:
        await coordinator.start_epoch(0)
        with pytest.raises(EpochError, match="epoch 1 has not started; the current one is 0"):
            await coordinator.next_bundles(1, 0, 0)


async def test_failure_of_the_execution_comes_out_of_serve() -> None:
    error = ZeroDivisionError()
    coordinator = Coordinator(FakeExecution(0, error=error))
    await coordinator.start_epoch(0)
    with pytest.raises(ExceptionGroup) as caught:
        await coordinator.serve(1)
    assert unwrap(caught.value) is error
