"""Hand out bundles to consumers in other processes: 1, 2 or 8 Ray actors, or 1,000 simulated ones.

A thousand blocks of a KiB lie in the object store. In each epoch every consumer arrives, takes what its split is
given as fast as it can, and notes when. The first epoch, in which processes start, is not counted; of the five
that follow, medians are. All figures are of whole epochs: calls, the coordinator's own work and the consumers'.

- bundle_us: from the last arrival to the end of the last consumer, by bundle. Nothing fetches the blocks.
- barrier_ms: from the last arrival to the first bundle that any consumer has: the barrier, and the start of an
  execution.
- first_batch_ms: from the last arrival to the first batch of the last consumer to have one, in an epoch of its own,
  with 20 blocks for each consumer, which are fetched.
- coordinator_us: processor time of the coordinator's process by bundle, the execution behind it included.
- missing_percent: what the consumer with the fewest bundles has less than its equal part; all are equally fast.

The simulated consumers are tasks in one process with the coordinator's class, each bundle a call of its own; what
is left is the processor time of the coordinator and of the consumers' tasks. Ray Data has no bundles to hand out
that are not fetched: its consumers iterate over whole blocks.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import event_loop
from benchmarks.model import Contender, Metric, Scenario, at_most
from benchmarks.sources import check_rows, quiet_ray_data

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    import aiodata
    from aiodata.bundle import RefBundle

_NUM_BLOCKS = 1_000
_NUM_FETCHED_BLOCKS = 20
_BLOCK_ROWS = 128
_NUM_EPOCHS = 5
_NUM_SIMULATED = 1_000
_TICKS_PER_S = 100
_US_PER_S = 1e6
_MS_PER_S = 1e3

# What a consumer notes in an epoch: when it arrived, had its first item and was done, and items and rows.
Noted = tuple[float, float, float, int, int]


class _Consumer:
    """One consumer, in a process of its own."""

    async def bundles(self, split: aiodata.SplitIterator) -> Noted:
        return await _note(split.aiter_bundles())

    async def batches(self, split: aiodata.SplitIterator) -> Noted:
        return await _note(split.aiter_batches(batch_size=None, batch_format="pyarrow"))

    def blocks(self, split: Any) -> Noted:
        """Iterate over a split of Ray Data."""
        quiet_ray_data()
        arrived, first, num_items, num_rows = time.time(), 0.0, 0, 0
        for block in split.iter_batches(batch_size=None, batch_format="pyarrow"):
            first = first or time.time()
            num_items, num_rows = num_items + 1, num_rows + block.num_rows
        return arrived, first, time.time(), num_items, num_rows


async def _note(items: aiodata.Batches) -> Noted:
    arrived, first, num_items, num_rows = time.time(), 0.0, 0, 0
    async for item in items:
        first = first or time.time()
        num_items, num_rows = num_items + 1, num_rows + item.num_rows
    return arrived, first, time.time(), num_items, num_rows


def _figures(epochs: Sequence[Sequence[Noted]], warm: Sequence[Noted], coordinator_s: float) -> dict[str, float]:
    """Make figures of what the consumers noted: in each epoch, and in one in which blocks are fetched."""

    def median(figure: Any) -> float:
        value: float = statistics.median(map(figure, epochs))
        return value

    def last_arrival(noted: Sequence[Noted]) -> float:
        return max(one[0] for one in noted)

    bundles = sum(one[3] for one in epochs[0])
    return {
        "bundle_us": median(lambda noted: max(one[2] for one in noted) - last_arrival(noted)) / bundles * _US_PER_S,
        "barrier_ms": median(lambda noted: min(one[1] for one in noted if one[1]) - last_arrival(noted)) * _MS_PER_S,
        "first_batch_ms": (max(one[1] for one in warm) - last_arrival(warm)) * _MS_PER_S,
        "coordinator_us": coordinator_s / len(epochs) / bundles * _US_PER_S,
        "missing_percent": median(lambda noted: 100 - 100 * min(one[3] for one in noted) * len(noted) / bundles),
    }


async def _aiodata(num_consumers: int) -> Mapping[str, float]:
    import ray

    import aiodata

    consumers = [ray.remote(num_cpus=0)(_Consumer).remote() for _ in range(num_consumers)]
    num_rows = _NUM_BLOCKS * _BLOCK_ROWS
    stored = await aiodata.range(num_rows, num_blocks=_NUM_BLOCKS).with_options(runtime="ray").materialize()
    splits = stored.streaming_split(num_consumers)

    async def epoch(method: str, splits: Sequence[aiodata.SplitIterator]) -> list[Noted]:
        calls = [getattr(one, method).remote(split) for one, split in zip(consumers, splits, strict=True)]
        return list(await asyncio.gather(*calls))

    await epoch("bundles", splits)
    before_s = _coordinator_cpu_s(b"Host")
    epochs = [await epoch("bundles", splits) for _ in range(_NUM_EPOCHS)]
    coordinator_s = _coordinator_cpu_s(b"Host") - before_s
    for noted in epochs:
        check_rows(sum(one[4] for one in noted), num_rows)
    # Of these, every consumer gets some.
    num_blocks = _NUM_FETCHED_BLOCKS * num_consumers
    few = aiodata.range(num_blocks * _BLOCK_ROWS, num_blocks=num_blocks).with_options(runtime="ray")
    few_splits = few.streaming_split(num_consumers, equal=True)
    warm = [await epoch("batches", few_splits) for _ in range(2)][-1]
    return _figures(epochs, warm, coordinator_s)


def _on_ray(num_consumers: int) -> Mapping[str, float]:
    return event_loop.run(_aiodata(num_consumers))


def _coordinator_cpu_s(actor: bytes) -> float:
    """Return the processor time of the processes of an actor class on this machine, in seconds."""
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes()
            if title.startswith(b"ray::" + actor):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        except OSError:  # It has ended meanwhile.
            continue
    return ticks / _TICKS_PER_S


def _simulated() -> Mapping[str, float]:
    from aiodata.testing import VirtualTimeLoop

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(_simulate())


class _Bundles:
    """A run whose bundles are there already."""

    def __init__(self, bundles: Iterable[RefBundle]) -> None:
        self._left = iter(bundles)

    async def execute(self, consume: Callable[[_Bundles], Awaitable[None]]) -> None:
        await consume(self)

    async def __anext__(self) -> RefBundle:
        return self.next_nowait()

    def next_nowait(self) -> RefBundle:
        try:
            return next(self._left)
        except StopIteration:
            raise StopAsyncIteration from None


async def _simulate() -> Mapping[str, float]:
    import anyio
    import pyarrow as pa

    from aiodata.bundle import BlockMetadata, InlineBlock, RefBundle
    from aiodata.coordination import Coordinator

    table = pa.table({"id": [0]})
    bundle = RefBundle.whole(InlineBlock(table), BlockMetadata(1, 8, table.schema))
    num_bundles = 20 * _NUM_SIMULATED

    async def open_run() -> _Bundles:
        return _Bundles(itertools.repeat(bundle, num_bundles))

    async def consume(split: int, notes: list[Noted]) -> None:
        lease, _ = await coordinator.join(split)
        arrived = time.perf_counter()
        await coordinator.start_epoch(lease)
        first, num_items = time.perf_counter(), 0
        for sequence in itertools.count():
            delivery = await coordinator.next_bundles(lease, sequence, max_bundles=16, acked_rows=num_items)
            if delivery.is_end:
                break
            num_items += len(delivery.bundles)
        coordinator.notify_split_finished(lease)
        notes.append((arrived, first, time.perf_counter(), num_items, num_items))

    coordinator = Coordinator(open_run, _NUM_SIMULATED)
    epochs: list[list[Noted]] = []
    cpu_s = 0.0
    async with anyio.create_task_group() as serving:
        serving.start_soon(coordinator.serve)
        for number in range(1 + _NUM_EPOCHS):
            notes: list[Noted] = []
            started = time.process_time()
            async with anyio.create_task_group() as group:
                for split in range(_NUM_SIMULATED):
                    group.start_soon(consume, split, notes)
            check_rows(sum(one[4] for one in notes), num_bundles)
            if number:
                cpu_s += time.process_time() - started
                epochs.append(notes)
        serving.cancel_scope.cancel()
    return _figures(epochs, epochs[-1], cpu_s)


def _ray_data(num_consumers: int) -> Mapping[str, float]:
    import ray
    import ray.data

    quiet_ray_data()
    consumers = [ray.remote(num_cpus=0)(_Consumer).remote() for _ in range(num_consumers)]
    num_rows = _NUM_BLOCKS * _BLOCK_ROWS
    stored = ray.data.range(num_rows, override_num_blocks=_NUM_BLOCKS).materialize()
    splits = stored.streaming_split(num_consumers)

    def epoch() -> list[Noted]:
        calls = [one.blocks.remote(split) for one, split in zip(consumers, splits, strict=True)]
        notes: list[Noted] = ray.get(calls)
        return notes

    epoch()
    before_s = _coordinator_cpu_s(b"SplitCoordinator")
    epochs = [epoch() for _ in range(_NUM_EPOCHS)]
    coordinator_s = _coordinator_cpu_s(b"SplitCoordinator") - before_s
    for noted in epochs:
        check_rows(sum(one[4] for one in noted), num_rows)
    return _figures(epochs, epochs[-1], coordinator_s)


def _contender(num_consumers: int) -> Contender:
    summary = f"aiodata, {num_consumers} consumer{'s' if num_consumers > 1 else ''}"
    measure = partial(_on_ray, num_consumers)
    return Contender(
        f"aiodata_{num_consumers}", summary, ("aiodata", "ray"), measure, on_cluster=True, warms_itself=True
    )


def _ray_data_contender(num_consumers: int) -> Contender:
    summary = f"Ray Data, {num_consumers} consumers, blocks fetched"
    return Contender(
        f"ray_data_{num_consumers}",
        summary,
        ("ray", "pandas"),
        partial(_ray_data, num_consumers),
        on_cluster=True,
        warms_itself=True,
    )


SCENARIO = Scenario(
    name="splits",
    summary="one stream for consumers in other processes",
    timed="epochs over a thousand stored blocks of a KiB",
    notes=__doc__,
    metrics=(
        Metric("bundle_us", "us", "time of an epoch per bundle"),
        Metric("barrier_ms", "ms", "from the last arrival to the first bundle"),
        Metric("first_batch_ms", "ms", "from the last arrival until all have a batch"),
        Metric("coordinator_us", "us", "processor time of the coordinator's process per bundle"),
        Metric("missing_percent", "", "what the last one has less than its equal part, in percent"),
    ),
    baseline="ray_data_2",
    contenders=(
        *map(_contender, (1, 2, 8)),
        Contender("aiodata_simulated_1000", "aiodata, 1,000 simulated", ("aiodata",), _simulated, warms_itself=True),
        *map(_ray_data_contender, (2, 8)),
    ),
    aims=(
        at_most("aiodata_1", "bundle_us", 600),
        *(at_most(f"aiodata_{number}", "barrier_ms", 50) for number in (1, 2, 8)),
        *(at_most(f"aiodata_{number}", "first_batch_ms", 100) for number in (1, 2, 8)),
    ),
)
