"""Distribution: from one epoch's execution to the splits that ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio

from aiodata.bundle import BlockRef, RefBundle
from aiodata.concurrency import Wakeup
from aiodata.coordination.epoch import EpochPhase, EpochState


class Bundles(Protocol):
    """What an execution makes; see `aiodata.execution.run.Run`."""

    async def __anext__(self) -> RefBundle:
        """Return the next bundle."""

    def next_nowait(self) -> RefBundle:
        """Return the next bundle, if it is there."""


class Execution(Protocol):
    """What makes bundles; see `aiodata.execution.run.Run`."""

    async def execute(self, consume: Callable[[Bundles], Awaitable[None]]) -> None:
        """Make bundles as long as they are consumed."""


# Prepares one execution.
OpenRun = Callable[[], Awaitable[Execution]]

# Bundles that are worth asking for at once.
MAX_BUNDLES = 16


class Distribution:
    """Takes the bundles of an execution as they are asked for, and none that nobody asks for.

    Args:
        state: The epoch.
        node_of: Returns the node that a block lies on.
        changed: Set whenever a split has asked or left.
        settle: Assigns what there is, and answers those who got something.
    """

    def __init__(
        self,
        state: EpochState,
        node_of: Callable[[BlockRef], str | None],
        changed: Wakeup,
        settle: Callable[[EpochState], None],
    ) -> None:
        """Prepare."""
        self._state = state
        self._node_of = node_of
        self._changed = changed
        self._settle = settle

    async def run(self, open_run: OpenRun) -> None:
        """Run an execution, to its end or until nobody wants more.

        Raises:
            ExceptionGroup: The execution failed.
        """
        run = await open_run()
        await run.execute(self._distribute)

    async def _distribute(self, bundles: Bundles) -> None:
        while await self._someone_wants():
            try:
                num_bytes = self._offer(await bundles.__anext__())
                # What is there already goes together; what would not be delivered together is left where it is.
                for _ in range(self._state.num_wanted):
                    if num_bytes >= self._state.delivery_bytes:
                        break
                    num_bytes += self._offer(bundles.next_nowait())
            except anyio.WouldBlock:
                pass
            except StopAsyncIteration:
                self._state.exhaust()
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
