from __future__ import annotations

import asyncio
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks import cli
from benchmarks.aims import Verdict, claim_text, judge
from benchmarks.comparison import Comparison, compare
from benchmarks.data import DataShape, ensure_parquet
from benchmarks.environment import Environment
from benchmarks.figures import Spread, figure_text, percentile, ratio, spread, spread_text
from benchmarks.lag import PERIOD_S, lags_beside
from benchmarks.memory import numeric_chunks, wide_chunks
from benchmarks.model import (
    AIODATA,
    Aim,
    Contender,
    Metric,
    Scenario,
    aiodata_contenders,
    at_most,
    times_as_fast,
    times_as_long,
)
from benchmarks.outcome import Measurement, ScenarioResult, Status
from benchmarks.page import render_page
from benchmarks.rounds import missing_modules
from benchmarks.scenarios import collate, load_scenario, scenario_names
from benchmarks.settling import seconds_until_rest
from benchmarks.sources import RowCountError, check_rows
from benchmarks.stamps import Stamps, time_async_pass, time_pass
from benchmarks.store import StoredResultsError, load_results, merge_results, save_results
from benchmarks.worker import measure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

ENVIRONMENT = Environment("Z80", 2, 0.1, "CP/M 2.2", "CPython 3.11", {"ray": "2.60.0"})


def no_figures() -> Mapping[str, float]:
    return {}


def make_scenario(name: str = "race", aims: tuple[Aim, ...] = ()) -> Scenario:
    return Scenario(
        name=name,
        summary="who is first",
        timed="the run",
        notes="Settings of everybody.",
        metrics=(Metric("total_s", "s", "the whole"), Metric("threads_left", "", "threads")),
        baseline="tortoise",
        contenders=(
            Contender("hare", "fast", (), no_figures),
            Contender("tortoise", "steady", (), no_figures),
            Contender("snail", "absent", ("no_such_module",), no_figures),
        ),
        aims=aims,
    )


def measured(contender: str, *totals_s: float) -> Measurement:
    runs = tuple({"total_s": total_s, "threads_left": 0.0} for total_s in totals_s)
    return Measurement(contender, Status.MEASURED, runs=runs)


def make_result(scenario: str = "race", measured_at: str = "2026-01-01") -> ScenarioResult:
    measurements = (
        measured("hare", 0.5, 9.0, 0.4),
        measured("tortoise", 5.0, 6.0, 4.0),
        Measurement("snail", Status.SKIPPED, "not installed: no_such_module"),
    )
    return ScenarioResult(scenario, measured_at, 3, ENVIRONMENT, measurements)


@pytest.mark.parametrize(
    ("aim", "value", "verdict"),
    [
        (at_most("hare", "total_s", 0.5), 0.5, Verdict.MET),
        (at_most("hare", "total_s", 0.49), 0.5, Verdict.MISSED),
        (at_most("hare", "threads_left", 0), 0.0, Verdict.MET),
        (times_as_fast("hare", "total_s", 10, against="tortoise"), 10.0, Verdict.MET),
        (times_as_fast("hare", "total_s", 11, against="tortoise"), 10.0, Verdict.MISSED),
        (times_as_long("hare", "total_s", 0.1, against="tortoise"), 0.1, Verdict.MET),
        (times_as_long("tortoise", "total_s", 9, against="hare"), 10.0, Verdict.MISSED),
        (times_as_fast("hare", "total_s", 10, against="snail"), None, Verdict.UNKNOWN),
        (at_most("snail", "total_s", 10), None, Verdict.UNKNOWN),
    ],
)
def test_aims_are_judged_from_medians(aim: Aim, value: float | None, verdict: Verdict) -> None:
    judgement = judge(aim, make_scenario(), make_result())

    assert judgement.value == value
    assert judgement.verdict is verdict


def test_claim_names_both_contenders_and_the_limit() -> None:
    aim = times_as_fast("hare", "total_s", 12, against="tortoise")

    assert claim_text(aim, make_scenario()) == "hare total_s ≥ 12× better than tortoise"


def test_aim_for_nobody_is_rejected_with_its_name() -> None:
    with pytest.raises(ValueError, match="dodo"):
        make_scenario(aims=(at_most("dodo", "total_s", 1),))


def test_spread_is_median_least_and_largest() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.0, 2.0)
    with pytest.raises(ValueError, match="at least once"):
        spread([])


def test_percentile_is_a_sample() -> None:
    samples = [float(number) for number in range(100, 0, -1)]

    assert percentile(samples, 50) == 50.0
    assert percentile(samples, 99) == 99.0
    assert percentile(samples, 100) == 100.0
    assert percentile([7.0], 0) == 7.0


def test_ratio_with_nothing_is_defined() -> None:
    assert ratio(6, 3) == 2.0
    assert ratio(0, 0) == 1.0
    assert math.isinf(ratio(1, 0))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"),
        (1.5e-6, "s", "1.50 µs"),
        (4.123, "s", "4.12 s"),
        (1366.2, "ms", "1,366 ms"),
        (119.0, "us", "119 µs"),
        (123_456_789.0, "B", "123 MB"),
        (20.0, "", "20"),
        (0.0, "s", "0 s"),
    ],
)
def test_figures_are_written_with_three_digits(value: float, unit: str, text: str) -> None:
    assert figure_text(value, unit) == text


def test_equal_runs_are_written_once() -> None:
    assert spread_text(Spread(2.0, 2.0, 2.0), "") == "2"
    assert spread_text(Spread(2.0, 1.0, 3.0), "") == "2 (1 – 3)"


def test_comparison_relates_headline_medians_to_the_baseline() -> None:
    rows = compare(make_scenario(), make_result()).rows

    assert [row.better_than_baseline for row in rows] == [10.0, 1.0, None]


def test_json_of_a_comparison_holds_figures_ratio_and_verdicts() -> None:
    scenario = make_scenario(aims=(at_most("hare", "total_s", 1),))

    document = json.loads(json.dumps(compare(scenario, make_result()).to_json()))

    hare = document["contenders"]["hare"]
    assert hare["figures"]["total_s"] == {"median": 0.5, "min": 0.4, "max": 9.0}
    assert hare["better_than_baseline"] == 10.0
    assert document["contenders"]["snail"]["status"] == "skipped"
    assert document["aims"][0]["verdict"] == "met"


def test_stored_results_survive_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results = {"race": make_result()}

    save_results(path, results)

    assert load_results(path) == results
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_merging_keeps_the_other_scenarios() -> None:
    stored = {"race": make_result("race", "old"), "climb": make_result("climb", "old")}

    merged = merge_results(stored, [make_result("race", "new")])

    assert {name: result.measured_at for name, result in merged.items()} == {"race": "new", "climb": "old"}


def test_unreadable_results_are_named(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"format": 0}')

    with pytest.raises(StoredResultsError, match=r"results\.json"):
        load_results(path)


def test_page_has_a_section_for_each_scenario_with_figures() -> None:
    scenarios = [make_scenario(name, (at_most("hare", "total_s", 1),)) for name in ("race", "climb", "swim")]
    results = {"climb": make_result("climb"), "race": make_result("race")}

    page = render_page(scenarios, results)

    assert page.index("## `race`") < page.index("## `climb`")
    assert "swim" not in page
    assert "| `hare`: fast | 500 ms (400 ms – 9.00 s) | 10.0× | 0 |" in page
    assert "| `snail`: absent | skipped: not installed: no_such_module |  |  |" in page
    assert "| hare total_s ≤ 1.00 s | 500 ms | met |" in page
    assert page.count("CP/M") == 1
    assert "Settings of everybody." in page


def test_page_is_made_from_stored_results_of_earlier_runs(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    save_results(path, {"climb": make_result("climb", "yesterday")})

    results = merge_results(load_results(path), [make_result("race", "today")])
    page = render_page([make_scenario("race"), make_scenario("climb")], results)

    assert "Measured yesterday" in page
    assert "Measured today" in page


def test_writing_the_page_keeps_the_sections_of_earlier_runs(tmp_path: Path) -> None:
    def comparison(name: str, measured_at: str) -> Comparison:
        run = {metric.name: 1.0 for metric in load_scenario(name).metrics}
        measurements = (Measurement("ray_data", Status.MEASURED, runs=(run,)),)
        return compare(load_scenario(name), ScenarioResult(name, measured_at, 1, ENVIRONMENT, measurements))

    cli.write_page([comparison("scan", "yesterday")], tmp_path)
    cli.write_page([comparison("loop_lag", "today")], tmp_path)

    page = (tmp_path / "RESULTS.md").read_text()
    assert page.index("Measured yesterday") < page.index("Measured today")
    assert set(load_results(tmp_path / "results.json")) == {"scan", "loop_lag"}


def test_every_scenario_loads_under_its_module_name() -> None:
    modules = [path.stem for path in Path(collate.__file__).parent.glob("[!_]*.py")]
    assert sorted(scenario_names()) == sorted(modules)
    for name in scenario_names():
        scenario = load_scenario(name)
        assert scenario.name == name
        assert scenario.notes


def test_aiodata_takes_part_on_both_runtimes() -> None:
    def runtime_length(runtime: str) -> Mapping[str, float]:
        return {"length": len(runtime)}

    on_ray, on_local = aiodata_contenders(runtime_length, variant="torch", requires=("torch",))

    assert [on_ray.name, on_local.name] == [f"{name}_torch" for name in AIODATA]
    assert [on_ray.on_cluster, on_local.on_cluster] == [True, False]
    assert on_ray.requires == ("aiodata", "ray", "torch")
    assert on_local.summary == "aiodata, local runtime, torch"
    assert on_local.measure() == {"length": len("local")}
    assert tuple(contender.name for contender in aiodata_contenders(runtime_length)) == AIODATA


def test_unknown_scenario_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="choose among scan"):
        load_scenario("skan")
    answer = CliRunner().invoke(cli.app, ["skan"], env={"COLUMNS": "200"})
    assert answer.exit_code == 2
    assert "skan" in answer.output


def test_command_without_scenario_lists_them() -> None:
    answer = CliRunner().invoke(cli.app, [])

    assert answer.exit_code == 0
    for name in scenario_names():
        assert name in answer.output


def test_missing_module_is_found_before_a_run() -> None:
    assert missing_modules(make_scenario().contender("snail")) == ["no_such_module"]
    assert missing_modules(make_scenario().contender("hare")) == []


def test_worker_counts_the_second_pass() -> None:
    passes = iter([{"total_s": 9.0, "threads_left": 0.0}, {"total_s": 1.0, "threads_left": 0.0}])

    figures = measure(make_scenario(), Contender("hare", "", (), lambda: next(passes)))

    assert figures["total_s"] == 1.0


def test_worker_rejects_figures_of_another_scenario() -> None:
    with pytest.raises(RuntimeError, match="wants"):
        measure(make_scenario(), Contender("hare", "", (), no_figures))


def test_wrong_row_count_fails() -> None:
    check_rows(10, 10)
    with pytest.raises(RowCountError, match="9 rows instead of 10"):
        check_rows(9, 10)


def test_data_is_made_once_and_whole(tmp_path: Path) -> None:
    shape = DataShape(num_files=2, rows_per_file=1000, rows_per_group=400)
    console = Console(quiet=True)

    folder = ensure_parquet(shape, root=tmp_path, console=console)
    made_at = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = ensure_parquet(shape, root=tmp_path, console=console)

    assert again == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == made_at
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.name]
    table = pq.read_table(folder)
    assert table.column("id").to_pylist() == list(range(2000))
    assert table.schema.names == ["id", "x", "y", "label", "s"]
    assert pq.ParquetFile(folder / "part-000.parquet").num_row_groups == 3


async def test_ticker_counts_every_turn_that_a_held_loop_missed() -> None:
    async def hold() -> None:
        await asyncio.sleep(PERIOD_S)
        time.sleep(0.1)  # noqa: ASYNC251 - a held loop is what the ticker is to notice.

    lags_s, pass_s = await lags_beside(hold, at_least_s=0.05)

    assert pass_s >= 0.1
    assert len(lags_s) >= 0.1 / PERIOD_S
    assert max(lags_s) >= 0.08


async def test_rest_counts_only_when_it_lasts() -> None:
    answers = iter([True, False])

    waits_s = await seconds_until_rest(
        [lambda: next(answers, True), lambda: True], since=time.perf_counter(), quiet_s=0.01
    )

    restless_s, calm_s = waits_s
    assert restless_s > calm_s


def test_stamps_count_waits_from_when_a_batch_is_asked_for() -> None:
    stamps = Stamps()
    for _ in range(3):
        stamps.batch(2)
        time.sleep(0.01)
        stamps.ask()

    timing = stamps.end(6)

    assert timing.first_s < 0.01
    assert len(timing.waits_s) == 2
    assert max(timing.waits_s) < 0.01
    assert timing.pass_s >= 0.03


async def test_pass_is_timed_alike_by_async_and_plain_loops() -> None:
    async def one_by_one() -> AsyncIterator[dict[str, list[int]]]:
        for batch in batches:
            await asyncio.sleep(0.01)
            yield batch

    batches = [{"id": [0, 1]}, {"id": [2]}]

    plain = time_pass(lambda: batches, "id", 3)
    waiting = await time_async_pass(one_by_one, "id", 3)

    assert len(plain.waits_s) == len(waiting.waits_s) == 1
    assert waiting.pass_s >= waiting.first_s + waiting.waits_s[0]
    with pytest.raises(RowCountError):
        time_pass(lambda: batches, "id", 4)


def test_tables_in_memory_have_the_shape_asked_for() -> None:
    narrow = numeric_chunks(200, 50)
    wide = wide_chunks(2, 3, 7)

    assert [chunk.num_rows for chunk in narrow] == [50] * 4
    assert narrow[3].column("id").to_pylist() == list(range(150, 200))
    assert [chunk.shape for chunk in wide] == [(3, 7)] * 2
    assert wide[0].schema.names[-1] == "c6"


def test_collating_costs_ten_milliseconds_on_average() -> None:
    costs_s = collate.costs_s()

    assert len(costs_s) == 200
    assert sum(costs_s) / len(costs_s) == pytest.approx(0.01, rel=0.01)
    assert sum(cost_s == 0.03 for cost_s in costs_s) == 30
