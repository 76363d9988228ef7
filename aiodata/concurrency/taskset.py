"""TaskSet: strong references to background tasks until they are done.

An event loop keeps weak references to its tasks, so a task that nobody else holds can vanish while it runs
(https://docs.python.org/3/library/asyncio-task.html#asyncio.create_task).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Self

from aiodata.errors import ClosedError

# A set that holds tasks has to be held itself: its owner may be dropped while the tasks still clean up.
_SETS_WITH_TASKS: set[TaskSet] = set()


class TaskSet:
    """Creates tasks and holds each one until it is done; a task's exception reaches the loop's exception handler.

    Args:
        loop: The loop that the tasks run in; None: the one that runs when a task is created.

    Example:
        >>> async def main():
        ...     async with TaskSet() as tasks:
        ...         await tasks.create(asyncio.sleep(0, "done"), name="nap")
        ...     return len(tasks)
        >>> asyncio.run(main())
        0
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Start empty."""
        self._loop = loop
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        """Tasks that are not done."""
        return len(self._tasks)

    def create(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start a task and hold it until it is done.

        Raises:
            ClosedError: The set was closed.
        """
        if self._closed:
            coroutine.close()
            raise ClosedError("this TaskSet is closed; make a new one")
        try:
            task = (self._loop or asyncio.get_running_loop()).create_task(coroutine, name=name)
        except RuntimeError:  # The loop is closed, or there is none.
            coroutine.close()
            raise
        self._tasks.add(task)
        _SETS_WITH_TASKS.add(self)
        task.add_done_callback(self._on_done)
        return task

    async def aclose(self) -> None:
        """Cancel every task and wait until all are done; idempotent."""
        self._closed = True
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel("TaskSet closed")
        if tasks:
            await asyncio.wait(tasks)

    def forget(self) -> None:
        """Let go of tasks that will never be done, since their loop is closed."""
        self._tasks.clear()
        _SETS_WITH_TASKS.discard(self)

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close."""
        await self.aclose()

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            _SETS_WITH_TASKS.discard(self)
        # An interrupt has come out of the loop already.
        if task.cancelled() or isinstance(error := task.exception(), KeyboardInterrupt | SystemExit | None):
            return
        context = {"message": f"task {task.get_name()!r} failed", "exception": error, "task": task}
        task.get_loop().call_exception_handler(context)
