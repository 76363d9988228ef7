"""Wakeup: many sets, one wake-up, and none is lost. News: each wakes all who wait."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from aiodata.concurrency import News, Wakeup
from tests.conftest import PATIENCE_S


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
    with anyio.fail_after(PATIENCE_S):
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
    with anyio.fail_after(PATIENCE_S):
        await wakeup.wait()


async def listen(news: News, heard: list[int], who: int) -> None:
    while True:
        await news.wait()
        heard.append(who)


async def test_each_news_wakes_all_who_wait() -> None:
    news, heard = News(), list[int]()
    async with anyio.create_task_group() as group:
        for who in range(3):
            group.start_soon(listen, news, heard, who)
        for turn in range(1, 4):
            await anyio.wait_all_tasks_blocked()
            news.tell()
            await anyio.wait_all_tasks_blocked()
            assert sorted(heard) == sorted([0, 1, 2] * turn)
        group.cancel_scope.cancel()


async def test_news_are_not_for_those_who_come_later() -> None:
    news, heard = News(), list[int]()
    news.tell()
    async with anyio.create_task_group() as group:
        group.start_soon(listen, news, heard, 0)
        await anyio.wait_all_tasks_blocked()
        assert heard == []
        news.tell()
        group.start_soon(listen, news, heard, 1)
        await anyio.wait_all_tasks_blocked()
        assert heard == [0]
        group.cancel_scope.cancel()


async def test_listener_that_is_cancelled_takes_no_news_from_the_others() -> None:
    news, heard = News(), list[int]()
    async with anyio.create_task_group() as group:
        group.start_soon(listen, news, heard, 0)
        async with anyio.create_task_group() as cancelled:
            cancelled.start_soon(listen, news, heard, 1)
            await anyio.wait_all_tasks_blocked()
            news.tell()
            cancelled.cancel_scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert heard.count(0) == 1
        group.cancel_scope.cancel()
