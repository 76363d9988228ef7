"""Lanes: pairs leave in the order in which they came, nobody waits for another lane, a failure has its place."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata.execution.metadata import MetadataPrefetcher
from aiodata.plan.work import OutputMetadata, TaskEnd
from aiodata.runtime.base import Outcome, Pair
from tests.execution.fakes import FakeRuntime, end_pair, pair_of, settle

LOST = OSError("lost")

either_way = pytest.mark.parametrize("is_inline", [False, True], ids=["prefetch", "inline"])


class Sink:
    """Takes what lanes emit: the first id of a block, the text of an error, or "end"."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.drained = 0
        self.turns: list[int] = []

    def emit(self, pair: Pair, outcome: Outcome) -> None:
        if isinstance(outcome, OutputMetadata):
            assert outcome.block.num_rows == len(pair.ref.ids)
            self.seen.append(pair.ref.ids[0])
        else:
            self.seen.append("end" if isinstance(outcome, TaskEnd) else str(outcome))

    def drain(self) -> None:
        self.drained += 1

    def on_emitted(self) -> None:
        self.turns.append(len(self.seen))


@asynccontextmanager
async def opened(runtime: FakeRuntime, *, is_inline: bool = False) -> AsyncIterator[MetadataPrefetcher]:
    """A prefetcher whose waits are cancelled at the end."""
    prefetcher = MetadataPrefetcher(runtime.fetch_ready, runtime.fetch, is_inline=is_inline)
    async with prefetcher.group:
        yield prefetcher
        prefetcher.group.cancel_scope.cancel()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@either_way
async def test_what_is_there_leaves_in_the_order_of_submission(is_inline: bool) -> None:
    sink = Sink()
    async with opened(FakeRuntime(), is_inline=is_inline) as prefetcher:
        lane = prefetcher.lane(sink.on_emitted)
        for one in range(5):
            lane.submit(sink, pair_of(one))
        lane.submit(sink, end_pair())
        assert (lane.num_new, sink.seen) == (6, [])
        await lane.flush()
    assert (lane.num_new, sink.seen) == (0, [0, 1, 2, 3, 4, "end"])


@either_way
async def test_owners_of_one_lane_are_told_in_the_order_of_submission(is_inline: bool) -> None:
    sinks = [Sink(), Sink()]
    sinks[1].seen = sinks[0].seen
    async with opened(FakeRuntime(), is_inline=is_inline) as prefetcher:
        lane = prefetcher.lane(lambda: None)
        for one in range(6):
            lane.submit(sinks[one % 2], pair_of(one))
        await lane.flush()
    assert sinks[0].seen == list(range(6))


async def test_many_pairs_are_fetched_by_one_call() -> None:
    runtime, sink = FakeRuntime(), Sink()
    async with opened(runtime) as prefetcher:
        lane = prefetcher.lane(sink.on_emitted)
        for one in range(50):
            lane.submit(sink, pair_of(one))
        await lane.flush()
    assert runtime.fetched == [50]


async def test_inline_fetches_one_pair_at_a_time() -> None:
    runtime, sink = FakeRuntime(), Sink()
    async with opened(runtime, is_inline=True) as prefetcher:
        lane = prefetcher.lane(sink.on_emitted)
        for one in range(3):
            lane.submit(sink, pair_of(one))
        await lane.flush()
    assert runtime.fetched == [1, 1, 1]


async def test_pending_pair_holds_back_those_after_it_and_flush_does_not_wait() -> None:
    sink, late = Sink(), pair_of(1, is_pending=True)
    async with opened(FakeRuntime()) as prefetcher:
        lane = prefetcher.lane(sink.on_emitted)
        for pair in (pair_of(0), late, pair_of(2)):
            lane.submit(sink, pair)
        await lane.flush()
        lane.submit(sink, pair_of(3))
        await lane.flush()
        assert sink.seen == [0]
        late.metadata.settle()
        await settle()
        assert sink.seen == [0, 1, 2, 3]
        assert sink.turns == [4], "the operator is told once, after all that could be emitted"


async def test_metadata_that_comes_out_of_order_is_emitted_in_order() -> None:
    sink = Sink()
    pairs = [pair_of(one, is_pending=True) for one in range(4)]
    async with opened(FakeRuntime()) as prefetcher:
        lane = prefetcher.lane(sink.on_emitted)
        for pair in pairs:
            lane.submit(sink, pair)
        await lane.flush()
        for one, seen in ((3, []), (1, []), (0, [0, 1]), (2, [0, 1, 2, 3])):
            pairs[one].metadata.settle()
            await settle()
            assert sink.seen == seen


async def test_stuck_pair_delays_nothing_in_another_lane() -> None:
    stuck, free = Sink(), Sink()
    async with opened(FakeRuntime()) as prefetcher:
        lane, other = prefetcher.lane(stuck.on_emitted), prefetcher.lane(free.on_emitted)
        lane.submit(stuck, pair_of(0, is_pending=True))
        await lane.flush()
        for one in range(100):
            other.submit(free, pair_of(one))
            await other.flush()
        assert free.seen == list(range(100))
        await settle()
        assert stuck.seen == []


async def test_pending_pairs_of_two_lanes_come_each_when_they_are_there() -> None:
    sinks, pairs = (Sink(), Sink()), [pair_of(one, is_pending=True) for one in range(2)]
    async with opened(FakeRuntime()) as prefetcher:
        for sink, pair in zip(sinks, pairs, strict=True):
            lane = prefetcher.lane(sink.on_emitted)
            lane.submit(sink, pair)
            await lane.flush()
        pairs[1].metadata.settle()
        await settle()
        assert [sink.seen for sink in sinks] == [[], [1]]


@either_way
@pytest.mark.parametrize("is_pending", [False, True])
async def test_failed_fetch_is_emitted_as_its_error_in_its_place(is_inline: bool, is_pending: bool) -> None:
    sink, failing = Sink(), pair_of(1, is_pending=is_pending, error=LOST)
    async with opened(FakeRuntime(), is_inline=is_inline) as prefetcher:
        lane = prefetcher.lane(sink.on_emitted)
        for pair in (pair_of(0), failing, pair_of(2)):
            lane.submit(sink, pair)
        asyncio.get_running_loop().call_soon(failing.metadata.settle)
        await lane.flush()
        await settle()
    assert sink.seen == [0, "lost", 2]


async def test_end_that_waits_for_its_turn_drains_its_owner_at_once() -> None:
    sink, late = Sink(), pair_of(0, is_pending=True)
    async with opened(FakeRuntime()) as prefetcher:
        lane = prefetcher.lane(sink.on_emitted)
        lane.submit(sink, late)
        lane.submit(sink, end_pair())
        await lane.flush()
        assert (sink.seen, sink.drained) == ([], 1)
        late.metadata.settle()
        await settle()
        assert (sink.seen, sink.drained) == ([0, "end"], 1)


async def test_inline_flush_waits_for_what_is_pending() -> None:
    sink, late = Sink(), pair_of(0, is_pending=True)
    async with opened(FakeRuntime(), is_inline=True) as prefetcher:
        lane = prefetcher.lane(sink.on_emitted)
        lane.submit(sink, late)
        lane.submit(sink, pair_of(1))
        asyncio.get_running_loop().call_later(0, late.metadata.settle)
        await lane.flush()
        assert sink.seen == [0, 1]


async def test_cleared_lane_emits_nothing_and_holds_no_block() -> None:
    sink, late = Sink(), pair_of(0, is_pending=True)
    metadata, block = late.metadata, weakref.ref(late.ref)
    async with opened(FakeRuntime()) as prefetcher:
        lane = prefetcher.lane(sink.on_emitted)
        lane.submit(sink, late)
        lane.submit(sink, pair_of(1))
        await lane.flush()
        lane.submit(sink, pair_of(2))
        del late
        lane.clear()
        await settle()
        gc.collect()
        assert block() is None, "what is stuck is waited for no more"
        metadata.settle()
        await lane.flush()
        await settle()
    assert (sink.seen, lane.num_new) == ([], 0)


async def test_cancelled_group_leaves_no_task_and_no_block() -> None:
    sink, late = Sink(), pair_of(0, is_pending=True)
    block = weakref.ref(late.ref)
    gc.disable()
    try:
        async with opened(FakeRuntime()) as prefetcher:
            lane = prefetcher.lane(sink.on_emitted)
            lane.submit(sink, late)
            del late
            await lane.flush()
            await settle()
        lane.clear()
        assert block() is None
    finally:
        gc.enable()
    assert sink.seen == []


async def test_failed_fetch_keeps_no_block_alive() -> None:
    sink, late = Sink(), pair_of(0, is_pending=True)
    block, metadata = weakref.ref(late.ref), late.metadata
    gc.disable()
    try:
        async with opened(FakeRuntime()) as prefetcher:
            lane = prefetcher.lane(sink.on_emitted)
            lane.submit(sink, late)
            del late
            await lane.flush()
            await settle()
            metadata.settle(OSError("lost"))
            await settle()
            assert sink.seen == ["lost"]
            assert block() is None
    finally:
        gc.enable()


async def play(
    is_inline: bool, lanes: list[list[tuple[bool, bool]]], order: list[int], flushes: set[int]
) -> list[list[object]]:
    """Submit pairs (is it pending, does it fail) to lanes, and settle the pending ones in some order."""
    runtime = FakeRuntime()
    sinks = [Sink() for _ in lanes]
    pending: list[Pair] = []
    async with opened(runtime, is_inline=is_inline) as prefetcher:
        loop = asyncio.get_running_loop()
        for sink, pairs in zip(sinks, lanes, strict=True):
            lane = prefetcher.lane(sink.on_emitted)
            for number, (is_pending, fails) in enumerate(pairs):
                pair = pair_of(number, is_pending=is_pending, error=OSError(f"lost {number}") if fails else None)
                lane.submit(sink, pair)
                if is_pending:
                    pending.append(pair)
                    if is_inline:
                        loop.call_soon(pair.metadata.settle)
                if number in flushes:
                    await lane.flush()
            await lane.flush()
        for place in order:
            if pending:
                pending.pop(place % len(pending)).metadata.settle()
                await settle(3)
        for pair in pending:
            pair.metadata.settle()
        await settle(10)
    return [sink.seen for sink in sinks]


@settings(max_examples=60, deadline=None)
@given(
    is_inline=st.booleans(),
    lanes=st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=6), min_size=1, max_size=3),
    order=st.lists(st.integers(0, 20), max_size=12),
    flushes=st.sets(st.integers(0, 5)),
)
def test_each_lane_emits_all_in_order_whenever_metadata_comes(
    is_inline: bool, lanes: list[list[tuple[bool, bool]]], order: list[int], flushes: set[int]
) -> None:
    seen = asyncio.run(play(is_inline, lanes, order, flushes))
    assert seen == [[f"lost {n}" if fails else n for n, (_, fails) in enumerate(pairs)] for pairs in lanes]
