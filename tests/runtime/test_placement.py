"""Runs in placement groups that capture child tasks get their rows, and what users ask of Ray gets there."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import numpy as np
import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

import aiodata
from aiodata.options import ExecutionOptions
from aiodata.plan.nodes import Resources
from aiodata.runtime.ray.placement import ANYWHERE, Placement
from tests.conftest import until

NUM_ROWS = 100

# What a run in such a process may take, in seconds: a worker takes seconds to start on a busy machine, and one that
# waits for its group's CPUs waits for ever.
LONG_S = 60.0


def double(batch: dict[str, Any]) -> dict[str, Any]:
    return {"id": batch["id"] * 2}


class Double:
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return double(batch)


def sum_of_rows(verb: Any, **arguments: Any) -> int:
    """Return the sum of the rows of a run in this process."""

    async def main() -> int:
        ds = aiodata.range(NUM_ROWS).with_options(runtime="ray").map_batches(verb, **arguments)
        total = 0
        async for batch in ds.aiter_batches():
            total += int(batch["id"].sum())
        return total

    return aiodata.run(main)


def sum_of_splits() -> int:
    """Return the sum of the rows of two splits in this process."""

    async def main() -> int:
        totals: list[int] = []

        async def consume(split: aiodata.SplitIterator) -> None:
            async for batch in split.aiter_batches():
                totals.append(int(batch["id"].sum()))

        async with anyio.create_task_group() as group:
            for split in aiodata.range(NUM_ROWS).map_batches(double).streaming_split(2):
                group.start_soon(consume, split)
        return sum(totals)

    return aiodata.run(main)


RUNS = {
    "tasks": lambda: sum_of_rows(double),
    "tasks of two stages": lambda: sum_of_rows(double, num_cpus=1),
    "actors": lambda: sum_of_rows(Double, concurrency=1),
    "splits": sum_of_splits,
}
EXPECTED = sum(range(NUM_ROWS)) * 2


class _Trial:
    """What Ray Tune makes of a trial: an actor in a group that captures, and that holds all that the group has."""

    def run(self, name: str) -> int:
        return RUNS[name]()

    def split_by_name(self, name: str) -> int:
        return len(aiodata.range(NUM_ROWS).streaming_split(2, name=name))


@ray.remote(num_cpus=1, max_retries=0)
def _run(name: str) -> int:
    return RUNS[name]()


@pytest.fixture
def group(ray_cluster: None) -> Iterator[PlacementGroup]:
    """A group of one of the cluster's two CPUs."""
    group = placement_group([{"CPU": 1}])
    ray.get(group.ready())
    yield group
    remove_placement_group(group)


def captured(group: PlacementGroup) -> dict[str, Any]:
    return {
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    }


Trial: Any = ray.remote(num_cpus=1)(_Trial)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_actor_that_holds_its_whole_group_gets_its_rows(group: PlacementGroup, name: str) -> None:
    trial = Trial.options(**captured(group)).remote()
    assert ray.get(trial.run.remote(name), timeout=LONG_S) == EXPECTED
