"""What the executor may expect of every runtime."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pytest
import ray

from aiodata.bundle import InlineBlock
from aiodata.concurrency import TaskSet, Wakeup
from aiodata.errors import OptionError, TaskError
from aiodata.options import ExecutionOptions
from aiodata.plan.nodes import Resources
from aiodata.plan.pieces import BlockPiece, Origin, Piece, TablePiece
from aiodata.plan.transforms import MapBatches, Transform
from aiodata.plan.work import Cuts, OutputMetadata, Position, TaskEnd, Work
from aiodata.runtime import choose_runtime
from aiodata.runtime.base import Pair, Runtime, Stage, Task
from tests.conftest import PATIENCE_S, until

pytestmark = pytest.mark.usefixtures("clean")

Batch = dict[str, Any]

# Every call of a function makes a block, and a task does as many as there are.
CUTS = Cuts(1 << 20, 1 << 20, 1, 1, 1, 1 << 40, 1 << 40)
IN_GROUPS = replace(CUTS, in_groups=True)


@pytest.fixture
async def opened(runtime: str, clean: None) -> AsyncIterator[Runtime]:
    """Open a runtime in a task of its own: fixtures begin and end in different ones, which no cancel scope allows."""
    is_open, is_done = anyio.Event(), anyio.Event()
    opened: list[Runtime] = []

    async def host() -> None:
        async with choose_runtime(ExecutionOptions(runtime=runtime, num_cpus=2))() as one:  # type: ignore[arg-type]
            opened.append(one)
            is_open.set()
            await is_done.wait()
            opened.clear()

    async with TaskSet() as tasks:
        hosting = tasks.create(host(), name="host")
        await is_open.wait()
        yield opened[0]
        is_done.set()
        await hosting


class Reader:
    """Reads tasks as the executor does: pulls when told, fetches what is there, waits for the rest."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.wakeup = Wakeup()

    def on_ready(self, _: Task) -> None:
        self.wakeup.set()

    async def pairs(self, task: Task) -> list[Pair]:
        """Wait for pairs, by `on_ready` alone."""
        while not (pairs := task.pull()):
            await self.wakeup.wait()
        return pairs

    async def read(self, task: Task) -> tuple[list[tuple[Any, OutputMetadata]], TaskEnd]:
        """Read a task to its end."""
        outputs: list[tuple[Any, OutputMetadata]] = []
        while True:
            pairs = await self.pairs(task)
            for pair, known in zip(pairs, self.runtime.fetch_ready(pairs), strict=True):
                outcome = await self.runtime.fetch(pair) if known is None else known
                if isinstance(outcome, TaskEnd):
                    return outputs, outcome
                assert isinstance(outcome, OutputMetadata)
                outputs.append((pair.ref, outcome))

    async def rows(self, task: Task) -> list[int]:
        """Read a task that does not fail, and return its rows."""
        outputs, end = await self.read(task)
        assert end == TaskEnd()
        return [one for ref, _ in outputs for one in (await self.runtime.get(ref))["id"].to_pylist()]


@pytest.fixture
def reader(opened: Runtime) -> Reader:
    return Reader(opened)


def piece(start: int, stop: int) -> Piece:
    return TablePiece(pa.table({"id": range(start, stop)}), Origin("numbers", (start, stop)))


def work(*pieces: Piece, cuts: Cuts = CUTS) -> Work:
    return Work(pieces, cuts)


def mapped(fn: Callable[..., Any], batch_size: int = 10) -> MapBatches:
    return MapBatches(fn, batch_size, "numpy")


async def stage(runtime: Runtime, *chain: Transform) -> Stage:
    return await runtime.stage("a stage", chain, Resources())


def same(batch: Batch) -> Batch:
    return batch


async def test_pairs_come_in_order_with_their_metadata_and_end(opened: Runtime, reader: Reader) -> None:
    task = (await stage(opened, mapped(same))).submit(work(piece(0, 50)), [], reader.on_ready)
    outputs, end = await reader.read(task)
    assert end == TaskEnd()
    assert [metadata.block.num_rows for _, metadata in outputs] == [10] * 5
    assert [metadata.calls for _, metadata in outputs] == [1] * 5
    tables = [await opened.get(ref) for ref, _ in outputs]
    assert pa.concat_tables(tables)["id"].to_pylist() == list(range(50))


@pytest.mark.parametrize("num_blocks", [1, 15, 16, 17, 40])
async def test_blocks_may_come_in_groups(opened: Runtime, reader: Reader, num_blocks: int) -> None:
    chain = await stage(opened, mapped(same))
    read = []
    for cuts in (CUTS, IN_GROUPS):
        task = chain.submit(work(piece(0, num_blocks * 10), cuts=cuts), [], reader.on_ready)
        outputs, end = await reader.read(task)
        assert end == TaskEnd()
        blocks = [(await opened.get(ref))["id"].to_pylist() for ref, _ in outputs]
        read.append((blocks, [(metadata.block, metadata.calls) for _, metadata in outputs]))
    alone, in_groups = read
    assert in_groups == alone
    assert in_groups[0] == [list(range(start, start + 10)) for start in range(0, num_blocks * 10, 10)]


@pytest.mark.parametrize("num_blocks", [0, 5, 16, 20])
async def test_blocks_of_a_group_are_not_lost_by_an_error_after_them(
    opened: Runtime, reader: Reader, num_blocks: int
) -> None:
    def divide(batch: Batch) -> Batch:
        if batch["id"][0] == num_blocks * 10:
            raise ZeroDivisionError("as planned")
        return batch

    chain = await stage(opened, mapped(divide))
    outputs, end = await reader.read(chain.submit(work(piece(0, 500), cuts=IN_GROUPS), [], reader.on_ready))
    assert [(await opened.get(ref))["id"][0].as_py() for ref, _ in outputs] == list(range(0, num_blocks * 10, 10))
    assert repr(end.error and end.error.__cause__) == "ZeroDivisionError('as planned')"


async def test_actor_hands_over_blocks_in_groups_too(opened: Runtime, reader: Reader) -> None:
    actor = (await stage(opened, mapped(same))).start_actor()
    tasks = [actor.submit(work(piece(0, 200), cuts=cuts), [], reader.on_ready) for cuts in (IN_GROUPS, CUTS)]
    assert [await reader.rows(task) for task in tasks] == [list(range(200))] * 2
    actor.stop()
    await actor.wait_stopped()


async def test_nothing_comes_after_the_end(opened: Runtime, reader: Reader) -> None:
    told: list[Task] = []

    def on_ready(task: Task) -> None:
        told.append(task)
        reader.on_ready(task)

    task = (await stage(opened)).submit(work(piece(0, 10)), [], on_ready)
    await reader.read(task)
    assert task.pull() == []
    task.cancel()
    await task.wait_stopped()
    assert task.pull() == []
    assert set(told) == {task}


async def test_error_of_a_function_is_the_end_after_the_pairs_before_it(opened: Runtime, reader: Reader) -> None:
    def divide(batch: Batch) -> Batch:
        if batch["id"][0] == 20:
            raise ZeroDivisionError("as planned")
        return batch

    task = (await stage(opened, mapped(divide))).submit(work(piece(0, 50)), [], reader.on_ready)
    outputs, end = await reader.read(task)
    assert [metadata.block.num_rows for _, metadata in outputs] == [10, 10]
    assert isinstance(end.error, TaskError)
    assert (end.error.operator, end.error.rows) == ("map_batches(divide)", (20, 30))
    assert repr(end.error.__cause__) == "ZeroDivisionError('as planned')"


async def test_error_outside_of_any_function_is_an_end_too(opened: Runtime, reader: Reader) -> None:
    class Broken(TablePiece):
        def bind(self, blocks: Sequence[pa.Table]) -> Piece:
            raise RuntimeError("no such thing")

    broken = Broken(pa.table({"id": [1]}), Origin("numbers", None))
    outputs, end = await reader.read((await stage(opened)).submit(work(broken), [], reader.on_ready))
    assert outputs == []
    assert isinstance(end.error, TaskError)
    assert "RuntimeError: no such thing" in str(end.error)
    assert isinstance(end.error.__cause__, RuntimeError)


async def test_spent_allotment_is_an_end_with_the_rest(opened: Runtime, reader: Reader) -> None:
    chain = await stage(opened, mapped(same))
    first = work(piece(0, 50), cuts=Cuts(1 << 20, 1 << 20, 1, 1, 1, 1 << 40, 2))
    outputs, end = await reader.read(chain.submit(first, [], reader.on_ready))
    assert end == TaskEnd(Position(0, 0, 20))
    assert sum(metadata.block.num_rows for _, metadata in outputs) == 20
    assert end.rest is not None
    rest = Work(first.pieces, CUTS).rest(end.rest)
    assert await reader.rows(chain.submit(rest, [], reader.on_ready)) == list(range(20, 50))


async def test_blocks_of_one_task_are_the_input_of_another(opened: Runtime, reader: Reader) -> None:
    chain = await stage(opened, mapped(same))
    [*outputs], _ = await reader.read(chain.submit(work(piece(0, 20)), [], reader.on_ready))
    refs = [ref for ref, _ in outputs] + [await opened.put(pa.table({"id": [20, 21]}))]
    pieces = [BlockPiece(index, 0, 10 if index < 2 else 2, 80, "blocks") for index in range(3)]
    assert await reader.rows(chain.submit(work(*pieces), refs, reader.on_ready)) == list(range(22))


async def test_wide_schema_is_metadata_like_any_other(opened: Runtime, reader: Reader) -> None:
    def widen(_: Batch) -> pa.Table:
        return pa.table({f"a_column_with_a_long_name_{index}": [index] for index in range(5000)})

    task = (await stage(opened, mapped(widen))).submit(work(piece(0, 1)), [], reader.on_ready)
    outputs, end = await reader.read(task)
    assert end == TaskEnd()
    assert [len(metadata.block.schema) for _, metadata in outputs] == [5000]


async def test_cancelled_task_stops_before_its_next_call(opened: Runtime, reader: Reader, tmp_path: Path) -> None:
    log, go_on = tmp_path / "log", tmp_path / "go_on"

    def wait(batch: Batch) -> Batch:
        with log.open("a") as file:
            file.write("called\n")
        while not go_on.exists():
            pass
        return batch

    task = (await stage(opened, mapped(wait))).submit(work(piece(0, 50)), [], reader.on_ready)
    await until(log.exists, "the function was not called")
    task.cancel()
    task.cancel()
    if opened.name == "local":  # A thread can not be interrupted.
        go_on.touch()
    with anyio.fail_after(PATIENCE_S):
        await task.wait_stopped()
    assert log.read_text() == "called\n"


async def test_task_that_nobody_reads_is_stopped_with_the_run(runtime: str) -> None:
    # `clean` looks for what is left.
    async with choose_runtime(ExecutionOptions(runtime=runtime, num_cpus=2))() as opened:  # type: ignore[arg-type]
        task = (await stage(opened, mapped(same))).submit(work(piece(0, 1000)), [], lambda _: None)
        task.cancel()
        await task.wait_stopped()


async def test_function_that_can_not_be_sent_is_an_option_error_on_ray(runtime: str, opened: Runtime) -> None:
    import threading

    lock = threading.Lock()

    def locked(batch: Batch) -> Batch:
        with lock:
            return batch

    if runtime == "ray":
        with pytest.raises(OptionError, match="can not be sent to a worker"):
            await stage(opened, mapped(locked))
    else:
        await stage(opened, mapped(locked))


async def test_actor_builds_its_state_once_for_all_its_tasks(opened: Runtime, reader: Reader, tmp_path: Path) -> None:
    log = tmp_path / "log"

    class Counter:
        def __init__(self) -> None:
            self.calls = 0
            with log.open("a") as file:
                file.write("built\n")

        def __call__(self, batch: Batch) -> Batch:
            self.calls += 1
            return {"id": [self.calls]}

    actor = (await stage(opened, mapped(Counter))).start_actor()
    await actor.wait_ready()
    assert log.read_text() == "built\n"
    tasks = [actor.submit(work(piece(0, 20)), [], reader.on_ready) for _ in range(3)]
    assert [await reader.rows(task) for task in tasks] == [[1, 2], [3, 4], [5, 6]]
    assert log.read_text() == "built\n"
    actor.stop()
    actor.stop()
    await actor.wait_stopped()


async def test_constructor_has_begun_before_it_returns(opened: Runtime, tmp_path: Path) -> None:
    gate, built = tmp_path / "gate", tmp_path / "built"

    class Slow:
        def __init__(self) -> None:
            while not gate.exists():
                time.sleep(0.01)
            built.touch()

        def __call__(self, batch: Batch) -> Batch:
            return batch

    actor = (await stage(opened, mapped(Slow))).start_actor()
    await actor.wait_begun()
    assert not built.exists()
    gate.touch()
    await actor.wait_ready()
    assert built.exists()
    actor.stop()
    await actor.wait_stopped()


async def test_actor_that_is_stopped_has_begun(opened: Runtime) -> None:
    actor = (await stage(opened, mapped(object))).start_actor()
    actor.stop()
    await actor.wait_begun()
    await actor.wait_stopped()


async def test_constructor_that_fails_is_told_once_and_at_once(opened: Runtime, reader: Reader, tmp_path: Path) -> None:
    log = tmp_path / "log"

    class Broken:
        def __init__(self) -> None:
            with log.open("a") as file:
                file.write("tried\n")
            raise ValueError("no such model")

        def __call__(self, batch: Batch) -> Batch:
            return batch

    actor = (await stage(opened, mapped(Broken))).start_actor()
    with pytest.raises(TaskError, match=r"map_batches\(Broken\).*ValueError: no such model") as caught:
        await actor.wait_ready()
    assert isinstance(caught.value.__cause__, ValueError)
    assert log.read_text() == "tried\n"
    _, end = await reader.read(actor.submit(work(piece(0, 10)), [], reader.on_ready))
    assert isinstance(end.error, TaskError)
    assert "no such model" in str(end.error)
    actor.stop()
    await actor.wait_stopped()


async def test_stopped_actor_stops_its_tasks(opened: Runtime, reader: Reader, tmp_path: Path) -> None:
    called, go_on = tmp_path / "called", tmp_path / "go_on"

    class Waits:
        def __call__(self, batch: Batch) -> Batch:
            called.touch()
            while not go_on.exists():
                pass
            return batch

    actor = (await stage(opened, mapped(Waits))).start_actor()
    tasks = [actor.submit(work(piece(0, 50)), [], reader.on_ready) for _ in range(2)]
    await until(called.exists, "the class was not called")
    actor.stop()
    go_on.touch()
    with anyio.fail_after(PATIENCE_S):
        await actor.wait_stopped()
        for task in tasks:
            await task.wait_stopped()


async def test_actor_that_is_stopped_at_once_is_gone(opened: Runtime) -> None:
    actor = (await stage(opened, mapped(type("Idle", (), {"__call__": lambda _, batch: batch})))).start_actor()
    actor.stop()
    with anyio.fail_after(PATIENCE_S):
        await actor.wait_stopped()


async def test_bytes_of_a_block_are_known_when_it_is_there(opened: Runtime, reader: Reader) -> None:
    table = pa.table({"id": range(100_000)})
    ref = await opened.put(table)
    size = opened.size_of(ref)
    assert size is not None
    assert table.nbytes <= size <= table.nbytes + 4096

    def make(_: Batch) -> Batch:
        return {"id": list(range(100_000))}

    task = (await stage(opened, mapped(make))).submit(work(piece(0, 1)), [], reader.on_ready)
    [(made, metadata)], _ = await reader.read(task)
    size = opened.size_of(made)
    assert size is not None
    assert metadata.block.num_bytes <= size <= metadata.block.num_bytes + 4096
    assert opened.size_of(InlineBlock(table)) == table.nbytes


async def test_release_of_a_block_is_told_once_when_its_last_reference_goes(opened: Runtime, reader: Reader) -> None:
    released: list[str] = []
    chain = await stage(opened, mapped(same))
    [(made, _)], _ = await reader.read(chain.submit(work(piece(0, 10)), [], reader.on_ready))
    held = await opened.put(pa.table({"id": range(10)}))
    opened.on_release(made, lambda: released.append("made"))
    opened.on_release(held, lambda: released.append("held"))
    user = chain.submit(work(BlockPiece(0, 0, 10, 80, "")), [made], reader.on_ready)
    assert await reader.rows(user) == list(range(10))
    del user
    await anyio.wait_all_tasks_blocked()
    assert released == []
    del made
    gc.collect()
    await until(lambda: released == ["made"], "the release of a task's block was not told")
    del held
    gc.collect()
    await until(lambda: released == ["made", "held"], "the release of a block that was put was not told")


async def test_store_and_cpus_are_known(opened: Runtime) -> None:
    assert opened.num_cpus == 2
    assert opened.store_bytes > 1 << 24


def hundred_thousand(_: Batch) -> pa.Table:
    return pa.table({"id": range(100_000)})


async def test_node_of_a_block_is_known_where_there_are_nodes(runtime: str, opened: Runtime, reader: Reader) -> None:
    here = ray.get_runtime_context().get_node_id() if runtime == "ray" else None
    large = hundred_thousand({})
    assert opened.node_of(InlineBlock(large)) is None
    assert opened.node_of(await opened.put(large)) == here
    task = (await stage(opened, mapped(hundred_thousand))).submit(work(piece(0, 10)), [], reader.on_ready)
    [(ref, _)], _ = await reader.read(task)
    assert opened.node_of(ref) == here


# Elsewhere an actor is this very process.
ray_only = pytest.mark.parametrize("runtime", [pytest.param("ray", marks=pytest.mark.ray)])


@pytest.mark.slow
@ray_only
@pytest.mark.usefixtures("ray_cluster")
async def test_killed_actor_is_replaced_and_no_row_is_lost_or_doubled(
    opened: Runtime, reader: Reader, tmp_path: Path
) -> None:
    killed, log = tmp_path / "killed", tmp_path / "log"

    class DiesOnce:
        def __init__(self) -> None:
            with log.open("a") as file:
                file.write("built\n")

        def __call__(self, batch: Batch) -> Batch:
            if batch["id"][0] == 120 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return batch

    actor = (await stage(opened, mapped(DiesOnce))).start_actor()
    starts = range(0, 300, 100)
    tasks = [actor.submit(work(piece(start, start + 100)), [], reader.on_ready) for start in starts]
    with anyio.fail_after(PATIENCE_S):
        assert [await reader.rows(task) for task in tasks] == [list(range(one, one + 100)) for one in starts]
    assert log.read_text() == "built\n" * 2
    actor.stop()
    await actor.wait_stopped()


@pytest.mark.slow
@ray_only
@pytest.mark.usefixtures("ray_cluster")
async def test_actor_that_keeps_dying_is_an_end_that_says_so(runtime: str) -> None:
    class Dies:
        def __call__(self, batch: Batch) -> Batch:
            os.kill(os.getpid(), signal.SIGKILL)
            return batch

    options = ExecutionOptions(runtime="ray", task_max_retries=1)
    async with choose_runtime(options)() as opened:
        reader = Reader(opened)
        actor = (await stage(opened, mapped(Dies))).start_actor()
        with anyio.fail_after(PATIENCE_S):
            outputs, end = await reader.read(actor.submit(work(piece(0, 10)), [], reader.on_ready))
        assert outputs == []
        assert isinstance(end.error, TaskError)
        assert "a Ray worker that did not finish" in str(end.error)
        actor.stop()
        await actor.wait_stopped()
