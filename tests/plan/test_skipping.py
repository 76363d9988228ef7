"""Errors that are skipped: exactly the rows they are about are missing, and each is told."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata import AiodataError, SourceError, TaskError, UnknownColumnError
from aiodata.plan.pieces import Chunk, Origin, Piece, TablePiece
from aiodata.plan.transforms import Control, FilterRows, MapBatches, SelectColumns, Transform
from aiodata.plan.work import Cuts, Position, Work
from tests.plan.calls import all_cuts
from tests.plan.pieces import UnitsPiece
from tests.plan.running import EAGER, UNLIMITED, Batch, Output, counted, ids, ids_of, outputs_of, run

KINDS = ["function", "generator", "async function", "async generator"]


def failing(kind: str, bad: set[int], size: int | None, concurrency: int = 3) -> MapBatches:
    """A function of some kind that fails with batches that have a bad id; generators yield half of them before."""

    def check(batch: Batch) -> Batch:
        if bad & {int(one) for one in batch["id"]}:
            raise KeyError("oops")
        return batch

    def generator(batch: Batch) -> Iterator[Batch]:
        yield check(batch)

    async def async_function(batch: Batch) -> Batch:
        return check(batch)

    async def async_generator(batch: Batch) -> AsyncIterator[Batch]:
        yield check(batch)

    fns: list[Callable[..., Any]] = [check, generator, async_function, async_generator]
    return MapBatches(fns[KINDS.index(kind)], size, "numpy", concurrency=concurrency)


def run_all(work: Work, chain: Sequence[Transform]) -> tuple[list[Output], list[AiodataError], AiodataError | None]:
    """The outputs and skipped errors of a work and its rests, and what ended it."""
    outputs: list[Output] = []
    errors: list[AiodataError] = []
    while True:
        some, end = run(work, chain)
        outputs += some
        errors += end.errors
        if end.error is not None or end.rest is None:
            return outputs, errors, end.error
        work = work.rest(end.rest)


def rows_of_error(error: AiodataError) -> set[int]:
    assert isinstance(error, TaskError)
    assert error.rows is not None
    return set(range(*error.rows))


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 60),
    bad=st.sets(st.integers(0, 60), max_size=6),
    size=st.none() | st.integers(1, 7),
    after=st.none() | st.integers(1, 7),
    limits=all_cuts(),
)
def test_just_the_batches_that_failed_are_missing(
    kind: str, count: int, bad: set[int], size: int | None, after: int | None, limits: Cuts
) -> None:
    later = MapBatches(lambda batch: batch, after, "numpy")
    work = Work((counted(count),), limits, max_errors=-1)
    outputs, errors, error = run_all(work, [failing(kind, bad, size), later])
    assert error is None
    lost = [rows_of_error(one) for one in errors]
    assert all(rows & bad for rows in lost)
    assert all(len(rows) <= (size or count) for rows in lost)
    missing = set().union(*lost)
    assert len(missing) == sum(map(len, lost))
    assert bad & set(range(count)) <= missing
    assert ids_of(outputs) == [one for one in range(count) if one not in missing]
    assert [min(rows) for rows in lost] == sorted(min(rows) for rows in lost)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), bad=st.sets(st.integers(0, 29), max_size=6), max_errors=st.integers(0, 6))
def test_work_ends_with_the_first_error_too_many(kind: str, bad: set[int], max_errors: int) -> None:
    outputs, end = run(Work((counted(30),), EAGER, max_errors=max_errors), [failing(kind, bad, 1)])
    assert len(end.errors) == min(len(bad), max_errors)
    assert (end.error is not None) == (len(bad) > max_errors)
    seen = ids_of(outputs)
    assert seen == sorted(set(seen) - bad)
    if end.error is None:
        assert seen == sorted(set(range(30)) - bad)
    else:
        failed = [rows_of_error(one) for one in (*end.errors, end.error)]
        assert set().union(*failed) <= bad


@pytest.mark.parametrize("kind", KINDS)
def test_rows_before_the_error_that_ends_the_work_come(kind: str) -> None:
    outputs, end = run(Work((counted(30),), UNLIMITED), [failing(kind, {25}, 1, concurrency=1)])
    assert isinstance(end.error, TaskError)
    # Calls that are in flight, or whose results wait for their turn, when another fails are not waited for.
    taken = 25 if "async" not in kind else 23
    assert ids_of(outputs)[:taken] == list(range(taken))
    assert len(ids_of(outputs)) <= 25
    assert end.rest == Position(0, 0, 30)


def test_what_a_generator_yielded_before_it_failed_is_kept() -> None:
    async def stream(batch: Batch) -> AsyncIterator[Batch]:
        for one in batch["id"]:
            if one == 12:
                raise KeyError("oops")
            yield {"id": [one]}

    chain = [MapBatches(stream, 10, "numpy")]
    outputs, end = run(Work((counted(30),), UNLIMITED, max_errors=1), chain)
    assert ids_of(outputs) == [*range(12), *range(20, 30)]
    [error] = end.errors
    assert rows_of_error(error) == set(range(10, 20))


@dataclass(frozen=True, slots=True)
class DamagedPiece:
    """A piece of two chunks; the second can not be read."""

    first: int
    error: Exception

    @property
    def weight(self) -> int:
        return 8

    @property
    def num_rows(self) -> int | None:
        return None

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        return self

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        yield Chunk(0, 0, ids(self.first, 5), Origin("damaged", (0, 5)))
        raise self.error


GONE = SourceError("jan.parquet", "it is gone")


def damaged(error: Exception = GONE) -> tuple[Piece, ...]:
    return (
        TablePiece(ids(0, 5), Origin("t", (0, 5))),
        DamagedPiece(5, error),
        TablePiece(ids(10, 5), Origin("u", (0, 5))),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_piece_that_can_not_be_read_loses_just_its_rest(kind: str) -> None:
    outputs, end = run(Work(damaged(), UNLIMITED, max_errors=1), [failing(kind, set(), 4)])
    assert ids_of(outputs) == list(range(15))
    assert (end.rest, end.error, end.errors) == (None, None, (GONE,))


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_piece_that_can_not_be_read_the_rest_is_the_next_piece(kind: str) -> None:
    work = Work(damaged(), UNLIMITED)
    chain = [failing(kind, set(), 4)]
    outputs, end = run(work, chain)
    assert ids_of(outputs) == list(range(10))
    assert (end.rest, end.error, end.errors) == (Position(2), GONE, ())
    assert end.rest is not None
    assert ids_of(outputs_of(work.rest(end.rest), chain)) == list(range(10, 15))


def test_nothing_is_left_after_a_last_piece_that_can_not_be_read() -> None:
    _, end = run(Work(damaged()[:2], UNLIMITED), [])
    assert (end.rest, end.error) == (None, GONE)


def test_read_that_fails_with_any_exception_is_an_error_of_the_task() -> None:
    _, end = run(Work(damaged(KeyError("oops")), UNLIMITED), [])
    assert isinstance(end.error, TaskError)
    assert (end.error.operator, end.error.source, end.error.rows) == ("read", "damaged", None)
    assert isinstance(end.error.__cause__, KeyError)


def mixed() -> UnitsPiece:
    """Three units, the second of which has other columns."""
    return UnitsPiece("mixed", (ids(0, 5), pa.table({"other": range(5, 10)}), ids(10, 5)))


@pytest.mark.parametrize("transform", [SelectColumns(("id",)), FilterRows(pc.field("id") >= 0)])
def test_rows_that_a_transform_can_not_take_are_skipped(transform: Transform) -> None:
    outputs, end = run(Work((mixed(),), UNLIMITED, max_errors=1), [transform])
    assert ids_of(outputs) == [*range(5), *range(10, 15)]
    [error] = end.errors
    assert isinstance(error, UnknownColumnError)
    assert "there is no column 'id'; the columns are ['other']" in str(error)


def test_rows_that_can_not_be_made_batches_are_skipped() -> None:
    tables = (ids(0, 5), ids(5, 5).select([]), ids(10, 5))
    pieces = tuple(TablePiece(table, Origin(f"table {index}", (0, 5))) for index, table in enumerate(tables))
    outputs, end = run(Work(pieces, UNLIMITED, max_errors=-1), [failing("function", set(), 4)])
    assert ids_of(outputs) == [*range(5), *range(10, 15)]
    # Those that complete the batch before them are tried on their own.
    assert [(error.source, error.rows) for error in end.errors if isinstance(error, TaskError)] == [
        ("table 1", (0, 3)),
        ("table 1", (3, 5)),
    ]


def test_a_result_that_does_not_go_with_the_first_is_skipped() -> None:
    kinds = itertools.cycle([1, "one"])

    def change(batch: Batch) -> Batch:
        return {"x": [next(kinds)]}

    outputs, end = run(Work((counted(2),), UNLIMITED, max_errors=1), [MapBatches(change, 1, "numpy")])
    assert [table.to_pydict() for table, _ in outputs] == [{"x": [1]}]
    [error] = end.errors
    assert isinstance(error, TaskError)
    assert error.rows == (1, 2)
    assert all(part in str(error) for part in ("'x'", "string", "int64", "schema="))


def test_same_work_skips_the_same_errors() -> None:
    work = Work((counted(50),), Cuts(1, 99, 2, 2, 3, 200, 9), max_errors=-1)
    for kind in KINDS:
        seen = [run_all(work, [failing(kind, {3, 20, 21}, 4)]) for _ in range(2)]
        blocks = [[table.to_pydict() for table, _ in outputs] for outputs, _, _ in seen]
        assert blocks[0] == blocks[1]
        assert [str(one) for one in seen[0][1]] == [str(one) for one in seen[1][1]]


@pytest.mark.parametrize("is_async", [False, True])
def test_skipped_error_keeps_where_it_was_raised_but_not_the_batch(is_async: bool) -> None:
    class Data:
        pass

    data: list[weakref.ref[Data]] = []

    def explode(batch: Batch) -> Batch:
        held = Data()
        data.append(weakref.ref(held))
        raise KeyError("oops")

    async def explode_later(batch: Batch) -> Batch:
        return explode(batch)

    control = Control()
    chain = [MapBatches(explode_later if is_async else explode, 5, "numpy")]
    _, end = run(Work((counted(5),), UNLIMITED, max_errors=-1), chain, (), control)
    [error] = end.errors
    cause = error.__cause__
    assert isinstance(cause, KeyError)
    frames = cause.__traceback__
    names = []
    while frames is not None:
        names.append(frames.tb_frame.f_code.co_name)
        frames = frames.tb_next
    assert names == (["explode_later", "explode"] if is_async else ["explode"])
    gc.collect()
    assert data[0]() is None


@pytest.mark.slow
def test_batch_that_cannot_be_converted_loses_what_waits_with_it() -> None:
    pytest.importorskip("torch")
    tables = (ids(0, 5), pa.table({"id": pa.array([5, None])}), ids(10, 5))
    pieces = tuple(TablePiece(table, Origin(f"table {index}", (0, 5))) for index, table in enumerate(tables))
    chain = [MapBatches(lambda batch: {"id": batch["id"].numpy()}, 4, "torch")]
    outputs, end = run(Work(pieces, UNLIMITED, max_errors=-1), chain)
    assert end.error is None
    assert len(end.errors) == 1
    assert ids_of(outputs) == [*range(4), *range(10, 15)]
