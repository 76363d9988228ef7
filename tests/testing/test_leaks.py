"""no_leaks: tasks, async generators and unseen errors that a block of code leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from aiodata.testing import no_leaks


async def numbers() -> AsyncIterator[int]:
    for number in range(3):
        yield number


async def test_what_is_done_and_exhausted_is_not_left() -> None:
    async with no_leaks():
        task = asyncio.create_task(asyncio.sleep(0))
        assert [number async for number in numbers()] == [0, 1, 2]
    assert task.done()


async def test_a_task_that_goes_on_is_left() -> None:
    with pytest.raises(AssertionError, match="left behind: task 'forgotten'"):
        async with no_leaks(within_s=0.01):
            task = asyncio.create_task(asyncio.Event().wait(), name="forgotten")
    task.cancel()


async def test_a_task_from_before_is_not_left() -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    async with no_leaks(within_s=0.01):
        await asyncio.sleep(0)
    task.cancel()


async def test_an_async_generator_that_is_held_unfinished_is_left() -> None:
    generator = numbers()
    with pytest.raises(AssertionError, match="left behind: async generator 'numbers'"):
        async with no_leaks():
            await anext(generator)
    await generator.aclose()  # type: ignore[attr-defined]


async def test_an_async_generator_that_the_loop_closes_is_not_left() -> None:
    async with no_leaks():
        async for _ in numbers():
            break


async def test_an_error_that_nobody_saw_is_left() -> None:
    with pytest.raises(AssertionError, match=r"left behind: error Exception in callback .*ValueError\('unseen'\)"):
        async with no_leaks():
            await _fail_in_a_callback()


async def test_an_exception_of_the_block_passes() -> None:
    with pytest.raises(ValueError, match="unseen"):
        async with no_leaks():
            _fail()


async def _fail_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(_fail)
    await asyncio.sleep(0)


def _fail() -> None:
    raise ValueError("unseen")
