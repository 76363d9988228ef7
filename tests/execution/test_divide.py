"""Laws of dividing pieces into jobs: order kept, nothing lost, enough jobs, of about equal weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata.execution.task_operator import divide
from tests.plan.pieces import UnitsPiece

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
    jobs = divide(given, num_tasks)
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
    assert divide([], 4) == []
