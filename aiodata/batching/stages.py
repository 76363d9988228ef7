"""Stages behind the cutter, that run ahead of the consumer: collating batches, and finalizing them for a device."""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup

from aiodata.batching.cutter import Cutter, Item, Signal
from aiodata.batching.reorder import ReorderBuffer
from aiodata.concurrency import Wakeup, call_in_thread, cleared_frames, start
from aiodata.errors import TaskError, is_failure
from aiodata.plan.transforms import describe

# Calls a user's function with a batch, and returns the batch that comes of it.
CallWithItem = Callable[[Item], Awaitable[Item]]

# Returns the next batch, or `END`.
NextItem = Callable[[], Awaitable[Item | Signal]]

Fail = Callable[[TaskError], None]

# Batches that are collated, or wait after it, for each worker.
_IN_FLIGHT_PER_WORKER = 2


class Outlet:
    """Where a stage leaves its batches; one task at a time may wait for the next.

    Args:
        is_ordered: Whether batches leave in the order of their numbers, else in that of their arrival.
    """

    def __init__(self, *, is_ordered: bool) -> None:
        """Start empty."""
        self._ordered: ReorderBuffer[Item] | None = ReorderBuffer() if is_ordered else None
        self._arrived: deque[Item] = deque()
        self._news = Wakeup()
        self._is_ended = False
        self._is_closed = False
        # Set when a batch has been taken, or is asked for.
        self.demand = Wakeup()
        self.is_asked = False

    def __len__(self) -> int:
        """Batches that wait."""
        return len(self._arrived) + (0 if self._ordered is None else len(self._ordered))

    def put(self, item: Item) -> None:
        """Leave a batch."""
        if self._is_closed:
            return
        if self._ordered is None:
            self._arrived.append(item)
        else:
            self._ordered.put(item.number, item)
            while self._ordered.has_next:
                self._arrived.append(self._ordered.pop())
        self._news.set()

    def take(self) -> Item | Signal:
        """Return the next batch, or `PENDING`."""
        if not self._arrived:
            return Signal.PENDING
        self.is_asked = False
        self.demand.set()
        return self._arrived.popleft()

    async def next(self) -> Item | Signal:
        """Return the next batch, or `END`; cancelled, it takes nothing."""
        while (item := self.take()) is Signal.PENDING:
            if self._is_ended:
                return Signal.END
            self.is_asked = True
            self.demand.set()
            await self._news.wait()
        return item

    def end(self) -> None:
        """Say that nothing follows, for whatever reason."""
        self._is_ended = True
        self._news.set()

    def close(self) -> None:
        """Let go of what waits, and of what is still to come."""
        self._is_closed = True
        self._arrived.clear()
        if self._ordered is not None:
            self._ordered.clear()
        self.end()


class Stage(ABC):
    """Makes batches ahead of whoever takes them, each as soon as there is room for it.

    Args:
        next_item: Returns the next batch of those that the stage starts from, or `END`.
        fail: Told of the first batch that can not be made; that ends the stage, and all else.
        is_ordered: Whether batches leave in the order of their numbers.

    Attributes:
        take, next, end, close: Those of the outlet where the batches are left.
        is_complete: Whether it has made all its batches.
    """

    def __init__(self, next_item: NextItem, fail: Fail, *, is_ordered: bool) -> None:
        """Prepare."""
        self._next_item = next_item
        self._fail = fail
        self._outlet = Outlet(is_ordered=is_ordered)
        self.take, self.next = self._outlet.take, self._outlet.next
        self.end, self.close = self._outlet.end, self._outlet.close
        self.is_complete = False

    @abstractmethod
    async def run(self) -> None:
        """Make batches until there are no more."""

    @abstractmethod
    def _has_room(self) -> bool:
        """Whether another batch may be begun."""

    async def _begin_all(self, begin: Callable[[Item], Awaitable[None]]) -> bool:
        """Begin to make every batch; return False where that fails."""
        while True:
            while not self._has_room():
                await self._outlet.demand.wait()
            try:
                item = await self._next_item()
                if isinstance(item, Signal):
                    return True
                # Nothing here may keep the batch: its place is free as soon as the consumer has taken it.
                try:
                    await begin(item)
                finally:
                    del item  # Also where it is cancelled, whose traceback keeps this frame.
            except TaskError as error:
                self._fail(error)
                return False


class AheadStage(Stage):
    """Makes one batch at a time, and only so far ahead as there is room.

    A batch is not even begun before there is a place for it. So at any time there are at most `max_ahead` finished
    batches beside the one in the consumer's hands; with 0, a batch is made when it is asked for.

    Args:
        next_item: Returns the next batch, or `END`.
        call: Calls the user's function with a batch. None: batches are finished as they come.
        fail: Told of the first failure; it ends the stage, and all else.
        max_ahead: Finished batches that may wait.
    """

    def __init__(self, next_item: NextItem, call: CallWithItem | None, fail: Fail, *, max_ahead: int) -> None:
        """Prepare."""
        super().__init__(next_item, fail, is_ordered=False)
        self._max_ahead = max_ahead
        self._call = call

    async def run(self) -> None:
        """Make one batch after the other."""
        with cleared_frames():
            if await self._begin_all(self._make):
                self.is_complete = True
                self.end()

    async def _make(self, item: Item) -> None:
        try:
            self._outlet.put(item if self._call is None else await self._call(item))
        finally:
            del item  # A cancellation's traceback keeps this frame.

    def _has_room(self) -> bool:
        return len(self._outlet) < max(self._max_ahead, int(self._outlet.is_asked))


class CollateStage(Stage):
    """Calls the collate function for several batches at a time.

    Args:
        next_item: Returns the next batch, or `END`.
        call: Calls the user's function with a batch.
        fail: Told of the first call that fails; it ends the stage, and all else.
        workers: Calls at a time; twice as many batches are in flight at most, those that wait included.
        is_ordered: Whether a batch waits for those before it.
    """

    def __init__(self, next_item: NextItem, call: CallWithItem, fail: Fail, *, workers: int, is_ordered: bool) -> None:
        """Prepare."""
        super().__init__(next_item, fail, is_ordered=is_ordered)
        self._call = call
        self._workers = workers
        self._running = 0
        self._has_failed = False

    async def run(self) -> None:
        """Collate until there are no more batches."""
        async with anyio.create_task_group() as group:
            if not await self._begin_all(partial(self._start, group)):
                return
        self.is_complete = not group.cancel_scope.cancel_called
        self.end()

    async def _start(self, group: TaskGroup, item: Item) -> None:
        self._running += 1
        start(group, self._collate, item, name=f"collate batch {item.number}")

    async def _collate(self, item: Item) -> None:
        if self._has_failed:  # In this very turn of the loop, so that the cancellation is still on its way.
            return
        with cleared_frames():
            try:
                self._outlet.put(await self._call(item))
            except TaskError as error:
                self._has_failed = True
                self._fail(error)
            finally:
                del item  # A cancellation's traceback keeps this frame.
        self._running -= 1
        self._outlet.demand.set()

    def _has_room(self) -> bool:
        in_flight = self._running + len(self._outlet)
        return self._running < self._workers and in_flight < self._workers * _IN_FLIGHT_PER_WORKER


class Caller:
    """Calls a user's function with batches: on the loop if it is async, else in a worker thread.

    Args:
        name: The function's part, for error messages.
        function: The user's function.
        cutter: Knows where a batch's rows came from.
        grace_s: Seconds that a cancelled call in a thread is waited for.
    """

    def __init__(self, name: str, function: Callable[[Any], Any], cutter: Cutter, *, grace_s: float) -> None:
        """Prepare."""
        self._name = name
        self._function = function
        self._cutter = cutter
        self._grace_s = grace_s
        call = getattr(type(function), "__call__", None)  # noqa: B004 - whether the object's call is async.
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)

    async def __call__(self, item: Item) -> Item:
        """Return what the function makes of a batch.

        Raises:
            TaskError: The function failed; the batch and its rows are named.
        """
        try:
            if self._is_async:
                value = await self._function(item.value)
            else:
                value = await call_in_thread(partial(_call, self._function, item.value), grace_s=self._grace_s)
            # A plain function may return a coroutine, as a lambda around an async function does.
            if inspect.iscoroutine(value):
                value = await value
        except BaseException as error:
            if not is_failure(error) and (not isinstance(error, asyncio.CancelledError) or _is_cancelled()):
                raise
            raise self._blame(item, error)  # noqa: B904 - it has its cause already.
        return replace(item, value=value)

    def _blame(self, item: Item, error: BaseException) -> TaskError:
        """Return the failure; as a variable of the frame that raises it, it would make a cycle that holds the batch."""
        cause = error.__cause__ if isinstance(error, _StoppedError) and error.__cause__ else error
        sources = self._cutter.source(item.start, item.stop)
        where = f"batch {item.number}" + (f" ({sources})" if sources else "")
        failure = TaskError(self._name, where, (item.start, item.stop), describe(cause))
        failure.__cause__ = cause
        return failure


def _is_cancelled() -> bool:
    """Whether this task is being cancelled; else the user's function raised the exception of its own accord."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _StoppedError(Exception):
    """Carries what would mean something else than a failure if it came out of a thread, or a future."""


def _call(function: Callable[[Any], Any], value: Any) -> Any:
    try:
        return function(value)
    except (StopIteration, GeneratorExit, SystemExit, asyncio.CancelledError) as error:
        raise _StoppedError from error
