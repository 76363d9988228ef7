"""start: a task of a task group whose coroutine is not made before the task takes its first step."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVarTuple

import anyio
from anyio.abc import TaskGroup

Args = TypeVarTuple("Args")

# These versions of anyio wrap the coroutine that a task is to run in one of their own.
_WRAPS = hasattr(anyio, "TaskHandle")


def start(
    group: TaskGroup, function: Callable[[*Args], Coroutine[Any, Any, Any]], *args: *Args, name: str | None = None
) -> None:
    """Start a task in a task group, as `group.start_soon` does.

    A task that is cancelled before its first step, as all are when a loop ends, never enters its coroutine. asyncio
    closes that; but where anyio has wrapped it in another one only the wrapper is closed, and Python complains that the
    coroutine "was never awaited". So none is made before the task takes its first step.

    Example:
        >>> async def main():
        ...     async with anyio.create_task_group() as group:
        ...         start(group, anyio.sleep, 0)
        >>> anyio.run(main)
    """
    title = name or f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', repr(function))}"
    if _WRAPS:
        group.start_soon(_Unmade, function, args, name=title)
    else:
        group.start_soon(function, *args, name=title)


class _Unmade(Coroutine[Any, Any, Any]):
    """Stands for a coroutine that is made when it is awaited; it keeps nothing beyond that."""

    __slots__ = ("_calls",)

    def __init__(self, function: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...]) -> None:
        self._calls = [(function, args)]

    def __await__(self) -> Generator[Any, Any, Any]:
        function, args = self._calls.pop()
        return function(*args).__await__()

    def send(self, value: Any) -> Any:
        raise RuntimeError("it is only awaited")

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        self.close()
        raise kind if value is None else value

    def close(self) -> None:
        self._calls.clear()
