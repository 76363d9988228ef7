"""Starts: a run whose tasks Ray cannot start, for example because the consumer holds all CPUs, says so.

Ray itself is silent about tasks that wait for CPUs, for good reason: on a busy cluster they do. So what is looked for
is a run of which nothing runs. Some tasks announce themselves when they start; of a stage, Ray starts the tasks in the
order in which they were submitted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from aiodata.concurrency import FIRST_S, run_in_thread
from aiodata.plan.nodes import Resources
from aiodata.runtime.ray.holders import ClusterView, describe_needs, look_around

# How often is looked, in seconds.
_LOOK_EVERY_S = 1.0

# Of a stage, tasks that come faster than this do not all announce themselves, in seconds.
_ANNOUNCE_EVERY_S = 0.05

_logger = logging.getLogger("aiodata")


@dataclass(slots=True)
class Start:
    """A task or an actor that was submitted.

    Attributes:
        stage: Its stage.
        submitted_s: When it was submitted.
        announces: Whether it says when it starts.
        has_started: Whether it has been seen to have started.
    """

    stage: StageStarts
    submitted_s: float
    announces: bool
    has_started: bool = False

    def note_started(self) -> None:
        """Note that it has started."""
        if not self.has_started:
            self.has_started = True
            self.stage.starts.seen_s = perf_counter()

    def note_ended(self) -> None:
        """Note that it has ended, or is not waited for any more."""
        self.stage.starts.remove(self)


class StageStarts:
    """The tasks, or actors, of a stage.

    Args:
        starts: Those of the run.
        resources: What each of them takes.
    """

    def __init__(self, starts: Starts, resources: Resources) -> None:
        """None was submitted."""
        self.starts = starts
        self._announced_s = 0.0
        self.needs = resources.needs

    def submit(self, *, is_actor: bool = False) -> Start:
        """Note that one is submitted; whether it announces its start is decided here."""
        now = perf_counter()
        announces = is_actor or now - self._announced_s >= _ANNOUNCE_EVERY_S
        if announces:
            self._announced_s = now
        return self.starts.add(Start(self, now, announces))


class Starts:
    """What a run has submitted and what of that has started; warns if nothing has for a while.

    It is a timer of the event loop, neither a task nor a thread.

    Args:
        is_down: Whether Ray was shut down.

    Attributes:
        seen_s: When something was seen to have started or ended last.
    """

    def __init__(self, is_down: Callable[[], bool]) -> None:
        """Begin to look."""
        self.seen_s = perf_counter()
        self._is_down = is_down
        self._submitted: dict[int, Start] = {}
        # Since when what waits has done so, and after how many seconds that is said next.
        self._since_s = 0.0
        self._next_s = FIRST_S
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_LOOK_EVERY_S, self._look)

    def stage(self, resources: Resources) -> StageStarts:
        """Return the account of a stage."""
        return StageStarts(self, resources)

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()
        self._submitted.clear()

    def add(self, start: Start) -> Start:
        """Take one that is submitted."""
        self._submitted[id(start)] = start
        return start

    def remove(self, start: Start) -> None:
        """Let one go."""
        if self._submitted.pop(id(start), None) is not None:
            self.seen_s = perf_counter()

    def waiting(self) -> Start | None:
        """Return the one that has waited longest, if it is sure that none of all has started."""
        sure: set[StageStarts] = set()
        for start in self._submitted.values():
            if start.has_started or not (start.announces or start.stage in sure):
                return None
            sure.add(start.stage)
        return next(iter(self._submitted.values()), None)

    def _look(self) -> None:
        self._timer = self._loop.call_later(_LOOK_EVERY_S, self._look)
        if self._is_down() or (start := self.waiting()) is None:
            return
        since_s = max(self.seen_s, start.submitted_s)
        if since_s != self._since_s:
            self._since_s, self._next_s = since_s, FIRST_S
        waited_s = perf_counter() - since_s
        if waited_s >= self._next_s:
            self._next_s = 2 * waited_s
            run_in_thread(partial(self._warn, start.stage.needs, waited_s))

    def _warn(self, needs: dict[str, float], waited_s: float) -> None:
        """Say what the run waits for; runs in a thread."""
        with suppress(Exception):  # Ray was shut down just now.
            if not self._is_down():
                _logger.warning("%s", describe_wait(needs, waited_s, look_around()))


def describe_wait(needs: dict[str, float], waited_s: float, cluster: ClusterView) -> str:
    """Return what a run waits for of which nothing has started, and what to do."""
    lacking = [name for name, need in needs.items() if need > cluster.obtainable(name)]
    names = lacking or list(needs)
    have = "; ".join(cluster.describe(name) for name in names)
    if any(cluster.total.get(name, 0.0) < needs[name] for name in lacking):
        remedy = "A node that has these has to join the cluster; else ask for less"
    elif lacking:
        remedy = (
            "They come free when those end. Or leave some for this run: consumers with @ray.remote(num_cpus=0), a "
            "trainer with fewer workers or with resources_per_worker={'CPU': 0.5}, more nodes"
        )
    else:
        remedy = (
            "Ray is starting workers, which takes long on a busy machine, and another minute for each that dies as it "
            "starts; or it waits for tasks of others to end"
        )
    have = f" ({have})" if have else ""
    return (
        f"no task of this run has been able to start for {waited_s:.0f} s: each takes {describe_needs(needs)}{have}. "
        f"{remedy}; `ray status` shows who has what"
    )
