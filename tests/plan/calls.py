"""Async functions for tests, with a record of their calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

from hypothesis import strategies as st

from aiodata.plan.transforms import Control, MapBatches
from aiodata.plan.work import Cuts, TaskEnd, Work, run_work
from tests.plan.running import EAGER, Batch, Output, counted


class Calls:
    """An async function whose calls take as many turns of the loop as they are told, with a record of them."""

    def __init__(self, turns: list[int] | None = None) -> None:
        self.turns = turns or [0]
        self.started: list[int] = []
        self.in_flight: set[int] = set()
        self.peak = 0
        self.loops: set[asyncio.AbstractEventLoop] = set()

    async def __call__(self, batch: Batch) -> Batch:
        first = int(batch["id"][0])
        with self.noted(first):
            for _ in range(self.turns[first % len(self.turns)]):
                await asyncio.sleep(0)
        return batch

    async def stream(self, batch: Batch) -> AsyncIterator[Batch]:
        first = int(batch["id"][0])
        with self.noted(first):
            for one in batch["id"]:
                for _ in range(self.turns[int(one) % len(self.turns)]):
                    await asyncio.sleep(0)
                yield {"id": [one]}

    async def hang(self, batch: Batch) -> Batch:
        """Return the first batch; wait for ever with others."""
        first = int(batch["id"][0])
        with self.noted(first):
            if first:
                await asyncio.Event().wait()
        return batch

    def noted(self, first: int) -> Noted:
        self.loops.add(asyncio.get_running_loop())
        return Noted(self, first)


class Noted:
    """Notes that a call is in flight; it ends when the call does, however that is."""

    def __init__(self, calls: Calls, first: int) -> None:
        self.calls, self.first = calls, first

    def __enter__(self) -> None:
        self.calls.started.append(self.first)
        self.calls.in_flight.add(self.first)
        self.calls.peak = max(self.calls.peak, len(self.calls.in_flight))

    def __exit__(self, *exc_info: object) -> None:
        self.calls.in_flight.remove(self.first)


def mapped(fn: Callable[..., Any], batch_size: int | None = 1, concurrency: int = 4) -> MapBatches:
    return MapBatches(fn, batch_size, "numpy", concurrency=concurrency)


def start(
    fn: Callable[..., Any], count: int, *, control: Control | None = None, concurrency: int = 4
) -> Generator[Output, None, TaskEnd]:
    """Steps of a work of `count` calls, a block per result."""
    return run_work(Work((counted(count),), EAGER), [mapped(fn, 1, concurrency)], (), control or Control())


def all_cuts() -> st.SearchStrategy[Cuts]:
    small = st.integers(1, 8)
    return st.builds(Cuts, st.integers(1, 99), st.integers(1, 99), st.just(2), small, small, st.integers(1, 999), small)
