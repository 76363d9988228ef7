"""DataOpTask: its states, what it pulls, and that every byte it counts is counted once and let go once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata.bundle import BlockRef
from aiodata.execution.budget import ByteBudget
from aiodata.execution.data_op_task import DataOpTask, DataOpTaskState
from aiodata.execution.jobs import Job
from aiodata.execution.metadata import MetadataPrefetcher
from aiodata.plan.work import Cuts, OutputMetadata, Position, TaskEnd, Work
from aiodata.runtime.base import Pair
from tests.execution.fakes import FakeBlock, FakeMetadata, FakeRuntime, FakeTask, end_pair, output_of, pair_of, settle

CUTS = Cuts(1, 1, 1, 1, 1, 1, 1)
LOST = OSError("lost")


@dataclass
class Owner:
    """Notes what a task tells it, in order, and keeps the blocks."""

    seen: list[object] = field(default_factory=list)
    blocks: list[BlockRef] = field(default_factory=list)
    num_unknown: int = 0
    again: Callable[[DataOpTask], None] = DataOpTask.pull

    def on_output(self, task: DataOpTask, ref: BlockRef, metadata: OutputMetadata) -> None:
        self.seen.append(ref.ids[0])
        self.blocks.append(ref)

    def on_pull_again(self, task: DataOpTask) -> None:
        self.again(task)

    def on_needs_room(self, task: DataOpTask) -> None:
        self.seen.append("needs room")

    def on_lost(self, task: DataOpTask, error: Exception) -> None:
        self.seen.append(error)

    def on_unknown_size(self) -> None:
        self.num_unknown += 1

    def on_finished(self, task: DataOpTask, end: TaskEnd) -> None:
        assert task.state is DataOpTaskState.FINISHED
        self.seen.append(end)


class Setting:
    """A task with an owner, a lane and a budget."""

    def __init__(self, expected_bytes: int = 100) -> None:
        self.runtime, self.owner, self.budget = FakeRuntime(), Owner(), ByteBudget(1000)
        self.prefetcher = MetadataPrefetcher(self.runtime.fetch_ready, self.runtime.fetch)
        self.lane = self.prefetcher.lane(lambda: None)
        self.task = DataOpTask(self.owner, Job(0, ()), self.lane, self.runtime, self.budget, expected_bytes)
        self.handle = FakeTask(Work((), CUTS), (), lambda _: self.task.pull())
        self.task.handle = self.handle

    @property
    def counts(self) -> tuple[int, int]:
        return self.budget.live_bytes, self.budget.expected_bytes


def unsized(pair: Pair) -> Pair:
    return replace(pair, ref=FakeBlock(pair.ref.ids, pair.ref.num_bytes, is_size_known=False))


async def test_task_is_active_then_drained_then_finished() -> None:
    setting, late = Setting(), pair_of(1, is_pending=True)
    states: list[DataOpTaskState] = []
    async with setting.prefetcher.group:
        setting.handle.produce(0)
        await setting.lane.flush()
        states.append(setting.task.state)
        setting.handle.give(late, end_pair())
        await setting.lane.flush()
        states.append(setting.task.state)
        assert setting.owner.seen == [0]
        late.metadata.settle()
        await settle()
    assert [*states, setting.task.state] == list(DataOpTaskState)
    assert setting.owner.seen == [0, 1, TaskEnd()]


@pytest.mark.parametrize("is_pending", [False, True])
async def test_pairs_after_the_end_stand_for_nothing(is_pending: bool) -> None:
    setting, end = Setting(expected_bytes=100), end_pair(is_pending=is_pending)
    async with setting.prefetcher.group:
        setting.handle.give(pair_of(0, num_bytes=30), end, end_pair(num_bytes=5), pair_of(1, num_bytes=7))
        await setting.lane.flush()
        end.metadata.settle()
        await settle()
    assert setting.owner.seen == [0, TaskEnd()]
    assert setting.counts == (30, 0)
    assert setting.task.state is DataOpTaskState.FINISHED


async def test_drained_task_is_expected_to_produce_nothing_more() -> None:
    setting, late = Setting(expected_bytes=100), pair_of(1, num_bytes=30, is_pending=True)
    async with setting.prefetcher.group:
        setting.handle.give(late, end_pair())
        assert setting.counts == (30, 70)
        await setting.lane.flush()
        assert setting.counts == (30, 0)
        late.metadata.settle()


async def test_nothing_is_pulled_while_pairs_wait() -> None:
    setting, late = Setting(), pair_of(0, is_pending=True)
    async with setting.prefetcher.group:
        setting.handle.give(late)
        setting.handle.produce(1)
        setting.handle.produce(2)
        await setting.lane.flush()
        assert setting.handle.num_pulls == 1
        assert setting.runtime.fetched == [1]
        late.metadata.settle()
        await settle()
        assert setting.handle.num_pulls == 2, "it is pulled again when they have been emitted"
        await setting.lane.flush()
    assert setting.owner.seen == [0, 1, 2]


async def test_task_that_is_not_started_is_not_pulled() -> None:
    setting = Setting()
    setting.task.handle = None
    setting.task.pull()
    assert setting.lane.num_new == 0


async def test_end_comes_once_after_the_last_pair_and_nothing_is_pulled_then() -> None:
    setting = Setting()
    end = TaskEnd(Position(2))
    setting.handle.give(pair_of(0), pair_of(1), end_pair(end))
    await setting.lane.flush()
    assert setting.owner.seen == [0, 1, end]
    pulls = setting.handle.num_pulls
    setting.handle.produce(2)
    await setting.lane.flush()
    assert (setting.owner.seen, setting.handle.num_pulls) == ([0, 1, end], pulls)


async def test_bytes_are_counted_when_a_block_surfaces_and_are_expected_no_more() -> None:
    setting = Setting(expected_bytes=100)
    assert setting.counts == (0, 100)
    setting.handle.give(pair_of(0, num_bytes=40), pair_of(1, num_bytes=50))
    assert setting.counts == (90, 10), "before any metadata was fetched"
    await setting.lane.flush()
    setting.handle.give(pair_of(2, num_bytes=60))
    assert setting.counts == (150, 0), "more than was expected is just counted"
    assert setting.task.produced_bytes == 150


async def test_block_of_unknown_size_is_counted_when_its_metadata_comes() -> None:
    setting, late = Setting(expected_bytes=100), pair_of(0, num_bytes=40, is_pending=True)
    async with setting.prefetcher.group:
        setting.handle.give(unsized(late))
        await setting.lane.flush()
        assert (setting.counts, setting.owner.num_unknown) == ((0, 100), 0)
        late.metadata.settle()
        await settle()
        assert (setting.counts, setting.owner.num_unknown) == ((40, 60), 1)
    del late
    setting.owner.blocks.clear()
    await settle(3)
    assert setting.counts == (0, 60)


@pytest.mark.parametrize("is_lost", [False, True], ids=["end", "lost block"])
async def test_what_is_no_block_is_counted_no_more(is_lost: bool) -> None:
    setting = Setting(expected_bytes=100)
    pair = pair_of(0, num_bytes=40, error=LOST) if is_lost else end_pair(num_bytes=40)
    setting.handle.give(pair)
    assert setting.counts == (40, 60)
    await setting.lane.flush()
    assert setting.counts == ((0, 60) if is_lost else (0, 0))
    assert setting.task.produced_bytes == 0
    assert setting.owner.seen == [LOST if is_lost else TaskEnd()]


async def test_block_counts_until_its_last_reference_is_gone() -> None:
    setting = Setting()
    setting.handle.produce(0, num_bytes=40)
    await setting.lane.flush()
    kept = setting.owner.blocks.copy()
    setting.owner.blocks.clear()
    await settle(3)
    assert setting.budget.live_bytes == 40
    kept.clear()
    await settle(3)
    assert setting.budget.live_bytes == 0
    assert setting.budget.peak_live_bytes == 40


async def test_abandoned_task_leaves_nothing_counted() -> None:
    setting, late = Setting(expected_bytes=100), pair_of(0, num_bytes=40, is_pending=True)
    async with setting.prefetcher.group:
        setting.handle.give(late, unsized(pair_of(1, num_bytes=20)), pair_of(2, num_bytes=30))
        await setting.lane.flush()
        assert setting.counts == (70, 30)
        setting.lane.clear()
        setting.task.abandon()
    assert setting.counts == (0, 0)


# A pair: its bytes, whether its size is known, whether it is late, whether it is lost.
Drawn = tuple[int, bool, bool, bool]


async def play(expected_bytes: int, batches: list[list[Drawn]], abandon_after: int | None) -> None:
    setting = Setting(expected_bytes)
    late: list[FakeMetadata] = []
    produced = 0
    async with setting.prefetcher.group:
        for number, batch in enumerate(batches):
            if number == abandon_after:
                setting.lane.clear()
                setting.task.abandon()
                break
            pairs = []
            for size, is_known, is_late, is_lost in batch:
                block = FakeBlock((number,), size, is_known)
                metadata = FakeMetadata(LOST if is_lost else output_of(block), is_pending=is_late)
                late += [metadata] * is_late
                pairs.append(Pair(block, metadata))
                produced += 0 if is_lost else size
            setting.handle.give(*pairs)
            del pairs
            await setting.lane.flush()
            assert setting.budget.expected_bytes >= 0
            if number % 2:
                while late:
                    late.pop().settle()
                    await settle(3)
        else:
            setting.handle.end()
            for metadata in late:
                metadata.settle()
            for _ in range(len(batches) + 2):
                await setting.lane.flush()
                await settle(4)
            assert setting.task.state is DataOpTaskState.FINISHED
            assert setting.task.produced_bytes == setting.budget.live_bytes == produced
    setting.owner.blocks.clear()
    del block, metadata
    late.clear()
    await settle(4)
    assert setting.counts == (0, 0)


@settings(max_examples=150, deadline=None)
@given(
    expected_bytes=st.integers(0, 200),
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 90), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=4),
        min_size=1,
        max_size=5,
    ),
    abandon_after=st.none() | st.integers(1, 4),
)
def test_all_that_is_counted_is_settled_exactly(
    expected_bytes: int, batches: list[list[Drawn]], abandon_after: int | None
) -> None:
    asyncio.run(play(expected_bytes, batches, abandon_after))


def beyond(number: int, num_bytes: int) -> Pair:
    """A pair of a block after which the task waits for room."""
    pair = pair_of(number, num_bytes=num_bytes)
    return Pair(pair.ref, FakeMetadata(replace(output_of(pair.ref), needs_room=True)))


async def test_nothing_is_expected_of_a_task_that_waits_for_room_but_what_it_is_given() -> None:
    setting = Setting(expected_bytes=60)
    setting.handle.give(beyond(0, 70))
    await setting.lane.flush()
    assert setting.counts == (70, 0)
    assert setting.owner.seen == [0, "needs room"]
    setting.task.give_room(2)
    assert (setting.counts, setting.handle.room) == ((70, 140), 2)
    setting.handle.give(beyond(1, 50), beyond(2, 50))
    await setting.lane.flush()
    assert setting.counts == (170, 0), "its blocks turned out smaller, and it waits again"
    assert setting.owner.seen == [0, "needs room", 1, 2, "needs room"]
    setting.task.give_room(1)
    assert setting.handle.room == 3, "in all"


async def test_lost_block_may_have_said_that_the_task_waits() -> None:
    setting = Setting(expected_bytes=40)
    setting.handle.give(pair_of(0, num_bytes=40, error=LOST))
    await setting.lane.flush()
    assert setting.owner.seen == [LOST, "needs room"]
