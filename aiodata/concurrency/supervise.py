"""Supervisor: hosts a task group in a task of its own.

It is the bridge between structured background work and an iterator that may be dropped at any time: the task group's
scope is entered and left in the supervisor's frame, never in the consumer's, and what happens there is kept as an
outcome for whoever asks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import anyio
import anyio.lowlevel

from aiodata.concurrency.release import cleared_frames
from aiodata.concurrency.taskset import TaskSet
from aiodata.errors import AiodataError, is_failure


class Supervisor:
    """Runs an async function in its own task until it ends or is cancelled; its error is kept, not raised.

    Args:
        main: What to run. It must not hold the handle whose dropping should end it.
        name: The task's name.
        on_end: Called when the task has ended, whatever the reason.

    Example:
        >>> async def main():
        ...     supervisor = Supervisor(anyio.sleep_forever, name="sleeper", on_end=lambda: print("ended"))
        ...     supervisor.start()
        ...     supervisor.cancel()
        ...     await supervisor.wait()
        ...     return supervisor.error
        >>> anyio.run(main)
        ended
    """

    def __init__(
        self, main: Callable[[], Awaitable[None]], *, name: str, on_end: Callable[[], None] | None = None
    ) -> None:
        """Prepare; nothing runs before `start`."""
        self._on_end = on_end or _do_nothing
        self._main = main
        self._name = name
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._tasks = TaskSet()
        self.error: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether the task has ended."""
        return self._ended.is_set()

    def start(self) -> None:
        """Start the task in the running loop."""
        # A task that is cancelled before its first step never enters its coroutine: only the callback sees every end.
        self._tasks.create(self._run(), name=self._name).add_done_callback(self._note_end)

    def cancel(self) -> None:
        """Ask the task to end; returns at once."""
        self._scope.cancel()

    async def wait(self) -> None:
        """Wait until the task has ended, cleanup included."""
        await self._ended.wait()

    async def _run(self) -> None:
        try:
            with self._scope, cleared_frames():
                await self._main()
        except BaseException as error:
            if not all(is_failure(leaf) for leaf in _leaves(error)):
                raise
            self.error = unwrap(error)

    def _note_end(self, _: object) -> None:
        self._ended.set()
        self._on_end()
        # They may refer to the owner, who refers to this: without them it goes when its last reference does.
        self._main, self._on_end = anyio.lowlevel.checkpoint, _do_nothing


def _do_nothing() -> None:
    pass


def unwrap(error: BaseException) -> Exception:
    """Return what an exception group is about: of the errors in it the first of aiodata's own, else the first.

    The others become notes of it; a group is how tasks that failed at the same time report. A panic of a library, which
    is no `Exception`, becomes the cause of one.
    """
    leaves = list(_leaves(error))
    chosen = next((leaf for leaf in leaves if isinstance(leaf, AiodataError)), leaves[0])
    for leaf in leaves:
        if leaf is not chosen:
            chosen.add_note(f"at the same time: {type(leaf).__name__}: {leaf}")
    if isinstance(chosen, Exception):
        return chosen
    failure = AiodataError(f"{type(chosen).__name__}: {chosen}")
    failure.__cause__ = chosen
    return failure


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for one in error.exceptions:
        yield from _leaves(one)
