"""Simulated workers: a pool of CPUs and GPUs that tasks and actors wait for, first come, first served."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from aiodata.errors import OptionError
from aiodata.plan.nodes import Resources

# Sums of fractions of CPUs may be off by this much.
_TOLERANCE = 1e-9


class Waiter(Protocol):
    """What waits for room to run, and then runs."""

    @property
    def is_waiting(self) -> bool:
        """Whether it still waits; one that was cancelled does not."""

    def start(self) -> None:
        """Run: what it takes was set aside for it."""


class Workers(Protocol):
    """Where tasks run."""

    def request(self, waiter: Waiter) -> None:
        """Start it as soon as there is room for it, and for all that came before it."""

    def release(self) -> None:
        """Take back what one that was started took."""

    def lend(self) -> None:
        """Take back what one took that waits for room, if it needs none of it meanwhile."""

    def take_back(self) -> None:
        """Let one have again what it has lent, whether or not that is free: it goes on at once."""

    def lose(self) -> None:
        """Take note that one that was started has lost its worker for good."""


class Pool:
    """CPUs and GPUs.

    Args:
        num_cpus: CPUs.
        num_gpus: GPUs.
    """

    def __init__(self, num_cpus: float, num_gpus: float) -> None:
        """All are free."""
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self._free_cpus = num_cpus
        self._free_gpus = num_gpus
        # Two queues of the same length: pairs of them would be work for the garbage collector.
        self._waiting: deque[Waiter] = deque()
        self._shares: deque[Share] = deque()

    def share(self, resources: Resources, *, default_cpus: float) -> Share:
        """Return what those of one kind take; so many CPUs unless something else is asked for.

        Raises:
            OptionError: There is not so much.
        """
        num_gpus = resources.num_gpus or 0.0
        num_cpus = resources.num_cpus if resources.num_cpus is not None else default_cpus
        if num_cpus > self.num_cpus or num_gpus > self.num_gpus:
            raise OptionError(
                f"{resources} is more than the simulated {self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs; "
                "give SimulatedRuntime more num_workers or num_gpus"
            )
        return Share(self, num_cpus, num_gpus)

    def request(self, share: Share, waiter: Waiter) -> None:
        """Start `waiter` in its turn."""
        if not self._waiting and self._fits(share):
            self._start(share, waiter)
        else:
            self._waiting.append(waiter)
            self._shares.append(share)

    def release(self, share: Share) -> None:
        """Take back a share, and start whom it was missing."""
        self._free_cpus += share.num_cpus
        self._free_gpus += share.num_gpus
        while self._waiting:
            if self._waiting[0].is_waiting and not self._fits(self._shares[0]):
                return
            waiter, share = self._waiting.popleft(), self._shares.popleft()
            if waiter.is_waiting:
                self._start(share, waiter)

    def take(self, share: Share) -> None:
        """Take a share that may not be free."""
        self._free_cpus -= share.num_cpus
        self._free_gpus -= share.num_gpus

    def _fits(self, share: Share) -> bool:
        return share.num_cpus <= self._free_cpus + _TOLERANCE and share.num_gpus <= self._free_gpus + _TOLERANCE

    def _start(self, share: Share, waiter: Waiter) -> None:
        self.take(share)
        waiter.start()


class Share:
    """What each task or actor of one kind takes of a pool."""

    def __init__(self, pool: Pool, num_cpus: float, num_gpus: float) -> None:
        """Take nothing yet."""
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self._pool = pool

    def request(self, waiter: Waiter) -> None:
        """Start `waiter` in its turn."""
        self._pool.request(self, waiter)

    def release(self) -> None:
        """Give back what one took."""
        self._pool.release(self)

    def lend(self) -> None:
        """Give back what one took: as on Ray, it needs no CPU while it waits."""
        self._pool.release(self)

    def take_back(self) -> None:
        """Take it again: as on Ray, more may run than there are CPUs for, for a while."""
        self._pool.take(self)

    def lose(self) -> None:
        """Give back what one took: another worker takes the place of one that was lost."""
        self._pool.release(self)
