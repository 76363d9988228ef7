"""Hold what a scenario's runs gave, and turn it into JSON and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from benchmarks.environment import Environment
from benchmarks.figures import Spread, spread

if TYPE_CHECKING:
    from collections.abc import Mapping


class Status(Enum):
    """Say what became of a contender."""

    MEASURED = "measured"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Measurement:
    """Hold the figures of one contender.

    Attributes:
        contender: Its name.
        status: What became of it.
        reason: Why it was skipped or failed, else empty.
        runs: The figures of each counted run, by metric.
    """

    contender: str
    status: Status
    reason: str = ""
    runs: tuple[Mapping[str, float], ...] = ()

    def spread_of(self, metric: str) -> Spread | None:
        """Reduce one metric over the runs; None when the contender was not measured."""
        if self.status is not Status.MEASURED:
            return None
        return spread(run[metric] for run in self.runs if metric in run)


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """Hold what one scenario gave.

    Attributes:
        scenario: Its name.
        measured_at: When, as an ISO date and time with its offset.
        num_runs: Counted runs of each contender.
        environment: The machine and the libraries.
        measurements: One for each contender, in the order of the rounds.
    """

    scenario: str
    measured_at: str
    num_runs: int
    environment: Environment
    measurements: tuple[Measurement, ...]

    def median_of(self, contender: str, metric: str) -> float | None:
        """Return a contender's median; None when it was not measured."""
        for measurement in self.measurements:
            if measurement.contender == contender:
                figures = measurement.spread_of(metric)
                return None if figures is None else figures.median
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the raw figures as JSON values."""
        return {
            "measured_at": self.measured_at,
            "num_runs": self.num_runs,
            "environment": asdict(self.environment),
            "measurements": [
                {
                    "contender": measurement.contender,
                    "status": measurement.status.value,
                    "reason": measurement.reason,
                    "runs": [dict(run) for run in measurement.runs],
                }
                for measurement in self.measurements
            ],
        }


def result_from_json(scenario: str, value: Mapping[str, Any]) -> ScenarioResult:
    """Read what `ScenarioResult.to_json` returned.

    Raises:
        KeyError: A key is missing.
    """
    return ScenarioResult(
        scenario=scenario,
        measured_at=value["measured_at"],
        num_runs=value["num_runs"],
        environment=Environment(**value["environment"]),
        measurements=tuple(
            Measurement(
                contender=entry["contender"],
                status=Status(entry["status"]),
                reason=entry["reason"],
                runs=tuple(entry["runs"]),
            )
            for entry in value["measurements"]
        ),
    )
