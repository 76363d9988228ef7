"""A fake execution, tokens that a test lets go of, and consumers: what the coordinator's tests have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, ParamSpec

import anyio
import anyio.lowlevel
from anyio.streams.memory import MemoryObjectSendStream

from aiodata import SplitOptions
from aiodata.bundle import RefBundle
from aiodata.concurrency import close_and_drop, receive
from aiodata.coordination import Coordinator, Lease
from aiodata.coordination.distribution import Bundles
from aiodata.testing import VirtualTimeLoop
from tests.coordination.epochs import bundle_of, ids_of

P = ParamSpec("P")


class FakeExecution:
    """Sends bundles of so many rows each; with `endless` it then stays, and an error it raises.

    Attributes:
        closing_s: How long it takes to end when it is cancelled, in seconds.
    """

    def __init__(
        self, *sizes: int, endless: bool = False, error: Exception | None = None, closing_s: float = 0.0
    ) -> None:
        self.sizes = sizes
        self.endless = endless
        self.error = error
        self.closing_s = closing_s
        self.started = 0
        self.running = 0

    async def __call__(self) -> FakeRun:
        return FakeRun(self._execute)

    async def _execute(self, output: MemoryObjectSendStream[RefBundle]) -> None:
        self.started += 1
        self.running += 1
        try:
            first = 0
            for size in self.sizes:
                await output.send(bundle_of(range(first, first + size)))
                first += size
            if self.error is not None:
                raise self.error
            if self.endless:
                await anyio.sleep_forever()
            output.close()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self.closing_s)
            self.running -= 1


class FakeRun:
    """A run of a fake execution."""

    def __init__(self, execute: Callable[[MemoryObjectSendStream[RefBundle]], Coroutine[Any, Any, None]]) -> None:
        self._execute = execute
        self._send, self._bundles = anyio.create_memory_object_stream[RefBundle](16)

    async def execute(self, consume: Callable[[Bundles], Awaitable[None]]) -> None:
        with self._send:
            async with anyio.create_task_group() as group:
                group.start_soon(self._execute, self._send)
                try:
                    await consume(self)
                finally:
                    close_and_drop(self._bundles)
                group.cancel_scope.cancel()

    async def __anext__(self) -> RefBundle:
        try:
            return await receive(self._bundles)
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    def next_nowait(self) -> RefBundle:
        try:
            return self._bundles.receive_nowait()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


class Tokens:
    """Stands for what consumers hold while they are there; the test says when one is gone."""

    def __init__(self) -> None:
        self._released: list[Callable[[], None]] = []

    def new(self, on_released: Callable[[], None]) -> int:
        self._released.append(on_released)
        return len(self._released) - 1

    def release(self, token: Any) -> None:
        self._released[token]()


@asynccontextmanager
async def serving(coordinator: Coordinator) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(coordinator.serve)
        await anyio.lowlevel.checkpoint()
        yield
        group.cancel_scope.cancel()


class Hosted:
    """A coordinator, its execution and its tokens."""

    def __init__(self, execution: FakeExecution, num_splits: int, **options: Any) -> None:
        self.execution = execution
        self.tokens = Tokens()
        self.coordinator = Coordinator(
            execution, num_splits, options=SplitOptions(**options), max_calls=2, new_token=self.tokens.new
        )


@asynccontextmanager
async def hosting(execution: FakeExecution, num_splits: int = 2, **options: Any) -> AsyncIterator[Hosted]:
    hosted = Hosted(execution, num_splits, **options)
    async with serving(hosted.coordinator):
        yield hosted


async def join_all(coordinator: Coordinator, num_splits: int) -> list[tuple[Lease, Any]]:
    """Take all splits, and wait for the epoch to begin."""
    joined = [await coordinator.join(split) for split in range(num_splits)]
    for lease, _ in joined:
        assert await coordinator.start_epoch(lease) == ()
    return joined


async def take(coordinator: Coordinator, lease: Lease, rows: list[int], *, pause_s: float = 0.0) -> None:
    """Take an epoch's rows to its end, acknowledging each delivery after a pause, without a word at the end."""
    sequence = 0
    while not (delivery := await coordinator.next_bundles(lease, sequence, acked_rows=len(rows))).is_end:
        sequence += 1
        await anyio.sleep(pause_s)
        rows += ids_of(*delivery.bundles)


async def consume(coordinator: Coordinator, split: int, rows: list[int], *, pause_s: float = 0.0) -> None:
    """Be the consumer of one split in one epoch, in good order."""
    lease, _ = await coordinator.join(split)
    await coordinator.start_epoch(lease)
    await take(coordinator, lease, rows, pause_s=pause_s)
    coordinator.notify_split_finished(lease)


async def settled() -> None:
    """Let all run that can, in a loop whose time jumps when nothing does."""
    await anyio.wait_all_tasks_blocked()


def virtual(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a test in a loop in which waiting takes no time; what waits for ever fails."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            with anyio.fail_after(1_000_000):
                await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(bounded())

    return run
