"""Workers: tasks in flight are bounded; a pool grows, shrinks, shares out evenly and replaces lost actors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from aiodata.errors import TaskError
from aiodata.execution.workers import ActorPool, SharedSlots, TaskWorkers
from aiodata.plan.work import Cuts, Work
from aiodata.runtime.base import Task
from tests.conftest import PATIENCE_S
from tests.execution.fakes import FakeRuntime, FakeStage, FakeTask, settle

WORK = Work((), Cuts(1, 1, 1, 1, 1, 1, 1))


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, anyio.Event]] = []

    @property
    def num_sleepers(self) -> int:
        return len(self._sleepers)

    async def sleep(self, delay: float) -> None:
        if delay <= 0:
            await anyio.lowlevel.checkpoint()
            return
        woken = anyio.Event()
        self._sleepers.append((self.now + delay, woken))
        await woken.wait()

    async def pass_s(self, seconds: float) -> None:
        self.now += seconds
        due = [sleeper for sleeper in self._sleepers if sleeper[0] <= self.now]
        self._sleepers = [sleeper for sleeper in self._sleepers if sleeper[0] > self.now]
        for _, woken in due:
            woken.set()
        await settle()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(anyio, "sleep", clock.sleep)
    monkeypatch.setattr(anyio, "current_time", lambda: clock.now)
    return clock


class Pool:
    """A pool of actors, its stage, and how often it said that something changed."""

    def __init__(self, least: int, most: int, *, actors_are_ready: bool = True) -> None:
        self.pool = ActorPool("stage", least, most, 1.0)
        self.stage = FakeStage(FakeRuntime(actors_are_ready=actors_are_ready), "stage")
        self.num_changes = 0

    def on_change(self) -> None:
        self.num_changes += 1

    def submit(self, count: int = 1) -> list[FakeTask]:
        tasks = [self.pool.submit(WORK, (), lambda _: None) for _ in range(count)]
        assert all(isinstance(task, FakeTask) for task in tasks)
        return tasks  # type: ignore[return-value]

    def release(self, *tasks: FakeTask, is_lost: bool = False) -> None:
        for task in tasks:
            task.end()
            self.pool.release(task, is_lost=is_lost)

    @property
    def loads(self) -> list[int]:
        return [actor.load for actor in self.stage.actors]

    @property
    def stopped(self) -> list[bool]:
        return [actor.is_stopped for actor in self.stage.actors]


@asynccontextmanager
async def opened(least: int, most: int, *, actors_are_ready: bool = True) -> AsyncIterator[Pool]:
    """An open pool, closed at the end."""
    one = Pool(least, most, actors_are_ready=actors_are_ready)
    async with anyio.create_task_group() as group:
        one.pool.open(one.stage, group, one.on_change)
        await settle()
        yield one
        group.cancel_scope.cancel()
    await one.pool.close()
    assert all(one.stopped), "closing stops every actor, those that are starting included"
    assert (one.pool.num_actors, one.pool.num_free) == (0, 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def task_workers(slots: SharedSlots, max_tasks: int, *, weight: float = 1.0) -> tuple[TaskWorkers, list[str]]:
    """Workers that are guaranteed two tasks, and what they are told."""
    told: list[str] = []
    workers = TaskWorkers(max_tasks, 2, slots, weight)
    async with anyio.create_task_group() as group:
        workers.open(FakeStage(FakeRuntime(), "stage"), group, lambda: told.append("changed"))
    return workers, told


def submit_all(workers: TaskWorkers) -> list[Task]:
    tasks: list[Task] = []
    while workers.num_free:
        tasks.append(workers.submit(WORK, (), lambda _: None))
    return tasks


async def test_tasks_in_flight_are_bounded() -> None:
    workers, _ = await task_workers(SharedSlots(100), 3)
    tasks = submit_all(workers)
    assert (len(tasks), workers.max_tasks) == (3, 3)
    workers.release(tasks[1])
    assert workers.num_free == 1


async def test_operators_share_slots_and_each_has_its_guaranteed_tasks() -> None:
    slots = SharedSlots(5)
    (first, _), (second, told) = await task_workers(slots, 10), await task_workers(slots, 10)
    tasks = submit_all(first)
    assert len(tasks) == 5
    assert len(submit_all(second)) == 2, "they need no slot"
    second.want_more()
    for task in tasks:
        first.release(task)
    assert (told, second.num_free) == (["changed"], 3), "it is told once of slots that another gave back"


async def test_heavy_tasks_take_several_slots_and_weightless_ones_none() -> None:
    slots = SharedSlots(6)
    (heavy, _), (weightless, _) = await task_workers(slots, 10, weight=2), await task_workers(slots, 7, weight=0)
    assert len(submit_all(weightless)) == 7
    assert len(submit_all(heavy)) == 3


async def test_closed_workers_give_their_slots_back() -> None:
    slots = SharedSlots(4)
    (first, _), (second, told) = await task_workers(slots, 10), await task_workers(slots, 10)
    submit_all(first)
    submit_all(second)
    second.want_more()
    await first.close()
    assert (told, second.num_free) == (["changed"], 2)
    await first.close()
    assert second.num_free == 2


async def test_least_number_starts_at_once_and_is_used_when_ready() -> None:
    async with opened(3, 5, actors_are_ready=False) as one:
        assert (len(one.stage.actors), one.pool.num_free, one.pool.max_tasks) == (3, 0, 10)
        one.stage.actors[1].become_ready()
        await settle()
        assert (one.pool.num_free, one.num_changes) == (2, 1)
        one.submit(2)
        assert one.loads == [0, 2, 0]


async def test_task_goes_to_the_actor_with_the_fewest() -> None:
    async with opened(3, 3) as one:
        tasks = one.submit(4)
        assert sorted(one.loads) == [1, 1, 2]
        one.submit(2)
        assert (one.loads, one.pool.num_free) == ([2, 2, 2], 0)
        busiest = one.stage.actors[1]
        one.release(*busiest.tasks)
        assert one.loads == [2, 0, 2]
        one.submit()
        assert one.loads == [2, 1, 2]
        one.release(*one.stage.actors[0].tasks)
        one.submit(3)
        assert one.loads == [2, 2, 2]
    assert all(task.work is WORK for task in tasks)


async def test_one_more_starts_when_all_are_busy_one_at_a_time_up_to_the_most() -> None:
    async with opened(1, 3, actors_are_ready=False) as one:
        for started in (1, 2, 3, 3):
            one.pool.want_more()
            one.pool.want_more()
            assert len(one.stage.actors) == started, "none more is started while one is starting"
            one.stage.actors[started - 1].become_ready()
            await settle()
            one.submit(one.pool.num_free)
        assert one.num_changes == 3
        assert one.loads == [2, 2, 2]


async def test_idle_actor_beyond_the_least_is_stopped_after_a_while(clock: Clock) -> None:
    async with opened(1, 3) as one:
        for _ in range(2):
            one.submit(one.pool.num_free)
            one.pool.want_more()
            await settle()
        tasks = one.submit(2)
        assert one.loads == [2, 2, 2]
        one.release(*[task for actor in one.stage.actors[:2] for task in actor.tasks])
        await settle()
        await clock.pass_s(4.9)
        assert one.stopped == [False] * 3
        await clock.pass_s(0.2)
        assert one.stopped == [True, True, False]
        one.release(*tasks)
        await settle()
        await clock.pass_s(60)
        assert one.stopped == [True, True, False], "the least number stays"
        one.submit()
        assert one.loads == [0, 0, 1]


async def test_actor_that_is_used_meanwhile_is_not_stopped_and_is_watched_once(clock: Clock) -> None:
    async with opened(1, 2) as one:
        one.submit(2)
        one.pool.want_more()
        await settle()
        for _ in range(20):
            one.release(*one.submit(1))
            await settle()
            assert clock.num_sleepers == 1, "an actor has one timer, however many tasks it is given"
            await clock.pass_s(1.0)
        assert one.stopped == [False, False]
        await clock.pass_s(4.5)
        assert one.stopped == [False, True]


async def test_actor_that_came_too_late_to_be_of_use_is_stopped(clock: Clock) -> None:
    async with opened(1, 2, actors_are_ready=False) as one:
        one.stage.actors[0].become_ready()
        await settle()
        tasks = one.submit(2)
        one.pool.want_more()
        one.release(*tasks)
        one.stage.actors[1].become_ready()
        await settle()
        await clock.pass_s(5.1)
        assert one.stopped.count(True) == 1


async def test_lost_actor_is_replaced_and_gets_no_more_tasks() -> None:
    async with opened(2, 2) as one:
        one.submit(4)
        lost = one.stage.actors[0]
        one.release(lost.tasks[0], is_lost=True)
        assert not lost.is_stopped, "its other task has not told its end"
        await settle()
        assert (len(one.stage.actors), one.pool.num_actors, one.pool.num_free) == (3, 2, 2)
        one.release(lost.tasks[1], is_lost=True)
        assert lost.is_stopped
        assert len(one.stage.actors) == 3, "its other task tells nothing new"
        one.submit(2)
        assert one.loads == [0, 2, 2]
        assert one.num_changes == 3


async def test_failing_constructor_surfaces_at_once() -> None:
    error = TaskError("map_batches(Model)", "its constructor", None, "ValueError: no")
    one = Pool(2, 2, actors_are_ready=False)

    async def use() -> None:
        async with anyio.create_task_group() as group:
            one.pool.open(one.stage, group, one.on_change)
            one.stage.actors[1].become_ready(error)
            await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await use()
    assert caught.value.exceptions == (error,)
    await one.pool.close()
    assert one.stopped == [True, True]


async def test_closing_stops_ready_and_starting_actors_and_is_idempotent() -> None:
    async with opened(2, 3, actors_are_ready=False) as one:
        one.stage.actors[0].become_ready()
        await settle()
        one.submit(1)
    assert one.stopped == [True, True]
    await one.pool.close()


async def test_closing_is_bounded() -> None:
    one = Pool(1, 1)
    one.pool = ActorPool("stage", 1, 1, 0.01)
    async with anyio.create_task_group() as group:
        one.pool.open(one.stage, group, one.on_change)
        await settle()
        group.cancel_scope.cancel()
    one.stage.actors[0].wait_stopped = anyio.sleep_forever  # type: ignore[method-assign]
    with anyio.fail_after(PATIENCE_S):
        await one.pool.close()
    assert one.stopped == [True]
