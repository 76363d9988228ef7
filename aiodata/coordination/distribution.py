"""Distribution: from one epoch's execution to the splits that ask."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from aiodata.bundle import BlockRef, RefBundle
from aiodata.concurrency import Wakeup, close_and_drop, receive, start
from aiodata.coordination.epoch import EpochPhase, EpochState

# Runs one execution, sending its bundles.
Execute = Callable[[MemoryObjectSendStream[RefBundle]], Coroutine[Any, Any, None]]

# Bundles that are worth asking for at once.
MAX_BUNDLES = 16


class Distribution:
    """Takes the bundles of an execution as they are asked for, and none that nobody asks for.

    Args:
        state: The epoch.
        node_of: Returns the node that a block lies on.
        changed: Set whenever a split has asked or left.
        settle: Assigns what there is, and answers those who got something.
        max_waiting: Bundles that may wait between the execution and the splits.
        on_taken: Called when the execution's bundles were taken: it may have waited for that.
    """

    def __init__(
        self,
        state: EpochState,
        node_of: Callable[[BlockRef], str | None],
        changed: Wakeup,
        settle: Callable[[EpochState], None],
        max_waiting: int,
        on_taken: Callable[[], None],
    ) -> None:
        """Prepare."""
        self._on_taken = on_taken
        self._max_waiting = max_waiting
        self._state = state
        self._node_of = node_of
        self._changed = changed
        self._settle = settle

    async def run(self, execute: Execute) -> None:
        """Run an execution, to its end or until nobody wants more.

        Raises:
            ExceptionGroup: The execution failed.
        """
        send, bundles = anyio.create_memory_object_stream[RefBundle](self._max_waiting)
        with send:
            async with anyio.create_task_group() as group:
                start(group, execute, send)
                try:
                    await self._distribute(bundles)
                finally:
                    close_and_drop(bundles)
                group.cancel_scope.cancel()

    async def _distribute(self, bundles: MemoryObjectReceiveStream[RefBundle]) -> None:
        while await self._someone_wants():
            try:
                num_bytes = self._offer(await receive(bundles))
                # What is there already goes together; what would not be delivered together is left where it is.
                for _ in range(self._state.num_wanted):
                    if num_bytes >= self._state.delivery_bytes:
                        break
                    num_bytes += self._offer(bundles.receive_nowait())
            except anyio.WouldBlock:
                pass
            except anyio.EndOfStream:
                self._state.exhaust()
            self._on_taken()
            self._settle(self._state)
            if self._state.is_exhausted:
                return

    def _offer(self, bundle: RefBundle) -> int:
        """Have a bundle assigned; return its block's bytes."""
        self._state.offer(bundle, self._node_of(bundle.ref))
        return bundle.metadata.num_bytes

    async def _someone_wants(self) -> bool:
        """Wait until a split asks; return whether one does, as all may finish instead."""
        while not self._state.num_wanted:
            if self._state.phase is EpochPhase.ENDED:
                return False
            await self._changed.wait()
        return True
