"""A supply is told how many rows the user is done with: never more than is true, and not much less."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import anyio
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiodata import BatchIterator, ExecutionOptions
from aiodata.batching import consumer, pipeline
from aiodata.batching.consumer import Consumer
from aiodata.batching.feed import BundleSource
from aiodata.batching.finished import FinishedRows
from aiodata.batching.pipeline import BundlePipeline
from aiodata.bundle import RefBundle
from aiodata.rows import RowIterator
from tests.batching.feeds import ROW_BYTES, FakeFeed, iterate, settle, some_turns
from tests.conftest import PATIENCE_S


class Supply(FakeFeed):
    """Notes with every number it is told what a user was done with at the time."""

    def __init__(self, sizes: Sequence[int], ranges: Sequence[tuple[int, int]] | None = None) -> None:
        super().__init__(sizes, ranges=ranges)
        self.user = User(self)
        self.is_open = False

    async def run(self, consume: Callable[[BundleSource], Awaitable[None]]) -> None:
        self.is_open = True
        try:
            await super().run(consume)
        finally:
            self.is_open = False

    def note_finished(self, num_rows: int) -> None:
        super().note_finished(num_rows)
        self.user.compare(num_rows)


class User:
    """Knows exactly which rows it is done with: those of every batch before the one in its hands."""

    def __init__(self, feed: FakeFeed) -> None:
        self._feed = feed
        self._positions = {one: position for position, one in enumerate(feed.ids)}
        self._is_done = np.zeros(len(self._positions) + 1, bool)
        self._in_hand: list[int] = []
        # Rows that are finished, from the first on: now, and before the last batch was asked for.
        self.prefix = self.prefix_before = 0
        # The same after so many rows: how far the user is, for each batch.
        self.progress: list[tuple[int, int]] = [(0, 0)]
        self.comparisons: list[Comparison] = []

    @property
    def num_rows(self) -> int:
        """Rows that it has been given."""
        return self.progress[-1][0]

    def compare(self, num_rows: int) -> None:
        self.comparisons.append(Comparison(num_rows, self.prefix_before, self.prefix))

    def ask(self) -> None:
        """Be done with the batch in hand."""
        self.prefix_before = self.prefix
        self._is_done[self._in_hand] = True
        self._in_hand = []
        while self._is_done[self.prefix]:
            self.prefix += 1

    def accept(self, ids: Any) -> None:
        """Take the next batch."""
        self._in_hand = [self._positions[int(one)] for one in ids]
        self.progress.append((self.num_rows + len(ids), self.prefix))

    def lag(self) -> int:
        """How many rows ago the last number it told was the truth."""
        told = self._feed.noted[-1] if self._feed.noted else 0
        return self.num_rows - next(rows for rows, prefix in reversed(self.progress) if prefix <= told)

    async def read(self, batches: BatchIterator, ids_of: Callable[[Any], Any], chance: random.Random) -> int:
        """Take all batches, at random speed; return how far behind the truth the supply was at most, in rows."""
        lag = 0
        is_hasty = chance.random() < 0.5
        self.ask()
        async for batch in batches:
            self.accept(ids_of(batch))
            lag = max(lag, self.lag())
            if not is_hasty:
                await some_turns(chance, 4)
            self.ask()
        return lag


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the supply was told, and how many rows were finished before the last batch was asked for, and after."""

    told: int
    before: int
    now: int


@dataclass(frozen=True, slots=True)
class Case:
    """Blocks, and how batches are made of them."""

    sizes: Sequence[int]
    options: dict[str, Any]
    ranges: Sequence[tuple[int, int]] | None = None
    stages: list[str] = field(default_factory=list)
    is_ordered: bool = True
    is_cut_ahead: bool = False
    seed: int = 0

    @property
    def has_late_batches(self) -> bool:
        """Whether a batch may come after those that follow it."""
        return not self.is_ordered and "collate_fn" in self.stages

    def iterate(self, feed: FakeFeed, chance: random.Random) -> BatchIterator:
        async def dally(batch: Any) -> Any:
            await some_turns(chance, 12)
            return batch

        functions: dict[str, Any] = dict.fromkeys(self.stages, dally)
        workers = {"collate_workers": 3} if "collate_fn" in self.stages else {}
        return iterate(feed, is_ordered=self.is_ordered, **self.options, **functions, **workers)

    def max_lag(self) -> int:
        """The bound: a block, the batch in hand, the shuffle buffer, and the batches in flight."""
        batch = self.options["batch_size"] or max(self.sizes)
        buffer = self.options.get("local_shuffle_buffer_size") or 0
        in_flight = 6 + 1 if self.stages else self.options["prefetch_batches"] if self.is_cut_ahead else 0
        # A remainder of less than a batch waits for the next block.
        return max(self.sizes) + 2 * batch + max(2 * buffer, buffer + batch) + (in_flight + 1) * batch


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12))
    ranges = None
    if draw(st.booleans()):
        ranges = [(min(cut), max(cut)) for cut in (draw(st.tuples(*[st.integers(0, size)] * 2)) for size in sizes)]
    size = draw(st.none() | st.integers(1, 12) | st.integers(1, 100))
    options: dict[str, Any] = {
        "batch_size": size,
        "batch_format": draw(st.sampled_from(["numpy", "pyarrow"])),
        "drop_last": draw(st.booleans()),
        "prefetch_batches": draw(st.integers(0, 4)),
        "max_prefetch_bytes": draw(st.none() | st.integers(1, 60 * ROW_BYTES)),
    }
    if size is not None and draw(st.booleans()):
        options["local_shuffle_buffer_size"] = draw(st.integers(1, 60))
        options["local_shuffle_seed"] = draw(st.integers(0, 1000))
    stages = draw(st.lists(st.sampled_from(["collate_fn", "finalize_fn"]), unique=True))
    return Case(sizes, options, ranges, stages, draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 2**32)))


@contextmanager
def cutting_ahead(case: Case) -> Iterator[None]:
    """Let batches be cut ahead from the first one on that follows another without a pause, where the case says so."""
    hold, cut = (-math.inf, -math.inf) if case.is_cut_ahead else (consumer._LONG_HOLD_S, pipeline._LONG_CUT_S)
    with patch.object(consumer, "_LONG_HOLD_S", hold), patch.object(pipeline, "_LONG_CUT_S", cut):
        yield


async def read(case: Case) -> tuple[Supply, int]:
    """Read a case to its end; return its supply, and how far that was behind the truth at most."""
    feed, chance = Supply(case.sizes, case.ranges), random.Random(case.seed)
    with anyio.fail_after(PATIENCE_S), cutting_ahead(case):
        async with feed.conducted(chance, 6):
            lag = await feed.user.read(case.iterate(feed, chance), lambda batch: np.asarray(batch["id"]), chance)
    num_rows = len(feed.ids)
    num_dropped = num_rows % (case.options["batch_size"] or 1) if case.options["drop_last"] else 0
    assert feed.user.num_rows == num_rows - num_dropped
    return feed, lag


SHUFFLED = {"batch_size": 7, "drop_last": False, "prefetch_batches": 2, "local_shuffle_buffer_size": 30}


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(case=cases())
@example(case=Case([25] * 12, SHUFFLED | {"local_shuffle_seed": 1}))
@example(case=Case([25] * 12, SHUFFLED | {"local_shuffle_seed": 1}, stages=["collate_fn"], is_ordered=False))
@example(case=Case([25] * 12, SHUFFLED | {"local_shuffle_seed": 1}, is_cut_ahead=True))
async def test_never_more_rows_are_acknowledged_than_the_user_is_done_with_and_the_number_only_grows(
    case: Case,
) -> None:
    feed, _ = await read(case)
    assert all(one.told <= one.now for one in feed.user.comparisons)
    assert feed.noted == sorted(feed.noted)
    # Before each bundle, the end included, and at each wait.
    assert len(feed.noted) >= len(case.sizes) + 1


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(case=cases())
@example(case=Case([25] * 12, SHUFFLED | {"local_shuffle_seed": 1}))
@example(case=Case([25] * 12, SHUFFLED | {"local_shuffle_seed": 1}, is_cut_ahead=True))
async def test_all_is_acknowledged_that_the_user_was_done_with_before_asking_for_the_last_batch(case: Case) -> None:
    feed, lag = await read(case)
    if case.has_late_batches and "local_shuffle_buffer_size" in case.options:
        # Here a late batch hides those after it, which may have the oldest rows.
        return
    assert all(one.told >= one.before for one in feed.user.comparisons)
    assert lag <= case.max_lag()


PLAIN = {"batch_size": 30, "drop_last": False, "prefetch_batches": 2}
ALL_KINDS = pytest.mark.parametrize(
    "case",
    [
        Case([100] * 200, PLAIN),
        Case([100] * 200, PLAIN | {"batch_size": None}),
        Case([100] * 200, PLAIN | {"max_prefetch_bytes": 300 * ROW_BYTES}),
        Case([100] * 200, PLAIN, is_cut_ahead=True),
        Case([100] * 200, PLAIN, stages=["collate_fn"]),
        Case([100] * 200, PLAIN, stages=["collate_fn"], is_ordered=False),
        Case([100] * 200, PLAIN, stages=["collate_fn", "finalize_fn"], is_ordered=False),
        Case([100] * 200, PLAIN, stages=["finalize_fn"]),
    ],
    ids=["plain", "blocks", "strict", "ahead", "collate", "collate_unordered", "both_unordered", "finalize"],
)


@ALL_KINDS
async def test_in_a_long_pass_acknowledging_is_behind_the_user_by_a_bounded_number_of_rows(case: Case) -> None:
    feed, lag = await read(case)
    assert lag <= case.max_lag()
    # The end of the data is known by waiting for it, with nothing in hand.
    assert feed.noted[-1] == len(feed.ids) == 20_000


@pytest.mark.parametrize("stages", [[], ["collate_fn"]], ids=["direct", "collate"])
async def test_a_long_local_shuffle_goes_on_acknowledging_as_old_rows_leave_the_buffer(stages: list[str]) -> None:
    buffer_rows = 300
    shuffle = {"batch_size": 50, "local_shuffle_buffer_size": buffer_rows, "local_shuffle_seed": 0}
    case = Case([100] * 600, PLAIN | shuffle, stages=stages)
    feed, lag = await read(case)
    assert lag <= case.max_lag()
    # Half of the rows leave at each shuffle, so the oldest of them is about as many shuffles old as 300 can be halved.
    oldest = buffer_rows * (math.log2(buffer_rows) + 10)
    assert max(rows - prefix for rows, prefix in feed.user.progress) <= oldest
    assert feed.noted[-1] >= 60_000 - 50


class Objects(Supply):
    """Its rows have strings too, which are converted to Python objects a stretch at a time."""

    async def fetch(self, bundle: RefBundle) -> pa.Table:
        block = await super().fetch(bundle)
        return block.append_column("text", block["id"].cast(pa.string()))


@pytest.mark.parametrize("batch_size", [None, 70, 4000])
async def test_rows_of_object_columns_are_acknowledged_when_their_batch_is_done_with(batch_size: int | None) -> None:
    feed = Objects([3000] * 8)
    lag = await feed.user.read(
        iterate(feed, batch_size=batch_size), lambda batch: batch["text"].astype(int), random.Random(1)
    )
    assert all(one.before <= one.told <= one.now for one in feed.user.comparisons)
    assert lag <= 3000 + 2 * (batch_size or 3000)
    assert feed.noted[-1] == 24_000


async def test_a_bundle_is_acknowledged_when_the_next_one_is_asked_for() -> None:
    feed = Supply([3, 0, 5, 2] * 6, [(1, 3), (0, 0), (0, 5), (1, 2)] * 6)
    bundles = BatchIterator(Consumer(feed, BundlePipeline(), ExecutionOptions()))

    def ids_of(bundle: RefBundle) -> range:
        start = feed.starts[bundle.ref]
        return range(start + bundle.start, start + bundle.stop)

    await feed.user.read(bundles, ids_of, random.Random(2))
    assert all(one.before <= one.told <= one.now for one in feed.user.comparisons)
    assert feed.noted[0] == 0
    assert feed.noted[-1] == len(feed.ids) == 48


async def test_rows_are_acknowledged_batch_by_batch_as_they_are_used_up() -> None:
    feed = Supply([40] * 10)
    rows = RowIterator(iterate(feed, batch_size=15, batch_format="pyarrow"))
    feed.user.ask()
    async for row in rows:
        feed.user.accept([row["id"]])
        assert feed.user.lag() <= 40 + 2 * 15
        feed.user.ask()
    assert all(one.told <= one.now for one in feed.user.comparisons)
    assert feed.noted[-1] == 400


class Stalled(Supply):
    """Its fourth block does not come."""

    async def next_bundle(self, prefetched_bytes: int) -> RefBundle | None:
        if len(self.told) == 3:
            await anyio.sleep_forever()
        return await super().next_bundle(prefetched_bytes)


ALL_STAGES = pytest.mark.parametrize(
    "stages", [[], ["collate_fn"], ["finalize_fn"]], ids=["direct", "collate", "finalize"]
)


@ALL_STAGES
@pytest.mark.parametrize("batch_size", [None, 10])
async def test_a_user_who_waits_has_acknowledged_all_that_it_was_given(
    stages: list[str], batch_size: int | None
) -> None:
    feed = Stalled([10] * 4)
    case = Case(feed.sizes, {"batch_size": batch_size, "batch_format": "pyarrow"}, stages=stages)
    async with case.iterate(feed, random.Random(3)) as batches, anyio.create_task_group() as group:
        for _ in range(3):
            await anext(batches)
        await settle()
        assert feed.noted[-1] <= 20
        group.start_soon(anext, batches)
        await settle()
        assert feed.noted[-1] == 30
        group.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("stages", "is_cut_ahead"),
    [([], False), ([], True), (["collate_fn"], False), (["finalize_fn"], False)],
    ids=["direct", "ahead", "collate", "finalize"],
)
async def test_the_supply_goes_on_until_the_user_is_done_with_the_last_batch(
    stages: list[str], is_cut_ahead: bool
) -> None:
    feed = Supply([10] * 4)
    case = Case(feed.sizes, {"batch_size": 10}, stages=stages, is_cut_ahead=is_cut_ahead)
    with cutting_ahead(case):
        async with case.iterate(feed, random.Random(4)) as batches:
            for _ in range(4):
                await anext(batches)
            await settle()
            assert feed.is_open
            with pytest.raises(StopAsyncIteration):
                await anext(batches)
            assert not feed.is_open
    assert feed.noted[-1] == 40


async def test_a_batch_in_hand_at_the_end_of_a_pass_that_is_left_is_not_acknowledged() -> None:
    feed = Supply([10] * 20)
    async with iterate(feed, batch_size=10) as batches:
        for _ in range(8):
            await anext(batches)
        await settle()
    await settle()
    assert feed.noted[-1] <= 70


async def test_the_supply_is_told_nothing_after_its_end() -> None:
    feed = Supply([10] * 20)
    batches = iterate(feed, batch_size=10)
    await anext(batches)
    await batches.aclose()
    num_told = len(feed.noted)
    with pytest.raises(StopAsyncIteration):
        await anext(batches)
    await settle()
    assert len(feed.noted) == num_told


@given(sizes=st.lists(st.integers(1, 9), max_size=20), chance=st.randoms(use_true_random=False))
def test_only_rows_before_the_first_batch_that_is_not_finished_count(sizes: list[int], chance: random.Random) -> None:
    stops = np.cumsum([0, *sizes]).tolist()
    batches = list(pairwise(stops))
    chance.shuffle(batches)
    finished = FinishedRows()
    for number, (start, stop) in enumerate(batches):
        finished.hand_over(start, stop)
        assert finished.rows == min(first for first, _ in batches[number:])
        if chance.random() < 0.5:
            finished.ask()
            assert finished.rows == min([first for first, _ in batches[number + 1 :]], default=sum(sizes))
