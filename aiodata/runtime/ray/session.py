"""What a run knows of its Ray: the way from Ray's threads into the event loop, and whether Ray is still up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import ray

from aiodata.errors import RuntimeUnavailableError
from aiodata.runtime.ray.compat import when_released, when_shut_down

# Where names of actors are unique unless the caller says otherwise: Ray's own default is a namespace that no other
# driver sees.
NAMESPACE = "aiodata"


class Session:
    """A run's connection to Ray.

    What was made before a `ray.shutdown` must not be used after it: `ray.wait` and the like start another cluster, and
    to look into a task's stream that the new one does not know ends the process. So everything asks `is_down` first.
    """

    def __init__(self) -> None:
        """Take the running loop as the one to call back in."""
        self._loop = asyncio.get_running_loop()
        self._calls: deque[Callable[[], None]] = deque()
        self._is_scheduled = False
        self._is_down = False
        self._from_put: set[bytes] = set()

    @property
    def is_down(self) -> bool:
        """Whether Ray was shut down under the run."""
        # It says that it is not initialised some time before it is told to the watch.
        return self._is_down or not ray.is_initialized()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Cancel the body when Ray is shut down.

        Raises:
            RuntimeUnavailableError: Ray was shut down in the body.
        """
        reason: Exception | None = None
        with anyio.CancelScope() as scope:
            unwatch = when_shut_down(lambda: self._note_shutdown(scope))
            try:
                yield
            except Exception as error:
                if not self.is_down:
                    raise
                reason = error
            finally:
                unwatch()
        if reason is not None or scope.cancelled_caught:
            raise RuntimeUnavailableError(
                "Ray was shut down while a run was using it; close iterators, or leave their `async with`, "
                "before you call ray.shutdown()"
            ) from reason

    def call_soon(self, call: Callable[[], None]) -> None:
        """Have `call` run in the event loop; from any thread. Many calls are one wake-up."""
        self._calls.append(call)
        if not self._is_scheduled:
            self._is_scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._run)
            except RuntimeError:  # The loop is closed: nobody is waiting any more, and nothing is kept for later.
                self._is_scheduled = False
                self._calls.clear()

    def note_from_put(self, ref: ray.ObjectRef) -> None:
        """Take note, until it is gone, of an object that `ray.put` has stored, or that was made of such a one."""
        key = ref.binary()
        self._from_put.add(key)
        when_released(ref, lambda: self.call_soon(lambda: self._from_put.discard(key)))

    def is_from_put(self, argument: object) -> bool:
        """Whether a task's argument is an object that was noted."""
        return isinstance(argument, ray.ObjectRef) and argument.binary() in self._from_put

    def _note_shutdown(self, scope: anyio.CancelScope) -> None:
        self._is_down = True
        self.call_soon(scope.cancel)

    def _run(self) -> None:
        self._is_scheduled = False
        while self._calls:
            self._calls.popleft()()
