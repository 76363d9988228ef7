"""What was asked: a source, and the verbs applied to it, as a chain of immutable nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from aiodata.bundle import RefBundle
from aiodata.plan.pieces import Piece
from aiodata.plan.transforms import Transform


class Source(Protocol):
    """An origin of rows. All its methods may block, except `name` and the `with_` ones; it does no work before."""

    @property
    def name(self) -> str:
        """The name that `explain()`, statistics and errors show."""

    def with_columns(self, columns: tuple[str, ...]) -> Source | None:
        """Return the source narrowed to some columns; None: it can not do that itself."""

    def with_filter(self, expression: Any) -> Source | None:
        """Return the source narrowed to the rows where `expression` is true; None: it can not do that itself."""

    def pieces(self, num_tasks: int) -> Sequence[Piece]:
        """Return the parts that tasks are given; at least `num_tasks` of them, if there are as many.

        Raises:
            SourceError: A file is missing, corrupt or unreadable, or no file matches.
        """

    def bundles(self) -> Iterable[RefBundle] | None:
        """Return the blocks, if they are stored somewhere already; else None."""

    def schema(self) -> pa.Schema | None:
        """Return the schema, if it is known without reading rows."""

    def count_rows(self) -> int | None:
        """Return the number of rows, if it is known without reading them."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a task or an actor takes while it runs; None: what the runtime gives by default.

    Attributes:
        num_cpus: CPUs.
        num_gpus: GPUs.
    """

    num_cpus: float | None = None
    num_gpus: float | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """Read a source."""

    source: Source


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
