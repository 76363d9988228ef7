"""SplitFeed: the supply of one split, whose coordinator is in another process."""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import anyio
import pyarrow as pa

from aiodata.batching.feed import BundleSource, fetch_rows
from aiodata.bundle import RefBundle
from aiodata.concurrency import FIRST_S, Wakeup, cleared_frames, start
from aiodata.coordination import MAX_BUNDLES, Lease, describe_splits
from aiodata.coordination.service import MAX_CALLS, Splitting
from aiodata.errors import AiodataError
from aiodata.execution.executor import max_held_bytes
from aiodata.execution.failures import warn_of_first, warn_of_skips
from aiodata.runtime import choose_runtime
from aiodata.runtime.base import Runtime
from aiodata.runtime.hosting import RemoteService
from aiodata.stats import RunStats

_logger = logging.getLogger("aiodata")

# Bundles are asked for ahead for about so long, in seconds: more could be used by another split meanwhile.
_AHEAD_S = 0.05

# How much the latest interval between two bundles counts in their mean.
_LATEST_PART = 0.3

# What the consumer is done with is told at least this often, in seconds, if there is something to tell.
_REPORT_EVERY_S = 0.1

# Who has waited so long for bundles asks why, in seconds: a little later than what warns of that in the coordinator.
_ASK_WHY_S = FIRST_S + 2.0


class SplitFeed:
    """Takes part in one epoch, as the consumer of one split.

    Args:
        service: The coordinator's service.
        split_index: The split.
        splitting: How the dataset is split.
    """

    def __init__(self, service: RemoteService, split_index: int, splitting: Splitting) -> None:
        """Prepare; nothing runs."""
        # Nobody may take for whole what a lost consumer has left a gap in. In the other modes somebody gets its rows.
        self.ends_together = splitting.options.on_split_lost == "raise"
        self._service = service
        self._split_index = split_index
        self._splitting = splitting
        # What this pass is known by, also before it has a lease.
        self._consumer = uuid.uuid4().hex
        self._run = RunStats(runtime="ray")
        self._has_ended = False
        # Held by its consumer, it tells the coordinator that this process is there.
        self._token: Any = None
        self._epoch: _SplitEpoch | None = None

    def stats(self) -> RunStats:
        """Return what the run behind it has done: at the end of the epoch, and before, once something was skipped."""
        return self._run

    def leave(self) -> None:
        """Tell the coordinator that the split wants no more, without waiting and without an event loop; let all go."""
        self._service.tell("leave", self._split_index, self._consumer)
        self._let_go()

    async def run(self, consume: Callable[[BundleSource], Awaitable[None]]) -> None:
        """Take the split, wait until the epoch begins, and give its bundles; tell the coordinator at the end."""
        options = self._splitting.execution
        async with choose_runtime(options)() as runtime:
            try:
                lease, self._token = await self._service.call("join", self._split_index, self._consumer)
                await self._await_epoch(lease)
                part_bytes = max_held_bytes(options, runtime) // self._splitting.num_splits
                self._epoch = _SplitEpoch(self._service, lease, runtime, part_bytes, self._note_run)
                await self._epoch.run(consume)
                if self.ends_together:
                    await self._service.call("conclude", lease)
            finally:
                try:
                    # Also where joining was cancelled, since the coordinator goes on with it.
                    with anyio.move_on_after(options.close_timeout_s, shield=True):
                        await self._service.call("leave", self._split_index, self._consumer)
                finally:
                    self._let_go()

    async def _await_epoch(self, lease: Lease) -> None:
        waited_s = 0.0
        warn_s = self._splitting.options.barrier_warn_s
        while absent := await self._service.call("start_epoch", lease, warn_s):
            waited_s += warn_s
            _logger.warning(
                "split %d has waited %.0f s for epoch %d: %s of %d %s not there; every split needs a consumer",
                self._split_index,
                waited_s,
                lease.epoch,
                describe_splits(absent),
                self._splitting.num_splits,
                "is" if len(absent) == 1 else "are",
            )

    def _let_go(self) -> None:
        self._token = None
        if self._epoch is not None:
            self._epoch.let_go()

    def _note_run(self, run: RunStats, is_end: bool) -> None:
        """Note what the run has done, and say in this process, too, what was skipped."""
        if run.errors and not self._run.errors:
            warn_of_first(run.errors[0])
        self._run = run
        # Two calls may be told of the end.
        if is_end and not self._has_ended:
            self._has_ended = True
            warn_of_skips(run, is_complete=True)


class _SplitEpoch:
    """Asks a coordinator in another process for bundles, ahead of need, and tells it what the consumer is done with."""

    def __init__(
        self,
        service: RemoteService,
        lease: Lease,
        runtime: Runtime,
        max_held_bytes: int,
        on_run: Callable[[RunStats, bool], None],
    ) -> None:
        self.max_held_bytes = max_held_bytes
        self.delivered: deque[RefBundle] = deque()
        self._service = service
        self._lease = lease
        self._runtime = runtime
        self._on_run = on_run
        self._arrived = Wakeup()
        self._taken = Wakeup()
        self._replies: dict[int, tuple[RefBundle, ...]] = {}
        self._num_asked = 0
        self._num_answered = 0
        self._has_ended = False
        self._is_waiting = False
        self._prefetched_bytes = 0
        self._acked_rows = self._told_rows = 0
        self._told_at = self._taken_at = perf_counter()
        self._interval_s = _AHEAD_S

    async def run(self, consume: Callable[[BundleSource], Awaitable[None]]) -> None:
        """Let the bundles be consumed."""
        try:
            async with anyio.create_task_group() as group:
                start(group, self._ask_ahead)
                await consume(self)
                group.cancel_scope.cancel()
        finally:
            # Tracebacks of cancelled calls refer to this until the garbage collection; the coordinator must not wait
            # for that, where this is the last handle.
            del self._service, self._on_run
            self.let_go()

    def let_go(self) -> None:
        """Drop the bundles that were not taken."""
        self.delivered.clear()
        self._replies.clear()

    async def next_bundle(self, prefetched_bytes: int) -> RefBundle | None:
        """Return the next bundle, None at the end."""
        self._prefetched_bytes = prefetched_bytes
        while not self.delivered:
            if self._has_ended:
                return None
            self._is_waiting = True
            self._report()
            await self._wait_for_bundles()
        self._is_waiting = False
        now = perf_counter()
        self._interval_s += _LATEST_PART * (now - self._taken_at - self._interval_s)
        self._taken_at = now
        self._taken.set()
        return self.delivered.popleft()

    async def _wait_for_bundles(self) -> None:
        """Wait for the next delivery; if it takes long, say what the coordinator does of that: nobody reads its log."""
        began_s, patience_s = perf_counter(), _ASK_WHY_S
        while not (self.delivered or self._has_ended):
            with anyio.move_on_after(patience_s) as waiting:
                await self._arrived.wait()
            if waiting.cancelled_caught:
                waited_s = patience_s = perf_counter() - began_s
                if why := await self._service.call("latest_warning", waited_s):
                    split = self._lease.split_index
                    told = "split %d has waited %.0f s for rows; its coordinator says: %s"
                    _logger.warning(told, split, waited_s, why)

    async def fetch(self, bundle: RefBundle) -> pa.Table:
        """Return a bundle's rows.

        Raises:
            CoordinatorLostError: The block went with the coordinator, which owned it.
        """
        try:
            return await fetch_rows(self._runtime, bundle)
        except AiodataError:
            await self._service.call("options")  # It says whether the coordinator is there.
            raise

    def note_finished(self, num_rows: int) -> None:
        """Tell the coordinator what the user is done with, if the next call would do so too late."""
        self._acked_rows = num_rows
        if self._is_waiting or perf_counter() - self._told_at >= _REPORT_EVERY_S:
            self._report()

    def _report(self) -> None:
        if self._acked_rows > self._told_rows:
            self._note_told()
            self._service.tell("acknowledge", self._lease, self._acked_rows, self._prefetched_bytes)

    def _note_told(self) -> None:
        self._told_rows = self._acked_rows
        self._told_at = perf_counter()

    async def _ask_ahead(self) -> None:
        async with anyio.create_task_group() as group:
            while not self._has_ended:
                if self._num_asked - self._num_answered < MAX_CALLS and len(self.delivered) < self._bundles_ahead:
                    start(group, self._ask, self._num_asked)
                    self._num_asked += 1
                else:
                    await self._taken.wait()
            group.cancel_scope.cancel()

    @property
    def _bundles_ahead(self) -> int:
        """Bundles that the consumer takes in the time that is asked ahead for."""
        return max(1, min(MAX_BUNDLES, int(_AHEAD_S / max(self._interval_s, 1e-6))))

    async def _ask(self, sequence: int) -> None:
        """Ask for a delivery, and take it in when those before it are in."""
        self._note_told()
        with cleared_frames():
            delivery, run = await self._service.call(
                "next_bundles", self._lease, sequence, self._bundles_ahead, self._acked_rows, self._prefetched_bytes
            )
        if run is not None:
            self._on_run(run, delivery.is_end)
        self._replies[sequence] = delivery.bundles
        while (bundles := self._replies.pop(self._num_answered, None)) is not None:
            self._num_answered += 1
            self.delivered.extend(bundles)
            # An empty delivery is the end.
            self._has_ended = self._has_ended or not bundles
        self._arrived.set()
        self._taken.set()
