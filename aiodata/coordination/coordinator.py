"""Coordinator: hosts an execution and hands its bundles to the splits that ask.

A plain async class: iteration in one process hosts it there. Nothing in its protocol needs shared memory.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from aiodata.bundle import RefBundle
from aiodata.concurrency import Wakeup, cleared_frames, close_and_drop, receive
from aiodata.coordination.epoch import EpochPhase, EpochState
from aiodata.errors import EpochError

# Runs one execution, sending its bundles.
Execute = Callable[[MemoryObjectSendStream[RefBundle]], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Delivery:
    """The answer to a split that asks for bundles.

    Attributes:
        bundles: The bundles; none at the end of the epoch.
        is_end: Whether the split's epoch has ended.
    """

    bundles: tuple[RefBundle, ...]
    is_end: bool = False


class Coordinator:
    """Runs one execution per epoch and shares it among `num_splits` splits, by who asks first.

    `serve` has to run beside the calls. An epoch starts when every split has arrived, and its execution is shut down
    when every split has finished.

    Args:
        execute: Runs one execution; called once per epoch.
        num_splits: The number of splits.
    """

    def __init__(self, execute: Execute, num_splits: int = 1) -> None:
        """Prepare epoch 0."""
        self._execute = execute
        self._num_splits = num_splits
        self._state = EpochState(0, num_splits)
        self._changed = Wakeup()
        self._answered = [Wakeup() for _ in range(num_splits)]
        self._scope = anyio.CancelScope()

    async def serve(self, num_epochs: int) -> None:
        """Run so many epochs, one after the other.

        Raises:
            ExceptionGroup: The execution failed.
        """
        for epoch in range(num_epochs):
            while self._state.phase is EpochPhase.GATHERING:
                await self._changed.wait()
            if self._state.phase is EpochPhase.RUNNING:
                with anyio.CancelScope() as self._scope, cleared_frames():
                    await self._run_epoch()
            while self._state.phase is not EpochPhase.ENDED:
                await self._changed.wait()
            self._state = EpochState(epoch + 1, self._num_splits)
            for answered in self._answered:
                answered.set()

    async def start_epoch(self, split_index: int) -> int:
        """Arrive at an epoch that the split has not finished; return its number. It starts when all have arrived."""
        while self._state.has_finished(split_index):
            await self._answered[split_index].wait()
        self._state.arrive(split_index)
        self._changed.set()
        return self._state.epoch

    @property
    def prefetched_bytes(self) -> int:
        """Bytes that the splits of the running epoch hold ahead, as they reported them last."""
        return self._state.prefetched_bytes

    async def next_bundles(self, epoch: int, split_index: int, sequence: int, prefetched_bytes: int = 0) -> Delivery:
        """Return a split's next bundles, waiting for them.

        Asking again with the same number gives the same answer, until the next one is asked for.

        Args:
            epoch: The epoch, as `start_epoch` returned it.
            split_index: The split.
            sequence: How many deliveries it had before this one.
            prefetched_bytes: Bytes of blocks that the split holds ahead.

        Raises:
            EpochError: The epoch is in the future, or `sequence` is neither the next delivery nor the last.
        """
        if epoch > self._state.epoch:
            raise EpochError(f"epoch {epoch} has not started; the current one is {self._state.epoch}")
        state = self._state
        if epoch < state.epoch:
            return Delivery((), is_end=True)
        state.ask(split_index, sequence, prefetched_bytes)
        self._changed.set()
        while True:
            if (bundle := state.delivery(split_index, sequence)) is not None:
                return Delivery((bundle,))
            if state.is_at_end(split_index):
                return Delivery((), is_end=True)
            await self._answered[split_index].wait()

    def notify_split_finished(self, epoch: int, split_index: int) -> None:
        """Say that a split wants no more of an epoch; stale epochs and repeats are harmless.

        What it held is dropped at once; when all splits have finished, the execution is shut down.
        """
        if epoch != self._state.epoch:
            return
        self._state.finish(split_index)
        self._answered[split_index].set()
        self._changed.set()
        if self._state.phase is EpochPhase.ENDED:
            self._scope.cancel()

    async def _run_epoch(self) -> None:
        send, receive = anyio.create_memory_object_stream[RefBundle](0)
        with send:
            async with anyio.create_task_group() as group:
                group.start_soon(self._execute, send)
                try:
                    await self._assign(receive)
                finally:
                    close_and_drop(receive)
                group.cancel_scope.cancel()

    async def _assign(self, bundles: MemoryObjectReceiveStream[RefBundle]) -> None:
        """Give each bundle to the split that has waited longest; take none that nobody waits for."""
        while await self._someone_wants():
            try:
                bundle = await receive(bundles)
            except anyio.EndOfStream:
                self._exhaust()
                return
            # Meanwhile the split that asked may have finished.
            if not await self._someone_wants():
                return
            self._answered[self._state.assign(bundle)].set()
            del bundle  # While this waits for the next one, it must not keep its block alive.

    async def _someone_wants(self) -> bool:
        """Wait until a split asks; return whether one does, as all may finish instead."""
        while not self._state.wants_bundle:
            if self._state.phase is EpochPhase.ENDED:
                return False
            await self._changed.wait()
        return True

    def _exhaust(self) -> None:
        self._state.exhaust()
        for answered in self._answered:
            answered.set()
