"""StreamingExecutor on the local runtime: the rows of a plan, in order if asked, and nothing after the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from aiodata import ExecutionOptions, TaskError
from aiodata.bundle import RefBundle
from aiodata.concurrency.supervise import unwrap
from aiodata.execution.executor import StreamingExecutor
from aiodata.plan.nodes import Apply, Limit, Plan, Read
from aiodata.plan.pieces import Piece
from aiodata.plan.source import Skip, Source
from aiodata.plan.transforms import FilterRows, MapBatches, Transform
from aiodata.runtime.local import LocalRuntime
from aiodata.sources.memory import RangeSource, TableSource
from tests.conftest import PATIENCE_S, until
from tests.plan.pieces import UnitsPiece
from tests.strategies import ids_of

OPTIONS = ExecutionOptions(runtime="local", num_cpus=2)
ORDERED = OPTIONS.override(preserve_order=True)

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PiecesSource(Source):
    """A source of given pieces."""

    given: tuple[Piece, ...]
    name: str = "pieces"

    def with_columns(self, columns: tuple[str, ...]) -> Source | None:
        return None

    def with_filter(self, expression: Any) -> Source | None:
        return None

    def pieces(self, num_tasks: int, skip: Skip) -> Sequence[Piece]:
        return self.given

    def bundles(self) -> Iterable[RefBundle] | None:
        return None

    def schema(self, skip: Skip) -> pa.Schema:
        return pa.schema([])

    def count_rows(self, skip: Skip) -> int | None:
        return None


class Calls:
    """A function for workers, which notes the first id of each batch, and waits or fails where it is told to."""

    __name__ = "note"

    def __init__(self, *, hold: int | None = None, fail: int | None = None) -> None:
        self.ids: list[int] = []
        self.held = threading.Event()
        self.release = threading.Event()
        self._hold = hold
        self._fail = fail

    def __call__(self, batch: Batch) -> Batch:
        first = int(batch["id"][0])
        self.ids.append(first)
        if first == self._hold:
            self.held.set()
            self.release.wait(PATIENCE_S)
        if first == self._fail:
            raise ZeroDivisionError
        return batch


def tables(count: int, rows: int = 1) -> TableSource:
    parts = [pa.table({"id": pa.array(range(one * rows, (one + 1) * rows), pa.int64())}) for one in range(count)]
    return TableSource("tables", tuple(parts))


def plan(source: Source, *steps: Transform | int) -> Plan:
    """A plan of transforms; a number is a limit."""
    made = Plan(Read(source))
    for step in steps:
        made = made.then(Limit(step) if isinstance(step, int) else Apply(step))
    return made


def mapped(fn: Callable[..., Any], size: int | None = None) -> MapBatches:
    return MapBatches(fn, size, "numpy")


async def run(made: Plan, options: ExecutionOptions = OPTIONS, *, take: int | None = None) -> list[RefBundle]:
    """The bundles of a run; after `take` of them the receiver is closed."""
    bundles: list[RefBundle] = []
    async with LocalRuntime(options) as runtime:
        executor = StreamingExecutor(made, runtime, options)
        send, receive = anyio.create_memory_object_stream[RefBundle](1)
        async with send, anyio.create_task_group() as group:
            group.start_soon(executor.run, send)
            async with receive:
                async for bundle in receive:
                    bundles.append(bundle)
                    if len(bundles) == take:
                        break
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return bundles


def rows_of(bundles: list[RefBundle]) -> list[int]:
    return [row for bundle in bundles for row in ids_of(bundle)]


@pytest.mark.parametrize(
    "source", [RangeSource(1000, 7), RangeSource(1000, None), tables(10, 100)], ids=lambda s: s.name
)
@pytest.mark.parametrize("steps", [(), (mapped(dict, 13),), (mapped(dict), FilterRows(pc.field("id") >= 0))])
async def test_bundles_have_all_rows_once(source: Source, steps: tuple[Transform, ...]) -> None:
    bundles = await run(plan(source, *steps))
    assert sorted(rows_of(bundles)) == list(range(1000))
    assert all(bundle.metadata.num_rows == bundle.ref.table.num_rows > 0 for bundle in bundles)


@pytest.mark.parametrize("source", [RangeSource(300, 30), tables(30, 10)], ids=lambda s: s.name)
async def test_preserved_order_is_source_order(source: Source) -> None:
    calls = Calls(hold=0)

    def release_head_last(batch: Batch) -> Batch:
        if batch["id"][0] >= 20:
            calls.release.set()
        return calls(batch)

    options = ORDERED.override(target_block_bytes=80)
    assert rows_of(await run(plan(source, mapped(release_head_last, 5)), options)) == list(range(300))
    assert calls.ids != sorted(calls.ids)


async def test_what_is_held_for_order_is_bounded() -> None:
    calls = Calls(hold=0)
    made = plan(tables(200), mapped(calls))
    async with LocalRuntime(ORDERED) as runtime:
        send, receive = anyio.create_memory_object_stream[RefBundle](1)
        async with send, receive, anyio.create_task_group() as group:
            group.start_soon(StreamingExecutor(made, runtime, ORDERED).run, send)
            await until(calls.held.is_set, "the first task does not start")
            while True:
                await until(lambda: runtime.limiter.borrowed_tokens == 1, "other tasks go on")
                await anyio.wait_all_tasks_blocked()
                if runtime.limiter.borrowed_tokens == 1:
                    break
            ahead = len(calls.ids)
            calls.release.set()
            group.cancel_scope.cancel()
    assert ahead <= 50, "the tasks behind a slow one ran to the end of the data, and all they made is held"


@pytest.mark.parametrize("num_rows", [0, 1, 5, 95, 100, 1000])
@pytest.mark.parametrize("source", [RangeSource(100, 10), tables(10, 10)], ids=lambda s: s.name)
async def test_limit_lets_so_many_rows_through(source: Source, num_rows: int) -> None:
    rows = rows_of(await run(plan(source, num_rows), ORDERED))
    assert rows == list(range(min(num_rows, 100)))


@pytest.mark.parametrize("later", [(), (mapped(dict),)], ids=["last", "before a map"])
async def test_limit_ends_the_map_before_it(later: tuple[Transform, ...]) -> None:
    calls = Calls()
    rows = rows_of(await run(plan(tables(500), mapped(calls), 5, *later)))
    assert len(rows) == 5
    assert len(calls.ids) < 50


async def test_limit_ends_reading() -> None:
    unit = pa.table({"id": pa.array(range(10), pa.int64())})
    pieces = tuple(UnitsPiece(str(one), (unit,) * 10) for one in range(50))
    rows = rows_of(await run(plan(PiecesSource(pieces), 5)))
    assert len(rows) == 5
    assert sum(len(piece.reads) for piece in pieces) < 50


async def test_closed_receiver_ends_the_run_quietly() -> None:
    calls = Calls()
    bundles = await run(plan(tables(500), mapped(calls), mapped(dict, 1)), take=2)
    assert len(bundles) == 2
    assert len(calls.ids) < 50


async def test_closed_receiver_ends_passing_on_quietly() -> None:
    assert len(await run(plan(tables(500)), take=2)) == 2


@pytest.mark.parametrize("source", [RangeSource(500, 500), tables(500)], ids=lambda s: s.name)
async def test_failing_function_ends_everything_with_its_error(source: Source) -> None:
    calls = Calls(fail=0)
    with pytest.raises(ExceptionGroup) as caught:
        await run(plan(source, mapped(calls, 1)))
    error = unwrap(caught.value)
    assert isinstance(error, TaskError)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert error.operator == "map_batches(note)"
    assert asyncio.all_tasks() == {asyncio.current_task()}
    stopped = len(calls.ids)
    await anyio.wait_all_tasks_blocked()
    assert len(calls.ids) == stopped < 500


async def test_cancelled_run_waits_for_the_call_that_runs() -> None:
    calls = Calls(hold=0)
    async with anyio.create_task_group() as group:
        group.start_soon(run, plan(RangeSource(100, 100), mapped(calls, 1)))
        await until(calls.held.is_set, "the first call does not start")
        group.cancel_scope.cancel()
        calls.release.set()
    stopped = len(calls.ids)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert stopped < 100


async def test_stats_count_what_each_operator_has_done() -> None:
    async with LocalRuntime(OPTIONS) as runtime:
        executor = StreamingExecutor(plan(tables(4, 5), mapped(dict), 12), runtime, OPTIONS)
        assert executor.schema is None
        send, receive = anyio.create_memory_object_stream[RefBundle](20)
        with receive:
            await executor.run(send)
    source, mapping, limit = (counters.snapshot() for counters in executor.counters)
    assert (source.name, source.rows, source.blocks, source.tasks) == ("tables", 20, 4, 0)
    assert mapping.name == "map_batches(dict) -> limit(12)"
    assert mapping.tasks >= 3
    assert (limit.name, limit.rows) == ("limit(12)", 12)
    assert executor.schema == pa.schema([("id", pa.int64())])
