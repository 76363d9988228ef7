"""List the scenarios, or run some of them."""

from __future__ import annotations

import json
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from benchmarks.cluster import local_cluster
from benchmarks.comparison import Comparison, compare
from benchmarks.data import ensure_parquet
from benchmarks.environment import current_environment
from benchmarks.outcome import ScenarioResult, Status
from benchmarks.page import render_page
from benchmarks.rounds import Run, missing_modules, run_in_turn
from benchmarks.scenarios import load_scenario, scenario_names
from benchmarks.store import (
    FOLDER,
    PAGE_NAME,
    RAW_NAME,
    load_results,
    merge_results,
    save_results,
    write_whole,
)
from benchmarks.tables import show_comparison, show_scenarios

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.model import Contender, Scenario

_ALL = "all"
_WIDTH_IN_PIPE = 160

app = typer.Typer(add_completion=False)


def _chosen_scenarios(names: Sequence[str]) -> list[Scenario]:
    unknown = [name for name in names if name not in (*scenario_names(), _ALL)]
    if unknown:
        known = ", ".join((*scenario_names(), _ALL))
        raise typer.BadParameter(f"no scenario {unknown[0]!r}: choose among {known}")
    return [load_scenario(name) for name in (scenario_names() if _ALL in names else names)]


def _chosen_contenders(scenario: Scenario, only: Sequence[str]) -> tuple[Contender, ...]:
    if not only:
        return scenario.contenders
    chosen = tuple(contender for contender in scenario.contenders if contender.name in only)
    if not chosen:
        names = ", ".join(contender.name for contender in scenario.contenders)
        raise typer.BadParameter(f"{scenario.name} has none of {list(only)}: it has {names}")
    return chosen


def _needs_cluster(contenders: Sequence[Contender]) -> bool:
    return any(contender.on_cluster and not missing_modules(contender) for contender in contenders)


def _run_scenarios(
    chosen: Sequence[tuple[Scenario, tuple[Contender, ...]]], num_runs: int, console: Console
) -> list[Comparison]:
    ensure_parquet(console=console)
    comparisons = []
    with ExitStack() as stack:
        address: str | None = None
        if any(_needs_cluster(contenders) for _, contenders in chosen):
            with console.status("starting a Ray cluster"):
                address = stack.enter_context(local_cluster())
        status = stack.enter_context(console.status(""))

        def show_run(run: Run) -> None:
            status.update(f"{run.scenario}: run {run.number}/{run.num_runs}, {run.contender}")

        for scenario, contenders in chosen:
            measurements = run_in_turn(scenario, contenders, num_runs=num_runs, address=address, on_run=show_run)
            measured_at = datetime.now(UTC).isoformat(timespec="seconds")
            environment = current_environment()
            result = ScenarioResult(scenario.name, measured_at, num_runs, environment, measurements)
            comparisons.append(compare(scenario, result))
            show_comparison(comparisons[-1], console)
    return comparisons


def write_page(comparisons: Sequence[Comparison], folder: Path) -> None:
    """Store the figures beside those of the scenarios that were not run, and write the page anew."""
    stored = load_results(folder / RAW_NAME)
    results = merge_results(stored, (comparison.result for comparison in comparisons))
    save_results(folder / RAW_NAME, results)
    scenarios = [load_scenario(name) for name in scenario_names()]
    write_whole(folder / PAGE_NAME, render_page(scenarios, results))


def _any_failed(comparisons: Sequence[Comparison]) -> bool:
    return any(row.measurement.status is Status.FAILED for comparison in comparisons for row in comparison.rows)


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(help="Scenarios to run, or `all`; none: list them.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Counted runs of each contender.")] = 5,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures here, as JSON.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run this contender only (may be repeated).")] = None,
    write_results: Annotated[bool, typer.Option("--write-results", help=f"Update {PAGE_NAME}.")] = False,
) -> None:
    """Compare aiodata with its peers, in turn, each run in a fresh process."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_IN_PIPE)
    if not names:
        show_scenarios(map(load_scenario, scenario_names()), console)
        return
    if only and write_results:
        raise typer.BadParameter("--write-results wants all contenders: leave --only out")
    chosen = [(scenario, _chosen_contenders(scenario, only or ())) for scenario in _chosen_scenarios(names)]
    comparisons = _run_scenarios(chosen, runs, console)
    if json_path is not None:
        document = [comparison.to_json() for comparison in comparisons]
        write_whole(json_path, json.dumps(document, indent=1) + "\n")
    if write_results:
        write_page(comparisons, FOLDER)
    if _any_failed(comparisons):
        raise typer.Exit(1)
