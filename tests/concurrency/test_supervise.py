"""Supervisor: whatever ends its task, `wait` returns, and what went wrong is kept."""

from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel
import pytest

from aiodata import AiodataError
from aiodata.concurrency.supervise import Supervisor, unwrap
from tests.conftest import PATIENCE_S


class Main:
    """A main function with handles."""

    def __init__(self, error: Exception | None = None) -> None:
        self.started = anyio.Event()
        self.release = anyio.Event()
        self.cancelled = False
        self._error = error

    async def __call__(self) -> None:
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self._error is not None:
            raise self._error


def supervisors_task() -> asyncio.Task[object]:
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == "supervised"]
    return task


async def test_end_of_main_is_the_end() -> None:
    main = Main()
    supervisor = Supervisor(main, name="supervised")
    supervisor.start()
    await main.started.wait()
    assert not supervisor.ended
    main.release.set()
    await supervisor.wait()
    assert supervisor.ended
    assert supervisor.error is None


async def test_error_of_main_is_kept_and_not_raised() -> None:
    contexts: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    error = ZeroDivisionError()
    main = Main(ExceptionGroup("outer", [ExceptionGroup("inner", [error])]))
    supervisor = Supervisor(main, name="supervised")
    supervisor.start()
    main.release.set()
    await supervisor.wait()
    assert supervisor.error is error
    await anyio.lowlevel.checkpoint()
    assert contexts == []


async def test_cancel_ends_main_without_an_error() -> None:
    main = Main()
    supervisor = Supervisor(main, name="supervised")
    supervisor.start()
    await main.started.wait()
    supervisor.cancel()
    assert not supervisor.ended
    await supervisor.wait()
    assert main.cancelled
    assert supervisor.error is None


async def test_cancel_before_the_task_runs_ends_it_at_its_first_await() -> None:
    main = Main()
    supervisor = Supervisor(main, name="supervised")
    supervisor.start()
    supervisor.cancel()
    with anyio.fail_after(PATIENCE_S):
        await supervisor.wait()
    assert main.cancelled
    assert supervisor.error is None


async def test_cancelled_wait_leaves_main_running() -> None:
    main = Main()
    supervisor = Supervisor(main, name="supervised")
    supervisor.start()
    await main.started.wait()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await supervisor.wait()
    assert not supervisor.ended
    main.release.set()
    await supervisor.wait()
    assert not main.cancelled


async def test_native_cancel_of_the_task_ends_it() -> None:
    main = Main()
    supervisor = Supervisor(main, name="supervised")
    supervisor.start()
    await main.started.wait()
    supervisors_task().cancel()
    with anyio.fail_after(PATIENCE_S):
        await supervisor.wait()
    assert main.cancelled


async def test_native_cancel_before_the_task_runs_ends_it() -> None:
    supervisor = Supervisor(Main(), name="supervised")
    supervisor.start()
    supervisors_task().cancel()
    with anyio.fail_after(PATIENCE_S):
        await supervisor.wait()
    assert supervisor.ended


def test_group_is_its_first_error_or_the_first_of_our_own_and_the_others_are_notes() -> None:
    one, two, own = ZeroDivisionError("one"), KeyError("two"), AiodataError("own")
    assert unwrap(one) is one
    assert unwrap(ExceptionGroup("outer", [ExceptionGroup("inner", [one])])) is one
    assert not hasattr(one, "__notes__")
    assert unwrap(ExceptionGroup("outer", [ExceptionGroup("pair", [one, two])])) is one
    assert one.__notes__ == ["at the same time: KeyError: 'two'"]
    assert unwrap(ExceptionGroup("outer", [two, ExceptionGroup("inner", [own])])) is own


@pytest.mark.parametrize("turns", range(4))
async def test_cancel_at_any_moment_ends_it(turns: int) -> None:
    supervisor = Supervisor(Main(), name="supervised")
    supervisor.start()
    for _ in range(turns):
        await asyncio.sleep(0)
    supervisor.cancel()
    with anyio.fail_after(PATIENCE_S):
        await supervisor.wait()
    assert supervisor.error is None
