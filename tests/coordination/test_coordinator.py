"""Coordinator: splits share an execution's bundles, whatever each of them does."""

from __future__ import annotations

import anyio
import pytest

from aiodata import BarrierTimeoutError, EpochError, SplitBusyError, SplitLostError
from aiodata.coordination import Coordinator, Delivery, Lease
from aiodata.coordination.epoch import EpochPhase
from aiodata.options import OnSplitLost
from aiodata.stats import RunStats
from tests.coordination.consumers import (
    FakeExecution,
    Hosted,
    consume,
    hosting,
    join_all,
    serving,
    settled,
    take,
    virtual,
)
from tests.coordination.epochs import ids_of

END = Delivery((), is_end=True)


@pytest.mark.parametrize("num_splits", [1, 2, 5])
@pytest.mark.parametrize("num_bundles", [0, 1, 23])
@virtual
async def test_splits_share_all_rows_exactly_once(num_splits: int, num_bundles: int) -> None:
    execution = FakeExecution(*[1] * num_bundles)
    rows: list[list[int]] = [[] for _ in range(num_splits)]
    async with hosting(execution, num_splits) as hosted:
        async with anyio.create_task_group() as group:
            for split in range(num_splits):
                group.start_soon(consume, hosted.coordinator, split, rows[split])
        await settled()
        assert (execution.started, execution.running) == (1, 0)
    assert sorted(row for part in rows for row in part) == list(range(num_bundles))
    assert all(part == sorted(part) for part in rows)


@virtual
async def test_fast_consumer_gets_more_and_waits_for_nobody() -> None:
    rows: list[list[int]] = [[], []]
    async with hosting(FakeExecution(*[1] * 30)) as hosted:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: consume(hosted.coordinator, 0, rows[0], pause_s=10))
            group.start_soon(lambda: consume(hosted.coordinator, 1, rows[1], pause_s=1))
        assert anyio.current_time() <= 40
    assert sorted(rows[0] + rows[1]) == list(range(30))
    assert len(rows[1]) > 5 * len(rows[0])


@virtual
async def test_one_call_can_bring_several_bundles() -> None:
    async with hosting(FakeExecution(*[2] * 5), 1) as hosted:
        [(lease, _)] = await join_all(hosted.coordinator, 1)
        await settled()
        delivery = await hosted.coordinator.next_bundles(lease, 0, max_bundles=4)
        assert [ids_of(bundle) for bundle in delivery.bundles] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@virtual
async def test_epoch_starts_when_every_split_has_arrived() -> None:
    execution = FakeExecution(1, endless=True)
    async with hosting(execution, 3) as hosted:
        lease, _ = await hosted.coordinator.join(1)
        assert await hosted.coordinator.start_epoch(lease, 30) == (0, 2)
        assert anyio.current_time() == 30
        await hosted.coordinator.join(0)
        assert await hosted.coordinator.start_epoch(lease, 5) == (2,)
        assert execution.started == 0
        await hosted.coordinator.join(2)
        assert await hosted.coordinator.start_epoch(lease, 5) == ()
        assert await hosted.coordinator.start_epoch(lease, 5) == (), "repeats are harmless"
        await settled()
        assert execution.started == 1


@virtual
async def test_barrier_that_times_out_names_the_absent_and_lets_the_split_go() -> None:
    async with hosting(FakeExecution(1), 4, barrier_timeout_s=60) as hosted:
        first, _ = await hosted.coordinator.join(1)
        await anyio.sleep(10)
        second, _ = await hosted.coordinator.join(3)
        assert await hosted.coordinator.start_epoch(first, 20) == (0, 2)
        with pytest.raises(BarrierTimeoutError, match=r"epoch 0 did not begin within 60 s: 2 splits \(0, 2\) of 4 "):
            await hosted.coordinator.start_epoch(first, 1000)
        assert anyio.current_time() == 60
        with pytest.raises(BarrierTimeoutError, match=r"3 splits \(0, 1, 2\)"):
            await hosted.coordinator.start_epoch(second)
        assert anyio.current_time() == 70
        assert hosted.coordinator.stats(RunStats()).absent == (0, 1, 2, 3)


@virtual
async def test_who_waits_while_the_epoch_before_is_shut_down_is_not_told_that_it_has_begun() -> None:
    execution = FakeExecution(1, endless=True, closing_s=3)
    async with hosting(execution, 1, barrier_timeout_s=2) as hosted:
        [(lease, _)] = await join_all(hosted.coordinator, 1)
        hosted.coordinator.notify_split_finished(lease)
        lease, _ = await hosted.coordinator.join(0)
        assert await hosted.coordinator.start_epoch(lease, 1) == ()
        assert anyio.current_time() == 3
        assert ids_of(*(await hosted.coordinator.next_bundles(lease, 0)).bundles) == [0]


@virtual
async def test_second_consumer_of_a_split_is_refused_after_a_wait() -> None:
    async with hosting(FakeExecution(1, endless=True)) as hosted:
        [(lease, _), _] = await join_all(hosted.coordinator, 2)
        with pytest.raises(SplitBusyError, match="split 0 has a live consumer already"):
            await hosted.coordinator.join(0)
        assert 0 < anyio.current_time() < 10
        assert ids_of(*(await hosted.coordinator.next_bundles(lease, 0)).bundles) == [0], "the first one goes on"


@virtual
async def test_second_consumer_is_refused_while_the_epoch_gathers() -> None:
    async with hosting(FakeExecution(1)) as hosted:
        await hosted.coordinator.join(0)
        with pytest.raises(SplitBusyError):
            await hosted.coordinator.join(0)


@pytest.mark.parametrize("split", [-1, 2])
@virtual
async def test_unknown_split_is_refused(split: int) -> None:
    async with hosting(FakeExecution(1)) as hosted:
        with pytest.raises(EpochError, match=f"there is no split {split}; there are 2"):
            await hosted.coordinator.join(split)


@virtual
async def test_next_consumer_takes_over_as_soon_as_the_one_before_leaves() -> None:
    leases: list[Lease] = []

    async def join(coordinator: Coordinator) -> None:
        leases.append((await coordinator.join(0))[0])

    async with hosting(FakeExecution(1, endless=True)) as hosted:
        [(lease, _), _] = await join_all(hosted.coordinator, 2)
        async with anyio.create_task_group() as group:
            group.start_soon(join, hosted.coordinator)
            await anyio.sleep(1)
            hosted.coordinator.notify_split_finished(lease)
        assert anyio.current_time() == 1
        assert [(one.epoch, one.split_index) for one in leases] == [(1, 0)]


@virtual
async def test_cancelled_next_bundles_loses_nothing() -> None:
    execution = FakeExecution(*[1] * 5)
    async with hosting(execution) as hosted:
        (lease, _), (other, _) = await join_all(hosted.coordinator, 2)
        for _ in range(3):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await hosted.coordinator.next_bundles(lease, 0)
        await settled()
        hosted.coordinator.notify_split_finished(other)
        rows: list[int] = []
        await take(hosted.coordinator, lease, rows)
        assert rows == [0, 1, 2, 3, 4]


@virtual
async def test_two_calls_in_flight_are_answered_in_turn_and_both_end() -> None:
    answers: dict[int, Delivery] = {}

    async def ask(coordinator: Coordinator, lease: Lease, sequence: int) -> None:
        answers[sequence] = await coordinator.next_bundles(lease, sequence)

    async with hosting(FakeExecution(1, 1), 1) as hosted:
        [(lease, _)] = await join_all(hosted.coordinator, 1)
        for pair in ((1, 0), (3, 2)):
            async with anyio.create_task_group() as group:
                for sequence in pair:
                    group.start_soon(ask, hosted.coordinator, lease, sequence)
    assert [ids_of(*answers[sequence].bundles) for sequence in range(4)] == [[0], [1], [], []]
    assert [answers[sequence].is_end for sequence in range(4)] == [False, False, True, True]


@virtual
async def test_repeated_call_gets_the_same_answer() -> None:
    async with hosting(FakeExecution(1), 1) as hosted:
        [(lease, _)] = await join_all(hosted.coordinator, 1)
        first = await hosted.coordinator.next_bundles(lease, 0)
        assert (await hosted.coordinator.next_bundles(lease, 0)).bundles[0] is first.bundles[0]
        for _ in range(2):
            assert await hosted.coordinator.next_bundles(lease, 1) == END
        with pytest.raises(EpochError, match="asked for delivery 3; the next one is 1"):
            await hosted.coordinator.next_bundles(lease, 3)


@virtual
async def test_pending_call_of_a_finished_split_is_at_its_end() -> None:
    answers: list[Delivery] = []

    async def ask(coordinator: Coordinator, lease: Lease) -> None:
        answers.append(await coordinator.next_bundles(lease, 0))

    async with hosting(FakeExecution(endless=True)) as hosted:
        (lease, _), _ = await join_all(hosted.coordinator, 2)
        async with anyio.create_task_group() as group:
            group.start_soon(ask, hosted.coordinator, lease)
            await settled()
            hosted.coordinator.notify_split_finished(lease)
        assert answers == [END]
        assert hosted.execution.running == 1


@virtual
async def test_execution_is_shut_down_when_all_have_finished_and_calls_go_on_being_answered() -> None:
    async with hosting(FakeExecution(1, endless=True, closing_s=50)) as hosted:
        (first, _), (second, _) = await join_all(hosted.coordinator, 2)
        await hosted.coordinator.next_bundles(first, 0)
        hosted.coordinator.notify_split_finished(first)
        await settled()
        assert (hosted.execution.running, hosted.coordinator.phase) == (1, EpochPhase.RUNNING)
        hosted.coordinator.notify_split_finished(second)
        assert hosted.coordinator.phase is EpochPhase.ENDED
        assert await hosted.coordinator.next_bundles(first, 1) == END
        lease, _ = await hosted.coordinator.join(0)
        assert (lease.epoch, anyio.current_time()) == (1, 0)
        await anyio.sleep(51)
        assert hosted.execution.running == 0


@virtual
async def test_stale_and_repeated_words_are_harmless() -> None:
    async with hosting(FakeExecution(1, 1, 1), 1) as hosted:
        for epoch in range(3):
            [(lease, _)] = await join_all(hosted.coordinator, 1)
            for stale in (Lease(epoch - 1, 0, epoch), Lease(epoch, 0, 99), Lease(77, 0, 1)):
                hosted.coordinator.notify_split_finished(stale)
                hosted.coordinator.acknowledge(stale, 1000, 5)
            rows: list[int] = []
            await take(hosted.coordinator, lease, rows)
            for _ in range(3):
                hosted.coordinator.notify_split_finished(lease)
            assert rows == [0, 1, 2]
            assert await hosted.coordinator.next_bundles(lease, 17) == END
            assert lease.epoch == epoch


@virtual
async def test_epoch_that_has_not_begun_is_refused() -> None:
    async with hosting(FakeExecution(1)) as hosted:
        lease, _ = await hosted.coordinator.join(0)
        with pytest.raises(EpochError, match="epoch 0 has not started; wait for it with start_epoch"):
            await hosted.coordinator.next_bundles(lease, 0)


@virtual
async def test_split_that_left_before_the_start_is_waited_for_again() -> None:
    async with hosting(FakeExecution(1)) as hosted:
        lease, _ = await hosted.coordinator.join(0)
        hosted.coordinator.notify_split_finished(lease)
        other, _ = await hosted.coordinator.join(1)
        assert await hosted.coordinator.start_epoch(other, 1) == (0,)


@virtual
async def test_statistics_say_who_has_what() -> None:
    async with hosting(FakeExecution(4, 3, endless=True)) as hosted:
        assert hosted.coordinator.stats(RunStats()).phase == "gathering"
        (first, _), (second, _) = await join_all(hosted.coordinator, 2)
        await hosted.coordinator.next_bundles(first, 0)
        await hosted.coordinator.next_bundles(second, 0)
        hosted.coordinator.acknowledge(first, 3, 70)
        hosted.coordinator.acknowledge(first, 1, 50)
        hosted.coordinator.notify_split_finished(second)
        stats = hosted.coordinator.stats(RunStats())
        assert (stats.epoch, stats.phase, stats.absent, stats.dropped_rows) == (0, "running", (0, 1), 0)
        assert [(one.rows, one.bundles, one.bytes, one.acked_rows, one.unacked_rows) for one in stats.splits] == [
            (4, 1, 32, 3, 1),
            (3, 1, 24, 0, 0),
        ]
        assert [one.prefetched_bytes for one in stats.splits] == [50, 0]


@virtual
async def test_failure_reaches_all_consumers_and_the_next_epoch_runs() -> None:
    error = ZeroDivisionError("boom")
    raised: list[BaseException] = []
    async with hosting(FakeExecution(1, endless=True), 3) as hosted:
        joined = await join_all(hosted.coordinator, 3)
        leases = [lease for lease, _ in joined]
        async with anyio.create_task_group() as group:
            for lease in leases[:2]:
                group.start_soon(expect, hosted.coordinator, lease, error, raised)
            await settled()
            hosted.coordinator.fail(error)
            hosted.coordinator.fail(RuntimeError())
        with pytest.raises(ZeroDivisionError):
            await hosted.coordinator.next_bundles(leases[2], 0)
        assert raised == [error, error]
        assert hosted.execution.running == 0
        for lease in leases:
            hosted.coordinator.notify_split_finished(lease)
        joined = await join_all(hosted.coordinator, 3)
        assert ids_of(*(await hosted.coordinator.next_bundles(joined[0][0], 0)).bundles) == [0]


async def expect(coordinator: Coordinator, lease: Lease, error: Exception, raised: list[BaseException]) -> None:
    with pytest.raises(type(error)) as caught:
        await take(coordinator, lease, [])
    raised.append(caught.value)


@virtual
async def test_failure_of_the_execution_reaches_its_consumers_and_the_next_epoch_runs() -> None:
    error = ZeroDivisionError()
    async with hosting(FakeExecution(2, error=error), 1) as hosted:
        [(lease, _)] = await join_all(hosted.coordinator, 1)
        with pytest.raises(ZeroDivisionError) as caught:
            await take(hosted.coordinator, lease, [])
        assert caught.value is error
        hosted.coordinator.notify_split_finished(lease)
        hosted.execution.error = None
        [(lease, _)] = await join_all(hosted.coordinator, 1)
        assert ids_of(*(await hosted.coordinator.next_bundles(lease, 0)).bundles) == [0, 1]


@virtual
async def test_replacement_goes_on_with_what_was_not_acknowledged() -> None:
    async with hosting(FakeExecution(4, 4, endless=True)) as hosted:
        (lost, token), _ = await join_all(hosted.coordinator, 2)
        assert ids_of(*(await hosted.coordinator.next_bundles(lost, 0)).bundles) == [0, 1, 2, 3]
        hosted.coordinator.acknowledge(lost, 3)
        hosted.tokens.release(token)
        lease, _ = await hosted.coordinator.join(0)
        assert 0 < anyio.current_time() < 1
        assert lease.epoch == 0
        assert await hosted.coordinator.start_epoch(lease) == ()
        assert ids_of(*(await hosted.coordinator.next_bundles(lease, 0)).bundles) == [3]
        assert ids_of(*(await hosted.coordinator.next_bundles(lease, 1)).bundles) == [4, 5, 6, 7]
        with pytest.raises(SplitLostError, match="this consumer of split 0 was taken for lost in epoch 0"):
            await hosted.coordinator.next_bundles(lost, 1)
        hosted.coordinator.acknowledge(lost, 4)
        hosted.coordinator.notify_split_finished(lost)
        assert hosted.coordinator.stats(RunStats()).splits[0].unacked_rows == 5


@virtual
async def test_others_get_what_a_lost_one_leaves_and_the_next_epoch_goes_on_without_it() -> None:
    async with hosting(FakeExecution(4, 4), on_split_lost="redistribute") as hosted:
        (lost, token), (lease, _) = await join_all(hosted.coordinator, 2)
        await hosted.coordinator.next_bundles(lost, 0)
        hosted.coordinator.acknowledge(lost, 1)
        rows: list[int] = []
        async with anyio.create_task_group() as group:
            group.start_soon(take, hosted.coordinator, lease, rows)
            await anyio.sleep(1)
            assert rows == [4, 5, 6, 7]
            hosted.tokens.release(token)
        assert rows == [4, 5, 6, 7, 1, 2, 3]
        hosted.coordinator.notify_split_finished(lease)
        second: list[int] = []
        await consume(hosted.coordinator, 1, second)
        assert sorted(second) == list(range(8))
        await settled()
        # It comes back, and the epoch after next is for both.
        back, _ = await hosted.coordinator.join(0)
        other, _ = await hosted.coordinator.join(1)
        assert [await hosted.coordinator.start_epoch(one) for one in (back, other)] == [(), ()]
        assert (back.epoch, other.epoch) == (2, 2)


@virtual
async def test_next_epoch_waits_for_all_where_all_were_lost() -> None:
    async with hosting(FakeExecution(4, endless=True), on_split_lost="redistribute") as hosted:
        for _, token in await join_all(hosted.coordinator, 2):
            hosted.tokens.release(token)
        await anyio.sleep(1)
        assert hosted.execution.running == 0
        assert hosted.coordinator.stats(RunStats()).absent == (0, 1)
        lease, _ = await hosted.coordinator.join(1)
        assert await hosted.coordinator.start_epoch(lease, 10) == (0,)


@virtual
async def test_all_are_told_of_a_lost_one() -> None:
    async with hosting(FakeExecution(endless=True), 3, on_split_lost="raise") as hosted:
        joined = await join_all(hosted.coordinator, 3)
        raised: list[BaseException] = []
        async with anyio.create_task_group() as group:
            for lease, _ in joined[:2]:
                group.start_soon(expect, hosted.coordinator, lease, SplitLostError(), raised)
            await settled()
            hosted.tokens.release(joined[2][1])
        assert ["the consumer of split 2 is gone without a word in epoch 0" in str(one) for one in raised] == [True] * 2
        for lease, _ in joined[:2]:
            hosted.coordinator.notify_split_finished(lease)
        await settled()
        assert hosted.execution.running == 0
        assert [lease.epoch for lease, _ in await join_all(hosted.coordinator, 3)] == [1, 1, 1]


@pytest.mark.parametrize("is_waiting", [True, False])
@virtual
async def test_all_are_told_of_one_that_is_lost_before_the_start(is_waiting: bool) -> None:
    message = "the consumer of split 0 is gone without a word in epoch 0"
    async with hosting(FakeExecution(1), 3, on_split_lost="raise", barrier_timeout_s=100) as hosted:
        _, token = await hosted.coordinator.join(0)
        lease, _ = await hosted.coordinator.join(1)
        if not is_waiting:
            # It asks again and again how the epoch is getting on, and does not at the moment.
            hosted.tokens.release(token)
            await anyio.sleep(1)
        else:
            hosted.tokens.release(token)
        with pytest.raises(SplitLostError, match=message):
            await hosted.coordinator.start_epoch(lease)
        hosted.coordinator.notify_split_finished(lease)
        assert [lease.epoch for lease, _ in await join_all(hosted.coordinator, 3)] == [0, 0, 0]


@pytest.mark.parametrize("mode", ["wait", "redistribute"])
@virtual
async def test_who_is_taken_for_lost_before_the_start_is_told_so(mode: OnSplitLost) -> None:
    async with hosting(FakeExecution(1), 3, on_split_lost=mode) as hosted:
        lost, token = await hosted.coordinator.join(0)
        lease, _ = await hosted.coordinator.join(1)
        hosted.tokens.release(token)
        await anyio.sleep(1)
        with pytest.raises(SplitLostError, match="this consumer of split 0 was taken for lost"):
            await hosted.coordinator.start_epoch(lost)
        assert await hosted.coordinator.start_epoch(lease, 1) == ((0, 2) if mode == "wait" else (2,))


@virtual
async def test_who_is_taken_for_lost_is_told_so_though_its_epoch_has_ended() -> None:
    async with hosting(FakeExecution(1), 2, on_split_lost="redistribute") as hosted:
        (lost, token), (other, _) = await join_all(hosted.coordinator, 2)
        hosted.tokens.release(token)
        await anyio.sleep(1)
        await take(hosted.coordinator, other, [])
        hosted.coordinator.notify_split_finished(other)
        await settled()
        with pytest.raises(SplitLostError, match="this consumer of split 0 was taken for lost in epoch 0"):
            await hosted.coordinator.next_bundles(lost, 0)


@pytest.mark.parametrize("mode", ["wait", "redistribute", "raise"])
@virtual
async def test_word_that_comes_just_after_the_token_counts(mode: OnSplitLost) -> None:
    async with hosting(FakeExecution(4, endless=True), on_split_lost=mode) as hosted:
        (first, token), (other, _) = await join_all(hosted.coordinator, 2)
        await hosted.coordinator.next_bundles(first, 0)
        hosted.tokens.release(token)
        await anyio.sleep(0.1)
        hosted.coordinator.notify_split_finished(first)
        await anyio.sleep(10)
        assert hosted.coordinator.stats(RunStats()).absent == (0, 1)
        with anyio.move_on_after(5) as scope:
            await hosted.coordinator.next_bundles(other, 0)
        assert scope.cancelled_caught, "what it had is nobody else's, and nobody is lost"


@virtual
async def test_failed_epoch_waits_for_no_replacement() -> None:
    async with hosting(FakeExecution(1, endless=True)) as hosted:
        (_, token), (lease, _) = await join_all(hosted.coordinator, 2)
        hosted.tokens.release(token)
        await anyio.sleep(1)
        hosted.coordinator.fail(ZeroDivisionError())
        hosted.coordinator.notify_split_finished(lease)
        assert [lease.epoch for lease, _ in await join_all(hosted.coordinator, 2)] == [1, 1]


@virtual
async def test_token_that_is_released_when_nothing_is_served_is_harmless() -> None:
    hosted = Hosted(FakeExecution(), 1)
    async with serving(hosted.coordinator):
        [(lease, _)] = await join_all(hosted.coordinator, 1)
        hosted.coordinator.notify_split_finished(lease)
        await settled()
    await hosted.coordinator.join(0)
    for one in range(2):
        hosted.tokens.release(one)


@virtual
async def test_split_that_gets_no_token_is_not_taken() -> None:
    def refuse(_: object) -> None:
        raise OSError("full")

    coordinator = Coordinator(FakeExecution(), 1, new_token=refuse)
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            await coordinator.join(0)
