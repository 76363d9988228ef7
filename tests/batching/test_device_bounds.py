"""Batches on a device are bounded, at any speed and to the very end.

It is seen from outside: the batches tell of their own birth and death.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata import BatchIterator, TaskError
from tests.batching.calls import BOTH_KINDS, copy_in_thread, copy_on_the_loop
from tests.batching.feeds import FakeFeed, Watch, cancel_later, iterate, settle, some_turns, without_gc
from tests.conftest import PATIENCE_S, until


class Token:
    """A batch on a device."""

    def __init__(self, number: int) -> None:
        self.number = number


class Device:
    """A device whose batches are counted; `finalize` moves a batch there, at any speed, and may fail."""

    def __init__(self, chance: random.Random, max_turns: int, *, is_async: bool, fail_at: int | None = None) -> None:
        self.batches = Watch()
        self.finalize: Callable[[Any], Any] = self._on_the_loop if is_async else self._in_thread
        self._chance = chance
        self._max_turns = max_turns
        self._fail_at = fail_at

    def _in_thread(self, batch: Any) -> Token:
        number = int(batch["id"][0]) // 10
        if number == self._fail_at:
            raise ZeroDivisionError
        token = Token(number)
        self.batches.add(token)
        return token

    async def _on_the_loop(self, batch: Any) -> Token:
        await some_turns(self._chance, self._max_turns)
        token = self._in_thread(batch)
        await some_turns(self._chance, self._max_turns)
        return token


async def next_token(batches: BatchIterator, chance: random.Random, *, give_up: bool) -> Token | None:
    """The next batch, None if it was given up."""
    with anyio.CancelScope() as scope:
        if give_up:
            cancel_later(scope, chance.randint(0, 20))
        token: Token = await anext(batches)
        return token
    return None


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    num_batches=st.integers(0, 25),
    ahead=st.integers(0, 3),
    is_async=st.booleans(),
    collate=st.sampled_from([None, copy_in_thread, copy_on_the_loop]),
    workers=st.integers(1, 3),
    is_ordered=st.booleans(),
    stop_after=st.none() | st.integers(0, 25),
    fail_at=st.none() | st.integers(0, 25),
    is_impatient=st.booleans(),
    device_turns=st.sampled_from([0, 4, 15]),
    user_turns=st.sampled_from([0, 4, 15]),
    seed=st.integers(0, 2**32),
)
async def test_batches_on_a_device_are_at_most_those_ahead_and_the_one_in_use(
    num_batches: int,
    ahead: int,
    is_async: bool,
    collate: Any,
    workers: int,
    is_ordered: bool,
    stop_after: int | None,
    fail_at: int | None,
    is_impatient: bool,
    device_turns: int,
    user_turns: int,
    seed: int,
) -> None:
    chance = random.Random(seed)
    feed = FakeFeed([10] * num_batches)
    device = Device(chance, device_turns, is_async=is_async, fail_at=fail_at)
    more = {} if collate is None else {"collate_fn": collate, "collate_workers": workers}
    batches = iterate(
        feed,
        is_ordered=is_ordered,
        batch_size=10,
        finalize_fn=device.finalize,
        prefetch_to_device=ahead,
        **more,
    )
    numbers: list[int] = []
    token: Token | None = None
    has_failed = is_over = False
    with without_gc(), anyio.fail_after(PATIENCE_S):
        async with feed.conducted(chance, 3):
            while stop_after is None or len(numbers) < stop_after:
                try:
                    # The one before is in use until the next one is there.
                    next_one = await next_token(batches, chance, give_up=is_impatient and chance.random() < 0.5)
                except StopAsyncIteration:
                    is_over = True
                    break
                except TaskError:
                    has_failed = True
                    break
                if next_one is not None:
                    token = next_one
                    numbers.append(token.number)
                del next_one
                await some_turns(chance, user_turns)
            await batches.aclose()
            assert device.batches.live == (token is not None), "only the one in use is left, at once"
            # One that is asked for is made while the one before is still in use.
            assert device.batches.peak <= max(1, ahead) + 1
    assert len(set(numbers)) == len(numbers)
    assert not is_ordered or numbers == list(range(len(numbers)))
    assert not is_over or len(numbers) == num_batches
    assert has_failed <= (fail_at is not None and fail_at < num_batches)


@pytest.mark.parametrize("ahead", [0, 1, 2, 3])
@BOTH_KINDS
@pytest.mark.parametrize("collate", [None, copy_in_thread, copy_on_the_loop], ids=["plain", "thread", "loop"])
async def test_no_batch_is_made_for_a_device_before_there_is_a_place_for_it(
    collate: Any, is_async: bool, ahead: int
) -> None:
    device = Device(random.Random(0), 2, is_async=is_async)
    batches = iterate(
        FakeFeed([10] * 30), batch_size=10, collate_fn=collate, finalize_fn=device.finalize, prefetch_to_device=ahead
    )
    token: Token | None = None
    with without_gc():
        for taken in range(1, 6):
            token = await anext(batches)
            await until(lambda: device.batches.born >= taken + ahead, "no batch is made")  # noqa: B023 - used at once.
            await settle()
            assert device.batches.born == taken + ahead
            assert device.batches.live == 1 + ahead
            assert token is not None
            token = None
            assert device.batches.live == ahead
        await batches.aclose()
        assert device.batches.live == 0
    assert device.batches.peak == max(1, ahead + 1)


async def test_one_batch_at_a_time_is_on_a_device_where_none_is_to_be_ahead_and_each_is_dropped_in_time() -> None:
    device = Device(random.Random(0), 3, is_async=True)
    batches = iterate(FakeFeed([10] * 30), batch_size=10, finalize_fn=device.finalize, prefetch_to_device=0)
    async for token in batches:
        assert device.batches.live == 1
        del token
        await settle()
    assert (device.batches.born, device.batches.peak, device.batches.live) == (30, 1, 0)


@BOTH_KINDS
async def test_batches_on_a_device_go_when_the_loop_is_left(is_async: bool) -> None:
    device = Device(random.Random(0), 3, is_async=is_async)
    with without_gc():
        async for token in iterate(
            FakeFeed([10] * 30), batch_size=10, finalize_fn=device.finalize, prefetch_to_device=3
        ):
            if token.number == 5:
                break
        await until(lambda: device.batches.live == 1, "batches are held")
        del token
        assert device.batches.live == 0


@pytest.mark.slow
async def test_no_batch_is_on_a_device_right_after_a_pass_is_closed() -> None:
    # Each time the close comes at another moment of what the threads do.
    chance = random.Random(0)
    with without_gc():
        for _ in range(150):
            device = Device(chance, 0, is_async=False)
            batches = iterate(
                FakeFeed([10] * 30), batch_size=10, collate_fn=copy_in_thread, finalize_fn=device.finalize
            )
            token: Token | None = None
            for _ in range(chance.randint(1, 6)):
                token = await anext(batches)
            await some_turns(chance, 5)
            token = None
            await batches.aclose()
            assert device.batches.live == 0
            assert token is None
