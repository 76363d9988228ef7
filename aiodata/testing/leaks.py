"""Leak checks: what a block of code leaves behind in its event loop."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import AsyncGeneratorType
from typing import Any


@asynccontextmanager
async def no_leaks(*, within_s: float = 5.0) -> AsyncIterator[None]:
    """Check that a block of code leaves no task and no async generator behind, and no error that nobody saw.

    Tasks may take a while to end. An async generator that was dropped before its end counts as long as the loop has
    not closed it. An exception of the block itself passes, unchecked.

    Args:
        within_s: How long tasks may take to end, in seconds of the loop's clock.

    Raises:
        AssertionError: Something is left; the message says what.

    Example:
        >>> async def main():
        ...     async with no_leaks():
        ...         await asyncio.sleep(0)
        >>> asyncio.run(main())

        >>> async def careless():
        ...     async with no_leaks(within_s=0.01):
        ...         task = asyncio.get_running_loop().create_task(asyncio.sleep(60), name="forgotten")
        >>> asyncio.run(careless())
        Traceback (most recent call last):
        AssertionError: left behind: task 'forgotten'
    """
    before = asyncio.all_tasks()
    with _watched_generators() as generators, _watched_errors() as complaints:
        yield
        # What only a reference cycle holds is found and closed now.
        gc.collect()
        tasks = asyncio.all_tasks() - before
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)
        left = [f"task {task.get_name()!r}" for task in tasks if not task.done()]
        left += [f"async generator {one.__qualname__!r}" for one in generators if one.ag_frame is not None]
        left += complaints
    if left:
        raise AssertionError(f"left behind: {', '.join(sorted(left))}")


@contextmanager
def _watched_generators() -> Iterator[weakref.WeakSet[AsyncGeneratorType[Any, Any]]]:
    """Give the async generators of this thread that are iterated for the first time meanwhile."""
    hooks = sys.get_asyncgen_hooks()
    generators: weakref.WeakSet[AsyncGeneratorType[Any, Any]] = weakref.WeakSet()

    def on_first_iteration(generator: AsyncGenerator[Any, Any]) -> None:
        if isinstance(generator, AsyncGeneratorType):
            generators.add(generator)
        if hooks.firstiter is not None:
            hooks.firstiter(generator)

    sys.set_asyncgen_hooks(firstiter=on_first_iteration)
    try:
        yield generators
    finally:
        sys.set_asyncgen_hooks(firstiter=hooks.firstiter)


@contextmanager
def _watched_errors() -> Iterator[list[str]]:
    """Give what reaches the loop's exception handler meanwhile."""
    loop = asyncio.get_running_loop()
    handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = loop.get_exception_handler()
    complaints: list[str] = []

    def on_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        complaints.append(f"error {context.get('message')}" + ("" if error is None else f": {error!r}"))

    loop.set_exception_handler(on_error)
    try:
        yield complaints
    finally:
        loop.set_exception_handler(handler)
