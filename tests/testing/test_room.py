"""Calls that make far more than there is room for, on simulated workers: the budget holds, and every run gets on."""

from __future__ import annotations

from typing import Any

import pytest

from aiodata.options import ExecutionOptions
from aiodata.testing import Faults, SimulatedMap, SimulatedSource, Simulation, SimulationReport

MIB = 1 << 20
BUDGET = 8 * MIB
NUM_WORKERS = 4

# Tasks of an operator in flight, each of which may have made one block more than it was given room for; and one block
# of the task that goes on whatever the budget says.
MAX_BLOCKS_MORE = 2 * NUM_WORKERS + 1

SOURCE = SimulatedSource(num_pieces=12, rows_per_block=200)

# As a part of the stage before it, its blocks are those of one call, between which no task can end.
ONE = SimulatedMap(name="one", blocks_per_input=20, bytes_ratio=20.0, s_per_block=0.2, fuses=True)
AFTER = SimulatedMap(name="after", s_per_block=0.05)
AGAIN = SimulatedMap(name="again", blocks_per_input=4, bytes_ratio=4.0, s_per_block=0.1, fuses=True)
ACTOR = SimulatedMap(name="actor", needs_actor=True)

MAPS = {
    "alone": [ONE],
    "with a stage after it": [ONE, AFTER],
    "two in a row": [ONE, AFTER, AGAIN],
    "in actors": [ACTOR, ONE],
}


def simulate(maps: str, *, preserve_order: bool, **settings: Any) -> SimulationReport:
    options = ExecutionOptions(
        preserve_order=preserve_order, task_max_retries=50, max_object_store_bytes=BUDGET, target_block_bytes=MIB
    )
    return Simulation(source=SOURCE, maps=MAPS[maps], num_workers=NUM_WORKERS, options=options, **settings).run()


@pytest.mark.parametrize("consumer_s_per_block", [0.0, 0.3])
@pytest.mark.parametrize("preserve_order", [False, True])
@pytest.mark.parametrize("maps", MAPS)
def test_calls_that_yield_more_than_the_budget_keep_to_it(
    maps: str, preserve_order: bool, consumer_s_per_block: float
) -> None:
    report = simulate(maps, preserve_order=preserve_order, consumer_s_per_block=consumer_s_per_block)
    assert report.error is None
    assert report.is_exact
    assert report.is_accounted_for
    assert report.is_ordered or not preserve_order
    assert report.left_bytes == 0
    assert report.peak_live_bytes <= BUDGET + MAX_BLOCKS_MORE * MIB


@pytest.mark.parametrize("maps", ["two in a row", "in actors"])
@pytest.mark.parametrize("preserve_order", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_lost_where_workers_die_and_metadata_is_late_or_lost(
    seed: int, preserve_order: bool, maps: str
) -> None:
    faults = Faults(seed=seed, kill=0.03, stall=0.02, slow=0.1)
    report = simulate(maps, preserve_order=preserve_order, faults=faults, metadata_delay_s=0.02)
    assert report.error is None
    assert report.is_exact
    assert report.is_accounted_for
    assert report.peak_live_bytes <= BUDGET + MAX_BLOCKS_MORE * MIB


def test_block_whose_metadata_is_lost_leaves_no_task_waiting() -> None:
    options = ExecutionOptions(max_errored_blocks=-1, max_object_store_bytes=BUDGET, target_block_bytes=MIB)
    faults = Faults(seed=1, lose=0.2)
    report = Simulation(source=SOURCE, maps=[ONE, AFTER], num_workers=NUM_WORKERS, options=options, faults=faults).run()
    assert report.error is None
    assert report.faults
    # A block has ten rows.
    assert report.rows_out == report.rows_in - 10 * len(report.faults)
    assert report.is_accounted_for
