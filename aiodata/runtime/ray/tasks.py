"""A streaming Ray task, or a streaming call of an actor's method, as its driver sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import anyio
import ray
from ray.exceptions import RayError

from aiodata.concurrency import without_frames
from aiodata.plan.work import Work
from aiodata.runtime.base import OnReady, Pair
from aiodata.runtime.ray.compat import report_stream, when_settled
from aiodata.runtime.ray.held import HeldOutputs
from aiodata.runtime.ray.outcomes import RayMetadata, failed_end, is_end
from aiodata.runtime.ray.session import Session
from aiodata.runtime.ray.starts import Start


class RayTask:
    """Reads a task's reports as they come, up to the one that tells its end.

    Args:
        name: What errors call it.
        generator: Ray's generator of its outputs.
        report_size: How many objects each report has: blocks, and what is said of them.
        session: The run's connection to Ray.
        on_ready: See `Stage.submit`.
        max_held_bytes: How much of its output is kept until it is complete; see `HeldOutputs`.
        give_room: What tells it how many blocks it may make beyond the room that it had.
        start: Where its start and its end are noted, if they are; a task that announces itself does so in its first
            report.

    Attributes:
        is_cancelled: Whether Ray was asked to stop it.
        give_room: See `Task.give_room`.
    """

    def __init__(
        self,
        name: str,
        generator: Any,
        report_size: int,
        session: Session,
        on_ready: OnReady,
        max_held_bytes: int,
        give_room: Callable[[int], None],
        start: Start | None = None,
    ) -> None:
        """Start to listen for the first report."""
        self._name = name
        self._generator = generator
        self._session = session
        self._on_ready = on_ready
        self._reports = report_stream(generator, report_size)
        self._latest: ray.ObjectRef | None = None
        self._has_ended = False
        self._start = start
        # Whether the next report has no blocks, but says that the task has started; and what came right after that one.
        self._is_announced = start is not None and start.announces
        self._early: list[Pair] = []
        self._is_listening = False
        self.is_cancelled = False
        self.give_room = give_room
        self._held = HeldOutputs(max_held_bytes) if max_held_bytes else None
        if self._held is not None:
            # Not by way of the loop, which may be closed by then.
            when_settled(generator.completed(), self._held.let_go)
        self._listen()

    def pull(self) -> list[Pair]:
        """Return the pairs that are there, and listen for the next ones."""
        # While it listens there is none: its driver asks again after each, and to look costs more than to listen.
        if self._is_listening or self._session.is_down:
            return []
        pairs = [*self._early, *self._take_all()]
        self._early.clear()
        if not self._has_ended:
            self._listen()
        return pairs

    def cancel(self) -> None:
        """Ask Ray to stop the task, unless it has said goodbye; to drop its generator would not stop it."""
        self._early.clear()
        if self._may_be_cancelled():
            ray.cancel(self._generator)
            self.is_cancelled = True
            self._note_ended()
            self._keep_stream()
            if self._held is not None:
                self._held.let_go()

    def when_complete(self, call: Callable[[], None]) -> None:
        """Have `call` run in the event loop once Ray is done with the task, which is some time after its goodbye."""
        when_settled(self._generator.completed(), lambda: self._session.call_soon(call))

    async def wait_stopped(self) -> None:
        """Wait until a task that was cancelled runs no more; a call that never returns to Python is not interrupted."""
        if self.is_cancelled and not self._session.is_down:
            stopped = anyio.Event()
            self.when_complete(stopped.set)
            await stopped.wait()

    def _keep_stream(self) -> None:
        """Keep the task's stream until its worker has come to rest.

        Ray 2.60 ends the stream as soon as the task is cancelled. Once that is dropped, Ray has what the worker is just
        storing freed; if it is pinned only after that, nobody ever frees it.
        """
        kept = [self._generator, self._reports]
        # Not by way of the loop, which may be closed by then.
        when_settled(self._generator.completed(), kept.clear)

    def _take_all(self) -> list[Pair]:
        pairs: list[Pair] = []
        while not self._has_ended:
            try:
                refs = self._reports.take()
            except (RayError, EOFError) as error:
                self._has_ended = True
                self._note_ended()
                without_frames(error)
                # It failed without a goodbye, if it did not do so after it.
                if self._latest is None or not is_end(self._latest):
                    pairs.append(Pair(None, failed_end(self._name, None if isinstance(error, EOFError) else error)))
                break
            if refs is None:
                break
            *blocks, self._latest = refs
            if self._start is not None:
                self._start.note_started()
            if self._is_announced:
                self._is_announced = False
                continue
            for index, block in enumerate(blocks):
                if self._held is not None:
                    self._held.add(block)
                    self._session.note_from_put(block)
                pairs.append(Pair(block, RayMetadata(self._latest, index, self._name)))
        return pairs

    def _note_ended(self) -> None:
        if self._start is not None:
            self._start.note_ended()

    def _may_be_cancelled(self) -> bool:
        """Read up to the goodbye, which is in the last report: whoever has said it must not be cancelled any more."""
        if self._session.is_down:
            return False
        self._take_all()
        return not self._has_ended and (self._latest is None or not is_end(self._latest))

    def _listen(self) -> None:
        if not self._is_listening:
            self._is_listening = True
            self._reports.arm(lambda: self._session.call_soon(self._tell))

    def _tell(self) -> None:
        self._is_listening = False
        if self._is_announced and not self._session.is_down:
            self._early = self._take_all()
            if not self._early and not self._has_ended:
                self._listen()
                return
        self._on_ready(self)


def max_held_bytes(work: Work, arguments: Iterable[Any], session: Session) -> int:
    """Return how much of a task's output to keep until it is complete, in bytes: all that is usual, or nothing."""
    # A task's output is allotted, and it may be a little more.
    return 2 * work.cuts.task_bytes if any(map(session.is_from_put, arguments)) else 0
