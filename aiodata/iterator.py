"""Batches and BatchIterator: `async for` over a dataset, and the prompt end of everything behind it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, Self

from aiodata.batching.consumer import Consumer
from aiodata.batching.cutter import Signal
from aiodata.concurrency import AsyncOnly, running_loop
from aiodata.errors import ClosedError
from aiodata.stats import IterationStats


class Batches(AsyncOnly):
    """The batches of a dataset; each `async for` over it is one full pass: an epoch.

    Args:
        open_pass: Returns a consumer for the pass of that number.
        label: What is iterated, for `repr`.

    Example:
        >>> import asyncio, aiodata
        >>> async def main():
        ...     batches = aiodata.range(4, num_blocks=1).aiter_batches(batch_size=2)
        ...     async for batch in batches:
        ...         print(batch["id"])
        >>> asyncio.run(main())
        [0 1]
        [2 3]
    """

    def __init__(self, open_pass: Callable[[int], Consumer], label: str) -> None:
        """Hold the recipe; nothing runs."""
        self._open_pass = open_pass
        self._label = label
        self._num_passes = 0
        # Passes that may be running; nobody else may hold their iterators.
        self._consumers = weakref.WeakSet[Consumer]()
        # By task, since tasks may enter and leave in any order.
        self._entered: dict[asyncio.Task[Any] | None, list[BatchIterator]] = {}

    def __aiter__(self) -> BatchIterator:
        """Return an iterator for one pass.

        Raises:
            RuntimeError: No event loop is running.
        """
        running_loop("an iteration")
        epoch = self._num_passes
        self._num_passes += 1
        consumer = self._open_pass(epoch)
        self._consumers.add(consumer)
        return BatchIterator(consumer)

    def __anext__(self) -> NoReturn:
        """Say what to write: these are all batches, and each `async for` begins anew.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "these batches begin anew with each `async for`; for one at a time write `iterator = aiter(batches)`, then "
            "`await anext(iterator)`"
        )

    async def aclose(self) -> None:
        """End all passes that are running, and wait until they have stopped, as `BatchIterator.aclose` does.

        It is idempotent, and `contextlib.aclosing` works; the batches can be iterated again.
        """
        for consumer in list(self._consumers):
            await consumer.aclose()

    async def __aenter__(self) -> BatchIterator:
        """Return an iterator for one pass, which is closed when the `async with` is left."""
        iterator = aiter(self)
        self._entered.setdefault(asyncio.current_task(), []).append(iterator)
        return iterator

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the iterator."""
        task = asyncio.current_task()
        if task not in self._entered:  # Entered in another task, as fixtures are: the latest one is meant.
            task = next(reversed(self._entered))
        entered = self._entered[task]
        iterator = entered.pop()
        if not entered:
            del self._entered[task]
        await iterator.aclose()

    def __repr__(self) -> str:
        """Show what is iterated, and how."""
        return f"<Batches {self._label}>"


class BatchIterator(AsyncOnly):
    """One pass over a dataset's batches.

    `break` out of an `async for` over `ds.aiter_batches()` needs nothing more: the loop held the only reference to
    the iterator, and dropping it ends the run. Whoever keeps the iterator in a variable calls `aclose()`, or uses
    `async with`.

    A cancelled or timed-out `__anext__` loses no batch: the next call returns it.
    """

    __slots__ = ("__weakref__", "_consumer")

    def __init__(self, consumer: Consumer) -> None:
        """Hold the consumer; its run starts with the first `__anext__`."""
        self._consumer = consumer

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Any:
        """Return the next batch.

        Raises:
            StopAsyncIteration: The pass is over, or was closed.
            BusyError: Another task is waiting for a batch of this iterator.
            TaskError: The user's function failed, or a read did.
            SourceError: A file is missing, corrupt or unreadable, or no file matches.
            RuntimeUnavailableError: Ray can not be reached or started.
        """
        consumer = self._consumer
        try:
            batch = consumer.ready_batch()
            if type(batch) is not Signal:
                return batch
            return await consumer.next_batch()
        except BaseException:
            # The traceback keeps this frame; the frame must not keep the handle, whose dropping ends the run.
            del self
            raise

    @property
    def closed(self) -> bool:
        """Whether the pass is over, whatever the reason."""
        return self._consumer.closed

    async def aclose(self) -> None:
        """Stop the run and wait until it has stopped, for `close_timeout_s` at most; idempotent.

        It may be called in any task, of another event loop, too: that of the iteration then ends the run. If that one
        does not run any more, there is nothing to wait for.
        """
        await self._consumer.aclose()

    def stats(self) -> IterationStats:
        """Return what this pass has done so far."""
        return self._consumer.stats()

    async def __aenter__(self) -> Self:
        """Return itself.

        Raises:
            ClosedError: It was closed before.
        """
        if self._consumer.closed:
            raise ClosedError("this BatchIterator is closed; get a new one with aiter(batches)")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()

    def __repr__(self) -> str:
        """Show how far it is."""
        return f"<BatchIterator {self._consumer.describe()}>"

    def __del__(self) -> None:
        """Ask the loop to end the run, if the handle is dropped before its end."""
        consumer = getattr(self, "_consumer", None)
        if consumer is not None:
            consumer.abandon()
