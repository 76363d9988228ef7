"""Simulation: the real executor on simulated workers; whatever goes wrong, rows and tasks are accounted for."""

from __future__ import annotations

import re
from typing import Any

import anyio
import pytest

from aiodata.errors import TaskError
from aiodata.execution.executor import StreamingExecutor
from aiodata.options import ExecutionOptions
from aiodata.testing import (
    FaultKind,
    Faults,
    SimulatedDeadlockError,
    SimulatedMap,
    SimulatedSource,
    Simulation,
    SimulationReport,
)
from aiodata.testing.report import merged

SOURCE = SimulatedSource(num_pieces=30, blocks_per_piece=5, rows_per_block=10, s_per_block=0.1)
MAPS = [SimulatedMap(name="slow", s_per_block=1.0), SimulatedMap(name="cut", blocks_per_input=3)]


def simulate(*, preserve_order: bool = False, task_max_retries: int = 50, **settings: Any) -> SimulationReport:
    options = ExecutionOptions(preserve_order=preserve_order, task_max_retries=task_max_retries)
    return Simulation(source=SOURCE, maps=MAPS, num_workers=10, options=options, **settings).run()


@pytest.mark.parametrize("preserve_order", [False, True])
@pytest.mark.parametrize("metadata_delay_s", [0.0, 0.05])
def test_rows_out_are_rows_in(preserve_order: bool, metadata_delay_s: float) -> None:
    report = simulate(preserve_order=preserve_order, metadata_delay_s=metadata_delay_s)
    assert report.error is None
    assert (report.rows_in, report.rows_out, report.missing) == (1500, 1500, ())
    assert report.is_exact
    assert report.is_accounted_for
    assert report.is_ordered or not preserve_order
    assert report.left_bytes == 0


def test_operators_run_on_all_workers_at_a_time() -> None:
    report = simulate()
    assert [op.name for op in report.operators] == ["simulated_source", "slow", "cut"]
    assert [op.blocks for op in report.operators] == [150, 150, 450]
    # 150 blocks of a second each, on ten workers: neither faster than possible, nor half as slow again.
    assert 15 <= report.virtual_s < 22.5


@pytest.mark.parametrize("preserve_order", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_dying_stalling_and_slow_workers_lose_and_double_no_row(seed: int, preserve_order: bool) -> None:
    faults = Faults(seed=seed, kill=0.05, stall=0.02, slow=0.1)
    report = simulate(preserve_order=preserve_order, faults=faults)
    assert {fault.kind for fault in report.faults} == {FaultKind.KILL, FaultKind.STALL, FaultKind.SLOW}
    assert report.error is None
    assert report.is_exact
    assert report.is_accounted_for
    assert report.is_ordered or not preserve_order
    assert report.left_bytes == 0


@pytest.mark.parametrize("faults", [None, Faults(seed=1, kill=0.05, slow=0.1)])
def test_maps_on_actors_lose_and_double_no_row(faults: Faults | None) -> None:
    maps = [SimulatedMap(name="model", s_per_block=0.5, needs_actor=True), SimulatedMap(name="after")]
    options = ExecutionOptions(task_max_retries=50)
    report = Simulation(source=SOURCE, maps=maps, num_workers=10, options=options, faults=faults).run()
    assert report.error is None
    assert report.is_exact
    assert report.is_accounted_for
    assert report.left_bytes == 0


def test_the_same_simulation_gives_the_same_report() -> None:
    faults = Faults(seed=3, kill=0.05, stall=0.02, slow=0.1)
    assert simulate(faults=faults) == simulate(faults=faults)


def test_a_failure_ends_the_run_and_leaves_no_task_and_no_block() -> None:
    report = simulate(faults=Faults(seed=1, fail=0.05))
    assert isinstance(report.error, TaskError)
    assert report.lost != ()
    assert merged((*report.lost, *report.missing)) == report.missing
    assert report.is_accounted_for
    assert report.left_bytes == 0


@pytest.mark.parametrize("preserve_order", [False, True])
@pytest.mark.parametrize("kind", ["fail", "lose"])
def test_what_was_skipped_is_all_that_is_missing(kind: str, preserve_order: bool) -> None:
    options = ExecutionOptions(preserve_order=preserve_order, max_errored_blocks=-1)
    faults = Faults(seed=2, kill=0.02, **{kind: 0.05})
    report = Simulation(source=SOURCE, maps=MAPS, num_workers=10, options=options, faults=faults).run()
    assert report.error is None
    assert report.lost != ()
    assert report.missing == report.lost
    assert report.rows_out == report.rows_in - sum(stop - start for start, stop in report.lost)
    assert report.is_accounted_for
    assert report.is_ordered or not preserve_order


def test_a_consumer_that_stops_stops_everything() -> None:
    report = simulate(consumer_max_blocks=5, cancel_delay_s=0.2)
    assert report.error is None
    assert 0 < report.rows_out < 100
    assert report.is_accounted_for
    assert sum(counts.cancelled for counts in report.tasks) > 0
    assert report.left_bytes == 0


def test_a_limit_lets_so_many_rows_through() -> None:
    report = simulate(limit_rows=55, preserve_order=True)
    assert merged(report.ranges) == ((0, 55),)
    assert report.is_accounted_for


def test_a_slow_consumer_gets_all_in_the_time_that_it_takes() -> None:
    report = simulate(consumer_s_per_block=1.0)
    assert report.is_exact
    assert report.virtual_s >= 450


def test_a_run_that_stands_still_is_an_error_with_the_states_of_its_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stand_still(self: StreamingExecutor, output: object) -> None:
        await anyio.Event().wait()

    monkeypatch.setattr(StreamingExecutor, "run", stand_still)
    with pytest.raises(SimulatedDeadlockError, match="no task has done anything since 0 virtual s") as caught:
        simulate()
    assert "slow: 0 tasks started, 0 blocks and 0 rows produced" in str(caught.value)


def test_a_run_that_takes_too_long_counts_as_one_that_stands_still() -> None:
    with pytest.raises(SimulatedDeadlockError, match="not done after 3 virtual s") as caught:
        simulate(max_virtual_s=3.0)
    assert re.search(
        r"tasks of slow: \d+ wait for a worker, [1-9]\d* run, \d+ finished, 0 cancelled", str(caught.value)
    )


def test_a_report_prints_as_a_table() -> None:
    lines = str(simulate(faults=Faults(seed=1, slow=0.5))).splitlines()
    assert lines[0].startswith("1,500 of 1,500 rows in ")
    assert any(line.split() == ["slow", "150", "150", "0"] for line in lines)
    assert lines[-1].startswith("  faults: ")
