"""What was asked: a source, and the verbs applied to it, as a chain of immutable nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aiodata.errors import OptionError
from aiodata.plan.passes import BlockShuffle
from aiodata.plan.source import Source
from aiodata.plan.transforms import Transform


@dataclass(frozen=True, slots=True)
class Resources:
    """What a task or an actor takes while it runs, and where it does; None: what the runtime gives by default.

    Attributes:
        num_cpus: CPUs.
        num_gpus: GPUs.
        memory: Memory that it is expected to need, in bytes.
        custom: Other resources of the cluster's nodes, by name.
        scheduling_strategy: One of Ray's, by which it finds a node.
        runtime_env: Ray's runtime environment.
    """

    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: int | None = None
    custom: Mapping[str, float] = field(default_factory=dict)
    scheduling_strategy: Any = None
    runtime_env: Mapping[str, Any] | None = None

    @property
    def needs(self) -> dict[str, float]:
        """What there has to be for it to start, by Ray's names; a CPU unless it says otherwise."""
        needs = {
            "CPU": 1.0 if self.num_cpus is None else self.num_cpus,
            "GPU": self.num_gpus or 0.0,
            "memory": float(self.memory or 0),
            **self.custom,
        }
        return {name: need for name, need in needs.items() if need}


@dataclass(frozen=True, slots=True)
class Read:
    """Read a source.

    Attributes:
        source: The source.
        shuffle: The order of its blocks; None: their own.
    """

    source: Source
    shuffle: BlockShuffle | None = None


@dataclass(frozen=True, slots=True)
class Union:
    """Let the rows of several plans through; in order, if order is preserved."""

    plans: tuple[Plan, ...]


@dataclass(frozen=True, slots=True)
class Apply:
    """Apply a transform to every block.

    Attributes:
        transform: The transform.
        resources: What a task or an actor that applies it takes.
        workers: How many tasks, or actors (at least and at most), apply it at a time; None: as many as fit.
    """

    transform: Transform
    resources: Resources = Resources()
    workers: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """Let only so many rows through."""

    num_rows: int


Step = Apply | Limit


@dataclass(frozen=True, slots=True)
class Plan:
    """Where rows come from, and what is done to them, in order."""

    origin: Read | Union
    steps: tuple[Step, ...] = ()

    def then(self, step: Step) -> Plan:
        """Return the plan with one more step."""
        return Plan(self.origin, (*self.steps, step))

    def shuffled(self, shuffle: BlockShuffle) -> Plan:
        """Return the plan with its sources' blocks in another order.

        Raises:
            OptionError: A limit in it says which rows come, which would be others then.
        """
        for step in self.steps:
            if isinstance(step, Limit):
                raise OptionError(
                    f"shuffle_blocks() after limit({step.num_rows}) would change which rows there are; shuffle first, "
                    "then limit, or materialize() the dataset in between"
                )
        if isinstance(self.origin, Union):
            return replace(self, origin=Union(tuple(plan.shuffled(shuffle) for plan in self.origin.plans)))
        return replace(self, origin=replace(self.origin, shuffle=shuffle))
