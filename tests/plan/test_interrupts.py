"""Tasks with async calls that an interrupt cuts off, as Ray's cancellation does, or that a loop's end does."""

from __future__ import annotations

import _thread
import asyncio
import functools
import gc
import logging
import selectors
import signal
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aiodata.errors import ClosedError
from aiodata.plan.call_loop import CallLoop
from aiodata.plan.transforms import Control
from aiodata.plan.work import Work, run_work
from tests.plan.calls import Calls, mapped
from tests.plan.running import EAGER, Batch, counted


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What was printed about coroutines, tasks and loops; checked to be nothing at the end."""
    complaints: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: complaints.append(repr(one.exc_value)))
    with warnings.catch_warnings(), caplog.at_level(logging.ERROR, "asyncio"):
        warnings.simplefilter("error")
        yield complaints
        gc.collect()
    assert not complaints + caplog.messages


def interrupted(function: Callable[..., Any], module: str = __name__) -> Callable[..., Any]:
    """Return a function of a module that begins with an interrupt when it is called for the first time."""
    is_left = [True]

    def call(*args: Any, **kwargs: Any) -> Any:
        if is_left:
            is_left.pop()
            interrupt()
        return function(*args, **kwargs)

    interrupt = functools.partial(signal.raise_signal, signal.SIGINT)
    return types.FunctionType(call.__code__, {"__name__": module}, closure=call.__closure__)


def run_to_the_end(calls: Callable[..., Any]) -> None:
    for _ in run_work(Work((counted(6),), EAGER), [mapped(calls, 1, 3)], [], Control()):
        pass


def test_loop_that_is_being_made_is_made_first(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selectors, "DefaultSelector", interrupted(selectors.DefaultSelector))
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(Calls())


def test_call_that_is_being_started_is_started_first(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    loops = asyncio.SelectorEventLoop
    monkeypatch.setattr(loops, "create_task", interrupted(loops.create_task))
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(Calls())


def test_loop_that_is_being_closed_is_closed_first(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls([1])
    monkeypatch.setattr(asyncio, "wait", interrupted(asyncio.wait))
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(calls.stream)
    assert all(loop.is_closed() for loop in calls.loops)


def test_loop_leaves_before_an_interrupt_in_its_own_code(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls([3])
    monkeypatch.setattr(asyncio.Handle, "_run", interrupted(asyncio.Handle._run, "asyncio.events"))
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(calls)
    assert not calls.in_flight
    assert all(loop.is_closed() for loop in calls.loops)


def test_interrupt_in_the_users_code_ends_it_there(said: list[str]) -> None:
    calls = Calls([3])
    reached: list[Batch] = []

    async def call(batch: Batch) -> Batch:
        if batch["id"][0] == 2:
            signal.raise_signal(signal.SIGINT)
            reached.append(batch)
        return await calls(batch)

    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(call)
    assert not reached
    assert not calls.in_flight
    assert all(loop.is_closed() for loop in calls.loops)


def test_interrupt_that_is_no_signal_ends_a_call_that_waits(said: list[str]) -> None:
    waits = threading.Event()

    def interrupt() -> None:
        waits.wait(20)
        _thread.interrupt_main()

    async def call(batch: Batch) -> Batch:
        asyncio.get_running_loop().call_later(0.01, waits.set)
        await asyncio.sleep(30)
        return batch

    thread = threading.Thread(target=interrupt)
    thread.start()
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(call)
    assert time.perf_counter() - started < 20
    thread.join()


def test_loop_that_a_thread_runs_is_closed_by_that_thread(said: list[str]) -> None:
    loop, runs, may_go_on = CallLoop(), threading.Event(), threading.Event()

    async def block() -> None:
        runs.set()
        may_go_on.wait(20)  # As a thread that is left behind in a call of the user's does.

    def run() -> None:
        _ = loop.start(block)
        loop.settle(lambda: None)

    thread = threading.Thread(target=run)
    thread.start()
    assert runs.wait(20)
    loop.close()
    may_go_on.set()
    thread.join(20)
    with pytest.raises(ClosedError):
        loop.turn()
