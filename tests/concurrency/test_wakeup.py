"""Wakeup: many sets, one wake-up, and none is lost."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from aiodata.concurrency import Wakeup


async def count_wakeups(wakeup: Wakeup, woken: list[None]) -> None:
    while True:
        await wakeup.wait()
        woken.append(None)


async def test_many_sets_wake_the_waiter_once() -> None:
    wakeup, woken = Wakeup(), list[None]()
    async with anyio.create_task_group() as group:
        group.start_soon(count_wakeups, wakeup, woken)
        await anyio.wait_all_tasks_blocked()
        for _ in range(5):
            wakeup.set()
        await anyio.wait_all_tasks_blocked()
        assert len(woken) == 1
        wakeup.set()
        await anyio.wait_all_tasks_blocked()
        assert len(woken) == 2
        group.cancel_scope.cancel()


async def test_set_before_wait_is_not_lost() -> None:
    wakeup = Wakeup()
    wakeup.set()
    with anyio.fail_after(1):
        await wakeup.wait()


async def test_wait_clears_the_flag() -> None:
    wakeup = Wakeup()
    wakeup.set()
    await wakeup.wait()
    async with anyio.create_task_group() as group:
        woken: list[None] = []
        group.start_soon(count_wakeups, wakeup, woken)
        await anyio.wait_all_tasks_blocked()
        assert woken == []
        group.cancel_scope.cancel()


async def test_cancelled_wait_leaves_the_flag_as_it_was() -> None:
    wakeup = Wakeup()
    waiter = asyncio.create_task(wakeup.wait())
    await anyio.wait_all_tasks_blocked()
    wakeup.set()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    with anyio.fail_after(1):
        await wakeup.wait()
