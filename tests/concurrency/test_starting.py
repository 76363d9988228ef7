"""start: a coroutine that is made is started, whatever moment the loop ends at."""

from __future__ import annotations

import asyncio
import gc
import warnings
import weakref
from contextlib import suppress

import anyio

from aiodata.concurrency import start


async def test_task_runs_with_its_arguments_under_its_name() -> None:
    seen: list[object] = []

    async def note(*args: int) -> None:
        task = asyncio.current_task()
        seen.extend((args, task.get_name() if task else None))

    async with anyio.create_task_group() as group:
        start(group, note, 1, 2, name="noting")
    assert seen == [(1, 2), "noting"]


async def test_error_of_a_task_is_that_of_the_group() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    caught: list[Exception] = []
    try:
        async with anyio.create_task_group() as group:
            start(group, fail)
    except ExceptionGroup as error:
        caught.extend(error.exceptions)
    assert [type(error) for error in caught] == [ZeroDivisionError]


class Argument:
    """Something that can be seen to die."""


def test_task_that_is_cancelled_before_its_first_step_leaves_no_coroutine_and_no_argument() -> None:
    begun: list[object] = []
    watched: list[weakref.ref[Argument]] = []

    async def begin(argument: Argument) -> None:
        begun.append(argument)

    async def run() -> None:
        async with anyio.create_task_group() as group:
            argument = Argument()
            watched.append(weakref.ref(argument))
            start(group, begin, argument)
            del argument
            for task in asyncio.all_tasks():
                task.cancel()
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.wait([asyncio.get_running_loop().create_task(run())])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with suppress(asyncio.CancelledError):
            asyncio.run(main())
        gc.collect()
    assert not begun
    assert [str(one.message) for one in caught] == []
    assert [one() for one in watched] == [None]
