"""Write the page of results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.comparison import Comparison, Row, compare
from benchmarks.figures import ratio_text, spread_text
from benchmarks.outcome import ScenarioResult, Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.aims import Judgement
    from benchmarks.environment import Environment
    from benchmarks.model import Scenario

_HEAD = """\
# Benchmark results

Written by `python -m benchmarks … --write-results`; do not edit. Figures are medians of fresh
processes, run in turn, with the least and the largest in parentheses. Absolute times depend on the
machine: compare within a table. Less is better everywhere."""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _figure_cells(row: Row, scenario: Scenario) -> list[str]:
    measurement = row.measurement
    if measurement.status is not Status.MEASURED:
        reason = measurement.reason.splitlines()[0] if measurement.reason else ""
        return [f"{measurement.status.value}: {reason}", *[""] * len(scenario.metrics)]
    cells = [
        "" if known is None else spread_text(known, metric.unit)
        for metric, known in zip(scenario.metrics, row.spreads, strict=True)
    ]
    better = row.better_than_baseline
    cells.insert(1, "" if better is None else ratio_text(better))
    return cells


def _figures_table(comparison: Comparison) -> list[str]:
    scenario = comparison.scenario
    head = ["contender", *(metric.name for metric in scenario.metrics)]
    head.insert(2, f"{scenario.baseline} ÷ it")
    rows = [[f"`{row.measurement.contender}`: {row.summary}", *_figure_cells(row, scenario)] for row in comparison.rows]
    return _table(head, rows)


def _aims_table(judgements: Sequence[Judgement]) -> list[str]:
    if not judgements:
        return []
    rows = [[judgement.claim, judgement.figure, judgement.verdict.value] for judgement in judgements]
    return ["", *_table(["aim", "measured", "verdict"], rows)]


def _section(comparison: Comparison, environment: str) -> str:
    scenario, result = comparison.scenario, comparison.result
    metrics = [f"- `{metric.name}`: {metric.summary}" for metric in scenario.metrics]
    return "\n".join(
        [
            f"## `{scenario.name}`: {scenario.summary}",
            "",
            f"Timed: {scenario.timed}.",
            "",
            f"Measured {result.measured_at}, {result.num_runs} runs each, environment {environment}.",
            "",
            *metrics,
            "",
            *_figures_table(comparison),
            *_aims_table(comparison.judgements),
            "",
            f"<details><summary>Settings</summary>\n\n{scenario.notes.strip()}\n\n</details>",
        ]
    )


def _environments_section(environments: Sequence[Environment]) -> str:
    lines = [
        f"{number}. {environment.machine_text}; {environment.versions_text}"
        for number, environment in enumerate(environments, 1)
    ]
    return "\n".join(["## Environments", "", *lines])


def render_page(scenarios: Sequence[Scenario], results: Mapping[str, ScenarioResult]) -> str:
    """Write every scenario that has figures, in the scenarios' order.

    The aims are judged anew: a changed aim shows without another run.

    Args:
        scenarios: All scenarios.
        results: The figures, by scenario.

    Returns:
        The page, as Markdown.
    """
    known = [scenario for scenario in scenarios if scenario.name in results]
    environments: list[Environment] = []
    sections = []
    for scenario in known:
        result = results[scenario.name]
        if result.environment not in environments:
            environments.append(result.environment)
        number = environments.index(result.environment) + 1
        sections.append(_section(compare(scenario, result), str(number)))
    return "\n\n".join([_HEAD, *sections, _environments_section(environments)]) + "\n"
