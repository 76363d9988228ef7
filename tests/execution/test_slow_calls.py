"""Constructors and calls that take long are told of, by their operator's name, and not too often."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import anyio
import pytest

from aiodata.execution.workers import ActorPool
from aiodata.testing import VirtualTimeLoop
from tests.execution.fakes import OPTIONS, FakeRuntime, FakeStage, IdsSource, settle
from tests.execution.runs import plan, started


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run in virtual time."""

    async def call() -> None:
        await main()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(call())


def test_constructors_that_do_not_return_are_told_of_once_for_all_and_ever_less(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        pool, stage = (
            ActorPool("map_batches(Model)", 2, 2, 1.0),
            FakeStage(FakeRuntime(actors_are_ready=False), "stage"),
        )
        async with anyio.create_task_group() as group:
            pool.open(stage, group, lambda: None)
            await anyio.sleep(100)
            assert caplog.messages == [], "they were not begun: Ray has no room for them, which is told elsewhere"
            for actor in stage.actors:
                actor.begun.set()
            await anyio.sleep(60)
            for actor in stage.actors:
                actor.become_ready()
            await anyio.sleep(1000)
            group.cancel_scope.cancel()
        await pool.close()

    run(main)
    assert [message.partition(", and its actor")[0] for message in caplog.messages] == [
        f"map_batches(Model): a constructor has not returned for {seconds} s" for seconds in (7, 14, 28, 56)
    ]


def test_tasks_that_give_nothing_for_long_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with started(plan(IdsSource(2, 2)), OPTIONS) as one:
            await one.started()
            [task] = one.runtime.running
            await anyio.sleep(29)
            task.produce(0)
            await settle()
            await anyio.sleep(29)
            assert caplog.messages == []
            one.take()
            await anyio.sleep(29)
            assert caplog.messages == [], "until now it was the consumer that was slow"
            await anyio.sleep(2)
            assert len(caplog.messages) == 1
            await anyio.sleep(1000)
            task.produce(1)
            task.end()
            await settle()
            one.take()
            assert one.rows == [0, 1]

    run(main)
    [message] = caplog.messages
    assert "nothing has come of its 1 tasks for 30 s" in message
