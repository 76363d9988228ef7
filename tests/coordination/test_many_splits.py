"""Up to a thousand splits over twenty epochs in virtual time: consumers of all speeds, that leave early or are lost."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import anyio
import pytest
from anyio.streams.memory import MemoryObjectSendStream

from aiodata import SplitLostError, SplitOptions
from aiodata.bundle import RefBundle
from aiodata.coordination import Coordinator, Lease
from aiodata.coordination.epoch import EpochState
from aiodata.options import OnSplitLost
from aiodata.stats import RunStats
from tests.coordination.consumers import FakeRun, Tokens, serving, settled, virtual
from tests.coordination.epochs import bundle_of, ids_of

NUM_EPOCHS = 20


class Crowd:
    """Consumers whose fates are drawn by a seed; they note which rows they are done with.

    Attributes:
        done: How often each row was finished with.
        kept: Rows of those that left early.
        rows: Rows per split.
    """

    def __init__(
        self,
        mode: OnSplitLost,
        seed: int,
        *,
        num_splits: int = 100,
        equal: bool = False,
        leave: float = 0.0,
        die: float = 0.0,
    ) -> None:
        self.num_splits = num_splits
        self.random = random.Random(seed)
        self.mode = mode
        self.leave = leave
        self.die = die
        self.tokens = Tokens()
        self.sizes = [self.random.randint(1, 9) for _ in range(2 * num_splits)]
        self.coordinator = Coordinator(
            self.open_run,
            num_splits,
            options=SplitOptions(on_split_lost=mode),
            equal=equal,
            max_calls=2,
            new_token=self.tokens.new,
        )
        self.num_lost = 0
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.done = Counter[int]()
        self.rows = Counter[int]()
        self.num_left = self.num_told = 0

    async def open_run(self) -> FakeRun:
        return FakeRun(self.execute)

    async def execute(self, output: MemoryObjectSendStream[RefBundle]) -> None:
        first = 0
        async with output:
            for size in self.sizes:
                await output.send(bundle_of(range(first, first + size)))
                first += size

    def finish(self, split: int, rows: list[int]) -> None:
        self.done.update(rows)
        self.rows[split] += len(rows)

    async def consume(self, split: int) -> None:
        """Be a split's consumer, and its replacement where it dies."""
        pause_s = self.random.choice([0.1, 1, 1, 1, 7])
        while True:
            lease, token = await self.coordinator.join(split)
            await self.coordinator.start_epoch(lease)
            try:
                if await self.live(lease, pause_s):
                    return
            except SplitLostError:
                self.num_told += 1
                self.coordinator.notify_split_finished(lease)
                return
            self.num_lost += 1
            self.tokens.release(token)
            if self.mode != "wait":
                return

    async def live(self, lease: Lease, pause_s: float) -> bool:
        """Take rows to the end, or leave before; return False if the consumer died."""
        acked, sequence = 0, 0
        while True:
            delivery = await self.coordinator.next_bundles(lease, sequence, max_bundles=4, acked_rows=acked)
            sequence += 1
            if delivery.is_end:
                break
            rows = ids_of(*delivery.bundles)
            await anyio.sleep(pause_s * self.random.random())
            fate = self.random.random()
            if fate < self.die:
                # It was done with some of the rows, and had said so.
                num_done = self.random.randint(0, len(rows))
                self.coordinator.acknowledge(lease, acked + num_done)
                self.finish(lease.split_index, rows[:num_done])
                return False
            self.finish(lease.split_index, rows)
            acked += len(rows)
            if fate > 1 - self.leave:
                self.num_left += 1
                break
        self.coordinator.notify_split_finished(lease)
        return True

    async def run_epoch(self) -> None:
        self.begin_epoch()
        async with anyio.create_task_group() as group:
            for split in range(self.num_splits):
                group.start_soon(self.consume, split)
        # Those that were lost are noticed by now.
        await anyio.sleep(1)
        await settled()


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "equal", "num_splits"), [(1, False, 1000), (2, True, 100), (3, True, 7)])
@virtual
async def test_every_row_comes_once_in_every_epoch(seed: int, equal: bool, num_splits: int) -> None:
    crowd = Crowd("wait", seed, num_splits=num_splits, equal=equal)
    num_rows = sum(crowd.sizes)
    async with serving(crowd.coordinator):
        for epoch in range(NUM_EPOCHS):
            await crowd.run_epoch()
            stats = crowd.coordinator.stats(RunStats())
            assert (stats.epoch, stats.phase) == (epoch, "ended")
            assert set(crowd.done.values()) == {1}
            assert stats.dropped_rows == (num_rows % num_splits if equal else 0)
            assert crowd.done.total() == num_rows - stats.dropped_rows
            if equal:
                assert set(crowd.rows.values()) == {num_rows // num_splits}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4, 5])
@virtual
async def test_every_row_comes_once_though_consumers_leave_and_are_replaced(seed: int) -> None:
    crowd = Crowd("wait", seed, leave=0.03, die=0.05)
    async with serving(crowd.coordinator):
        for epoch in range(NUM_EPOCHS):
            await crowd.run_epoch()
            # Who leaves early had taken whole deliveries, so that no row is left out.
            assert crowd.done == Counter(range(sum(crowd.sizes)))
            assert crowd.coordinator.stats(RunStats()).epoch == epoch
    assert crowd.num_lost > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [6, 7])
@virtual
async def test_every_row_comes_once_though_consumers_are_lost_for_the_epoch(seed: int) -> None:
    crowd = Crowd("redistribute", seed, die=0.05)
    async with serving(crowd.coordinator):
        for epoch in range(NUM_EPOCHS):
            await crowd.run_epoch()
            assert set(crowd.done.values()) == {1}
            # A death after somebody was told the end leaves what nobody is there for.
            assert crowd.done.total() >= 0.99 * sum(crowd.sizes)
            assert crowd.coordinator.stats(RunStats()).epoch == epoch
    assert crowd.num_lost > 0


@pytest.mark.slow
@virtual
async def test_all_are_told_of_a_loss_and_the_next_epoch_starts() -> None:
    crowd = Crowd("raise", 8, die=0.005)
    told = 0
    async with serving(crowd.coordinator):
        for epoch in range(NUM_EPOCHS):
            await crowd.run_epoch()
            assert set(crowd.done.values()) <= {1}
            assert bool(crowd.num_told) <= bool(crowd.num_lost)
            told += crowd.num_told
            assert crowd.coordinator.stats(RunStats()).epoch == epoch
    assert told > 0


def seconds_per_bundle(num_splits: int, **options: Any) -> float:
    """Processor time of an epoch in which all ask at once, per bundle."""
    state = EpochState(0, num_splits, **options)
    for split in range(num_splits):
        state.arrive(Lease(0, split, split))
    state.start()
    sequences = [0] * num_splits
    num_bundles = left = 12 * max(num_splits, 200)
    block = bundle_of(range(10))
    asking = list(range(num_splits))
    started = time.process_time()
    while state.live:
        for split in asking:
            state.ask(split, sequences[split])
        asking = state.assign() if asking else []
        if not asking and left:
            state.offer(block)
            left -= 1
            asking = state.assign()
        elif not asking:
            state.exhaust()
            asking = state.assign()
        for split in [split for split in asking if state.has_ended(split)]:
            state.finish(split)
            asking.remove(split)
        for split in asking:
            sequences[split] += 1
    return (time.process_time() - started) / num_bundles


@pytest.mark.slow
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("mode", ["wait", "redistribute"])
def test_cost_of_a_bundle_does_not_grow_with_the_splits(mode: OnSplitLost, equal: bool) -> None:
    few = min(seconds_per_bundle(8, on_split_lost=mode, equal=equal) for _ in range(3))
    many = min(seconds_per_bundle(1000, on_split_lost=mode, equal=equal) for _ in range(2))
    # With loops over all splits it was 6 to 11 times at 100 already.
    assert many < 8 * few
