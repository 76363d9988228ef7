"""Feed: where a consumer's blocks come from. Here, a run in this process; the consumer does not care."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import anyio
import pyarrow as pa

from aiodata.bundle import RefBundle
from aiodata.concurrency import call_in_thread, start
from aiodata.coordination import DELIVERY_BYTES, MAX_BUNDLES, Coordinator, Lease
from aiodata.execution.executor import StreamingExecutor, max_held_bytes
from aiodata.options import ExecutionOptions, SplitOptions
from aiodata.plan.control import blame
from aiodata.plan.nodes import Plan
from aiodata.plan.pieces import Origin
from aiodata.runtime import choose_runtime
from aiodata.runtime.base import Runtime
from aiodata.schemas import conform
from aiodata.stats import RunStats

# Seconds that a conversion of a block's rows is waited for when it is cancelled.
_CONFORM_GRACE_S = 1.0

# The part of what a consumer may hold that one delivery may have: one of so many.
_HELD_PARTS = 8


class BundleSource(Protocol):
    """One epoch's bundles, and their rows.

    Attributes:
        max_held_bytes: Bytes of blocks that the consumer may hold beside the one in use.
    """

    max_held_bytes: int

    async def next_bundle(self, prefetched_bytes: int) -> RefBundle | None:
        """Return the next bundle, None at the end.

        Args:
            prefetched_bytes: Bytes that the consumer holds ahead at the moment.
        """

    async def fetch(self, bundle: RefBundle) -> pa.Table:
        """Return a bundle's rows; cancelled, it can be asked again."""

    def note_finished(self, num_rows: int) -> None:
        """Note how many rows the user is done with.

        It is called when that may have grown, at least whenever a block is released, and before each `next_bundle`.

        Args:
            num_rows: Rows, counted from the pass's beginning in the order in which the bundles were given.
        """


class Feed(Protocol):
    """One pass's supply of bundles.

    Attributes:
        ends_together: Whether the end of the data is to be told only when `run` has ended, which may fail until then.
    """

    ends_together: bool

    def stats(self) -> RunStats:
        """Return what the run behind it has done so far."""

    def leave(self) -> None:
        """Say that the pass is over, where its event loop does not run any more and can not say so itself."""

    async def run(self, consume: Callable[[BundleSource], Awaitable[None]]) -> None:
        """Open the supply, let it be consumed, and shut it down, whatever the reason for the end.

        Where `consume` returns, the user has asked for more than there is.

        Raises:
            ExceptionGroup: The supply failed, or `consume` did.
        """


async def fetch_rows(runtime: Runtime, bundle: RefBundle) -> pa.Table:
    """Return a bundle's rows, out of its block; cancelled, it can be asked again.

    Raises:
        TaskError: A value has no place in the schema that a union of several has given its rows.
    """
    block = await runtime.get(bundle.ref)
    rows = block if bundle.num_rows == block.num_rows else block.slice(bundle.start, bundle.num_rows)
    if bundle.conform_to is None:
        return rows
    if rows.schema.equals(bundle.conform_to):  # What is known of its columns takes no time to note.
        return conform(rows, bundle.conform_to)
    conform_rows = partial(_conform, rows, bundle)
    del block, rows  # A cancellation's traceback keeps this frame.
    return await call_in_thread(conform_rows, grace_s=_CONFORM_GRACE_S)


def _conform(rows: pa.Table, bundle: RefBundle) -> pa.Table:
    with blame("conform", Origin(bundle.metadata.source, (bundle.start, bundle.stop))):
        return conform(rows, bundle.schema)


class LocalFeed:
    """Hosts the coordinator and the execution of one pass in this process.

    Args:
        plan: What to run.
        options: How to run it.
    """

    ends_together = False

    def __init__(self, plan: Plan, options: ExecutionOptions) -> None:
        """Prepare; nothing runs."""
        self._plan = plan
        self._options = options
        self._executor: StreamingExecutor | None = None

    def stats(self) -> RunStats:
        """Return what the run behind it has done so far."""
        return self._executor.stats() if self._executor else RunStats()

    def leave(self) -> None:
        """Do nothing: the run has stopped with its event loop."""

    async def run(self, consume: Callable[[BundleSource], Awaitable[None]]) -> None:
        """Run one epoch as split 0, the only one; tell the coordinator at the end, whatever the reason."""
        async with choose_runtime(self._options)() as runtime:
            self._executor = executor = StreamingExecutor(self._plan, runtime, self._options)
            held_bytes = max_held_bytes(self._options, runtime)
            delivery_bytes = min(DELIVERY_BYTES, held_bytes // _HELD_PARTS)
            coordinator = Coordinator(
                executor.run,
                options=SplitOptions(on_split_lost="raise"),
                delivery_bytes=delivery_bytes,
                # Of large blocks, few had better be made before somebody asks for them.
                max_waiting=max(1, min(MAX_BUNDLES, delivery_bytes // self._options.target_block_bytes)),
            )
            async with anyio.create_task_group() as group:
                start(group, coordinator.serve, 1)
                lease, _ = await coordinator.join(0)
                await coordinator.start_epoch(lease)
                epoch = _Epoch(coordinator, lease, runtime, held_bytes)
                try:
                    await consume(epoch)
                finally:
                    epoch.delivered.clear()
                    coordinator.notify_split_finished(lease)


class _Epoch:
    """Asks a coordinator in this process for bundles, in turn."""

    def __init__(self, coordinator: Coordinator, lease: Lease, runtime: Runtime, max_held_bytes: int) -> None:
        self.max_held_bytes = max_held_bytes
        self._coordinator = coordinator
        self._lease = lease
        self._runtime = runtime
        self._sequence = 0
        self.delivered: deque[RefBundle] = deque()

    async def next_bundle(self, prefetched_bytes: int) -> RefBundle | None:
        if not self.delivered:
            delivery = await self._coordinator.next_bundles(
                self._lease, self._sequence, max_bundles=MAX_BUNDLES, prefetched_bytes=prefetched_bytes
            )
            self._sequence += 1
            self.delivered.extend(delivery.bundles)
            if delivery.is_end:
                return None
        return self.delivered.popleft()

    async def fetch(self, bundle: RefBundle) -> pa.Table:
        return await fetch_rows(self._runtime, bundle)

    def note_finished(self, num_rows: int) -> None:
        """Nobody needs to know: what this process has not finished when it dies, nobody goes on with."""
