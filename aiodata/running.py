"""run: an async function to its end, on the fastest event loop that is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from importlib.util import find_spec
from inspect import isawaitable
from typing import TypeVar, TypeVarTuple

import anyio

from aiodata.errors import OptionError

T = TypeVar("T")
Args = TypeVarTuple("Args")


def run(main: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
    """Run an async function in an event loop of its own until it ends: uvloop's where it is installed, else asyncio's.

    Ctrl-C cancels `main`; when all cleanup is done, `KeyboardInterrupt` is raised. So it is for whatever else ends
    `main`: tasks that it left behind are cancelled and waited for.

    Args:
        main: The async function, or anything else that returns an awaitable when it is called.
        args: What to call it with; `functools.partial` adds keywords.

    Returns:
        What `main` returned.

    Raises:
        OptionError: `main` is no async function, for example because it was called: `run(main())`.
        RuntimeError: An event loop runs in this thread already.

    Example:
        >>> import aiodata
        >>> async def main():
        ...     return await aiodata.range(3).count()
        >>> aiodata.run(main)
        3
    """
    given: object = main
    if isinstance(given, Coroutine):
        # Python would complain that it was never awaited, in addition to the error that says what to do.
        given.close()
    if _loop_is_running():
        raise RuntimeError("an event loop runs in this thread already: write `await main()`, not `aiodata.run(main)`")
    if not callable(given):
        raise OptionError(
            f"main={given!r} must be an async function: write `aiodata.run(main)`, not `aiodata.run(main())`"
        )

    # The task is named after the function that it runs.
    @wraps(main)
    async def checked() -> T:
        try:
            awaitable = main(*args)
            if not isawaitable(awaitable):
                raise OptionError(f"main={main!r} must be an async function, but returned {awaitable!r}")
            return await awaitable
        finally:
            await _cancel_what_is_left()

    return anyio.run(checked, backend_options={"use_uvloop": find_spec("uvloop") is not None})


async def _cancel_what_is_left() -> None:
    """Cancel the tasks that nothing waits for, which end their children themselves, and wait for them."""
    # asyncio's own shutdown cancels children too. One of an anyio task group that has not had its first step would
    # then never await the coroutine it wraps, and Python would warn about that.
    children = {task.id for task in anyio.get_running_tasks() if task.parent_id is not None}
    left = [task for task in asyncio.all_tasks() if id(task) not in children and task is not asyncio.current_task()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
