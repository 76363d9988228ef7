"""The simulated runtime on its own seam: what surfaces when, who waits for whom, and what is counted."""

from __future__ import annotations

from functools import partial

import anyio
import pyarrow as pa
import pytest

from aiodata.errors import ClosedError, OptionError
from aiodata.plan.nodes import Resources
from aiodata.plan.source import raise_it
from aiodata.plan.transforms import LimitRows, SelectColumns
from aiodata.plan.work import Position, TaskEnd
from aiodata.testing import SimulatedMap, SimulatedRuntime, SimulatedSource
from tests.testing.tasks import SOURCE, Watched, mapping, open_stage, outputs, reading, run


def test_blocks_surface_one_after_the_other_and_the_end_with_the_last() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1)
        async with open_stage(runtime) as stage:
            watched = Watched(stage, reading())
            assert await watched.end(runtime) == TaskEnd()
            assert watched.times == [1, 2, 3, 4, 4]
            assert watched.rows == ((0, 10), (10, 20), (20, 30), (30, 40))
            assert outputs(runtime.fetch_ready(watched.pairs)) == [(10, 100)] * 4

    run(main)


def test_ready_is_told_only_after_pull_gave_nothing() -> None:
    async def main() -> None:
        told: list[float] = []
        async with open_stage(SimulatedRuntime(1)) as stage:
            task = stage.submit(reading(), (), lambda _: told.append(anyio.current_time()))
            await anyio.sleep(2.5)
            assert told == [1]
            assert len(task.pull()) == 2
            await anyio.sleep(1)
            assert told == [1]
            assert len(task.pull()) == 1
            assert task.pull() == []
            await anyio.sleep(1)
            assert told == [1, 4]

    run(main)


def test_tasks_wait_for_workers_first_come_first_served() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(2)
        async with open_stage(runtime) as stage:
            tasks = [Watched(stage, reading()) for _ in range(4)]
            assert (stage.counts.running, stage.counts.waiting) == (2, 2)
            for watched in tasks:
                await watched.end(runtime)
            assert [watched.times[-1] for watched in tasks] == [4, 4, 8, 8]
            assert (stage.counts.started, stage.counts.finished, stage.counts.waiting) == (4, 4, 0)

    run(main)


def test_a_task_takes_the_cpus_that_its_stage_asks_for() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(3)
        async with open_stage(runtime, resources=Resources(num_cpus=1.5)) as stage:
            tasks = [Watched(stage, reading()) for _ in range(3)]
            await tasks[-1].end(runtime)
            assert [watched.times[-1] for watched in tasks] == [4, 4, 8]

    run(main)


def test_more_than_there_is_can_not_be_asked_for() -> None:
    async def main() -> None:
        async with SimulatedRuntime(3) as runtime:
            with pytest.raises(OptionError, match="GPU"):
                await runtime.stage("stage", (), Resources(num_gpus=1))

    run(main)


def test_as_many_run_at_once_as_there_are_gpus_for() -> None:
    runtime = SimulatedRuntime(8, num_gpus=2)
    assert runtime.max_at_once(Resources(num_gpus=0.5)) == 4
    assert runtime.max_at_once(Resources(num_gpus=3)) == 1
    assert runtime.max_at_once(Resources(num_cpus=2, custom={"tpu": 1})) is None


def test_a_task_stops_when_its_allotment_is_spent_and_its_rest_goes_on_there() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1)
        async with open_stage(runtime) as stage:
            first = Watched(stage, reading(task_bytes=250))
            end = await first.end(runtime)
            assert end == TaskEnd(rest=Position(0, 3))
            assert end.rest is not None
            second = Watched(stage, reading(start=end.rest))
            assert await second.end(runtime) == TaskEnd()
            assert first.rows + second.rows == ((0, 10), (10, 20), (20, 30), (30, 40))

    run(main)


def test_a_map_cuts_blocks_takes_its_time_and_can_stop_between_calls() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1)
        transform = SimulatedMap(s_per_block=3.0, blocks_per_input=3, bytes_ratio=2)
        async with open_stage(runtime, transform) as stage:
            block = await runtime.put(pa.table({"x": list(range(10))}))
            first = Watched(stage, mapping(block, task_calls=2), [block])
            end = await first.end(runtime)
            assert end == TaskEnd(rest=Position(0, 0, 8))
            assert end.rest is not None
            second = Watched(stage, mapping(block, start=end.rest), [block])
            await second.end(runtime)
            assert first.rows + second.rows == ((0, 4), (4, 8), (8, 10))
            assert [one.num_bytes for one in (*first.blocks, *second.blocks)] == [64, 64, 32]
            assert (first.times, second.times) == ([1, 2, 2], [3, 3])

    run(main)


@pytest.mark.parametrize(("ratio", "rows"), [(0.5, ((0, 5),)), (2.5, ((0, 10), (0, 10), (0, 5))), (0.0, ())])
def test_a_map_keeps_or_repeats_rows(ratio: float, rows: tuple[tuple[int, int], ...]) -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1)
        async with open_stage(runtime, SimulatedMap(rows_ratio=ratio)) as stage:
            block = await runtime.put(pa.table({"x": list(range(10))}))
            watched = Watched(stage, mapping(block), [block])
            await watched.end(runtime)
            assert watched.rows == rows
            assert [one.num_rows for one in watched.blocks] == [sum(stop - start for start, stop in rows)]

    run(main)


def test_a_chain_reads_maps_and_stops_at_a_limit() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1)
        chain = (SimulatedMap(s_per_block=1.0, blocks_per_input=2), LimitRows(17))
        async with open_stage(runtime, *chain) as stage:
            watched = Watched(stage, reading())
            assert await watched.end(runtime) == TaskEnd()
            assert watched.rows == ((0, 5), (5, 10), (10, 15), (15, 17))
            assert watched.times == [1.5, 2, 3.5, 4, 4]

    run(main)


def test_metadata_is_known_later_and_can_be_waited_for() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1, metadata_delay_s=0.25)
        async with open_stage(runtime) as stage:
            watched = Watched(stage, reading())
            await anyio.sleep(1.1)
            assert runtime.fetch_ready(watched.pairs) == [None]
            assert outputs([await runtime.fetch(watched.pairs[0])]) == [(10, 100)]
            assert anyio.current_time() == 1.25
            assert outputs(runtime.fetch_ready(watched.pairs)) == [(10, 100)]

    run(main)


def test_a_release_is_told_once_in_the_loop_when_the_last_reference_is_gone() -> None:
    async def main() -> None:
        released: list[str] = []
        runtime = SimulatedRuntime(1)
        async with open_stage(runtime) as stage:
            watched = Watched(stage, reading())
            await watched.end(runtime)
            for name in ("a", "b"):
                runtime.on_release(watched.blocks[0], partial(released.append, name))
            held = watched.blocks[0]
            assert (runtime.live_bytes, runtime.size_of(held)) == (400, 100)
            watched.pairs.clear()
            assert runtime.live_bytes == 100
            del held
            assert released == []
            await anyio.lowlevel.checkpoint()
            assert released == ["a", "b"]
            assert (runtime.live_bytes, runtime.peak_live_bytes) == (0, 400)

    run(main)


def test_a_release_in_another_thread_is_told_in_the_loop() -> None:
    async def main() -> None:
        event = anyio.Event()
        async with SimulatedRuntime(1) as runtime:
            refs = [await runtime.put(pa.table({"x": [1]}))]
            runtime.on_release(refs[0], event.set)
            await anyio.to_thread.run_sync(refs.clear)
            await event.wait()
            assert runtime.live_bytes == 0

    run(main)


def test_tables_come_back_and_blocks_of_tasks_as_the_ids_of_their_rows() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1)
        async with open_stage(runtime) as stage:
            tables = [pa.table({"x": [7, 8]}), pa.table({"x": [9]})]
            refs = [await runtime.put(table) for table in tables]
            assert [await runtime.get(ref) for ref in refs] == tables
            assert [ref.rows for ref in refs] == [((0, 2),), ((2, 3),)]
            watched = Watched(stage, reading())
            await watched.end(runtime)
            assert (await runtime.get(watched.blocks[1])).to_pydict() == {"id": list(range(10, 20))}

    run(main)


def test_a_cancelled_task_gives_nothing_more_and_its_worker_to_the_next() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1, cancel_delay_s=0.5)
        async with open_stage(runtime) as stage:
            first, queued, last = (Watched(stage, reading()) for _ in range(3))
            await anyio.sleep(1.5)
            first.task.cancel()
            first.task.cancel()
            queued.task.cancel()
            await queued.task.wait_stopped()
            assert anyio.current_time() == 1.5
            await first.task.wait_stopped()
            assert anyio.current_time() == 2
            await last.end(runtime)
            assert (first.times, queued.times, last.times) == ([1], [], [3, 4, 5, 6, 6])
            assert (stage.counts.finished, stage.counts.cancelled, stage.counts.running) == (1, 2, 0)

    run(main)


def test_a_cancelled_task_holds_no_blocks() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1)
        async with open_stage(runtime, SimulatedMap(s_per_block=1.0, blocks_per_input=2)) as stage:
            block = await runtime.put(pa.table({"x": [1, 2]}))
            task = stage.submit(mapping(block), [block], lambda _: None)
            del block
            await anyio.sleep(0.75)
            assert runtime.live_bytes == 24
            task.cancel()
            assert runtime.live_bytes == 0

    run(main)


def test_an_actor_starts_in_its_time_and_runs_one_task_after_the_other() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1, actor_start_s=2.0)
        async with open_stage(runtime) as stage:
            actor = stage.start_actor()
            tasks = [Watched(actor, reading()) for _ in range(2)]
            await actor.wait_ready()
            assert anyio.current_time() == 2
            await tasks[1].end(runtime)
            assert [watched.times[-1] for watched in tasks] == [6, 10]

    run(main)


def test_a_stopped_actor_ends_its_tasks_and_makes_room_for_another() -> None:
    async def main() -> None:
        runtime = SimulatedRuntime(1, actor_start_s=2.0)
        async with open_stage(runtime, resources=Resources(num_cpus=1)) as stage:
            first, second = stage.start_actor(), stage.start_actor()
            tasks = [Watched(first, reading()) for _ in range(2)]
            await anyio.sleep(3.5)
            first.stop()
            first.stop()
            await first.wait_stopped()
            await second.wait_ready()
            assert anyio.current_time() == 5.5
            assert [watched.times for watched in tasks] == [[3], []]
            assert (stage.counts.cancelled, stage.counts.running) == (2, 0)
            with pytest.raises(ClosedError, match="stopped"):
                first.submit(reading(), (), lambda _: None)

    run(main)


def test_what_is_no_model_can_not_be_simulated() -> None:
    async def main() -> None:
        async with SimulatedRuntime(1) as runtime:
            with pytest.raises(OptionError, match=r"select_columns\(\['x'\]\) can not be simulated"):
                await runtime.stage("stage", (SelectColumns(("x",)),), Resources())
            with pytest.raises(OptionError, match="put it there first"):
                await runtime.get(object())

    run(main)


def test_models_run_nowhere_else() -> None:
    with pytest.raises(OptionError, match="run it on a SimulatedRuntime"):
        SOURCE.pieces(1, raise_it)[0].read(0, 0, 1)


def test_a_runtime_that_is_not_open_says_so() -> None:
    with pytest.raises(ClosedError, match="async with"):
        _ = SimulatedRuntime(1).live_bytes


def test_numbers_that_can_not_work_are_refused() -> None:
    with pytest.raises(OptionError, match="s_per_block=-1"):
        SimulatedSource(num_pieces=1, s_per_block=-1)
    with pytest.raises(OptionError, match="blocks_per_input=0"):
        SimulatedMap(blocks_per_input=0)
