"""Whether what a stage asks for is anywhere in the cluster: nobody waits for what can never come."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from aiodata.concurrency import ask_in_thread
from aiodata.errors import OptionError, RuntimeUnavailableError
from aiodata.plan.nodes import Resources
from aiodata.runtime.ray.compat import has_autoscaler
from aiodata.runtime.ray.holders import amount, describe_needs

# How long it may be unknown whether a cluster has an autoscaler, and how often that is asked, in seconds.
_UNKNOWN_S = 8.0
_ASK_EVERY_S = 0.5

# What says how much of a resource is asked for.
_ARGUMENTS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}

_logger = logging.getLogger("aiodata")

Nodes = Sequence[Mapping[str, Any]]


def fits(needs: Mapping[str, float], nodes: Nodes) -> bool:
    """Return whether a node, as `ray.nodes` describes it, has what a task needs, however much of that is in use."""
    return any(
        node["Alive"] and all(node["Resources"].get(name, 0.0) >= need for name, need in needs.items())
        for node in nodes
    )


async def check_fits(name: str, resources: Resources, nodes: Nodes) -> None:
    """Check that a node of the cluster can run a stage's tasks.

    Where such a node may come, since there is an autoscaler or a node was lost, that is a warning.

    Raises:
        OptionError: The stage asks for more than any node has.
        RuntimeUnavailableError: It asks for nothing, and no node has a CPU.
    """
    needs = resources.needs
    if fits(needs, nodes):
        return
    message, remedy = _describe(name, needs, nodes)
    if not all(node["Alive"] for node in nodes) or await _may_grow():
        _logger.warning("%s. The run waits for such a node to join the cluster; if none comes, %s", message, remedy)
        return
    kind = RuntimeUnavailableError if needs == Resources().needs else OptionError
    raise kind(f"{message}; {remedy}, or start such a node before the run")


async def _may_grow() -> bool:
    """Return whether an autoscaler may add nodes; right after a cluster's start that is not known for some seconds."""
    with anyio.move_on_after(_UNKNOWN_S):
        while (answer := await ask_in_thread(has_autoscaler)) is None:  # noqa: ASYNC110 - Ray tells nobody of it.
            await anyio.sleep(_ASK_EVERY_S)
        return answer
    return True


def _describe(name: str, needs: Mapping[str, float], nodes: Nodes) -> tuple[str, str]:
    """Return what is asked for and what there is, and the remedy."""
    largest = {need: max((node["Resources"].get(need, 0.0) for node in nodes), default=0.0) for need in needs}
    lacking = [need for need in needs if needs[need] > largest[need]]
    there = ", ".join(amount(need, largest[need]) for need in lacking)
    if not lacking:
        message = f"{name} asks for {describe_needs(needs)} per task, and no node has them together"
    else:
        message = f"{name} asks for {describe_needs(needs)} per task, and the largest node has {there}"
    if needs == Resources().needs:
        return message, "start Ray with CPUs (`num_cpus`), or use runtime='local'"
    return message, "lower " + " and ".join(_ARGUMENTS.get(need, f"resources[{need!r}]") for need in (lacking or needs))
