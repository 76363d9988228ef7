from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodata.plan.passes import BlockShuffle, Pass

seeds = st.none() | st.integers(0, 1 << 70)
passes = st.builds(Pass, st.integers(0, 1 << 40), st.integers(0, 1 << 63))


@given(seeds, passes, st.integers(0, 300))
def test_an_order_has_each_block_once_and_is_the_same_each_time(seed: int | None, this_pass: Pass, count: int) -> None:
    order = BlockShuffle(seed).order(count, this_pass)
    assert sorted(order) == list(range(count))
    assert BlockShuffle(seed).order(count, this_pass).tolist() == order.tolist()


def test_orders_differ_by_seed_by_epoch_and_without_a_seed_by_the_seed_of_the_pass() -> None:
    orders = {
        tuple(BlockShuffle(seed).order(50, Pass(epoch, of_pass)))
        for seed in (None, 0, 1)
        for epoch in range(3)
        for of_pass in (5, 6)
    }
    # A seed of the verb's own makes the seed of the pass count for nothing.
    assert len(orders) == 3 * 2 + 3 + 3


def test_an_order_is_the_same_in_every_version() -> None:
    assert BlockShuffle(7).order(8, Pass(2)).tolist() == [6, 7, 1, 3, 4, 5, 0, 2]


@pytest.mark.parametrize("blocks", [[], ["a"], ["a", "b", "c"]])
def test_blocks_are_put_in_the_order_of_the_pass(blocks: list[str]) -> None:
    order = BlockShuffle(3).order(len(blocks), Pass(1))
    shuffled = BlockShuffle(3).shuffled(blocks, Pass(1))
    assert list(shuffled) == [blocks[index] for index in order]
    assert list(shuffled[1:]) == list(shuffled)[1:]
