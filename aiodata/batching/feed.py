"""Feed: where a consumer's blocks come from. Here, a run in this process; the consumer does not care."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import pyarrow as pa

from aiodata.bundle import RefBundle
from aiodata.concurrency import call_in_thread
from aiodata.execution.run import Run
from aiodata.options import ExecutionOptions
from aiodata.plan.control import blame
from aiodata.plan.nodes import Plan
from aiodata.plan.passes import Pass
from aiodata.runtime.base import Runtime
from aiodata.schemas import conform
from aiodata.stats import LatestRun, RunStats

# Seconds that a conversion of a block's rows is waited for when it is cancelled.
_CONFORM_GRACE_S = 1.0


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
    with blame("conform", bundle.origin):
        return conform(rows, bundle.schema)


class LocalFeed:
    """The supply of one pass by a run in this process.

    Args:
        plan: What to run.
        options: How to run it.
        this_pass: Which pass over the dataset it is.
        latest: Where to note what the run has done, when it has ended.
    """

    ends_together = False

    def __init__(self, plan: Plan, options: ExecutionOptions, this_pass: Pass, latest: LatestRun) -> None:
        """Prepare; nothing runs."""
        self._run = Run(plan, options, this_pass, latest=latest)

    def stats(self) -> RunStats:
        """Return what the run has done so far."""
        return self._run.stats()

    def leave(self) -> None:
        """Do nothing: the run has stopped with its event loop."""

    async def run(self, consume: Callable[[BundleSource], Awaitable[None]]) -> None:
        """Run the plan as long as its bundles are consumed."""
        await self._run.execute(lambda run: consume(_RunBundles(run)))


class _RunBundles:
    """The bundles of a run in this process."""

    def __init__(self, run: Run) -> None:
        self.max_held_bytes = run.max_held_bytes
        self._run = run

    async def next_bundle(self, prefetched_bytes: int) -> RefBundle | None:
        return await anext(self._run, None)

    async def fetch(self, bundle: RefBundle) -> pa.Table:
        return await fetch_rows(self._run.runtime, bundle)

    def note_finished(self, num_rows: int) -> None:
        """Nobody needs to know: what this process has not finished when it dies, nobody goes on with."""
