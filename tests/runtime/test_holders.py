"""Who holds what is named, and what a run waits for is said with the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from aiodata.plan.nodes import Resources
from aiodata.runtime.ray import holders
from aiodata.runtime.ray.compat import LiveActor
from aiodata.runtime.ray.holders import ClusterView, Holder, describe_needs, look_around
from aiodata.runtime.ray.starts import describe_wait

ACTORS = [
    LiveActor("Trainer", {"CPU": 1.0}, ""),
    LiveActor("Trainer", {"CPU": 2.0, "GPU": 1.0}, ""),
    LiveActor("StageActor", {"CPU": 1.0}, ""),
    LiveActor("Idle", {}, ""),
    LiveActor("RayTrainWorker", {"CPU_group_ab": 1.0}, "ab"),
    LiveActor("RayTrainWorker", {"CPU_group_ab": 1.0}, "ab"),
]
GROUPS = {
    "ab": {"name": "", "state": "CREATED", "bundles": {0: {"CPU": 1.0}, 1: {"CPU": 1.0}}},
    "cd": {"name": "tune", "state": "CREATED", "bundles": {0: {"GPU": 1.0}}},
    "ef": {"name": "later", "state": "PENDING", "bundles": {0: {"CPU": 8.0}}},
}


class FakeRay:
    """What Ray answers, in a task that holds a CPU or in a driver."""

    def __init__(self, *, is_driver: bool) -> None:
        self._is_driver = is_driver

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 9.0, "GPU": 2.0}

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def get_runtime_context(self) -> FakeRay:
        return self

    def get_actor_id(self) -> str | None:
        return None

    def get_placement_group_id(self) -> str | None:
        return None

    def get_assigned_resources(self) -> dict[str, float]:
        if self._is_driver:
            raise RuntimeError("a driver has none")
        return {"CPU": 1.0}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Look at a cluster that is made up."""

    def look(*, is_driver: bool = False) -> ClusterView:
        monkeypatch.setattr(holders, "ray", FakeRay(is_driver=is_driver))
        monkeypatch.setattr(holders, "live_actors", lambda: ACTORS)
        monkeypatch.setattr(holders, "placement_group_table", lambda: GROUPS)
        return look_around()

    return look


def test_actors_groups_and_this_task_are_named_with_what_they_hold(looks: Any) -> None:
    cluster = looks()
    held = {holder.label: dict(holder.holds) for holder in cluster.holders}
    assert held == {
        "2 actors Trainer": {"CPU": 3.0, "GPU": 1.0},
        "actor of map_batches": {"CPU": 1.0},
        "placement group ab (2 actors RayTrainWorker)": {"CPU": 2.0},
        "placement group tune": {"GPU": 1.0},
        "the task that consumes the run": {"CPU": 1.0},
    }
    assert cluster.obtainable("CPU") == 2.0
    assert cluster.describe("GPU") == (
        "0 of the cluster's 2 GPUs are free; held: 1 by placement group tune, 1 by 2 actors Trainer"
    )


def test_driver_holds_nothing_and_the_rest_is_held_by_tasks(looks: Any) -> None:
    cluster = looks(is_driver=True)
    assert cluster.obtainable("CPU") == 3.0
    assert cluster.describe("CPU").endswith("1 by actor of map_batches, 2 by tasks, which may be this run's")


def test_many_holders_are_not_all_named() -> None:
    cluster = ClusterView({"CPU": 9.0}, {}, tuple(Holder(f"actor A{index}", {"CPU": 1.0}) for index in range(9)))
    assert cluster.describe("CPU").endswith("1 by actor A4, 4 by other actors")


def test_needs_are_ray_s_defaults_unless_said_otherwise() -> None:
    assert Resources().needs == {"CPU": 1.0}
    assert Resources(num_cpus=0, num_gpus=2).needs == {"GPU": 2.0}
    assert describe_needs({"CPU": 1.0, "GPU": 2.0, "tpu": 0.5}) == "1 CPU and 2 GPUs and 0.5 tpu"
    assert describe_needs({}) == "0 CPUs"


def test_wait_for_those_who_hold_all_has_the_remedy() -> None:
    cluster = ClusterView({"CPU": 2.0}, {}, (Holder("2 actors Trainer", {"CPU": 2.0}),))
    assert describe_wait({"CPU": 1.0}, 7.2, cluster) == (
        "no task of this run has been able to start for 7 s: each takes 1 CPU (0 of the cluster's 2 CPUs are free; "
        "held: 2 by 2 actors Trainer). They come free when those end. Or leave some for this run: consumers with "
        "@ray.remote(num_cpus=0), a trainer with fewer workers or with resources_per_worker={'CPU': 0.5}, more nodes; "
        "`ray status` shows who has what"
    )


def test_wait_for_what_the_cluster_has_not_is_for_a_node_to_join() -> None:
    message = describe_wait({"CPU": 1.0, "GPU": 1.0}, 7.2, ClusterView({"CPU": 2.0}, {"CPU": 2.0}, ()))
    assert "each takes 1 CPU and 1 GPU (0 of the cluster's 0 GPUs are free). A node that has these has to" in message


def test_wait_that_may_be_for_workers_to_start_says_so() -> None:
    message = describe_wait({"CPU": 1.0}, 7.2, ClusterView({"CPU": 2.0}, {"CPU": 1.0}, ()))
    assert "(1 of the cluster's 2 CPUs are free; held: 1 by tasks, which may be this run's). Ray is starting" in message
    assert "each takes 0 CPUs. Ray is starting" in describe_wait({}, 7.2, ClusterView({}, {}, ()))
