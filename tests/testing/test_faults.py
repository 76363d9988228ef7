"""Faults: each does what it is to do, is on the record, and comes again with the same seed."""

from __future__ import annotations

import pytest

from aiodata.errors import AiodataError, OptionError, TaskError
from aiodata.plan.work import Position, TaskEnd
from aiodata.testing import Fault, FaultKind, Faults, SimulatedRuntime
from aiodata.testing.blocks import RowRanges
from tests.testing.tasks import Watched, open_stage, reading, run

ALL_ROWS = ((0, 10), (10, 20), (20, 30), (30, 40))


async def read_many(faults: Faults, num_tasks: int = 20) -> tuple[list[RowRanges], list[list[float]], list[Fault]]:
    runtime = SimulatedRuntime(3, faults=faults, task_max_retries=100)
    async with open_stage(runtime) as stage:
        tasks = [Watched(stage, reading()) for _ in range(num_tasks)]
        for watched in tasks:
            await watched.end(runtime)
        return [one.rows for one in tasks], [one.times for one in tasks], list(runtime.faults)


def test_a_task_whose_worker_died_is_run_again_and_gives_each_block_once() -> None:
    rows, _, happened = run(lambda: read_many(Faults(seed=1, kill=0.2)))
    assert rows == [ALL_ROWS] * 20
    assert len(happened) > 5
    assert {fault.kind for fault in happened} == {FaultKind.KILL}


def test_a_task_that_died_too_often_ends_with_an_error() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1, faults=Faults(kill=1.0, restart_s=1.0), task_max_retries=2)
        async with open_stage(runtime) as stage:
            watched = Watched(stage, reading())
            end = await watched.end(runtime)
            assert isinstance(end.error, AiodataError)
            assert "died 3 times" in str(end.error)
            assert watched.times == [3.5]
            assert (stage.counts.finished, stage.counts.running) == (1, 0)

    run(main)


def test_a_stalled_task_stands_still_and_a_slow_one_takes_longer() -> None:
    _, [stalled], _ = run(lambda: read_many(Faults(stall=1.0, stall_s=9.0), 1))
    assert stalled == [10, 20, 30, 40, 40]
    _, [slow], happened = run(lambda: read_many(Faults(slow=1.0, slow_factor=3.0), 1))
    assert slow == [3, 6, 9, 12, 12]
    assert happened == [Fault(FaultKind.SLOW, 0.0, "stage", 0, 0)]


def test_lost_metadata_is_an_error_to_whoever_fetches_it() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1, faults=Faults(lose=1.0))
        async with open_stage(runtime) as stage:
            watched = Watched(stage, reading())
            assert await watched.end(runtime) == TaskEnd()
            with pytest.raises(AiodataError, match="lost"):
                await runtime.fetch(watched.pairs[0])
            assert [type(one) for one in runtime.fetch_ready(watched.pairs[:1])] == [AiodataError]
            assert tuple(fault.rows for fault in runtime.faults) == tuple((one,) for one in ALL_ROWS)

    run(main)


def test_a_failed_function_ends_its_task_and_the_rest_comes_after_its_rows() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1, faults=Faults(fail=1.0))
        async with open_stage(runtime) as stage:
            end = await Watched(stage, reading()).end(runtime)
            assert isinstance(end.error, TaskError)
            assert (end.error.operator, end.error.rows) == ("stage", (0, 10))
            assert end.rest == Position(0, 1)
            [fault] = runtime.faults
            assert (fault.kind, fault.rows) == (FaultKind.FAIL, ((0, 10),))

    run(main)


def test_a_task_that_may_skip_errors_goes_on_after_them() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1, faults=Faults(seed=1, fail=0.5))
        async with open_stage(runtime) as stage:
            watched = Watched(stage, reading(max_errors=-1))
            end = await watched.end(runtime)
            lost = tuple(one for fault in runtime.faults for one in fault.rows)
            assert len(end.errors) == len(lost) > 0
            assert (end.rest, end.error) == (None, None)
            assert sorted(watched.rows + lost) == list(ALL_ROWS)

    run(main)


def test_the_same_seed_gives_the_same_faults_at_the_same_times() -> None:
    faults = Faults(seed=7, kill=0.1, stall=0.1, slow=0.2)
    first, second = run(lambda: read_many(faults)), run(lambda: read_many(faults))
    assert first == second
    assert {fault.kind for fault in first[2]} == {FaultKind.KILL, FaultKind.STALL, FaultKind.SLOW}
    assert first[2] != run(lambda: read_many(Faults(seed=8, kill=0.1, stall=0.1, slow=0.2)))[2]


def test_chances_are_chances() -> None:
    with pytest.raises(OptionError, match="kill=2"):
        Faults(kill=2)
    with pytest.raises(OptionError, match="together"):
        Faults(kill=0.6, stall=0.6)
