"""What a consumer held is let go of at the end of a pass, whatever ends it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import anyio
import pytest

from aiodata import BatchIterator
from aiodata.bundle import RefBundle
from tests.batching.calls import BOTH_PARTS, copied_ids, copy_in_thread, copy_on_the_loop
from tests.batching.feeds import ROW_BYTES, FakeFeed, at, iterate, settle, without_gc
from tests.conftest import until


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
            await until(lambda: feed.memory.live <= 3000 * ROW_BYTES, "blocks are held")
        else:
            await batches.aclose()
            assert feed.memory.live <= 3000 * ROW_BYTES
            assert batches.stats().prefetched_bytes == 0
        assert len(batch["id"]) in (200, 150)
        del batch
        if end == "dropped":
            await until(lambda: feed.memory.live == 0, "blocks are held")
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
