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
    not closed it. An exception of the block itself passes, unchecked. It may be the body of an async fixture, and
    `IsolatedAsyncioTestCase.asyncSetUp` may enter it by `enterAsyncContext`.

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
    with _watched_generators() as unfinished_generators, _watched_errors() as complaints:
        yield
        # What only a reference cycle holds is found and closed now.
        gc.collect()
        tasks = asyncio.all_tasks() - before - _callers(before)
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)
        left = [f"task {task.get_name()!r}" for task in tasks if not task.done()]
        left += [f"async generator {name!r}" for name in unfinished_generators()]
        left += complaints
    if left:
        raise AssertionError(f"left behind: {', '.join(sorted(left))}")


def _callers(before: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """Return the tasks that wait for the end of the check: a fixture ends in other tasks than it has begun in.

    They are the running one, and those that test frameworks have run the loop with, now as before.
    """
    ended = {_code(task) for task in before if task.done()}
    return {task for task in asyncio.all_tasks() if task is asyncio.current_task() or _code(task) in ended}


def _code(task: asyncio.Task[Any]) -> object:
    return getattr(task.get_coro(), "cr_code", task)


@contextmanager
def _watched_generators() -> Iterator[Callable[[], list[str]]]:
    """Give what names the async generators that were begun meanwhile, in this thread, and are not finished."""
    hooks = sys.get_asyncgen_hooks()
    begun: weakref.WeakSet[AsyncGeneratorType[Any, Any]] = weakref.WeakSet()
    before = weakref.WeakSet(_all_generators())

    def on_first_iteration(generator: AsyncGenerator[Any, Any]) -> None:
        if isinstance(generator, AsyncGeneratorType):
            begun.add(generator)
        if hooks.firstiter is not None:
            hooks.firstiter(generator)

    def unfinished() -> list[str]:
        is_hooked = sys.get_asyncgen_hooks().firstiter is on_first_iteration
        # A loop that is run anew, as between a fixture and its test, sets hooks of its own: these are all that are new.
        generators = list(begun) if is_hooked else [one for one in _all_generators() if one not in before]
        return [one.__qualname__ for one in generators if one.ag_frame is not None]

    sys.set_asyncgen_hooks(firstiter=on_first_iteration)
    try:
        yield unfinished
    finally:
        if sys.get_asyncgen_hooks().firstiter is on_first_iteration:
            sys.set_asyncgen_hooks(firstiter=hooks.firstiter)


def _all_generators() -> list[AsyncGeneratorType[Any, Any]]:
    # Not `isinstance`, which asks each object for its class: some warn then that they are deprecated, as torch has one.
    return [one for one in gc.get_objects() if type(one) is AsyncGeneratorType]


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
