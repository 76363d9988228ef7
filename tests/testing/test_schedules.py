"""Two hundred schedules with faults: each row once, in order if asked, nothing left, no more memory than allowed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aiodata.testing import Faults, SimulatedMap, SimulatedSource, Simulation
from tests.conftest import PATIENCE_S
from tests.testing.schedules import check, simulation_of

NUM_SCHEDULES = 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(NUM_SCHEDULES))
def test_a_schedule_loses_doubles_and_leaves_nothing(seed: int) -> None:
    try:
        check(simulation_of(seed))
    except BaseException as error:
        error.add_note(f"replay it with: python -m tests.testing.replay {seed}")
        raise


def test_schedules_are_of_all_kinds() -> None:
    simulations = [simulation_of(seed) for seed in range(NUM_SCHEDULES)]
    assert {len(one.maps) for one in simulations} == {0, 1, 2, 3}
    assert {one.num_workers for one in simulations} >= {1, 50}
    for count in (
        sum(one.options.preserve_order for one in simulations),
        sum(not one.options.metadata_prefetch for one in simulations),
        sum(one.metadata_delay_s > 0 for one in simulations),
        sum(one.consumer_s_per_block > 0 for one in simulations),
        sum(one.consumer_max_blocks is not None for one in simulations),
        sum(one.limit_rows is not None for one in simulations),
        sum(one.options.max_errored_blocks == -1 for one in simulations),
        sum(len(one.others) > 0 for one in simulations),
        sum(any(transform.needs_actor for transform in one.maps) for one in simulations),
    ):
        assert count >= 20


def test_a_schedule_is_made_and_goes_the_same_way_each_time() -> None:
    # Of several sources, which are listed in threads, any may be the first.
    assert not simulation_of(8).others
    assert simulation_of(8) == simulation_of(8)
    assert check(simulation_of(8)) == check(simulation_of(8))


def test_a_check_that_fails_says_so() -> None:
    source = SimulatedSource(num_pieces=40, blocks_per_piece=2, rows_per_block=10)
    simulation = Simulation(source=source, maps=[SimulatedMap()], num_workers=2, faults=Faults(seed=1, fail=0.5))
    with pytest.raises(AssertionError, match="a simulated fault"):
        check(simulation)


@pytest.mark.slow
def test_a_schedule_can_be_replayed_from_the_command_line() -> None:
    command = [sys.executable, "-m", "tests.testing.replay", "3"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=True)
    assert ended.stdout.startswith("Simulation(source=SimulatedSource(")
    assert " rows in " in ended.stdout
