"""Failures: so many may be skipped, the one too many ends the run, and nothing that failed keeps a block alive."""

from __future__ import annotations

import gc
import weakref

import pytest

from aiodata import TaskError
from aiodata.concurrency.supervise import unwrap
from aiodata.execution.failures import SkippedErrors
from aiodata.plan.work import Position
from aiodata.runtime.base import Pair
from tests.execution.fakes import OPTIONS, FakeBlock, FakeMetadata, IdsSource, output_of, pair_of, settle
from tests.execution.runs import alone, plan, started


def errors(count: int) -> list[ValueError]:
    return [ValueError(f"row {one}") for one in range(count)]


def test_first_failure_is_raised_if_none_may_be_skipped() -> None:
    skipped, [error] = SkippedErrors(0), errors(1)
    with pytest.raises(ValueError, match="row 0") as caught:
        skipped.add(error)
    assert caught.value is error
    assert not hasattr(error, "__notes__"), "there is nothing to say of failures before it"
    assert (skipped.lines, skipped.num_left) == ([], 0)


def test_so_many_are_skipped_and_the_next_is_raised_with_their_number() -> None:
    skipped = SkippedErrors(2)
    first, second, third = errors(3)
    assert skipped.num_left == 2
    skipped.add(first)
    assert skipped.num_left == 1
    skipped.add(second)
    assert skipped.num_left == 0
    with pytest.raises(ValueError, match="row 2") as caught:
        skipped.add(third)
    assert caught.value.__notes__ == ["2 failures before it were skipped: max_errored_blocks=2"]
    assert skipped.lines == ["row 0", "row 1"]


def test_any_number_may_be_skipped() -> None:
    skipped = SkippedErrors(-1)
    for error in errors(1000):
        skipped.add(error)
    assert skipped.num_left == -1
    assert skipped.lines == [f"row {one}" for one in range(1000)]


def test_what_was_skipped_is_kept_as_text_alone() -> None:
    skipped = SkippedErrors(1)
    skipped.add(errors(1)[0])
    assert [type(line) for line in skipped.lines] == [str], "an exception would keep the frames it went through"


def failure(reason: str) -> TaskError:
    return TaskError("ids", "a file", None, reason)


async def test_task_that_failed_is_skipped_and_its_rest_goes_on() -> None:
    async with started(plan(IdsSource(8, rows_per_piece=8)), OPTIONS.override(max_errored_blocks=3)) as run:
        await run.started()
        [task] = run.runtime.running
        assert task.work.max_errors == 3
        task.produce(0, 1)
        task.end(Position(0, 0, 4), failure("row 3"), (failure("row 2"),))
        await settle()
        assert run.take()
        await settle()
        [rest] = run.runtime.running
        assert (rest.ids, rest.work.max_errors) == ([4, 5, 6, 7], 1)
        await run.to_end()
        assert sorted(run.rows) == [0, 1, 4, 5, 6, 7]
        lines = run.executor.stats().errors
    assert [line.rpartition(": ")[2] for line in lines] == ["row 2", "row 3"]


@pytest.mark.parametrize("is_inline", [False, True], ids=["prefetch", "inline"])
@pytest.mark.parametrize("is_pending", [False, True])
async def test_lost_block_is_skipped_if_that_may_be(is_inline: bool, is_pending: bool) -> None:
    options = OPTIONS.override(max_errored_blocks=1, metadata_prefetch=not is_inline)
    async with started(plan(IdsSource(4, rows_per_piece=4)), options) as run:
        await run.started()
        [task] = run.runtime.running
        lost = pair_of(1, error=OSError("gone"), is_pending=is_pending)
        task.give(pair_of(0), lost, pair_of(2))
        task.end()
        await settle()
        lost.metadata.settle()
        await run.to_end(lambda count: count - 1)
        assert run.rows == [0, 2]
        [line] = run.executor.stats().errors
    assert line == "ids failed on a block that was lost: OSError: gone"


@pytest.mark.parametrize("is_pending", [False, True])
async def test_lost_block_that_may_not_be_skipped_ends_the_run(is_pending: bool) -> None:
    async def lose() -> None:
        async with started(plan(IdsSource(4, rows_per_piece=4))) as run:
            await run.started()
            lost = pair_of(1, error=OSError("gone"), is_pending=is_pending)
            run.runtime.running[0].give(pair_of(0), lost)
            await settle()
            lost.metadata.settle()
            await run.to_end(lambda count: count - 1)

    with pytest.raises(ExceptionGroup) as caught:
        await lose()
    error = unwrap(caught.value)
    assert isinstance(error, TaskError)
    assert (error.operator, str(error.__cause__)) == ("ids", "gone")


async def test_failed_run_keeps_no_block_alive_while_its_error_is_kept() -> None:
    blocks: list[weakref.ref[FakeBlock]] = []

    async def fail() -> None:
        async with started(plan(IdsSource(8), alone())) as run:
            await run.started(4)
            for task in run.runtime.running[:3]:
                task.work_on(1, num_bytes=10)
            await settle()
            mapping = next(task for task in run.runtime.running if task.refs)
            pairs = [pair_of(0), pair_of(1, is_pending=True), pair_of(2)]
            blocks.extend(weakref.ref(pair.ref) for pair in pairs)
            blocks.extend(weakref.ref(ref) for task in run.runtime.running for ref in task.refs)
            mapping.give(*pairs)
            pairs.clear()
            await settle()
            run.runtime.running[0].end(error=failure("no"))
            await run.to_end(lambda count: count - 1)

    gc.disable()
    try:
        with pytest.raises(ExceptionGroup) as caught:
            await fail()
        await settle()
        assert len(blocks) > 3
        assert [block() for block in blocks if block() is not None] == []
        assert isinstance(unwrap(caught.value), TaskError)
    finally:
        gc.enable()


async def test_unknown_sizes_are_warned_of_once_per_operator(caplog: pytest.LogCaptureFixture) -> None:
    async with started(plan(IdsSource(4))) as run:
        await run.started(4)
        for number, task in enumerate(run.runtime.running):
            block = FakeBlock((number,), 8, is_size_known=False)
            task.give(Pair(block, FakeMetadata(output_of(block))))
            task.end()
            del block
        await run.to_end(lambda count: count - 1)
        assert sorted(run.rows) == [0, 1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == [
        "ids: sizes of blocks are known only from their metadata"
    ]
