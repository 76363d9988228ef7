"""Which tasks of a run are sure not to have started: a warning must not be wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aiodata.plan.nodes import Resources
from aiodata.runtime.ray.starts import Starts


@pytest.fixture
async def starts() -> AsyncIterator[Starts]:
    starts = Starts(lambda: False)
    yield starts
    starts.stop()


async def test_first_task_of_a_stage_speaks_for_those_that_follow_at_once(starts: Starts) -> None:
    stage = starts.stage(Resources())
    first, second = stage.submit(), stage.submit()
    assert (first.announces, second.announces) == (True, False)
    assert starts.waiting() is first
    first.note_started()
    assert starts.waiting() is None


async def test_task_that_does_not_announce_itself_may_have_started_once_the_one_before_it_has_ended(
    starts: Starts,
) -> None:
    stage = starts.stage(Resources())
    first, _ = stage.submit(), stage.submit()
    first.note_ended()
    assert starts.waiting() is None


async def test_run_does_not_wait_while_a_task_of_another_stage_runs(starts: Starts) -> None:
    waiting, running = starts.stage(Resources()).submit(), starts.stage(Resources(num_cpus=0)).submit()
    assert starts.waiting() is waiting
    running.note_started()
    assert starts.waiting() is None
    running.note_ended()
    assert starts.waiting() is waiting
    waiting.note_ended()
    assert starts.waiting() is None


async def test_each_actor_announces_itself(starts: Starts) -> None:
    stage = starts.stage(Resources(num_cpus=1))
    actors = [stage.submit(is_actor=True) for _ in range(3)]
    assert all(actor.announces for actor in actors)
    actors[0].note_ended()
    assert starts.waiting() is actors[1]
