"""Reduce a scenario's result to what is printed and written: figures, ratios and aims."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.aims import Judgement, judge_all
from benchmarks.figures import Spread, ratio

if TYPE_CHECKING:
    from benchmarks.model import Scenario
    from benchmarks.outcome import Measurement, ScenarioResult


@dataclass(frozen=True, slots=True)
class Row:
    """Hold a contender's figures.

    Attributes:
        measurement: Its raw figures, or why there are none.
        summary: Its settings, in a line.
        spreads: One for each metric of the scenario, None where there is no figure.
        better_than_baseline: The baseline's headline median over this one's.
    """

    measurement: Measurement
    summary: str
    spreads: tuple[Spread | None, ...]
    better_than_baseline: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Hold the rows and the judged aims of one scenario."""

    scenario: Scenario
    result: ScenarioResult
    rows: tuple[Row, ...]
    judgements: tuple[Judgement, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything that is printed, and the raw figures, as JSON values."""
        return {
            "scenario": self.scenario.name,
            "timed": self.scenario.timed,
            "baseline": self.scenario.baseline,
            **self.result.to_json(),
            "contenders": {row.measurement.contender: self._row_json(row) for row in self.rows},
            "aims": [
                {
                    "aim": judgement.claim,
                    "value": _finite(judgement.value),
                    "verdict": judgement.verdict.value,
                }
                for judgement in self.judgements
            ],
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        figures = {
            metric.name: {"median": known.median, "min": known.low, "max": known.high}
            for metric, known in zip(self.scenario.metrics, row.spreads, strict=True)
            if known is not None
        }
        return {
            "status": row.measurement.status.value,
            "reason": row.measurement.reason,
            "better_than_baseline": _finite(row.better_than_baseline),
            "figures": figures,
        }


def _finite(value: float | None) -> float | None:
    """Return None for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None


def _summary(scenario: Scenario, name: str) -> str:
    try:
        return scenario.contender(name).summary
    except KeyError:
        # Stored figures may be older than the scenario.
        return ""


def compare(scenario: Scenario, result: ScenarioResult) -> Comparison:
    """Reduce a scenario's result.

    Args:
        scenario: Gives the metrics, the baseline and the aims.
        result: Gives the raw figures.
    """
    headline = scenario.headline.name
    baseline = result.median_of(scenario.baseline, headline)
    rows = []
    for measurement in result.measurements:
        own = result.median_of(measurement.contender, headline)
        better = None if baseline is None or own is None else ratio(baseline, own)
        rows.append(
            Row(
                measurement,
                _summary(scenario, measurement.contender),
                tuple(measurement.spread_of(metric.name) for metric in scenario.metrics),
                better,
            )
        )
    return Comparison(scenario, result, tuple(rows), judge_all(scenario, result))
