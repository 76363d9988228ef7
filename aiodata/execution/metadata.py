"""MetadataPrefetcher: brings the metadata of blocks to their operators, in order, without ever waiting for it.

What tasks produce surfaces as pairs: a block, and a reference to its metadata. Pairs are submitted to their operator's
lane, their metadata is fetched in batches as far as it is there, and each pair is emitted when its own metadata and
that of all pairs before it in the lane has come. What is not there yet is waited for in the executor's task group; so
a reference that is stuck, on a node that has trouble, delays no other operator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import anyio

from aiodata.concurrency import cleared_frames, start
from aiodata.plan.work import TaskEnd
from aiodata.runtime.base import Outcome, Pair

FetchReady = Callable[[Sequence[Pair]], list[Outcome]]
Fetch = Callable[[Pair], Awaitable[Outcome]]


class PairOwner(Protocol):
    """Who submitted a pair."""

    def drain(self) -> None:
        """Take note that its end has come, which is emitted in its turn."""

    def emit(self, pair: Pair, outcome: Outcome) -> None:
        """Take a pair and what became of its metadata: never None."""


class _Entry:
    """A pair on its way through a lane; without an outcome as long as its metadata is under way."""

    __slots__ = ("outcome", "owner", "pair", "scope")

    def __init__(self, owner: PairOwner, pair: Pair, outcome: Outcome) -> None:
        self.owner = owner
        self.pair = pair
        self.outcome: Outcome = None
        self.scope: anyio.CancelScope | None = None
        self.settle(outcome)

    def settle(self, outcome: Outcome) -> None:
        """Take an outcome, or None for now."""
        self.outcome = outcome
        if isinstance(outcome, TaskEnd):
            self.owner.drain()


class MetadataPrefetcher:
    """Fetches metadata for the lanes of all operators of a run.

    Args:
        fetch_ready: Returns what is there of the metadata of pairs, without waiting.
        fetch: Waits for the metadata of a pair.
        is_inline: Whether each pair's metadata is fetched, and waited for, on its own: prefetching is switched off.
    """

    def __init__(self, fetch_ready: FetchReady, fetch: Fetch, *, is_inline: bool = False) -> None:
        """Nothing is under way."""
        self.fetch_ready = fetch_ready
        self.is_inline = is_inline
        self._fetch = fetch
        self.group = anyio.create_task_group()

    def lane(self, on_emitted: Callable[[], None]) -> Lane:
        """Return an operator's lane; `on_emitted` is called when pairs were emitted that had to be waited for."""
        return Lane(self, on_emitted)

    async def outcome_of(self, pair: Pair) -> Outcome:
        """Wait for a pair's metadata; a failure is an outcome, too."""
        try:
            return await self._fetch(pair)
        except Exception as error:  # noqa: BLE001 - the operator decides what it means.
            # Its traceback would keep this frame, and with it the block.
            return error.with_traceback(None)

    def start_waiting(self, lane: Lane, entry: _Entry) -> None:
        """Wait for an entry's metadata in the background, then emit what can be."""
        entry.scope = anyio.CancelScope()
        start(self.group, lane.emit_later, entry, name="metadata")


class Lane:
    """The pairs of one operator, in the order in which they were submitted."""

    def __init__(self, prefetcher: MetadataPrefetcher, on_emitted: Callable[[], None]) -> None:
        """Nothing is on its way."""
        self._prefetcher = prefetcher
        self._on_emitted = on_emitted
        self._new_owners: list[PairOwner] = []
        self._new_pairs: list[Pair] = []
        self._waiting: deque[_Entry] = deque()

    @property
    def num_new(self) -> int:
        """Pairs that `flush` has not seen."""
        return len(self._new_pairs)

    def submit(self, owner: PairOwner, pair: Pair) -> None:
        """Add a pair; it is emitted by a `flush`, or when its metadata comes."""
        self._new_owners.append(owner)
        self._new_pairs.append(pair)

    async def flush(self) -> None:
        """Fetch the metadata of the pairs that are new, and emit what can be; waits only if prefetching is off."""
        owners, self._new_owners = self._new_owners, []
        pairs, self._new_pairs = self._new_pairs, []
        if self._prefetcher.is_inline:
            await self._flush_inline(owners, pairs)
            return
        outcomes = self._prefetcher.fetch_ready(pairs)
        for owner, pair, outcome in zip(owners, pairs, outcomes, strict=True):
            if outcome is not None and not self._waiting:
                owner.emit(pair, outcome)
                continue
            entry = _Entry(owner, pair, outcome)
            self._waiting.append(entry)
            if outcome is None:
                self._prefetcher.start_waiting(self, entry)

    async def emit_later(self, entry: _Entry) -> None:
        """Wait for an entry's metadata, then emit all that this lets go."""
        # A cancellation's traceback would keep this frame, too.
        waiting = self._wait_and_emit(entry)
        del entry
        with cleared_frames():
            await waiting

    async def _wait_and_emit(self, entry: _Entry) -> None:
        assert entry.scope is not None, "it is waited for"
        with entry.scope:
            entry.settle(await self._prefetcher.outcome_of(entry.pair))
        emitted = False
        while self._waiting and self._waiting[0].outcome is not None:
            first = self._waiting.popleft()
            emitted = True
            first.owner.emit(first.pair, first.outcome)
        if emitted:
            self._on_emitted()

    async def _flush_inline(self, owners: list[PairOwner], pairs: list[Pair]) -> None:
        for owner, pair in zip(owners, pairs, strict=True):
            [outcome] = self._prefetcher.fetch_ready([pair])
            if outcome is None:
                outcome = await self._prefetcher.outcome_of(pair)
            owner.emit(pair, outcome)

    def clear(self) -> None:
        """Let go of the pairs that are on their way, and wait for none of them any more."""
        for entry in self._waiting:
            if entry.scope is not None:
                entry.scope.cancel()
        self._new_owners.clear()
        self._new_pairs.clear()
        self._waiting.clear()
