"""Describe a scenario: what is timed, who takes part and what is aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class AimKind(Enum):
    """Say how an aim's figure is made from medians."""

    VALUE_AT_MOST = "value at most"
    TIMES_AS_LONG_AT_MOST = "times as long, at most"
    TIMES_AS_FAST_AT_LEAST = "times as fast, at least"


@dataclass(frozen=True, slots=True)
class Aim:
    """Hold one contender to a limit, alone or against another one.

    Attributes:
        contender: Whose figure it is.
        metric: Which of the scenario's metrics.
        kind: How the figure is made.
        limit: The limit, in the metric's unit or as a ratio.
        against: The other contender of a ratio, else None.
    """

    contender: str
    metric: str
    kind: AimKind
    limit: float
    against: str | None = None


def at_most(contender: str, metric: str, limit: float) -> Aim:
    """Aim at a median of at most `limit`, in the metric's unit."""
    return Aim(contender, metric, AimKind.VALUE_AT_MOST, limit)


def times_as_long(contender: str, metric: str, limit: float, *, against: str) -> Aim:
    """Aim at a median of at most `limit` times the one of `against`."""
    return Aim(contender, metric, AimKind.TIMES_AS_LONG_AT_MOST, limit, against)


def times_as_fast(contender: str, metric: str, limit: float, *, against: str) -> Aim:
    """Aim at a median that the one of `against` exceeds at least `limit` times."""
    return Aim(contender, metric, AimKind.TIMES_AS_FAST_AT_LEAST, limit, against)


@dataclass(frozen=True, slots=True)
class Metric:
    """Describe one figure that every contender of a scenario reports; less is better.

    Attributes:
        name: Its key, with the unit as its suffix.
        unit: One of `s`, `ms`, `us`, `B` (bytes) and the empty string (a count).
        summary: What it measures.
    """

    name: str
    unit: str
    summary: str


@dataclass(frozen=True, slots=True)
class Contender:
    """Describe one library, with its settings, that takes part in a scenario.

    Attributes:
        name: Its key.
        summary: Its settings, in a line.
        requires: The modules that have to be importable.
        measure: Runs one pass and returns a figure for each metric of the scenario.
        on_cluster: Whether the process joins the Ray cluster first.
        warms_itself: Whether `measure` makes its own uncounted warm-up. If not, the worker calls
            `measure` twice and counts the second call.
    """

    name: str
    summary: str
    requires: tuple[str, ...]
    measure: Callable[[], Mapping[str, float]]
    on_cluster: bool = False
    warms_itself: bool = False


# The contenders that `aiodata_contenders` describes: those that aims are about.
AIODATA = ("aiodata_ray", "aiodata_local")


def aiodata_contenders(
    measure: Callable[[str], Mapping[str, float]],
    *,
    variant: str = "",
    requires: tuple[str, ...] = (),
    warms_itself: bool = False,
) -> tuple[Contender, Contender]:
    """Describe aiodata on each of its runtimes, with the same settings.

    Args:
        measure: Is called with the runtime's name, and returns a figure for each metric of the scenario.
        variant: What sets these two apart from others of the scenario, for their names and summaries.
        requires: Modules that have to be importable beside aiodata (and Ray).
        warms_itself: As in `Contender`.

    Returns:
        The contenders that `AIODATA` names, with `_variant` at the end of each name if there is one.
    """
    names = [f"{name}_{variant}" if variant else name for name in AIODATA]
    summaries = [f"aiodata, {runtime} runtime{variant and f', {variant}'}" for runtime in ("Ray", "local")]
    return (
        Contender(
            names[0],
            summaries[0],
            ("aiodata", "ray", *requires),
            partial(measure, "ray"),
            on_cluster=True,
            warms_itself=warms_itself,
        ),
        Contender(names[1], summaries[1], ("aiodata", *requires), partial(measure, "local"), warms_itself=warms_itself),
    )


def ray_data_contender(
    measure: Callable[[], Mapping[str, float]],
    settings: str = "iter_batches",
    *,
    variant: str = "",
    warms_itself: bool = False,
) -> Contender:
    """Describe Ray Data.

    Args:
        measure: As in `Contender`.
        settings: Its settings, in a few words.
        variant: What sets it apart from others of the scenario, for its name.
        warms_itself: As in `Contender`.
    """
    return Contender(
        f"ray_data_{variant}" if variant else "ray_data",
        f"Ray Data, {settings}",
        ("ray", "pandas"),
        measure,
        on_cluster=True,
        warms_itself=warms_itself,
    )


@dataclass(frozen=True, slots=True)
class Scenario:
    """Describe one comparison.

    Attributes:
        name: Its key, and the name of its module.
        summary: What it is about, in a line.
        timed: What the clock covers.
        notes: The settings of the contenders, in full.
        metrics: The figures; the first one is compared.
        baseline: The contender that the ratios refer to.
        contenders: Who takes part, in the order of the rounds.
        aims: What is aimed at.
        num_warm_ups: How many uncounted passes each process makes first.
    """

    name: str
    summary: str
    timed: str
    notes: str
    metrics: tuple[Metric, ...]
    baseline: str
    contenders: tuple[Contender, ...]
    aims: tuple[Aim, ...]
    num_warm_ups: int = 1

    def __post_init__(self) -> None:
        """Reject an aim or a baseline that names nobody.

        Raises:
            ValueError: A name is not one of the contenders or metrics.
        """
        contenders = {contender.name for contender in self.contenders}
        metrics = {metric.name for metric in self.metrics}
        named = {self.baseline}
        for aim in self.aims:
            named.add(aim.contender)
            if aim.against is not None:
                named.add(aim.against)
        unknown = (named - contenders) | ({aim.metric for aim in self.aims} - metrics)
        if unknown:
            raise ValueError(
                f"scenario {self.name!r} refers to {sorted(unknown)}, "
                f"but has the contenders {sorted(contenders)} and the metrics {sorted(metrics)}"
            )

    @property
    def headline(self) -> Metric:
        """Return the metric that the ratios compare."""
        return self.metrics[0]

    def contender(self, name: str) -> Contender:
        """Return the contender of that name.

        Raises:
            KeyError: There is none.
        """
        return {contender.name: contender for contender in self.contenders}[name]

    def metric(self, name: str) -> Metric:
        """Return the metric of that name.

        Raises:
            KeyError: There is none.
        """
        return {metric.name: metric for metric in self.metrics}[name]
