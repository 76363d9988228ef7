"""run: on uvloop where there is one, and Ctrl-C ends it with everything cleaned up."""

from __future__ import annotations

import asyncio
import gc
import inspect
import signal
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import anyio
import pytest

from aiodata import OptionError
from aiodata.running import run
from tests.conftest import PATIENCE_S


async def double(value: int, *, times: int = 1) -> int:
    await anyio.lowlevel.checkpoint()
    return value * 2 * times


async def loop_module() -> str:
    return type(asyncio.get_running_loop()).__module__


@pytest.fixture(params=["uvloop", "asyncio"])
def loop_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with uvloop, and as if it were not installed."""
    if request.param == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)
    return str(request.param)


def test_loop_is_uvloop_where_it_is_installed_else_asyncio(loop_name: str) -> None:
    assert run(loop_module).startswith(loop_name)


@pytest.mark.usefixtures("loop_name")
def test_arguments_go_in_and_the_result_comes_out() -> None:
    assert run(double, 3) == 6


def test_whatever_returns_an_awaitable_will_do() -> None:
    assert run(partial(double, times=2), 3) == 12
    assert run(lambda: double(4)) == 8


@pytest.mark.usefixtures("loop_name")
def test_error_of_main_is_raised() -> None:
    async def fail() -> None:
        raise ZeroDivisionError("of main")

    with pytest.raises(ZeroDivisionError, match="of main"):
        run(fail)


@pytest.mark.usefixtures("loop_name")
def test_task_that_main_leaves_behind_is_cancelled_and_waited_for() -> None:
    ended: list[str] = []

    async def left_behind() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cleaned")

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(left_behind())
        await anyio.wait_all_tasks_blocked()
        return task

    assert run(main).cancelled()
    assert ended == ["cleaned"]


@pytest.mark.usefixtures("loop_name")
def test_child_that_never_began_is_dropped_without_a_warning() -> None:
    async def left_behind() -> None:
        async with anyio.create_task_group() as group:
            await may_spawn.wait()
            group.start_soon(anyio.sleep_forever)

    async def main() -> None:
        tasks.append(asyncio.create_task(left_behind()))
        await anyio.wait_all_tasks_blocked()
        # The task would spawn in the very turn of the loop that is the last one of this function.
        may_spawn.set()

    may_spawn, tasks = anyio.Event(), list[asyncio.Task[None]]()
    run(main)
    gc.collect()
    assert tasks[0].cancelled()


def test_task_is_named_after_the_function() -> None:
    async def own_name() -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    assert run(own_name).endswith("own_name")


def test_called_async_function_is_an_option_error_and_is_closed() -> None:
    called = double(3)
    with pytest.raises(OptionError, match=r"write `aiodata.run\(main\)`, not `aiodata.run\(main\(\)\)`"):
        run(called)  # type: ignore[arg-type] # the mistake that is to be caught.
    assert inspect.getcoroutinestate(called) == inspect.CORO_CLOSED


def test_what_can_not_be_called_is_an_option_error() -> None:
    with pytest.raises(OptionError, match="main=3 must be an async function"):
        run(3)  # type: ignore[arg-type] # the mistake that is to be caught.


def test_plain_function_is_an_option_error() -> None:
    with pytest.raises(OptionError, match=r"must be an async function, but returned 'plain'"):
        run(lambda: "plain")  # type: ignore[arg-type,return-value] # the mistake that is to be caught.


async def test_run_inside_a_loop_says_to_await() -> None:
    with pytest.raises(RuntimeError, match=r"write `await main\(\)`"):
        run(double, 3)


async def test_called_async_function_inside_a_loop_is_closed() -> None:
    called = double(3)
    with pytest.raises(RuntimeError, match=r"write `await main\(\)`"):
        run(called)  # type: ignore[arg-type] # the mistake that is to be caught.
    assert inspect.getcoroutinestate(called) == inspect.CORO_CLOSED


# A shell starts background jobs with SIGINT ignored, and children inherit that: each program undoes it.
PREAMBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.argv[1] == "asyncio":
    sys.modules["uvloop"] = None
import anyio, aiodata
from aiodata.running import run
"""

WAITS_FOREVER = """
async def child():
    try:
        await anyio.sleep_forever()
    finally:
        print("child cleaned", flush=True)

async def main():
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(child)
            await anyio.wait_all_tasks_blocked()
            print("ready", flush=True)
            await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0)
        print("cleaned", flush=True)

run(main)
"""

STREAMS = """
async def main():
    ds = aiodata.range(10**9).with_options(runtime="local")
    ready = False
    try:
        async for batch in ds.aiter_batches(batch_size=100):
            if not ready:
                ready = True
                print("ready", flush=True)
    finally:
        print("cleaned", flush=True)

run(main)
"""


def interrupted(program: str, loop: str, tmp_path: Path) -> tuple[int, str, str]:
    """Run a program, send it SIGINT when it is ready, and return its exit code and the rest of its output."""
    path = tmp_path / "program.py"
    path.write_text(PREAMBLE + textwrap.dedent(program))
    command = [sys.executable, str(path), loop]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    return process.returncode, output, errors


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_ctrl_c_cancels_everything_and_raises_keyboard_interrupt(loop: str, tmp_path: Path) -> None:
    code, output, errors = interrupted(WAITS_FOREVER, loop, tmp_path)
    assert output == "child cleaned\ncleaned\n"
    assert errors.endswith("KeyboardInterrupt\n")
    assert code == -signal.SIGINT


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_ctrl_c_ends_a_pass_over_a_dataset(loop: str, tmp_path: Path) -> None:
    code, output, errors = interrupted(STREAMS, loop, tmp_path)
    assert output == "cleaned\n"
    assert errors.endswith("KeyboardInterrupt\n")
    assert code == -signal.SIGINT
