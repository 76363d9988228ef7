"""What tasks take and where they run: as their verb says, else as the options do; and no more are started than fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from aiodata.execution.context import RunContext
from aiodata.execution.executor import StreamingExecutor
from aiodata.execution.workers import ActorPool, TaskWorkers, Workers
from aiodata.options import ExecutionOptions
from aiodata.plan.nodes import Apply, Plan, Read, Resources
from aiodata.plan.optimize import MapStage, ReadStage
from aiodata.plan.passes import FIRST_PASS
from aiodata.plan.transforms import MapBatches
from tests.execution.fakes import OPTIONS, FakeRuntime, IdsSource
from tests.execution.runs import alone, plan, started

ASKED = ExecutionOptions(
    scheduling_strategy="SPREAD",
    runtime_env={"env_vars": {"A": "1", "B": "1"}, "pip": ["x"]},
    read_memory=5,
    read_resources={"disk": 1},
)
ALL = Resources(scheduling_strategy="SPREAD", runtime_env=ASKED.runtime_env)


class Model:
    """A function with state."""

    def __call__(self, batch: object) -> object:
        return batch


def resources(stage: ReadStage | MapStage, options: ExecutionOptions = ASKED) -> Resources:
    unused: Any = None
    return RunContext(unused, options, unused, unused, unused, FIRST_PASS).resources(stage)


def test_tasks_that_read_take_what_the_options_say() -> None:
    read = ReadStage(IdsSource(1, 1), ())
    assert resources(read) == replace(ALL, memory=5, custom={"disk": 1})
    assert resources(read, ExecutionOptions()) == Resources()


def test_other_tasks_take_what_their_verb_says_and_run_where_the_run_does() -> None:
    assert resources(MapStage(())) == ALL
    own = Resources(2, 1, 7, {"tpu": 1}, "DEFAULT", {"env_vars": {"B": "2"}, "pip": ["y"]})
    env = {"env_vars": {"A": "1", "B": "2"}, "pip": ["y"]}
    assert resources(MapStage((), own)) == replace(own, runtime_env=env)
    assert resources(MapStage((), own), ExecutionOptions()) == own


@pytest.mark.parametrize(
    ("general", "special", "joined"),
    [
        (None, None, None),
        ({"pip": ["x"]}, None, {"pip": ["x"]}),
        (None, {"pip": ["x"]}, {"pip": ["x"]}),
        ({"pip": ["x"]}, {"env_vars": {"A": "1"}}, {"pip": ["x"], "env_vars": {"A": "1"}}),
    ],
)
def test_runtime_environments_are_joined(general: Any, special: Any, joined: Any) -> None:
    stage = MapStage((), Resources(runtime_env=special))
    assert resources(stage, ExecutionOptions(runtime_env=general)).runtime_env == joined


def workers_of(step: Apply, runtime: FakeRuntime) -> Workers:
    """What the operator of a step runs on."""
    executor = StreamingExecutor(Plan(Read(IdsSource(1, 1)), (step,)), cast("Any", runtime), OPTIONS)
    return executor._workers(MapStage((step.transform,), step.resources, step.workers))


async def test_no_more_tasks_are_started_than_what_they_take_is_enough_for() -> None:
    runtime = FakeRuntime(num_cpus=16, room_for=lambda resources: 1 if resources.custom else None)
    options = OPTIONS.override(read_resources={"disk": 1})
    async with started(plan(IdsSource(100)), options, runtime) as run:
        await run.started(2)
        assert len(runtime.running) == 2
    async with started(plan(IdsSource(100)), OPTIONS, runtime) as run:
        await run.started(32)


@pytest.mark.parametrize(
    ("workers", "most"), [(None, 3), ((1, 16), 3), ((2, 2), 2), ((5, 16), 5)], ids=["default", "up to", "two", "least"]
)
async def test_pool_does_not_grow_beyond_what_its_actors_take_is_enough_for(
    workers: tuple[int, int] | None, most: int
) -> None:
    runtime = FakeRuntime(num_cpus=16, room_for=lambda resources: 3 if resources.num_gpus else None)
    step = Apply(MapBatches(Model, None, "numpy"), Resources(num_gpus=1), workers)
    pool = workers_of(step, runtime)
    assert isinstance(pool, ActorPool)
    assert pool.max_tasks == 2 * most


async def test_tasks_with_cpus_and_more_are_as_many_as_both_are_enough_for() -> None:
    for at_once, expected in ((None, 16), (3, 6), (100, 16)):
        runtime = FakeRuntime(num_cpus=16, room_for=lambda resources, at_once=at_once: at_once)  # type: ignore[misc]
        tasks = workers_of(Apply(alone(), Resources(num_cpus=2, memory=1)), runtime)
        assert isinstance(tasks, TaskWorkers)
        assert tasks.max_tasks == expected
