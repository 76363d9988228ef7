"""Pacing: tasks of user code start short, then take about a second; others are sized by bytes alone."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata.bundle import BlockMetadata
from aiodata.execution.pacing import Pacing
from aiodata.plan.work import Cuts, OutputMetadata

MIB = 1 << 20
METADATA = BlockMetadata(1, 8, pa.schema([("id", pa.int64())]))


def cuts_after(
    *outputs: tuple[int, float],
    calls_user_code: bool = True,
    calls_in_flight: int = 1,
    target: int = 32 * MIB,
    budget: int = 1 << 50,
    is_early: bool = True,
) -> Cuts:
    """The cuts for the next task after outputs of so many calls and seconds."""
    pacing = Pacing(target, budget, calls_user_code=calls_user_code, calls_in_flight=calls_in_flight)
    for calls, seconds in outputs:
        pacing.observe(OutputMetadata(METADATA, calls, seconds))
    return pacing.cuts(is_early=is_early, room_bytes=1 << 40)


def test_first_tasks_of_user_code_are_short() -> None:
    cuts = cuts_after()
    assert (cuts.first_block_calls, cuts.calls_per_block, cuts.task_calls) == (1, 8, 8)


def test_first_task_has_as_many_calls_for_each_that_may_be_in_flight() -> None:
    cuts = cuts_after(calls_in_flight=16)
    assert (cuts.first_block_calls, cuts.calls_per_block, cuts.task_calls) == (1, 8, 128)


@pytest.mark.parametrize(
    ("per_call_s", "block_calls", "task_calls"), [(0.01, 10, 100), (0.05, 2, 20), (0.5, 1, 2), (30.0, 1, 1)]
)
def test_block_is_a_tenth_of_a_second_and_a_task_a_second_of_calls(
    per_call_s: float, block_calls: int, task_calls: int
) -> None:
    cuts = cuts_after((8, 8 * per_call_s * 1.000001**-1))
    assert (cuts.first_block_calls, cuts.calls_per_block) == (block_calls, block_calls)
    assert cuts.task_calls == task_calls


def test_speed_is_learnt_from_all_outputs() -> None:
    assert cuts_after((1, 0.3), (3, 0.1)).task_calls == cuts_after((4, 0.4)).task_calls == 10


def test_output_without_calls_teaches_nothing_of_them() -> None:
    cuts, first = cuts_after((0, 0.0)), cuts_after()
    assert (cuts.first_block_calls, cuts.calls_per_block) == (first.first_block_calls, first.calls_per_block)
    assert cuts.task_calls == first.task_calls


def test_without_user_code_calls_bound_nothing() -> None:
    cuts = cuts_after((0, 5.0), calls_user_code=False)
    assert cuts.calls_per_block == cuts.task_calls == 1 << 20


def test_later_tasks_start_with_blocks_of_the_target_size() -> None:
    assert cuts_after(is_early=False).first_block_bytes == 32 * MIB


@pytest.mark.parametrize(("target", "first"), [(32 * MIB, MIB), (MIB // 2, MIB // 2)])
def test_first_block_is_a_mebibyte_or_the_target(target: int, first: int) -> None:
    cuts = cuts_after(target=target)
    assert (cuts.first_block_bytes, cuts.target_block_bytes) == (first, target)


def test_task_is_a_few_blocks_of_the_target_size_but_not_less_than_64_mebibytes() -> None:
    assert cuts_after((1, 0.1), target=32 * MIB).task_bytes == 128 * MIB
    assert cuts_after((1, 0.1), target=MIB).task_bytes == 64 * MIB


def test_first_task_is_a_few_blocks_however_small_they_are() -> None:
    assert cuts_after(target=32 * MIB).task_bytes == 128 * MIB
    assert cuts_after(target=1024).task_bytes == 16 * 1024


@pytest.mark.parametrize(
    ("num_bytes", "seconds", "in_groups"), [(8, 1e-4, True), (100_000, 1e-4, False), (8, 5e-3, False), (8, 0.0, True)]
)
def test_small_blocks_that_come_fast_are_handed_over_in_groups(num_bytes: int, seconds: float, in_groups: bool) -> None:
    pacing = Pacing(32 * MIB, 1 << 50, calls_user_code=True)
    assert not pacing.cuts(is_early=False, room_bytes=1 << 40).in_groups
    for _ in range(3):
        pacing.observe(OutputMetadata(replace(METADATA, num_bytes=num_bytes), 1, seconds))
    assert pacing.cuts(is_early=False, room_bytes=1 << 40).in_groups == in_groups


@pytest.mark.parametrize(("num_columns", "in_groups"), [(256, True), (257, False)])
def test_blocks_of_many_columns_are_handed_over_alone(num_columns: int, in_groups: bool) -> None:
    pacing = Pacing(32 * MIB, 1 << 50, calls_user_code=True)
    schema = pa.schema([(str(number), pa.int8()) for number in range(num_columns)])
    pacing.observe(OutputMetadata(replace(METADATA, schema=schema), 1, 1e-4))
    pacing.observe(OutputMetadata(METADATA, 1, 1e-4))
    assert pacing.cuts(is_early=False, room_bytes=1 << 40).in_groups == in_groups


@pytest.mark.parametrize("target", [MIB, 32 * MIB])
def test_block_and_task_are_an_eighth_of_the_budget_at_most(target: int) -> None:
    cuts = cuts_after(target=target, budget=4 * MIB)
    # A row more than they should have is within the eighth.
    assert cuts.first_block_bytes == cuts.target_block_bytes == cuts.task_bytes == MIB // 2 * 7 // 8


def test_allotment_is_spent_when_no_half_block_has_room() -> None:
    cuts = cuts_after((1, 0.1), target=MIB, budget=64 * MIB)
    assert (cuts.target_block_bytes, cuts.task_bytes) == (MIB, 7 * MIB)
    assert not cuts.are_spent(0, 0)
    assert not cuts.are_spent(6 * MIB, 0)
    assert cuts.are_spent(6 * MIB + MIB // 2, 0)
    assert cuts.are_spent(0, cuts.task_calls)


@settings(max_examples=100, deadline=None)
@given(
    outputs=st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e6)), max_size=5),
    target=st.integers(1, 1 << 30),
    budget=st.integers(1, 1 << 40),
)
def test_cuts_always_let_a_task_get_on(outputs: list[tuple[int, float]], target: int, budget: int) -> None:
    cuts = cuts_after(*outputs, target=target, budget=budget)
    assert 1 <= cuts.first_block_calls <= cuts.calls_per_block <= cuts.task_calls <= 1 << 20
    assert 1 <= cuts.first_block_bytes <= cuts.target_block_bytes <= cuts.task_bytes
    assert cuts.task_bytes <= max(1, budget // 8)
