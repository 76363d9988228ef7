"""What a consumer holds is bounded, in bytes of blocks and in batches on a device, at any speed and to the very end.

Both are seen from outside: the memory of blocks, and the batches, tell of their own birth and death.
"""

from __future__ import annotations

import asyncio
import bisect
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiodata import BatchIterator, TaskError
from aiodata.bundle import RefBundle
from tests.batching.feeds import ROW_BYTES, FakeFeed, Watch, at, drain, iterate, settle, without_gc
from tests.conftest import until

# Arrow rounds its allocations up.
PADDING_BYTES = 4096

BOTH_KINDS = pytest.mark.parametrize("is_async", [False, True], ids=["thread", "loop"])
BOTH_PARTS = pytest.mark.parametrize("part", ["collate_fn", "finalize_fn"])


async def some_turns(chance: random.Random, most: int) -> None:
    for _ in range(chance.randint(0, most)):
        await anyio.lowlevel.checkpoint()


def copied_ids(batch: Any) -> np.ndarray[Any, Any]:
    # Arrow's columns do not copy even where numpy wants them to.
    return np.asarray(batch["id"]).copy()


async def standstill(feed: FakeFeed) -> None:
    """Wait until no fetch has begun for a while."""
    num_begun, since = len(feed.begun), time.perf_counter()

    def stands_still() -> bool:
        nonlocal num_begun, since
        if len(feed.begun) != num_begun:
            num_begun, since = len(feed.begun), time.perf_counter()
        return time.perf_counter() - since > 0.05

    await until(stands_still, "fetches go on and on")


@dataclass(frozen=True, slots=True)
class Sample:
    """What is held at one moment, in bytes.

    Attributes:
        live: Memory of blocks that is alive.
        copied: Copies that Arrow has made, and that are alive.
        in_hand: The batch that the user holds.
        asked_for: The batch that is being put together for the user, who waits for it.
        counted: The iterator's own figure.
    """

    live: int
    copied: int
    in_hand: int
    asked_for: int
    counted: int


class Reader:
    """A user who reads all batches, holding one until there is the next, and notes what is held in all."""

    def __init__(self, feed: FakeFeed, batch_size: int | None) -> None:
        self.ids: list[np.ndarray[Any, Any]] = []
        self.samples: list[Sample] = []
        self._feed = feed
        self._size = batch_size
        self._in_hand = 0
        self._is_asking = False
        self._copied_before = pa.total_allocated_bytes()
        self._batches: BatchIterator | None = None
        feed.on_block = self.note

    async def read(self, batches: BatchIterator, chance: random.Random, max_turns: int) -> None:
        self._batches = batches
        self._is_asking = True
        async for batch in batches:
            self._is_asking = False
            self.ids.append(copied_ids(batch))
            self._in_hand = self._num_bytes(self.ids[-1])
            self.note()
            await some_turns(chance, max_turns)
            self.note()
            self._is_asking = True

    def note(self) -> None:
        assert self._batches is not None
        stats = self._batches.stats()
        assert stats.prefetched_bytes <= stats.peak_prefetched_bytes
        asked_for = (self._size or max(self._feed.sizes)) * ROW_BYTES if self._is_asking else 0
        copied = pa.total_allocated_bytes() - self._copied_before
        self.samples.append(Sample(self._feed.memory.live, copied, self._in_hand, asked_for, stats.prefetched_bytes))

    def _num_bytes(self, ids: np.ndarray[Any, Any]) -> int:
        if self._size is not None:
            return len(ids) * ROW_BYTES
        # A batch that is the rows of a block that count pins all of it.
        return self._feed.sizes[bisect.bisect_right(self._feed.starts, ids[0]) - 1] * ROW_BYTES


@dataclass(frozen=True, slots=True)
class Case:
    """Blocks, how to cut them, and the speeds of both sides, in turns of the loop."""

    sizes: list[int]
    ranges: list[tuple[int, int]]
    batch_size: int | None
    max_rows: int
    options: dict[str, Any]
    fetch_turns: int
    user_turns: int
    seed: int

    @property
    def max_bytes(self) -> int:
        return self.max_rows * ROW_BYTES

    def feed(self) -> FakeFeed:
        return FakeFeed(self.sizes, ranges=self.ranges)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Blocks of very different sizes, and limits from less than the smallest to more than all of them."""
    block_rows = st.integers(0, 50) | st.integers(100, 5000) | st.integers(50_000, 100_000)
    sizes = draw(st.lists(block_rows, min_size=1, max_size=10))
    ranges = [(0, size) for size in sizes]
    if draw(st.booleans()):
        ranges = [(min(cut), max(cut)) for cut in (draw(st.tuples(*[st.integers(0, size)] * 2)) for size in sizes)]
    total = sum(sizes)
    # So many batches, that no case takes long.
    size = draw(st.none() | st.integers(1 + total // 100, 2 + total) | st.integers(1 + total // 100, 2 + total // 5))
    options = {
        "batch_format": draw(st.sampled_from(["numpy", "pyarrow"])),
        "prefetch_batches": draw(st.integers(0, 6)),
        "drop_last": draw(st.booleans()),
    }
    return Case(
        sizes,
        ranges,
        size,
        draw(st.integers(1, 100) | st.integers(1, 2 + max(sizes)) | st.integers(1, 2 + total)),
        options,
        draw(st.sampled_from([0, 3, 12])),
        draw(st.sampled_from([0, 3, 12])),
        draw(st.integers(0, 2**32)),
    )


async def read_all(case: Case, **more: Any) -> tuple[FakeFeed, Reader]:
    """Read a case to its end and check what is true in every case: the rows, and the end."""
    chance = random.Random(case.seed)
    feed = case.feed()
    options = case.options | {"batch_size": case.batch_size, "max_prefetch_bytes": case.max_bytes} | more
    reader, batches = Reader(feed, case.batch_size), iterate(feed, **options)
    with anyio.fail_after(20):
        async with feed.conducted(chance, case.fetch_turns):
            await reader.read(batches, chance, case.user_turns)
    ids = np.concatenate([np.array([], np.int64), *reader.ids])
    ranges = zip(feed.starts, feed.ranges, strict=True)
    expected = np.concatenate([np.arange(start + first, start + last) for start, (first, last) in ranges])
    num_dropped = len(expected) % case.batch_size if case.options["drop_last"] and case.batch_size else 0
    if "local_shuffle_buffer_size" not in more:
        assert np.array_equal(ids, expected[: len(expected) - num_dropped])
    else:
        ids.sort()
        assert len(ids) == len(expected) - num_dropped
        assert (np.diff(ids) > 0).all()
        assert num_dropped or np.array_equal(ids, expected)
    assert batches.stats().prefetched_bytes == 0
    assert feed.memory.live == 0
    return feed, reader


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(case=cases())
async def test_bytes_held_are_at_most_the_limit_and_a_block_and_the_batch_in_use(case: Case) -> None:
    with without_gc():
        feed, reader = await read_all(case)
    for sample in reader.samples:
        in_use = feed.largest_bytes + sample.in_hand + sample.asked_for
        assert sample.live <= case.max_bytes + in_use
        if case.batch_size is not None:
            # The last whole batch of a block is a copy, and so is what comes after it.
            copies = 2 * case.batch_size * ROW_BYTES + PADDING_BYTES
            assert sample.live + sample.copied <= case.max_bytes + in_use + copies


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(case=cases())
async def test_prefetched_bytes_are_never_below_those_of_the_blocks_that_are_not_in_use(case: Case) -> None:
    with without_gc():
        feed, reader = await read_all(case)
    for sample in reader.samples:
        assert sample.live <= sample.counted + sample.in_hand + sample.asked_for
        assert sample.counted <= case.max_bytes + feed.largest_bytes


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(case=cases().filter(lambda case: case.batch_size is not None), buffer_rows=st.integers(1, 20_000))
async def test_bytes_held_are_at_most_a_shuffle_buffer_more_where_rows_are_shuffled(
    case: Case, buffer_rows: int
) -> None:
    assert case.batch_size is not None
    with without_gc():
        feed, reader = await read_all(case, local_shuffle_buffer_size=buffer_rows, local_shuffle_seed=case.seed)
    # The first fill may be a batch, which is more than a small buffer.
    buffer_bytes = max(2 * buffer_rows, buffer_rows + case.batch_size) * ROW_BYTES
    for sample in reader.samples:
        # The batches themselves are copies, all of them.
        assert sample.live <= case.max_bytes + feed.largest_bytes + buffer_bytes
        assert sample.live <= sample.counted + buffer_bytes
        # What is shuffled is copied: to be combined, to leave, and to stay.
        assert sample.live + sample.copied <= case.max_bytes + feed.largest_bytes + 4 * buffer_bytes + PADDING_BYTES


def copy_in_thread(batch: Any) -> Any:
    return {"id": copied_ids(batch)}


async def copy_on_the_loop(batch: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return copy_in_thread(batch)


def case_of(batch_size: int | None) -> Case:
    """Many blocks of 1,000 rows, and a limit of as many."""
    options = {"batch_format": "pyarrow", "drop_last": False}
    return Case([1000] * 30, [(0, 1000)] * 30, batch_size, 1000, options, 0, 9, 0)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(case=cases(), workers=st.integers(1, 4), is_async=st.booleans())
@example(case=case_of(3000), workers=4, is_async=True)
@example(case=case_of(None), workers=4, is_async=True)
async def test_bytes_held_are_at_most_the_limit_and_a_block_and_a_batch_where_batches_are_collated(
    case: Case, workers: int, is_async: bool
) -> None:
    collate = copy_on_the_loop if is_async else copy_in_thread
    with without_gc():
        feed, reader = await read_all(case, collate_fn=collate, collate_workers=workers)
    # What the user holds is new; but one batch may be about to be collated.
    batch_bytes = feed.largest_bytes if case.batch_size is None else case.batch_size * ROW_BYTES
    for sample in reader.samples:
        assert sample.live <= case.max_bytes + feed.largest_bytes + batch_bytes
        assert sample.live <= sample.counted + batch_bytes


@BOTH_KINDS
async def test_batches_that_wait_to_be_taken_hold_no_more_than_the_limit(is_async: bool) -> None:
    feed = FakeFeed([1000] * 20)
    collate: Any = copy_on_the_loop if is_async else copy_in_thread
    async with iterate(
        feed, batch_size=None, collate_fn=collate, collate_workers=3, max_prefetch_bytes=2500 * ROW_BYTES
    ) as batches:
        await anext(batches)
        await standstill(feed)
        assert feed.memory.live <= 3500 * ROW_BYTES
        assert batches.stats().prefetched_bytes >= feed.memory.live


@pytest.mark.parametrize(
    ("batch_size", "rows"), [(None, 1000), (None, 10), (10, 10), (400, 1000), (900, 1000), (2500, 1000)]
)
async def test_calls_that_go_on_hold_no_more_than_the_limit_and_the_block_in_use(
    batch_size: int | None, rows: int
) -> None:
    feed = FakeFeed([1000] * 20, ranges=[(0, rows)] * 20)
    max_bytes = 1500 * ROW_BYTES
    release = anyio.Event()

    async def collate(batch: Any) -> int:
        await release.wait()
        return len(batch["id"])

    batches = iterate(
        feed,
        batch_size=batch_size,
        batch_format="pyarrow",
        collate_fn=collate,
        collate_workers=4,
        max_prefetch_bytes=max_bytes,
    )
    waiting = asyncio.ensure_future(anext(batches))
    await settle()
    live = feed.memory.live
    counted = batches.stats().prefetched_bytes
    release.set()
    assert sum([await waiting, *await drain(batches)]) == 20 * rows
    # One more batch may be about to be collated.
    batch_bytes = (batch_size or 1000) * ROW_BYTES
    assert live <= max_bytes + feed.largest_bytes + batch_bytes
    assert live <= counted + batch_bytes


LONG_ROWS = 100_000


class LongToCut(FakeFeed):
    """Its blocks have many strings, which polars takes long to convert; only the memory of the ids is watched."""

    texts = pa.array([f"a longer text with the number {one}" for one in range(LONG_ROWS)])

    async def fetch(self, bundle: RefBundle) -> pa.Table:
        block = await super().fetch(bundle)
        for name in "abcd":
            block = block.append_column(name, self.texts)
        return block


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, LONG_ROWS, LONG_ROWS * 5 // 2])
async def test_batches_cut_ahead_for_a_user_that_holds_the_loop_are_within_the_limit(batch_size: int | None) -> None:
    feed = LongToCut([LONG_ROWS] * 16)
    max_bytes = LONG_ROWS * ROW_BYTES
    peak = num_rows = 0
    async for batch in iterate(
        feed, batch_size=batch_size, batch_format="polars", max_prefetch_bytes=max_bytes, prefetch_batches=6
    ):
        num_rows += len(batch["id"])
        if num_rows <= 5 * LONG_ROWS:
            time.sleep(0.003)  # noqa: ASYNC251 - the hold.
        elif num_rows <= 10 * LONG_ROWS:
            await standstill(feed)
        peak = max(peak, feed.memory.live)
    assert num_rows == 16 * LONG_ROWS
    # One batch is in use, and a second one may be about to be, however large it is.
    assert peak <= max_bytes + feed.largest_bytes + 2 * (batch_size or LONG_ROWS) * ROW_BYTES


@pytest.mark.parametrize("options", [{}, {"collate_fn": copy_in_thread}, {"collate_fn": copy_on_the_loop}])
@pytest.mark.parametrize("end", ["closed", "dropped", "over", "fetch failed"])
async def test_nothing_is_held_after_the_end_but_the_batch_in_hand(end: str, options: dict[str, Any]) -> None:
    feed = FakeFeed([1000, 10, 3000, 500] * 5)
    if end == "fetch failed":
        feed.errors[12] = OSError("no such block")
    batches: BatchIterator | None = iterate(feed, batch_size=200, batch_format="pyarrow", **options)
    assert batches is not None
    batch: Any = None
    with without_gc():
        with suppress(OSError):
            async for batch in batches:
                if end in ("closed", "dropped") and int(copied_ids(batch)[0]) >= 5000:
                    break
        if end == "dropped":
            batches = None
            await until(lambda: feed.memory.live <= 3000 * ROW_BYTES, "blocks are held", within_s=1)
        else:
            await batches.aclose()
            assert feed.memory.live <= 3000 * ROW_BYTES
            assert batches.stats().prefetched_bytes == 0
        assert len(batch["id"]) in (200, 150)
        del batch
        if end == "dropped":
            await until(lambda: feed.memory.live == 0, "blocks are held", within_s=1)
        assert feed.memory.live == 0


@BOTH_PARTS
async def test_batch_whose_call_is_cancelled_is_let_go_of(part: str) -> None:
    feed = FakeFeed([10] * 20)

    async def hold(batch: Any) -> None:
        if batch["id"][0]:
            await anyio.sleep_forever()

    with without_gc():
        batches = iterate(feed, batch_size=10, **at(part, hold))
        await anext(batches)
        await settle()
        await batches.aclose()
        assert feed.memory.live == 0


class GatedFeed(FakeFeed):
    """Its bundles come when the test says so."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(sizes)
        self.bundle_gate = anyio.Event()

    async def next_bundle(self, prefetched_bytes: int) -> RefBundle | None:
        bundle = await super().next_bundle(prefetched_bytes)
        await self.bundle_gate.wait()
        return bundle


@pytest.mark.parametrize("options", [{}, {"collate_fn": copy_on_the_loop}], ids=["direct", "collated"])
async def test_bundle_that_comes_as_the_pass_is_closed_is_not_held(options: dict[str, Any]) -> None:
    feed = GatedFeed([10] * 5)
    batches = iterate(feed, batch_size=10, **options)
    waiting = asyncio.ensure_future(anext(batches, None))
    await settle()
    assert len(feed.told) == 1
    # The bundle and the end come in one turn of the loop.
    feed.bundle_gate.set()
    await batches.aclose()
    assert await waiting is None
    assert batches.stats().prefetched_bytes == 0
    assert feed.memory.born == 0


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


def cancel_later(scope: anyio.CancelScope, turns: int) -> None:
    """Cancel a scope after so many turns of the loop."""
    if turns:
        asyncio.get_running_loop().call_soon(cancel_later, scope, turns - 1)
    else:
        scope.cancel()


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
    with without_gc(), anyio.fail_after(10):
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
