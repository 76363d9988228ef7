"""What no node has is an error at once, unless a node that has it may come."""

from __future__ import annotations

import re
from typing import Any

import pytest

from aiodata.errors import OptionError, RuntimeUnavailableError
from aiodata.plan.nodes import Resources
from aiodata.runtime.ray import fitting
from aiodata.runtime.ray.fitting import check_fits


def node(*, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


@pytest.fixture
def autoscaler(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether there is one; the test may say so."""
    there = [False]
    monkeypatch.setattr(fitting, "has_autoscaler", lambda: there[0])
    return there


@pytest.mark.usefixtures("autoscaler")
@pytest.mark.parametrize(
    ("resources", "nodes"),
    [
        (Resources(), [node(CPU=1.0)]),
        (Resources(num_cpus=0), [node()]),
        (Resources(num_cpus=4), [node(CPU=2.0), node(CPU=4.0)]),
        (Resources(num_gpus=0.5), [node(CPU=2.0), node(CPU=1.0, GPU=1.0)]),
    ],
)
async def test_what_a_node_has_is_no_error_whoever_uses_it(resources: Resources, nodes: list[dict[str, Any]]) -> None:
    await check_fits("map_batches(f)", resources, nodes)


@pytest.mark.usefixtures("autoscaler")
@pytest.mark.parametrize(
    ("resources", "nodes", "says"),
    [
        (Resources(num_cpus=8), [node(CPU=4.0), node(CPU=6.0)], "8 CPUs per task, and the largest node has 6 CPUs"),
        (Resources(num_gpus=1), [node(CPU=4.0)], "1 CPU and 1 GPU per task, and the largest node has 0 GPUs"),
        (Resources(num_cpus=8), [], "8 CPUs per task, and the largest node has 0 CPUs; lower num_cpus"),
        (
            Resources(num_cpus=2, num_gpus=1),
            [node(CPU=2.0), node(CPU=1.0, GPU=1.0)],
            "2 CPUs and 1 GPU per task, and no node has them together; lower num_cpus and num_gpus",
        ),
    ],
)
async def test_what_no_node_has_is_an_error_that_names_both(
    resources: Resources, nodes: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(OptionError, match=re.escape(f"map_batches(f) asks for {says}")):
        await check_fits("map_batches(f)", resources, nodes)


@pytest.mark.usefixtures("autoscaler")
async def test_cluster_without_cpus_is_to_blame_if_nothing_was_asked_for() -> None:
    says = r"read asks for 1 CPU per task, and the largest node has 0 CPUs; start Ray with CPUs .*runtime='local'"
    with pytest.raises(RuntimeUnavailableError, match=says):
        await check_fits("read", Resources(), [node()])


async def test_it_is_asked_until_it_is_known_whether_such_a_node_may_come(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[bool | None] = [False, None, None]
    monkeypatch.setattr(fitting, "has_autoscaler", answers.pop)
    monkeypatch.setattr(fitting, "_ASK_EVERY_S", 0.001)
    with pytest.raises(OptionError, match="asks for 8 CPUs"):
        await check_fits("read", Resources(num_cpus=8), [node(CPU=4.0)])
    assert answers == []


async def test_such_a_node_may_come_as_long_as_it_is_not_known(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fitting, "has_autoscaler", lambda: None)
    monkeypatch.setattr(fitting, "_UNKNOWN_S", 0.01)
    await check_fits("read", Resources(num_cpus=8), [node(CPU=4.0)])
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("reason", ["autoscaler", "lost node"])
async def test_it_is_a_warning_where_such_a_node_may_come(
    autoscaler: list[bool], caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    autoscaler[0] = reason == "autoscaler"
    await check_fits("read", Resources(num_cpus=8), [node(CPU=4.0), node(alive=autoscaler[0])])
    [message] = caplog.messages
    assert "asks for 8 CPUs" in message
    assert "waits for such a node to join the cluster" in message
