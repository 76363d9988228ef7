"""Placement: where on the cluster Ray runs what a run starts.

Where a process is in a placement group that captures child tasks, Ray runs its tasks in the group, too. Ray Tune's
trials are such processes. Mostly they hold all that their group has, and their tasks would wait for ever. So a run's
tasks leave the group where there is room outside, and stay where there is room in the group alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from aiodata.concurrency import call_in_thread
from aiodata.errors import OptionError
from aiodata.plan.nodes import Resources
from aiodata.runtime.ray import compat
from aiodata.runtime.ray.fitting import Nodes

# Ray's word for any node with room, outside of placement groups also where they capture child tasks.
ANYWHERE = "DEFAULT"

# Sums of fractions may be off by this much.
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Placement:
    """What there is on the cluster when a run begins, and where the run's process is.

    Attributes:
        total: What the cluster has, by Ray's names.
        free: What of that is free.
        group: The placement group that this process is in, if any.
        captures: Whether that group captures child tasks.
        held: What Ray has given this process.
        nodes: The cluster's nodes, as `ray.nodes` describes them.
    """

    total: Mapping[str, float]
    free: Mapping[str, float]
    group: PlacementGroup | None = None
    captures: bool = False
    held: Mapping[str, float] = field(default_factory=dict)
    nodes: Nodes = ()

    def strategy(self, resources: Resources) -> Any:
        """Return the strategy by which Ray is to place a task or an actor."""
        if resources.scheduling_strategy is not None:
            return resources.scheduling_strategy
        if self.group is not None and self.captures and not _fits(resources.needs, self.free):
            bundles = compat.bundles(self.total, self.group)
            is_small = any(_fits(resources.needs, bundle) for bundle in bundles)
            if is_small and _fits(resources.needs, self._left_in(self.group)):
                return PlacementGroupSchedulingStrategy(self.group)
        return ANYWHERE

    def room(self, resources: Resources) -> Mapping[str, float]:
        """Return what tasks or actors may take together: what the cluster has, or what their group has left."""
        group = _group(self.strategy(resources))
        return self.total if group is None else self._left_in(group)

    def max_at_once(self, resources: Resources) -> int | None:
        """Return how many there is room for; None: as many as CPUs allow."""
        room, needs = self.room(resources), resources.needs
        if room is self.total:  # The run's CPUs are counted by the executor.
            needs.pop("CPU", None)
        fitting = [int(room.get(name, 0.0) / need + _TOLERANCE) for name, need in needs.items()]
        return max(1, min(fitting)) if fitting else None

    def _left_in(self, group: PlacementGroup) -> dict[str, float]:
        """Return what a group has beside what this process holds.

        What is free of it is known late: a run that follows another at once would find that one's tasks there.
        """
        held = self.held if self.group == group else {}
        left: dict[str, float] = {}
        for bundle in compat.bundles(self.total, group):
            for name, amount in bundle.items():
                left[name] = left.get(name, -held.get(name, 0.0)) + amount
        return left


@contextmanager
def refusals(name: str, asked: Mapping[str, Any]) -> Iterator[None]:
    """Have what Ray says against what is asked of it be an `OptionError`."""
    try:
        yield
    except OptionError:  # It is a ValueError, too, and says what is wrong already.
        raise
    except (TypeError, ValueError) as error:
        # An environment may hold secrets.
        shown = {key: list(value) if key == "runtime_env" else value for key, value in asked.items()}
        raise OptionError(
            f"{name} cannot be started on Ray with {shown}: {error} Change what Ray refuses of these, in "
            "map_batches or in the options"
        ) from error


async def look() -> Placement:
    """Look at the cluster."""
    context = ray.get_runtime_context()
    # Here, since in other threads of a task Ray knows of no group.
    group = ray.util.get_current_placement_group()
    captures = group is not None and context.should_capture_child_tasks_in_placement_group
    held = context.get_assigned_resources() if group is not None else {}
    # Waited for in any case: it must not go on while Ray is shut down.
    total, free, nodes = await call_in_thread(_resources, grace_s=float("inf"))
    return Placement(total, free, group, captures, held, nodes)


def _resources() -> tuple[dict[str, float], dict[str, float], Nodes]:
    """Return what the cluster has, what of that is free, and what each node has."""
    return ray.cluster_resources(), ray.available_resources(), ray.nodes()


def _group(strategy: Any) -> PlacementGroup | None:
    return strategy.placement_group if isinstance(strategy, PlacementGroupSchedulingStrategy) else None


def _fits(needs: Mapping[str, float], room: Mapping[str, float]) -> bool:
    return all(need <= room.get(name, 0.0) + _TOLERANCE for name, need in needs.items())
