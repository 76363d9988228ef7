"""Show scenarios and results on a console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from benchmarks.aims import Verdict, claim_text
from benchmarks.figures import ratio_text, spread_text
from benchmarks.outcome import Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from benchmarks.comparison import Comparison
    from benchmarks.model import Scenario

_VERDICT_STYLES = {Verdict.MET: "green", Verdict.MISSED: "red", Verdict.UNKNOWN: "yellow"}


def show_scenarios(scenarios: Iterable[Scenario], console: Console) -> None:
    """List the scenarios with what they time and aim at."""
    table = Table("scenario", "about", "timed", "aims", show_lines=True)
    for scenario in scenarios:
        aims = "\n".join(claim_text(aim, scenario) for aim in scenario.aims)
        table.add_row(scenario.name, scenario.summary, scenario.timed, aims)
    console.print(table)


def _figures_table(comparison: Comparison) -> Table:
    scenario = comparison.scenario
    table = Table("contender", title=f"{scenario.name}: {scenario.summary}", title_justify="left")
    for metric in scenario.metrics:
        table.add_column(metric.name, justify="right")
    table.add_column(f"{scenario.baseline} ÷ it", justify="right")
    for row in comparison.rows:
        if row.measurement.status is not Status.MEASURED:
            table.add_row(row.measurement.contender, row.measurement.status.value)
            continue
        cells = [
            "" if known is None else spread_text(known, metric.unit)
            for metric, known in zip(scenario.metrics, row.spreads, strict=True)
        ]
        better = row.better_than_baseline
        cells.append("" if better is None else ratio_text(better))
        table.add_row(row.measurement.contender, *cells)
    return table


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Show a scenario's figures, who did not take part and why, and the aims."""
    console.print(_figures_table(comparison))
    for row in comparison.rows:
        measurement = row.measurement
        if measurement.status is not Status.MEASURED:
            text = f"{measurement.contender} {measurement.status.value}: {measurement.reason}"
            console.print(escape(text), style="yellow")
    for judgement in comparison.judgements:
        verdict = judgement.verdict
        style = _VERDICT_STYLES[verdict]
        figure = f" ({judgement.figure})" if judgement.figure else ""
        console.print(f"  [{style}]{verdict.value}[/]  {escape(judgement.claim + figure)}")
    console.print()
