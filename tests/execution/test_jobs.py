"""Jobs: pieces are divided and blocks gathered, in order and within bounds, and a rest is what is left of its job."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata.bundle import RefBundle
from aiodata.execution.jobs import Job, JobQueue, align, divide
from aiodata.execution.ordering import OutputOrder
from aiodata.plan.pieces import BlockPiece, Piece
from aiodata.plan.work import Position
from tests.execution.fakes import FakeBlock
from tests.plan.pieces import UnitsPiece
from tests.plan.running import ids

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Weighed(UnitsPiece):
    """A piece of a given weight."""

    given: int = 0

    @property
    def weight(self) -> int:
        """What was given."""
        return self.given


def pieces(weights: Sequence[int]) -> list[Weighed]:
    return [Weighed(str(index), (), given=weight) for index, weight in enumerate(weights)]


def weights_of(job: Sequence[object]) -> list[int]:
    return [piece.weight for piece in job if isinstance(piece, Weighed)]


@settings(max_examples=200, deadline=None)
@given(weights=st.lists(st.integers(0, 200 * MIB) | st.just(0), max_size=40), num_tasks=st.integers(1, 12))
def test_jobs_are_the_pieces_in_order_and_enough(weights: list[int], num_tasks: int) -> None:
    given = pieces(weights)
    jobs = list(divide(given, num_tasks))
    assert [piece for job in jobs for piece in job] == given
    assert all(jobs)
    assert len(jobs) >= min(num_tasks, len(given))


@settings(max_examples=200, deadline=None)
@given(weights=st.lists(st.integers(0, 200 * MIB), max_size=40), num_tasks=st.integers(1, 12))
def test_job_is_no_larger_than_its_share_and_one_piece(weights: list[int], num_tasks: int) -> None:
    share = min(sum(weights) / num_tasks, 64 * MIB)
    for job in divide(pieces(weights), num_tasks):
        assert sum(weights_of(job)[:-1]) <= share


def test_pieces_of_one_weight_are_divided_equally() -> None:
    assert [len(job) for job in divide(pieces([5] * 8), 4)] == [2, 2, 2, 2]


def test_large_inputs_become_many_jobs() -> None:
    assert [len(job) for job in divide(pieces([32 * MIB] * 8), 1)] == [2, 2, 2, 2]


def test_no_pieces_are_no_jobs() -> None:
    assert list(divide([], 4)) == []


def queue(*, preserve: bool = False, max_jobs_ahead: int = 100, max_job_bytes: int = 100) -> JobQueue:
    return JobQueue(OutputOrder(preserve=preserve, max_jobs_ahead=max_jobs_ahead), max_job_bytes)


def bundle(first: int, num_bytes: int, rows: int = 10) -> RefBundle:
    block = FakeBlock(tuple(range(first, first + rows)), num_bytes)
    return RefBundle.whole(block, block.metadata)


def block_pieces(job: Job) -> list[BlockPiece]:
    return [piece for piece in job.pieces if isinstance(piece, BlockPiece)]


def rows_of(job: Job) -> list[int]:
    """The rows that a task on the job would read."""
    rows = [row for piece in block_pieces(job) for row in job.refs[piece.index].ids[piece.start : piece.stop]]
    return rows[job.start.row :]


def test_small_blocks_are_gathered_into_one_job() -> None:
    jobs = queue()
    for one in range(5):
        jobs.add_bundle(bundle(one * 10, 20))
    assert (len(jobs), jobs.num_bundles, jobs.num_bundle_bytes) == (5, 5, 100)
    job = jobs.take(num_free=1, min_blocks=1, max_blocks=100)
    assert (job.number, rows_of(job)) == (0, list(range(50)))
    assert [piece.weight for piece in job.pieces] == [20] * 5
    assert (len(jobs), jobs.num_bundles, jobs.num_bundle_bytes) == (0, 0, 0)


def test_narrowed_bundle_is_read_in_its_range() -> None:
    jobs = queue()
    jobs.add_bundle(RefBundle(bundle(0, 8).ref, bundle(0, 8).metadata, 3, 7))
    jobs.add_bundle(bundle(20, 8).head(2))
    job = jobs.take(num_free=1, min_blocks=1, max_blocks=100)
    assert rows_of(job) == [3, 4, 5, 6, 20, 21]
    assert [piece.source for piece in block_pieces(job)] == ["fake", "fake"]


def test_job_of_blocks_is_bounded_by_bytes_but_takes_one_block_at_least() -> None:
    jobs = queue(max_job_bytes=100)
    for one, size in enumerate([60, 40, 1, 500, 30, 30]):
        jobs.add_bundle(bundle(one * 10, size))
    sizes = []
    while jobs.may_take():
        sizes.append([piece.weight for piece in jobs.take(num_free=1, min_blocks=1, max_blocks=100).pieces])
    assert sizes == [[60, 40], [1], [500], [30, 30]]


def test_job_of_blocks_is_bounded_by_their_number() -> None:
    jobs = queue()
    for one in range(300):
        jobs.add_bundle(bundle(one * 10, 0))
    assert [len(jobs.take(num_free=1, min_blocks=1, max_blocks=1000).pieces) for _ in range(3)] == [128, 128, 44]


def test_job_has_no_more_blocks_than_it_is_to_have() -> None:
    jobs = queue()
    for one in range(10):
        jobs.add_bundle(bundle(one * 10, 1))
    assert [len(jobs.take(num_free=1, min_blocks=1, max_blocks=most).pieces) for most in (1, 3, 100)] == [1, 3, 6]


def test_blocks_are_shared_out_evenly_among_free_workers() -> None:
    jobs = queue()
    for one in range(10):
        jobs.add_bundle(bundle(one * 10, 1))
    assert [len(jobs.take(num_free=free, min_blocks=1, max_blocks=100).pieces) for free in (4, 3, 2, 1)] == [3, 3, 2, 2]


def test_rest_begins_at_its_block_and_drops_those_that_are_done() -> None:
    jobs = queue()
    for one in range(4):
        jobs.add_bundle(bundle(one * 10, 20))
    job = jobs.take(num_free=1, min_blocks=1, max_blocks=100)
    rest = job.rest(Position(2, 0, 4))
    assert (rest.number, rest.start) == (job.number, Position(0, 0, 4))
    assert [piece.index for piece in block_pieces(rest)] == [0, 1]
    assert rest.refs == job.refs[2:]
    assert rows_of(rest) == list(range(24, 40))
    assert rows_of(rest.rest(Position(1, 0, 9))) == [39]


def test_rest_of_a_source_job_keeps_its_pieces_as_they_are() -> None:
    job = Job(3, tuple(pieces([1, 2, 3])))
    assert job.rest(Position(1, 5, 6)) == Job(3, job.pieces[1:], (), Position(0, 5, 6))


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 150), max_size=40),
    frees=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    max_bytes=st.integers(1, 300),
)
def test_jobs_of_blocks_have_all_rows_in_order(sizes: list[int], frees: list[int], max_bytes: int) -> None:
    jobs = queue(max_job_bytes=max_bytes)
    for one, size in enumerate(sizes):
        jobs.add_bundle(bundle(one * 2, size, rows=2))
    taken: list[Job] = []
    while jobs.may_take():
        taken.append(jobs.take(frees[len(taken) % len(frees)], 1, 100))
    assert [row for job in taken for row in rows_of(job)] == list(range(2 * len(sizes)))
    assert [job.number for job in taken] == list(range(len(taken)))
    assert all(sum(piece.weight for piece in job.pieces[:-1]) <= max_bytes for job in taken)
    assert jobs.num_bundle_bytes == len(jobs) == 0


def test_rest_comes_before_what_has_not_begun() -> None:
    jobs = queue()
    jobs.add_pieces(pieces([1] * 4), 4)
    first, second = jobs.take(1, 1, 100), jobs.take(1, 1, 100)
    jobs.add_rest(second.rest(Position(0, 0, 1)))
    assert jobs.take(1, 1, 100).number == second.number
    assert jobs.take(1, 1, 100).number == second.number + 1
    assert first.number == 0


def test_only_the_heads_rest_may_be_taken_if_order_is_asked_for() -> None:
    order = OutputOrder(preserve=True, max_jobs_ahead=2)
    jobs = JobQueue(order, 100)
    jobs.add_pieces(pieces([1] * 3), 3)
    first, second = jobs.take(1, 1, 100), jobs.take(1, 1, 100)
    jobs.add_rest(second.rest(Position(0, 0, 1)))
    assert not jobs.may_take(), "the third is too far ahead, and the second's rest is not at the head"
    jobs.add_rest(first.rest(Position(0, 0, 1)))
    assert jobs.take(1, 1, 100).number == first.number
    assert not jobs.may_take()
    order.finish(first.number, deque())
    assert jobs.take(1, 1, 100).number == second.number
    assert jobs.take(1, 1, 100).number == 2


@pytest.mark.parametrize("preserve", [False, True])
def test_blocks_too_far_ahead_wait_if_order_is_asked_for(preserve: bool) -> None:
    jobs = queue(preserve=preserve, max_jobs_ahead=2, max_job_bytes=1)
    for one in range(3):
        jobs.add_bundle(bundle(one, 1))
    assert [jobs.take(1, 1, 100).number for _ in range(2)] == [0, 1]
    assert jobs.may_take() is not preserve


def test_cleared_queue_has_nothing() -> None:
    jobs = queue()
    jobs.add_pieces(pieces([1] * 2), 2)
    jobs.add_rest(jobs.take(1, 1, 100))
    jobs.add_bundle(bundle(0, 5))
    jobs.clear()
    assert (len(jobs), jobs.num_bundles, jobs.num_bundle_bytes, jobs.may_take()) == (0, 0, 0, False)


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=30),
    batch_rows=st.integers(1, 25),
    max_blocks=st.integers(1, 5),
    late=st.integers(0, 30),
)
def test_jobs_on_blocks_are_whole_batches_but_the_last(
    sizes: list[int], batch_rows: int, max_blocks: int, late: int
) -> None:
    queue = JobQueue(OutputOrder(preserve=False, max_jobs_ahead=1), 100 * MIB, batch_rows)
    rows: list[list[int]] = []

    def take_all() -> None:
        while queue.may_take():
            job = queue.take(2, 1, max_blocks)
            rows.append([row for ref, piece in zip(job.refs, job.pieces, strict=True) for row in rows_in(ref, piece)])

    def rows_in(ref: FakeBlock, piece: object) -> list[int]:
        assert isinstance(piece, BlockPiece)
        return list(ref.ids[piece.start : piece.stop])

    first = 0
    for index, size in enumerate(sizes):
        block = FakeBlock(tuple(range(first, first + size)), 8 * size)
        queue.add_bundle(RefBundle.whole(block, block.metadata))
        first += size
        if index >= late:
            take_all()
            assert queue.is_short_of_rows == bool(queue.num_bundles)
    queue.is_complete = True
    take_all()
    assert [row for job in rows for row in job] == list(range(first))
    assert all(len(job) % batch_rows == 0 for job in rows[:-1])
    assert (len(queue), queue.num_bundle_bytes) == (0, 0)


def rows_read(piece: Piece) -> list[int]:
    return [row for chunk in piece.read(0, 0, 1 << 20) for row in chunk.table["id"].to_pylist()]


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=20),
    num_tasks=st.integers(1, 8),
    batch_rows=st.integers(1, 15),
    resume_at=st.integers(0, 40),
)
def test_jobs_on_small_pieces_are_whole_batches_but_the_last(
    sizes: list[int], num_tasks: int, batch_rows: int, resume_at: int
) -> None:
    bounds = [0, *accumulate(sizes)]
    given_pieces = [UnitsPiece(str(a), (ids(a, b - a),), chunk_rows=5) for a, b in pairwise(bounds)]
    jobs = list(align(divide(given_pieces, num_tasks), batch_rows))
    rows = [[row for piece in job for row in rows_read(piece)] for job in jobs]
    assert [row for job in rows for row in job] == list(range(bounds[-1]))
    assert all(len(job) % batch_rows == 0 for job in rows[:-1])
    for piece in (piece for job in jobs for piece in job):
        every = rows_read(piece)
        assert len(every) == piece.num_rows
        at = min(resume_at, len(every))
        resumed = [row for chunk in piece.read(0, at, 1 << 20) for row in chunk.table["id"].to_pylist()]
        assert resumed == every[at:]


def test_large_pieces_are_not_read_twice() -> None:
    large = UnitsPiece("large", (ids(0, 200_000),))
    jobs = [(large,), (large,)]
    assert list(align(jobs, 7)) == jobs


class Endless(Sequence[Weighed]):
    """As many pieces as nobody can list; it notes the last that was asked for."""

    last_asked = 0

    def __init__(self, weight: int) -> None:
        self._weight = weight

    def __len__(self) -> int:
        return 10**12

    def __getitem__(self, index: Any) -> Any:
        self.last_asked = max(self.last_asked, index)
        return Weighed(str(index), (ids(index, 1),), given=self._weight)


@pytest.mark.parametrize("weight", [0, 1, MIB, 200 * MIB])
@pytest.mark.parametrize("batch_rows", [None, 7])
def test_pieces_are_asked_for_as_jobs_are_taken(weight: int, batch_rows: int | None) -> None:
    given = Endless(weight)
    jobs = JobQueue(OutputOrder(preserve=True, max_jobs_ahead=4), 100, batch_rows)
    jobs.add_pieces(given, 4)
    for number in range(3):
        assert jobs.may_take()
        assert jobs.take(num_free=4, min_blocks=1, max_blocks=1).number == number
    assert given.last_asked < 20_000
    jobs.clear()
    assert (len(jobs), jobs.may_take()) == (0, False)
