"""Users' functions: some that tests hold and release, some that copy."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from aiodata.iterator import BatchIterator
from tests.batching.feeds import FakeFeed, do_nothing, drain, iterate, settle
from tests.conftest import PATIENCE_S, until

SIZE = 10

BOTH_KINDS = pytest.mark.parametrize("is_async", [False, True], ids=["thread", "loop"])
BOTH_ORDERS = pytest.mark.parametrize("is_ordered", [False, True], ids=["as_they_come", "in_order"])
BOTH_PARTS = pytest.mark.parametrize("part", ["collate_fn", "finalize_fn"])


class Calls:
    """A user's function with handles: it notes its calls, and waits, returns or raises what it is told to.

    A call is known by its batch's number; each batch is one block.
    """

    def __init__(self, *, is_async: bool = False, held: bool = False) -> None:
        self.begun: list[int] = []
        self.running: set[int] = set()
        self.peak_running = 0
        self.threads: set[int] = set()
        self.errors: dict[int, BaseException] = {}
        self.results: dict[int, Any] = {}
        self.on_error: Callable[[], object] = do_nothing
        self.function: Callable[[Any], Any] = self._call_on_loop if is_async else self._call_in_thread
        self._held = held
        self._thread_gates: dict[int, threading.Event] = {}
        self._loop_gates: dict[int, anyio.Event] = {}

    def release(self, *numbers: int) -> None:
        for number in numbers:
            self._thread_gates.setdefault(number, threading.Event()).set()
            self._loop_gates.setdefault(number, anyio.Event()).set()

    def release_all(self) -> None:
        self._held = False
        self.release(*self._thread_gates, *self._loop_gates)

    def _begin(self, batch: Any) -> int:
        number = int(batch["id"][0]) // SIZE
        self.begun.append(number)
        self.running.add(number)
        self.peak_running = max(self.peak_running, len(self.running))
        self.threads.add(threading.get_ident())
        return number

    def _end(self, number: int) -> Any:
        self.running.remove(number)
        if number in self.errors:
            self.on_error()
            raise self.errors[number]
        return self.results.get(number, number)

    def _call_in_thread(self, batch: Any) -> Any:
        number = self._begin(batch)
        if self._held:
            assert self._thread_gates.setdefault(number, threading.Event()).wait(2 * PATIENCE_S)
        return self._end(number)

    async def _call_on_loop(self, batch: Any) -> Any:
        number = self._begin(batch)
        if self._held:
            await self._loop_gates.setdefault(number, anyio.Event()).wait()
        return self._end(number)


def blocks(count: int) -> FakeFeed:
    return FakeFeed([SIZE] * count)


async def begun(calls: Calls, count: int) -> None:
    """Wait until so many calls have begun, and all that can happen then has happened."""
    await until(lambda: len(calls.begun) >= count, f"not {count} calls have begun")
    await settle()


async def rest_of(batches: BatchIterator, first: Awaitable[Any]) -> list[Any]:
    """All batches that are left, of which the first is being waited for."""
    return [await first, *await drain(batches)]


def collating(calls: Calls, feed: FakeFeed, *, workers: int = 1, is_ordered: bool = False) -> BatchIterator:
    return iterate(
        feed,
        is_ordered=is_ordered,
        batch_size=SIZE,
        collate_fn=calls.function,
        collate_workers=workers,
        grace_s=2 * PATIENCE_S,
    )


def copied_ids(batch: Any) -> np.ndarray[Any, Any]:
    # Arrow's columns do not copy even where numpy wants them to.
    return np.asarray(batch["id"]).copy()


def copy_in_thread(batch: Any) -> Any:
    return {"id": copied_ids(batch)}


async def copy_on_the_loop(batch: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return copy_in_thread(batch)
