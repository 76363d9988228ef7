"""Who holds a cluster's resources, as far as Ray tells: its own questions, and words for the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ray
from ray.util import placement_group_table

from aiodata.options import MIB
from aiodata.runtime.ray.compat import LiveActor, live_actors
from aiodata.runtime.ray.worker import StageActor

# Holders of a resource that are named; the others are counted.
_MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class Holder:
    """One, or several of a kind, that keep resources until they end.

    Attributes:
        label: What messages call them.
        holds: What they hold together, by the names of resources.
    """

    label: str
    holds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What a cluster has, and who has what of it, at one moment.

    Attributes:
        total: What all nodes have together.
        free: What of that is free, as Ray knew about a second ago.
        holders: Who keeps how much.
    """

    total: Mapping[str, float]
    free: Mapping[str, float]
    holders: tuple[Holder, ...]

    def obtainable(self, name: str) -> float:
        """Return how much of a resource tasks can ever get while those who hold it stay."""
        return self.total.get(name, 0.0) - sum(holder.holds.get(name, 0.0) for holder in self.holders)

    def describe(self, name: str) -> str:
        """Return who has what of a resource."""
        holders = sorted((one for one in self.holders if one.holds.get(name)), key=lambda one: -one.holds[name])
        parts = [f"{one.holds[name]:g} by {one.label}" for one in holders[:_MAX_NAMED]]
        if more := sum(one.holds[name] for one in holders[_MAX_NAMED:]):
            parts.append(f"{more:g} by other actors")
        # Tasks that are being started count, too.
        rest = self.obtainable(name) - self.free.get(name, 0.0)
        if rest > 0:
            parts.append(f"{rest:g} by tasks, which may be this run's")
        total = self.total.get(name, 0.0)
        free = f"{self.free.get(name, 0.0):g} of the cluster's {total:g} {plural(name)} are free"
        return f"{free}; held: {', '.join(parts)}" if parts else free


def look_around() -> ClusterView:
    """Ask Ray who holds what; blocks for milliseconds."""
    holders = [*_groups(actors := live_actors()), *_actors(actors)]
    if (here := _held_here()) is not None:
        holders.append(here)
    return ClusterView(ray.cluster_resources(), ray.available_resources(), tuple(holders))


def describe_needs(needs: Mapping[str, float]) -> str:
    """Return needs in words."""
    return " and ".join(amount(name, need) for name, need in needs.items()) or "0 CPUs"


def amount(name: str, number: float) -> str:
    """Return an amount of a resource in words."""
    if name == "memory":
        return f"{number / MIB:,.0f} MiB of memory"
    return f"{number:g} {plural(name, number)}"


def plural(name: str, number: float = 2) -> str:
    """Return the name of a resource as it is after a number."""
    return f"{name}s" if name in {"CPU", "GPU"} and number != 1 else name


def _groups(actors: Iterable[LiveActor]) -> list[Holder]:
    """Return the placement groups: they keep what they have reserved, whatever runs in them."""
    classes: dict[str, Counter[str]] = {}
    for actor in actors:
        classes.setdefault(actor.placement_group_id, Counter())[actor.class_name] += 1
    holders = []
    for group_id, group in placement_group_table().items():
        if group["state"] != "CREATED":
            continue
        reserved: Counter[str] = Counter()
        for bundle in group["bundles"].values():
            reserved.update(bundle)
        within = ", ".join(_several(name, number) for name, number in classes.get(group_id, Counter()).items())
        label = f"placement group {group['name'] or group_id[:8]}"
        holders.append(Holder(f"{label} ({within})" if within else label, reserved))
    return holders


def _actors(actors: Iterable[LiveActor]) -> list[Holder]:
    """Return the actors outside placement groups, those of a class together."""
    held: dict[str, Counter[str]] = {}
    numbers: Counter[str] = Counter()
    for actor in actors:
        if actor.holds and not actor.placement_group_id:
            numbers[actor.class_name] += 1
            held.setdefault(actor.class_name, Counter()).update(actor.holds)
    return [Holder(_several(name, numbers[name]), holds) for name, holds in held.items()]


def _several(class_name: str, number: int) -> str:
    label = "actors of map_batches" if class_name == StageActor.__name__ else f"actors {class_name}"
    return f"{number} {label}" if number != 1 else label.replace("actors", "actor", 1)


def _held_here() -> Holder | None:
    """Return what Ray has given this process, if it runs a task: that is in no table."""
    try:
        context = ray.get_runtime_context()
        if context.get_actor_id() is not None or context.get_placement_group_id() is not None:
            return None  # It is among the actors, or the placement groups.
        return Holder("the task that consumes the run", context.get_assigned_resources())
    except (AssertionError, RuntimeError):  # It is a driver.
        return None
