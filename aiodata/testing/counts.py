"""TaskCounts: what became of an operator's simulated tasks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TaskCounts:
    """What became of an operator's tasks.

    Attributes:
        name: The operator.
        started: Tasks that were submitted.
        running: Tasks that have a worker.
        finished: Tasks that came to an end of their own, failed ones included.
        cancelled: Tasks that were cancelled before.
    """

    name: str
    started: int = 0
    running: int = 0
    finished: int = 0
    cancelled: int = 0

    @property
    def waiting(self) -> int:
        """Tasks that have no worker, or none any more after theirs died."""
        return self.started - self.running - self.finished - self.cancelled
