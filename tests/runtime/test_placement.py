"""Runs in placement groups that capture child tasks get their rows, and what users ask of Ray gets there."""

from __future__ import annotations

import json
import os
import pickle
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

import aiodata
from aiodata import ExecutionOptions, OptionError, SplitIterator, TaskError
from aiodata.plan.nodes import Resources
from aiodata.runtime.hosting import NewToken, start_service
from aiodata.runtime.ray.placement import ANYWHERE, Placement
from tests.batching.services import new_token
from tests.runtime.hosted import Counting
from tests.runtime.test_start import run

on_ray = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(300)]

NUM_ROWS = 100
EXPECTED = sum(range(NUM_ROWS)) * 2

# A task that waits for what its own process holds waits for ever; others start in seconds, unless the machine is busy.
LONG_S = 120.0

# Every cluster has so much of it on its only node.
CUSTOM = "node:__internal_head__"


@dataclass(frozen=True)
class Group:
    """What is known of a placement group without a cluster."""

    id: bytes

    def amounts(self, *bundles: Mapping[str, float]) -> dict[str, float]:
        """What Ray lists of its bundles."""
        listed: dict[str, float] = {}
        for index, bundle in enumerate(bundles):
            for name, amount in bundle.items():
                listed[f"{name}_group_{index}_{self.id.hex()}"] = amount
                listed[f"{name}_group_{self.id.hex()}"] = listed.get(f"{name}_group_{self.id.hex()}", 0.0) + amount
        return listed


GROUP: Any = Group(b"\1\2")
OTHER: Any = Group(b"\1\2\3")


def placed(
    free: Mapping[str, float], total: Mapping[str, float], *, held: float = 1.0, captures: bool = True
) -> Placement:
    """Where a process in a group is that holds so many CPUs."""
    cluster = {"CPU": 8.0, "GPU": 4.0, "memory": 100.0}
    others = OTHER.amounts({"CPU": 8.0})
    return Placement({**cluster, **others, **total}, {**others, **free}, GROUP, captures, {"CPU": held})


def is_in_group(placement: Placement, resources: Resources) -> bool:
    strategy = placement.strategy(resources)
    assert strategy == ANYWHERE or strategy.placement_group is GROUP
    return bool(strategy != ANYWHERE)


def test_run_leaves_its_group_where_there_is_room_outside() -> None:
    bundles = GROUP.amounts({"CPU": 1.0}, {"CPU": 1.0})
    placement = placed({"CPU": 1.0, **bundles}, bundles)
    assert not is_in_group(placement, Resources())
    assert placement.room(Resources())["CPU"] == 8


def test_run_stays_in_its_group_where_there_is_room_in_it_alone() -> None:
    bundles = GROUP.amounts({"CPU": 1.0}, {"CPU": 3.0})
    placement = placed({"CPU": 0.0, **bundles}, bundles)
    assert is_in_group(placement, Resources())
    assert placement.room(Resources()) == {"CPU": 3.0}
    assert not is_in_group(placed({"CPU": 0.0, **bundles}, bundles, captures=False), Resources())


def test_run_that_follows_another_at_once_stays_in_the_group_that_is_not_known_to_be_free_yet() -> None:
    total, free = GROUP.amounts({"CPU": 1.0}, {"CPU": 1.0}), GROUP.amounts({"CPU": 0.0}, {"CPU": 0.0})
    placement = placed({"CPU": 0.0, **free}, total)
    assert is_in_group(placement, Resources())
    assert placement.room(Resources()) == {"CPU": 1.0}


def test_what_the_process_holds_of_its_group_is_taken_also_where_the_cluster_does_not_know_yet() -> None:
    bundles = GROUP.amounts({"CPU": 1.0})
    assert not is_in_group(placed({"CPU": 0.0, **bundles}, bundles), Resources())


@pytest.mark.parametrize("needs", [{"num_cpus": 2}, {"num_gpus": 1}, {"memory": 5}, {"custom": {"tpu": 1.0}}], ids=str)
def test_what_fits_in_no_bundle_of_the_group_leaves_it(needs: dict[str, Any]) -> None:
    bundles = GROUP.amounts({"CPU": 1.5}, {"CPU": 1.5})
    placement = placed({"CPU": 0.0, **bundles}, bundles)
    assert is_in_group(placement, Resources())
    assert not is_in_group(placement, Resources(**needs))


def test_what_is_asked_for_is_done_whatever_there_is_room_for() -> None:
    bundles = GROUP.amounts({"CPU": 1.0})
    asked = PlacementGroupSchedulingStrategy(GROUP)
    for cpus in (0.0, 1.0):
        placement = placed({"CPU": cpus, **bundles}, bundles)
        assert placement.strategy(Resources(scheduling_strategy=asked)) is asked
        assert placement.strategy(Resources(scheduling_strategy="SPREAD")) == "SPREAD"


@pytest.mark.parametrize(
    ("resources", "at_once"),
    [
        (Resources(), None),
        (Resources(num_cpus=8), None),
        (Resources(num_gpus=0.5), 8),
        (Resources(num_gpus=1, memory=40), 2),
        (Resources(custom={"tpu": 1}), 1),
        (Resources(scheduling_strategy=PlacementGroupSchedulingStrategy(GROUP)), 3),
        (Resources(num_cpus=0.1, scheduling_strategy=PlacementGroupSchedulingStrategy(GROUP)), 30),
    ],
    ids=["nothing", "cpus", "half a gpu", "gpu and memory", "custom", "in a group", "tenths in a group"],
)
def test_as_many_run_at_once_as_there_is_room_for_where_they_run(resources: Resources, at_once: int | None) -> None:
    bundles = GROUP.amounts({"CPU": 1.0}, {"CPU": 3.0})
    assert placed({"CPU": 1.0, **bundles}, bundles).max_at_once(resources) == at_once


async def test_handles_of_splits_do_not_grow_with_what_is_asked_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def start_here(make: Any, **arguments: Any) -> None:
        asked.append({**arguments, "service": make(new_token)})

    monkeypatch.setattr("aiodata.split.start_service", start_here)
    environment = {"env_vars": {f"KEY_{index}": "value" for index in range(1000)}}
    ds = aiodata.range(1).with_options(scheduling_strategy="SPREAD", runtime_env=environment, read_memory=7)
    plain, [split] = aiodata.range(1).streaming_split(1)[0], ds.streaming_split(1)
    assert len(pickle.dumps(split)) - len(pickle.dumps(plain)) < 100
    assert (asked[1]["scheduling_strategy"], asked[1]["runtime_env"]) == ("SPREAD", environment)
    assert asked[1]["service"].options() == ExecutionOptions(
        runtime="ray", scheduling_strategy="SPREAD", runtime_env=environment, read_memory=7
    )
    assert asked[1]["service"].splitting() == split._splitting


class Double:
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return double(batch)


def double(batch: dict[str, Any]) -> dict[str, Any]:
    return {"id": batch["id"] * 2}


def sum_of(verb: Any, **arguments: Any) -> int:
    """Return the sum of the rows of a run in this process."""

    async def main() -> int:
        ds = aiodata.range(NUM_ROWS).with_options(runtime="ray").map_batches(verb, **arguments)
        return sum([int(batch["id"].sum()) async for batch in ds.aiter_batches()])

    return aiodata.run(main)


async def sum_of_splits(splits: list[SplitIterator]) -> int:
    """Return the sum of the rows of an epoch of all splits."""
    totals: list[int] = []

    async def consume(split: SplitIterator) -> None:
        totals.extend([int(batch["id"].sum()) async for batch in split.aiter_batches()])

    async with anyio.create_task_group() as group:
        for split in splits:
            group.start_soon(consume, split)
    return sum(totals)


def sum_of_own_splits() -> int:
    return aiodata.run(lambda: sum_of_splits(aiodata.range(NUM_ROWS).map_batches(double).streaming_split(2)))


RUNS: dict[str, Callable[[], int]] = {
    "tasks": lambda: sum_of(double),
    "tasks of two stages": lambda: sum_of(double, num_cpus=1),
    "actors": lambda: sum_of(Double, concurrency=1),
}


def run_all(names: list[str]) -> dict[str, int]:
    """Return the sums of some runs; what this process holds, they cannot have."""
    return {name: (RUNS | {"splits": sum_of_own_splits})[name]() for name in names}


def split_by_name(name: str) -> int:
    return len(aiodata.range(NUM_ROWS).map_batches(double).streaming_split(2, name=name))


class _Trial:
    """What Ray Tune makes of a trial: an actor in a group that captures, and that holds what the group has for it."""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


Trial: Any = ray.remote(num_cpus=1)(_Trial)


@ray.remote(num_cpus=1, max_retries=0)
def in_task(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


@contextmanager
def group_of(*bundles: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Reserve resources; give the options that put an actor there with all that it starts."""
    group = placement_group(list(bundles))
    ray.get(group.ready(), timeout=LONG_S)
    try:
        yield {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
        }
    finally:
        remove_placement_group(group)


class TestOnRay:
    """On a cluster of two CPUs."""

    pytestmark = on_ray

    def test_actor_that_holds_its_whole_group_gets_its_rows(self) -> None:
        with group_of({"CPU": 1}) as captured:
            trial = Trial.options(**captured).remote()
            sums = ray.get(trial.call.remote(run_all, [*RUNS, "splits"]), timeout=LONG_S)
        assert sums == dict.fromkeys([*RUNS, "splits"], EXPECTED)

    def test_task_that_holds_its_whole_group_gets_its_rows(self) -> None:
        with group_of({"CPU": 1}) as captured:
            sums = ray.get(in_task.options(**captured).remote(run_all, [*RUNS, "splits"]), timeout=LONG_S)
        assert sums == dict.fromkeys([*RUNS, "splits"], EXPECTED)

    def test_run_gets_its_rows_within_a_group_that_has_all_that_the_cluster_has(self) -> None:
        with group_of({"CPU": 1}, {"CPU": 1}) as captured:
            trial = Trial.options(**captured).remote()
            names = ["tasks", "tasks of two stages"]
            sums = ray.get(trial.call.remote(run_all, names), timeout=LONG_S)
        assert sums == dict.fromkeys(names, EXPECTED)

    def test_service_with_a_name_outlives_the_group_that_it_was_made_in(self) -> None:
        name = f"outlives-{uuid.uuid4().hex}"
        with group_of({"CPU": 1}) as captured:
            trial = Trial.options(**captured).remote()
            assert ray.get(trial.call.remote(split_by_name, name), timeout=LONG_S) == 2
        # The group is removed, and Ray has ended all that was in it.
        with pytest.raises(ray.exceptions.ActorDiedError):
            ray.get(trial.call.remote(split_by_name, name), timeout=LONG_S)

        async def main() -> int:
            async with await aiodata.attach(name) as service:
                return await sum_of_splits(list(service.splits))

        assert aiodata.run(main) == EXPECTED

    def test_what_is_asked_of_ray_gets_there(self) -> None:
        def seen(batch: dict[str, Any]) -> dict[str, Any]:
            context = ray.get_runtime_context()
            held = context.get_assigned_resources()
            return {
                "memory": [held.get("memory", 0.0)],
                "custom": [held.get(CUSTOM, 0.0)],
                "one": [os.environ.get("ONE", "")],
                "two": [os.environ.get("TWO", "")],
                "group": [str(context.get_placement_group_id())],
            }

        class Seen:
            def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
                return seen(batch)

        with group_of({"CPU": 1, CUSTOM: 0.5, "memory": 5000}) as captured:
            group = captured["scheduling_strategy"].placement_group
            ds = aiodata.range(1).with_options(
                runtime="ray",
                scheduling_strategy=PlacementGroupSchedulingStrategy(group),
                runtime_env={"env_vars": {"ONE": "1"}},
                read_memory=1000,
                read_resources={CUSTOM: 0.25},
            )
            own: dict[str, Any] = {
                "memory": 2000,
                "resources": {CUSTOM: 0.125},
                "scheduling_strategy": "SPREAD",
                "runtime_env": {"env_vars": {"TWO": "2"}},
            }
            inside, outside = group.id.hex(), "None"
            expected = {"memory": 2000, "custom": 0.125, "one": "1", "two": "2", "group": outside}
            read = {"memory": 1000, "custom": 0.25, "one": "1", "two": "", "group": inside}

            async def main() -> None:
                assert await ds.map_batches(seen).take() == [read]
                assert await ds.map_batches(seen, **own).take() == [expected]
                assert await ds.map_batches(Seen, concurrency=1, num_cpus=0, **own).take() == [expected]

            aiodata.run(main)

    def test_coordinator_runs_where_and_as_it_is_asked_to(self) -> None:
        class Tells(Counting):
            def tells(self) -> tuple[str | None, str | None]:
                return ray.get_runtime_context().get_placement_group_id(), os.environ.get("ONE")

        def make(new_token: NewToken) -> Tells:
            return Tells(new_token)

        with group_of({"CPU": 1}) as captured:
            group = captured["scheduling_strategy"].placement_group
            service = start_service(
                make,
                label="the teller",
                scheduling_strategy=PlacementGroupSchedulingStrategy(group),
                runtime_env={"env_vars": {"ONE": "1"}},
            )

            async def main() -> None:
                assert await service.call("tells") == (group.id.hex(), "1")
                await service.aclose()

            aiodata.run(main)

    def test_what_ray_refuses_is_an_option_error_with_the_value(self) -> None:
        async def refuse(says: str, **asked: Any) -> None:
            message = rf"cannot be started on Ray with .*{re.escape(says)}.* Change what Ray refuses"
            ds = aiodata.range(1).with_options(runtime="ray")
            for verb in (double, Double):
                with pytest.raises(OptionError, match=message) as caught:
                    await ds.map_batches(verb, **asked).take()
                assert "secret" not in str(caught.value)
            asked.pop("resources", None)
            if asked:
                with pytest.raises(OptionError, match=message):
                    ds.with_options(**asked).streaming_split(1)

        async def main() -> None:
            group = placement_group([{"CPU": 1}])
            await refuse("runtime_env['pip'] must be", runtime_env={"pip": 3, "env_vars": {"KEY": "secret"}})
            with pytest.raises(OptionError, match=r"asks for 1 CPU and 1\.5 TPU per task"):
                await aiodata.range(1).with_options(runtime="ray").map_batches(double, resources={"TPU": 1.5}).take()
            await refuse("7", scheduling_strategy=PlacementGroupSchedulingStrategy(group, 7))
            remove_placement_group(group)

        aiodata.run(main)

    def test_environment_that_cannot_be_set_up_is_an_error_with_the_reason(self) -> None:
        missing = {"working_dir": "file:///nowhere/missing.zip"}

        async def main() -> None:
            ds = aiodata.range(1).with_options(runtime="ray", runtime_env=missing)
            for verb in (double, Double):
                with pytest.raises(TaskError, match=r"(?s)RuntimeEnvSetupError.*nowhere/missing\.zip"):
                    await ds.map_batches(verb).take()
            [split] = ds.streaming_split(1)
            with pytest.raises(OptionError, match=r"runtime_env of .* cannot be set up: .*missing\.zip.* Change"):
                await split.schema()
            service = start_service(Counting, label="the counter", runtime_env=missing)
            await service.aclose()

        aiodata.run(main)


# Both leave handlers and actors behind, so they have a process and a cluster of their own.
PROGRAM = """
    import json, sys
    import ray
    import ray.train
    from ray import tune
    import aiodata

    def rows():
        async def main():
            ds = aiodata.range(100).with_options(runtime="ray").map_batches(lambda batch: batch, num_cpus=1)
            return sum([len(batch["id"]) async for batch in ds.aiter_batches()])
        return aiodata.run(main)

    def trial(config):
        assert ray.get_runtime_context().should_capture_child_tasks_in_placement_group
        tune.report({"rows": rows()})

    def train(config):
        ray.get(config["seen"].note.remote(rows()))

    class Seen:
        def __init__(self):
            self.seen = []
        def note(self, rows):
            self.seen.append(rows)
        def all(self):
            return self.seen

    ray.init("local", num_cpus=3, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    storage = sys.argv[0] + ".results"
    found = tune.Tuner(trial, run_config=tune.RunConfig(storage_path=storage, verbose=0)).fit()
    tuned = [result.metrics["rows"] for result in found]
    seen = ray.remote(num_cpus=0)(Seen).remote()
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    DataParallelTrainer(
        train,
        train_loop_config={"seen": seen},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(storage_path=storage),
    ).fit()
    print(json.dumps({"tune": tuned, "train": ray.get(seen.all.remote())}), flush=True)
    ray.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(500)
def test_trials_of_ray_tune_and_workers_of_ray_train_get_their_rows(tmp_path: Path) -> None:
    pytest.importorskip("ray.tune", exc_type=ImportError)
    pytest.importorskip("ray.train", exc_type=ImportError)
    result = run(PROGRAM, tmp_path, timeout_s=400)
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1, result.stderr
    assert json.loads(lines[0]) == {"tune": [100], "train": [100, 100]}
