"""The order in which an operator's outputs leave it; no I/O."""

from __future__ import annotations

from collections import defaultdict, deque

from aiodata.bundle import RefBundle


class OutputOrder:
    """Releases bundles as they come, or, if order is to be preserved, those of one job after those of the one before.

    Jobs are numbered in the order of their input. The rest of a job that stopped early has the job's number.

    Args:
        preserve: Whether to preserve the order.
        max_jobs_ahead: How many jobs, the head included, may be under way if so.
    """

    def __init__(self, *, preserve: bool, max_jobs_ahead: int) -> None:
        """Expect job 0 first."""
        self.preserves = preserve
        self._max_jobs_ahead = max_jobs_ahead
        self._held: defaultdict[int, list[RefBundle]] = defaultdict(list)
        self._finished: set[int] = set()
        self.head = 0

    def may_start(self, job: int, *, is_rest: bool) -> bool:
        """Whether a job may start: not too far ahead of the head, and a rest only at the head.

        So what is held back for the head is bounded.
        """
        ahead = job - self.head
        return not self.preserves or (ahead == 0 if is_rest else ahead < self._max_jobs_ahead)

    def add(self, job: int, bundle: RefBundle, released: deque[RefBundle]) -> None:
        """Take a bundle of a job; add it to those that are released, if it may leave now."""
        if not self.preserves or job == self.head:
            released.append(bundle)
        else:
            self._held[job].append(bundle)

    def finish(self, job: int, released: deque[RefBundle]) -> None:
        """Note that a job has no more bundles; add those that may leave now to those that are released."""
        if not self.preserves:
            return
        self._finished.add(job)
        while self.head in self._finished:
            self._finished.discard(self.head)
            self.head += 1
            released += self._held.pop(self.head, [])

    def release(self, released: deque[RefBundle]) -> None:
        """Preserve the order no more: add all that is held back to those that are released, in order."""
        self.preserves = False
        for job in sorted(self._held):
            released += self._held[job]
        self._held.clear()
        self._finished.clear()

    def clear(self) -> None:
        """Let go of the bundles that are held back."""
        self._held.clear()
