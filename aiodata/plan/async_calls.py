"""AsyncCalls: calls of an async function, several at a time, from inside a plain generator.

A task is stepped by a thread, so its async calls run in an event loop of their own (`CallLoop`), and only while the
thread waits for one of them or passes by.

*Order.* What a task produces must not depend on time, or one that is run again would produce something else. So
results come in the order of the input, and input is taken at fixed points: results of the first call are handed on
once so many batches have been taken, those of the second one batch later, and so on. The batches taken are twice as
many as calls may be in flight, so that one slow call does not hold up all the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

from aiodata.block import as_block
from aiodata.errors import AiodataError
from aiodata.plan.bisection import Outcome, is_about_rows
from aiodata.plan.call_loop import CallLoop
from aiodata.plan.control import Control, blame
from aiodata.plan.input_batches import InputBatch
from aiodata.plan.pieces import Origin

# What a call returned, or, of a single row, the error; where it came from; and, if calls may be repeated, what it was
# called with.
_Output = tuple[Outcome, Origin, InputBatch | None]

# What an async generator may have yielded and nobody taken; it waits there.
_MAX_WAITING_OUTPUTS = 2


class _Call:
    """A call whose results have not all been taken."""

    __slots__ = ("error", "is_done", "num_repeats", "outputs", "room", "task")

    def __init__(self) -> None:
        self.outputs: deque[_Output] = deque()
        self.num_repeats = 0
        self.room = asyncio.Event()
        self.error: AiodataError | None = None
        self.is_done = False
        self.task: asyncio.Task[None] | None = None


# Makes a call and adds its outputs to it.
_Run = Callable[[_Call, InputBatch], Coroutine[Any, Any, None]]


class AsyncCalls:
    """Calls an async function, or async generator function, with batches.

    Args:
        name: The operator, for errors.
        function: The function; it is given a batch.
        yields_many: Whether it is an async generator function.
        bisects: Whether a call that fails is repeated with halves of its batch.
        max_calls: Calls in flight at a time; an async generator is in flight until it is exhausted.
        loop: Where they run.
        control: What stops them.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Any], Any],
        *,
        yields_many: bool,
        bisects: bool = False,
        max_calls: int,
        loop: CallLoop,
        control: Control,
    ) -> None:
        """Call nothing yet."""
        self._name = name
        self._function = function
        self._run = self._bisect if bisects else self._iterate if yields_many else self._await
        self._yields_many = yields_many
        self._num_open = 0
        self._max_calls = max_calls
        self._loop = loop
        self._control = control
        # Calls in the order of the input; those at its end may be waiting to start.
        self._window: deque[_Call] = deque()
        self._waiting: deque[tuple[_Call, InputBatch]] = deque()
        self._running: set[_Call] = set()
        # In the order in which they failed.
        self._failed: list[_Call] = []

    def outputs(self, batches: Iterable[InputBatch]) -> Generator[_Output, None, None]:
        """Yield what the calls return or yield, in the order of the batches; on the way out, cancel those in flight."""
        try:
            for batch in batches:
                self._accept(batch)
                if len(self._window) >= 2 * self._max_calls:
                    yield from self._take_oldest()
            while self._window:
                yield from self._take_oldest()
        finally:
            self._note_open(0)
            self._waiting.clear()
            self._loop.cancel([call.task for call in self._running if call.task is not None])

    def repeat(self, batch: InputBatch) -> Outcome:
        """Return what comes of a call with a part of a batch whose outputs were taken, waiting for it."""
        self._control.call()
        call = _Call()
        self._running.add(call)
        call.task = self._loop.start(partial(self._follow, call, batch, self._once))
        self._loop.run_until(lambda: call.is_done, self._control.checkpoint)
        if call.error is not None:
            self._failed.remove(call)
            return call.error
        return call.outputs[0][0]

    def _accept(self, batch: InputBatch) -> None:
        """Take on a batch; its call counts from now on, as when it starts depends on time."""
        self._control.call()
        call = _Call()
        self._window.append(call)
        self._waiting.append((call, batch))
        self._start_waiting()
        # To get the batch from upstream may have taken a while, and so may the next.
        self._loop.turn()
        self._end_if_failed()

    def _take_oldest(self) -> Iterator[_Output]:
        call = self._window[0]
        while True:
            self._start_waiting()
            self._loop.run_until(lambda: self._has_news_of(call), self._control.checkpoint)
            self._end_if_failed()
            if not call.outputs:
                break
            output = call.outputs.popleft()
            call.room.set()
            # Whether an async generator is at its end depends on time.
            self._note_open(len(self._window) - (not self._yields_many))
            yield output
        self._window.popleft()
        # Not when they are made, which depends on time.
        self._control.calls += call.num_repeats
        if call.error is not None:
            self._failed.remove(call)
            self._control.skip(call.error)

    def _note_open(self, num_calls: int) -> None:
        self._control.open_calls += num_calls - self._num_open
        self._num_open = num_calls

    def _has_news_of(self, call: _Call) -> bool:
        return bool(call.outputs) or call.is_done or self._has_too_many_failures()

    def _has_too_many_failures(self) -> bool:
        return bool(self._failed) and not self._control.may_skip(len(self._failed))

    def _end_if_failed(self) -> None:
        """Raise the error that is one too many: no call before it in the input is waited for."""
        if self._has_too_many_failures():
            for call in self._failed:
                if call.error is not None:
                    self._control.skip(call.error)

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < self._max_calls:
            if self._loop.is_settling or self._has_too_many_failures():
                return
            call, batch = self._waiting.popleft()
            self._running.add(call)
            call.task = self._loop.start(partial(self._follow, call, batch, self._run))
            del batch

    async def _follow(self, call: _Call, batch: InputBatch, run: _Run) -> None:
        """Run a call, note how it ended, and start the next."""
        try:
            with blame(self._name, batch.origin):
                await run(call, batch)
        except AiodataError as error:
            call.error = error
            self._failed.append(call)
        finally:
            call.is_done = True
            call.task = None
            self._running.discard(call)
            self._start_waiting()
            self._loop.notify()

    async def _await(self, call: _Call, batch: InputBatch) -> None:
        table = as_block(await self._function(batch.rows), given=batch.given)
        call.outputs.append((table, batch.origin_of(table), None))

    async def _bisect(self, call: _Call, batch: InputBatch) -> None:
        """Do the same, and where it fails repeat it with halves, in turn: other calls go on meanwhile."""
        waiting = [batch]
        while waiting:
            part = waiting.pop()
            outcome = await self._attempt(part)
            if isinstance(outcome, AiodataError) and is_about_rows(outcome) and part.num_rows > 1:
                waiting += reversed(part.halves())
                call.num_repeats += 2
            else:
                call.outputs.append((outcome, part.origin, part))
                self._loop.notify()

    async def _once(self, call: _Call, batch: InputBatch) -> None:
        call.outputs.append((await self._attempt(batch), batch.origin, None))

    async def _attempt(self, part: InputBatch) -> Outcome:
        try:
            with blame(self._name, part.origin):
                return as_block(await self._function(part.rows), given=part.given)
        except AiodataError as error:
            if isinstance(error.__cause__, asyncio.CancelledError):
                raise
            return error

    async def _iterate(self, call: _Call, batch: InputBatch) -> None:
        generator: AsyncGenerator[Any, None] = self._function(batch.rows)
        async with aclosing(generator):
            async for output in generator:
                table = as_block(output, given=batch.given)
                call.outputs.append((table, batch.origin.without_rows(), None))
                self._loop.notify()
                while len(call.outputs) >= _MAX_WAITING_OUTPUTS:
                    call.room.clear()
                    await self._loop.park(call.room)
