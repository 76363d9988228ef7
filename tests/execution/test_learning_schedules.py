"""What a run gives, rows and schema, is the same whoever of its tasks is first: real work, a step at a time."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, cast

import anyio
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import aiodata
from aiodata.batching.feed import fetch_rows
from aiodata.bundle import BlockRef, InlineBlock, RefBundle
from aiodata.concurrency.supervise import unwrap
from aiodata.execution.executor import StreamingExecutor
from aiodata.options import ExecutionOptions
from aiodata.plan.nodes import Plan, Resources
from aiodata.plan.transforms import Control, Transform, build
from aiodata.plan.work import OutputMetadata, TaskEnd, Work, run_work
from aiodata.runtime.base import OnReady, Pair, Runtime
from tests.execution.fakes import OPTIONS, FakeMetadata, FakeRuntime, FakeStage, FakeTask, settle
from tests.execution.runs import chooser

Batch = dict[str, Any]


def _yields(*outputs: dict[str, list[Any]]) -> Iterator[dict[str, list[Any]]]:
    yield from outputs


def _fails(row: int) -> Any:
    raise ValueError(f"row {row}")


# What a function may return for one row.
KINDS: dict[str, Callable[[int], Any]] = {
    "int": lambda row: {"x": [row]},
    "whole": lambda row: {"x": [float(row)]},
    "fraction": lambda row: {"x": [row + 0.5]},
    "null": lambda row: {"x": [None]},
    "nulls": lambda row: {"x": [None] * 700},
    "large": lambda row: {"x": [row] * 100},
    "string": lambda row: {"x": [str(row)]},
    "new column": lambda row: {"x": [row], "y": [row]},
    "nothing": lambda row: {},
    "no rows": lambda row: {"x": []},
    "null, then int": lambda row: _yields({"x": [None]}, {"x": [row]}),
    "null, then string": lambda row: _yields({"x": [None]}, {"x": [str(row)]}),
    "failure": _fails,
}

SCRIPTS = st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=7)
CHOICES = st.lists(st.integers(0, 99), min_size=1, max_size=30)


def scripted(kinds: Sequence[str]) -> Callable[[Batch], Any]:
    """A function that does for each row what a list says."""

    def change(batch: Batch) -> Any:
        [row] = batch["id"].tolist()
        return KINDS[kinds[row]](row)

    return change


def describe_type(batch: pa.Table) -> pa.Table:
    """A function that sees which types it is given."""
    kinds = pa.array([str(batch.schema.types)] * len(batch))
    return batch.append_column("types", kinds)


class SteppedTask(FakeTask):
    """Does its real work, a block at a time, when it is told to."""

    def __init__(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady, chain: Sequence[Transform]) -> None:
        super().__init__(work, refs, on_ready)
        tables = [cast("InlineBlock", ref).table for ref in refs]
        self._control = Control()
        self._blocks: Generator[tuple[pa.Table, OutputMetadata], None, TaskEnd] = run_work(
            work, chain, tables, self._control
        )

    def step(self) -> None:
        """Make the next block, or end."""
        try:
            table, metadata = next(self._blocks)
        except StopIteration as stop:
            self.has_ended = True
            self._stop()
            self.give(Pair(None, FakeMetadata(stop.value)))
        else:
            self.give(Pair(InlineBlock(table), FakeMetadata(metadata)))

    def cancel(self) -> None:
        super().cancel()
        self._blocks.close()


class SteppedStage(FakeStage):
    """A stage whose tasks do their real work."""

    def __init__(self, runtime: FakeRuntime, name: str, chain: Sequence[Transform]) -> None:
        super().__init__(runtime, name)
        self._chain = chain

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> FakeTask:
        task = SteppedTask(work, refs, on_ready, build(self._chain))
        self.tasks.append(task)
        self._runtime.tasks.append(task)
        return task


class SteppedRuntime(FakeRuntime):
    """A runtime whose tasks do their real work, a block at a time, when they are told to."""

    async def stage(self, name: str, chain: Sequence[Transform], resources: Resources) -> FakeStage:
        stage = self.stages[f"{len(self.stages)} {name}"] = SteppedStage(self, name, chain)
        return stage

    async def put(self, block: pa.Table) -> BlockRef:
        return InlineBlock(block)

    async def get(self, ref: BlockRef) -> pa.Table:
        return ref.table

    def size_of(self, ref: BlockRef) -> int | None:
        return int(ref.table.nbytes)

    def on_release(self, ref: BlockRef, callback: Callable[[], None]) -> None:
        super().on_release(ref.table, callback)


async def outcome(
    made: Plan, options: ExecutionOptions, num_cpus: int, choose: Callable[[int], int], store_bytes: int = 1 << 40
) -> tuple[Any, ...]:
    """Run a plan; return its rows and schema, and how many errors were skipped; or that it failed."""
    runtime = SteppedRuntime(num_cpus=num_cpus, store_bytes=store_bytes)
    executor = StreamingExecutor(made, cast("Runtime", runtime), options)
    output, receive = anyio.create_memory_object_stream[RefBundle](0)
    bundles: list[RefBundle] = []
    is_done = False

    async def run() -> None:
        nonlocal is_done
        await executor.run(output)
        is_done = True

    def take() -> bool:
        try:
            bundles.append(receive.receive_nowait())
        except (anyio.WouldBlock, anyio.EndOfStream):
            return False
        return True

    async def drive() -> None:
        patience_ends = math.inf
        while not is_done:
            await settle(12)
            running = [cast("SteppedTask", task) for task in runtime.running]
            at = choose(len(running) + 1)
            if at < len(running):
                running[at].step()
            elif not take() and running:
                running[0].step()
            elif not running:
                now = anyio.current_time()
                patience_ends = min(patience_ends, now + 2)
                if now > patience_ends:
                    pytest.fail(f"the run stands still: {executor.stats()}")
                continue
            patience_ends = math.inf
        while take():
            pass

    try:
        with output, receive:
            async with anyio.create_task_group() as group:
                group.start_soon(run)
                await drive()
    except Exception as error:
        failure = unwrap(error)
        if not isinstance(failure, aiodata.AiodataError):
            raise
        return ("failed",)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    rows: list[str] = []
    for bundle in bundles:
        assert bundle.schema.equals(executor.schema), "all blocks have one schema"
        rows += map(str, (await fetch_rows(cast("Runtime", runtime), bundle)).to_pylist())
    if not options.preserve_order:
        rows.sort()
    assert executor.stats().operators[-1].rows == len(rows), "blocks that are made again count once"
    return (
        executor.schema if rows else None,
        Counter(rows) if not options.preserve_order else rows,
        len(executor.context.skipped.lines),
    )


def same_in_any_order(
    make: Callable[[int], aiodata.Dataset],
    num_rows: int,
    rows_per_block: int,
    choices: Sequence[int],
    store_bytes: int = 1 << 40,
    **options: Any,
) -> None:
    """Check that a run of several blocks gives what one task gives that is given all rows.

    Args:
        make: Makes a dataset of so many blocks.
        num_rows: Its rows.
        rows_per_block: Rows per block.
        choices: What happens next.
        store_bytes: Room for blocks.
        **options: The run's.
    """
    run_options = OPTIONS.override(**options)
    num_blocks = -(-num_rows // rows_per_block)

    async def all_of_them() -> list[Any]:
        return [
            await outcome(make(1)._plan, run_options, 1, lambda _: 0),
            await outcome(make(num_blocks)._plan, run_options, 1, chooser(choices), store_bytes),
            await outcome(make(num_blocks)._plan, run_options, 3, chooser(choices), store_bytes),
        ]

    expected, one_cpu, three_cpus = aiodata.run(all_of_them)
    assert one_cpu == expected
    assert three_cpus == expected


def mapped(kinds: list[str], num_blocks: int, **options: Any) -> aiodata.Dataset:
    return aiodata.range(len(kinds), num_blocks=min(num_blocks, len(kinds))).map_batches(
        scripted(kinds), batch_size=1, **options
    )


@settings(max_examples=100, deadline=None)
@given(SCRIPTS, CHOICES, st.booleans(), st.sampled_from([0, -1]), st.integers(1, 4))
@example(["int", "null, then string"], [1, 1, 0], False, -1, 1)
@example(["int", "fraction", "whole", "null"], [3, 2, 1], True, 0, 1)
@example(["nulls", "fraction", "null, then int"], [0], True, -1, 1)
def test_outcome_does_not_depend_on_who_is_first(
    kinds: list[str], choices: list[int], preserve_order: bool, max_errored_blocks: int, rows_per_block: int
) -> None:
    same_in_any_order(
        lambda num_blocks: mapped(kinds, num_blocks),
        len(kinds),
        rows_per_block,
        choices,
        preserve_order=preserve_order,
        max_errored_blocks=max_errored_blocks,
    )


def joined(kinds: Sequence[str]) -> Callable[[Batch], Any]:
    """A function that does for several rows what a list says for each; rows of other columns do not go together."""

    def change(batch: Batch) -> Any:
        made = [KINDS[kinds[row]](row) for row in batch["id"].tolist()]
        if any(one.keys() != made[0].keys() for one in made):
            raise ValueError("other columns")
        return {name: [value for one in made for value in one[name]] for name in made[0]}

    return change


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(set(KINDS) - {"null, then int", "null, then string"})), min_size=1, max_size=9),
    CHOICES,
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 4),
)
@example(["failure", "null", "fraction", "int", "string"], [3, 1, 2], True, 1, 2)
@example(["int", "failure", "string", "fraction"], [2, 2, 1], False, 2, 4)
def test_rows_that_are_given_up_are_the_same_whoever_is_first(
    kinds: list[str], choices: list[int], preserve_order: bool, rows_per_block: int, batch_size: int
) -> None:
    same_in_any_order(
        lambda num_blocks: aiodata.range(len(kinds), num_blocks=min(num_blocks, len(kinds))).map_batches(
            joined(kinds), batch_size=batch_size, on_error="skip_row"
        ),
        len(kinds),
        rows_per_block,
        choices,
        preserve_order=preserve_order,
    )


@settings(max_examples=80, deadline=None)
@given(SCRIPTS, CHOICES, st.sampled_from([0, -1]), st.integers(1, 3), st.sampled_from([None, 2]))
@example(["null", "fraction", "failure"], [0], -1, 1, None)
@example(["null, then int", "null, then int"], [0], 0, 1, 2)
def test_second_function_is_given_the_same_types_whoever_is_first(
    kinds: list[str], choices: list[int], max_errored_blocks: int, rows_per_block: int, batch_size: int | None
) -> None:
    same_in_any_order(
        lambda num_blocks: mapped(kinds, num_blocks).map_batches(
            describe_type, batch_size=batch_size, batch_format="pyarrow"
        ),
        len(kinds),
        rows_per_block,
        choices,
        max_errored_blocks=max_errored_blocks,
    )


@settings(max_examples=80, deadline=None)
@given(SCRIPTS, CHOICES, st.sampled_from([0, -1]), st.integers(1, 3), st.sampled_from(["filter", "select"]))
@example(["new column", "int"], [1, 1], 0, 1, "filter")
@example(["new column", "int"], [1, 1], 0, 1, "select")
def test_verbs_after_a_function_see_its_schema_whoever_is_first(
    kinds: list[str], choices: list[int], max_errored_blocks: int, rows_per_block: int, verb: str
) -> None:
    def make(num_blocks: int) -> aiodata.Dataset:
        made = mapped(kinds, num_blocks)
        return made.filter(pc.field("y").is_null()) if verb == "filter" else made.select_columns(["y"])

    same_in_any_order(make, len(kinds), rows_per_block, choices, max_errored_blocks=max_errored_blocks)


@settings(max_examples=80, deadline=None)
@given(SCRIPTS, CHOICES, st.sampled_from([0, -1]), st.integers(1, 3))
@example(["nulls", "nulls", "null", "null", "null, then int"], [9], 0, 1)
def test_stage_of_its_own_learns_from_its_input_in_order(
    kinds: list[str], choices: list[int], max_errored_blocks: int, rows_per_block: int
) -> None:
    same_in_any_order(
        lambda num_blocks: mapped(kinds, num_blocks, num_cpus=1),
        len(kinds),
        rows_per_block,
        choices,
        max_errored_blocks=max_errored_blocks,
    )


@settings(max_examples=80, deadline=None)
@given(SCRIPTS, SCRIPTS, CHOICES, st.booleans(), st.sampled_from([1 << 40, 4096]))
@example(["fraction"], ["nulls", "fraction", "fraction"], [0], True, 4096)
def test_unions_of_functions_have_one_schema_whoever_is_first(
    kinds: list[str], others: list[str], choices: list[int], preserve_order: bool, store_bytes: int
) -> None:
    same_in_any_order(
        lambda num_blocks: mapped(kinds, num_blocks).union(mapped(others, num_blocks)),
        max(len(kinds), len(others)),
        1,
        choices,
        store_bytes,
        preserve_order=preserve_order,
    )


@settings(max_examples=30, deadline=None)
@given(CHOICES, st.integers(1, 30), st.booleans())
@example([0], 1, True)
def test_branch_that_has_no_rows_yet_has_room_though_another_has_filled_the_budget(
    choices: list[int], num_without: int, preserve_order: bool
) -> None:
    one = mapped(["large"] * 30, 30)
    two = mapped(["no rows"] * num_without + ["int"], num_without + 1)
    options = OPTIONS.override(max_object_store_bytes=4_000, preserve_order=preserve_order)
    _, rows, _ = aiodata.run(lambda: outcome(one.union(two)._plan, options, 2, chooser(choices)))
    assert (len(rows) if preserve_order else sum(rows.values())) == 3_001
