"""The order in which an operator's outputs leave it; no I/O."""

from __future__ import annotations

from collections import defaultdict

from aiodata.bundle import RefBundle


class OutputOrder:
    """Releases bundles as they come, or, if order is to be preserved, those of one job after those of the one before.

    Jobs are numbered in the order of their input. The rest of a job that stopped early has the job's number.
    """

    def __init__(self, *, preserve: bool) -> None:
        """Expect job 0 first."""
        self._preserve = preserve
        self._held: defaultdict[int, list[RefBundle]] = defaultdict(list)
        self._finished: set[int] = set()
        self.head = 0

    def may_continue(self, job: int) -> bool:
        """Whether the rest of a job may start: only the head's, so that what is held stays bounded."""
        return not self._preserve or job == self.head

    def add(self, job: int, bundle: RefBundle) -> list[RefBundle]:
        """Take a bundle of a job; return the bundles that may leave now."""
        if not self._preserve or job == self.head:
            return [bundle]
        self._held[job].append(bundle)
        return []

    def finish(self, job: int) -> list[RefBundle]:
        """Note that a job has no more bundles; return the bundles that may leave now."""
        if not self._preserve:
            return []
        self._finished.add(job)
        released: list[RefBundle] = []
        while self.head in self._finished:
            self._finished.discard(self.head)
            self.head += 1
            released += self._held.pop(self.head, [])
        return released
