"""Judge a scenario's aims from the medians."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from benchmarks.figures import figure_text, ratio, ratio_text
from benchmarks.model import Aim, AimKind, Scenario

if TYPE_CHECKING:
    from benchmarks.outcome import ScenarioResult


class Verdict(Enum):
    """Say whether an aim is met."""

    MET = "met"
    MISSED = "missed"
    UNKNOWN = "not measured"


@dataclass(frozen=True, slots=True)
class Judgement:
    """Hold an aim, in words, with the figure that decides it.

    Attributes:
        claim: What is aimed at.
        figure: What was measured, as text; empty when it was not.
        value: What was measured, in the metric's unit or as a ratio.
        verdict: Whether the aim is met.
    """

    claim: str
    figure: str
    value: float | None
    verdict: Verdict


def claim_text(aim: Aim, scenario: Scenario) -> str:
    """Write an aim in words."""
    subject = f"{aim.contender} {aim.metric}"
    match aim.kind:
        case AimKind.VALUE_AT_MOST:
            limit = figure_text(aim.limit, scenario.metric(aim.metric).unit)
            return f"{subject} ≤ {limit}"
        case AimKind.TIMES_AS_LONG_AT_MOST:
            return f"{subject} ≤ {aim.limit:g}× that of {aim.against}"
        case AimKind.TIMES_AS_FAST_AT_LEAST:
            return f"{subject} ≥ {aim.limit:g}× better than {aim.against}"


def _value(aim: Aim, result: ScenarioResult) -> float | None:
    own = result.median_of(aim.contender, aim.metric)
    if own is None or aim.against is None:
        return own
    other = result.median_of(aim.against, aim.metric)
    if other is None:
        return None
    if aim.kind is AimKind.TIMES_AS_FAST_AT_LEAST:
        return ratio(other, own)
    return ratio(own, other)


def judge(aim: Aim, scenario: Scenario, result: ScenarioResult) -> Judgement:
    """Compare an aim with what was measured.

    Args:
        aim: One of the scenario's aims.
        scenario: Gives the metrics' units.
        result: Gives the medians.

    Returns:
        The judgement; its verdict is `UNKNOWN` when a contender it needs was not measured.
    """
    claim = claim_text(aim, scenario)
    value = _value(aim, result)
    if value is None:
        return Judgement(claim, "", None, Verdict.UNKNOWN)
    at_least = aim.kind is AimKind.TIMES_AS_FAST_AT_LEAST
    met = value >= aim.limit if at_least else value <= aim.limit
    if aim.kind is AimKind.VALUE_AT_MOST:
        figure = figure_text(value, scenario.metric(aim.metric).unit)
    else:
        figure = ratio_text(value)
    return Judgement(claim, figure, value, Verdict.MET if met else Verdict.MISSED)


def judge_all(scenario: Scenario, result: ScenarioResult) -> tuple[Judgement, ...]:
    """Judge every aim of a scenario."""
    return tuple(judge(aim, scenario, result) for aim in scenario.aims)
