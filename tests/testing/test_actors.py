"""Simulated actors that fail: one that is lost takes its tasks with it, and is replaced; or it can not be built."""

from __future__ import annotations

import anyio
import pytest

from aiodata.errors import AiodataError, OptionError, TaskError
from aiodata.options import MIB, ExecutionOptions
from aiodata.testing import FaultKind, Faults, SimulatedMap, SimulatedRuntime, SimulatedSource, Simulation
from tests.testing.tasks import Watched, open_stage, reading, run

ALL_ROWS = ((0, 10), (10, 20), (20, 30), (30, 40))


def test_a_lost_actor_ends_its_tasks_as_lost_and_all_that_come_later() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1, faults=Faults(kill=1.0), task_max_retries=0, actor_start_s=2.0)
        async with open_stage(runtime) as stage:
            actor = stage.start_actor()
            tasks = [Watched(actor, reading()) for _ in range(2)]
            ends = [await watched.end(runtime) for watched in tasks]
            assert anyio.current_time() == 2.5
            tasks.append(Watched(actor, reading()))
            assert tasks[2].pairs == []
            ends.append(await tasks[2].end(runtime))
            assert [end.is_worker_lost for end in ends] == [True] * 3
            assert [type(end.error) for end in ends] == [AiodataError] * 3
            assert [fault.rows for fault in runtime.faults] == [ALL_ROWS] * 3
            assert (stage.counts.finished, stage.counts.running, stage.counts.waiting) == (3, 0, 0)
            actor.stop()

    run(main)


def test_a_lost_task_has_lost_just_what_had_not_surfaced() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1, faults=Faults(seed=3, kill=0.4), task_max_retries=0)
        async with open_stage(runtime) as stage:
            watched = [Watched(stage, reading()) for _ in range(10)]
            ends = [await one.end(runtime) for one in watched]
            lost = [fault.rows for fault in runtime.faults]
            assert len(lost) == sum(end.is_worker_lost for end in ends) > 3
            assert any(0 < len(rows) < 4 for rows in lost)
            surfaced = [one.rows for one, end in zip(watched, ends, strict=True) if end.is_worker_lost]
            assert sorted(rows + rest for rows, rest in zip(surfaced, lost, strict=True)) == [ALL_ROWS] * len(lost)

    run(main)


def test_lost_actors_are_replaced_and_just_their_rows_are_missing() -> None:
    # Blocks of the target size are a task each, so that a task that is lost is one block.
    source = SimulatedSource(num_pieces=150, rows_per_block=10, bytes_per_block=16 * MIB, s_per_block=0.1)
    options = ExecutionOptions(max_errored_blocks=-1, task_max_retries=0)
    model = SimulatedMap(name="model", s_per_block=0.5, needs_actor=True)
    faults = Faults(seed=1, kill=0.15)
    report = Simulation(source=source, maps=[model], num_workers=4, options=options, faults=faults).run()
    assert report.error is None
    lost = [fault for fault in report.faults if fault.operator == "model"]
    # Each death takes an actor with it, and there are four at a time: without others in their place all would be lost.
    assert len({fault.at_s for fault in lost}) > 4
    assert {fault.kind for fault in lost} == {FaultKind.KILL}
    assert report.missing == report.lost
    assert 0 < report.rows_out == report.rows_in - sum(stop - start for start, stop in report.lost)
    assert report.is_accounted_for
    assert report.left_bytes == 0


def test_an_actor_whose_constructor_fails_is_never_ready_and_fails_the_run() -> None:
    async def main() -> None:
        model = SimulatedMap(name="model", needs_actor=True, constructor_fails=True)
        async with open_stage(SimulatedRuntime(1, actor_start_s=2.0), model) as stage:
            with pytest.raises(TaskError, match="stage failed on its constructor: a simulated fault"):
                await stage.start_actor().wait_ready()
            assert anyio.current_time() == 2

    run(main)
    model = SimulatedMap(name="model", needs_actor=True, constructor_fails=True)
    report = Simulation(source=SimulatedSource(num_pieces=4), maps=[model], num_workers=2).run()
    assert isinstance(report.error, TaskError)
    assert report.rows_out == 0
    assert report.is_accounted_for
    assert report.left_bytes == 0


def test_only_actors_have_a_constructor() -> None:
    with pytest.raises(OptionError, match="needs_actor=True"):
        SimulatedMap(constructor_fails=True)
