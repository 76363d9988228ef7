"""call_in_thread: a call begins or does not, is waited for or left behind, and nothing of it stays."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from functools import partial
from typing import TypeVarTuple, Unpack

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from aiodata.concurrency import call_in_thread
from tests.conftest import PATIENCE_S, until


class Result:
    """Something that can be seen to die."""


class Call:
    """A call with handles, which can be held."""

    def __init__(self, *, held: bool = False) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.release = threading.Event()
        self.thread: threading.Thread | None = None
        self.result: weakref.ref[Result] | None = None
        if not held:
            self.release.set()

    def __call__(self) -> Result:
        self.thread = threading.current_thread()
        self.begun.set()
        self.release.wait(PATIENCE_S)
        result = Result()
        self.result = weakref.ref(result)
        self.ended.set()
        return result


@asynccontextmanager
async def calling(call: Call, *, grace_s: float) -> AsyncIterator[asyncio.Task[Result]]:
    """A task that makes the call, which has begun; whatever is left of it ends with the body."""
    task = asyncio.create_task(call_in_thread(call, grace_s=grace_s))
    await until(call.begun.is_set, "the call does not begin")
    try:
        yield task
    finally:
        call.release.set()
        task.cancel()
        await asyncio.wait([task])
        await until(call.ended.is_set, "the call does not end")


async def turns(count: int) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def test_result_comes_from_another_thread() -> None:
    call = Call()
    result = await call_in_thread(call, grace_s=PATIENCE_S)
    assert call.result is not None
    assert result is call.result()
    assert call.thread not in (None, threading.current_thread())


@pytest.mark.parametrize("value", [None, False, [], NotImplemented, ZeroDivisionError(), asyncio.CancelledError()])
async def test_any_value_is_a_result(value: object) -> None:
    assert await call_in_thread(lambda: value, grace_s=PATIENCE_S) is value


@pytest.mark.parametrize("kind", [ValueError, StopAsyncIteration, TimeoutError, SystemExit, GeneratorExit])
async def test_what_the_call_raises_is_raised(kind: type[BaseException]) -> None:
    error = kind("text")

    def fail() -> None:
        raise error

    with pytest.raises(kind, match="text") as caught:
        await call_in_thread(fail, grace_s=PATIENCE_S)
    assert caught.value is error


async def test_loop_goes_on_during_a_call() -> None:
    call = Call(held=True)
    async with calling(call, grace_s=PATIENCE_S) as task:
        await turns(20)
        assert not task.done()
        call.release.set()
        assert isinstance(await task, Result)


async def test_many_calls_at_once_wait_for_nobody_and_take_no_place_of_others() -> None:
    # anyio's own limit is 40 threads; here each call waits until all have begun, in the company of a foreign one.
    count = 60
    together = threading.Barrier(count + 1)
    meet: Callable[[], int] = lambda: together.wait(PATIENCE_S)  # noqa: E731 - a name for its type.
    places: list[int] = []

    async def call_one() -> None:
        places.append(await call_in_thread(meet, grace_s=PATIENCE_S))

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(call_one)
            places.append(await anyio.to_thread.run_sync(meet))
    assert sorted(places) == list(range(count + 1))


async def test_call_that_is_cancelled_before_it_begins_never_begins() -> None:
    call = Call()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await call_in_thread(call, grace_s=PATIENCE_S)
    assert scope.cancelled_caught
    # A thread that takes another call has done with this one.
    await call_in_thread(Call(), grace_s=PATIENCE_S)
    assert not call.begun.is_set()


@contextmanager
def threads_taking_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["scope", "task"])
async def test_call_that_is_cancelled_at_any_moment_has_ended_or_never_begins(how: str) -> None:
    chance = random.Random(how)
    never_begun = ended = 0
    calls: list[Call] = []
    with threads_taking_turns_often():
        for _ in range(300):
            call = Call()
            calls.append(call)
            if how == "scope":
                async with anyio.create_task_group() as group:
                    group.start_soon(lambda call: call_in_thread(call, grace_s=PATIENCE_S), call)
                    await turns(chance.randrange(6))
                    group.cancel_scope.cancel()
            else:
                task = asyncio.create_task(call_in_thread(call, grace_s=PATIENCE_S))
                await turns(chance.randrange(6))
                task.cancel()
                await asyncio.wait([task])
            assert call.begun.is_set() == call.ended.is_set(), "a call that has begun goes on"
            never_begun += not call.begun.is_set()
            ended += call.ended.is_set()
    await call_in_thread(Call(), grace_s=PATIENCE_S)
    assert never_begun == sum(not call.begun.is_set() for call in calls), "a call begins after all"
    assert never_begun
    assert ended


async def test_call_that_is_cancelled_during_it_is_waited_for() -> None:
    call = Call(held=True)
    async with calling(call, grace_s=60) as task:
        task.cancel()
        await turns(20)
        assert not task.done()
        call.release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert call.ended.is_set()
        assert call.result is not None
        assert call.result() is None, "its result is dropped"


@pytest.mark.parametrize("grace_s", [0.0, 0.02])
async def test_call_that_outlasts_its_grace_is_left_behind_and_its_result_dropped(grace_s: float) -> None:
    call = Call(held=True)
    async with calling(call, grace_s=grace_s) as task:
        started = anyio.current_time()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert anyio.current_time() - started >= grace_s * 0.9
        assert not call.ended.is_set()
        call.release.set()
        await until(call.ended.is_set, "the call does not end")
        dropped = call.result
        assert dropped is not None
        await until(lambda: dropped() is None, "its result is kept")


async def test_error_of_a_cancelled_call_is_dropped() -> None:
    contexts: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    call = Call(held=True)

    def fail() -> None:
        call()
        raise ZeroDivisionError

    task = asyncio.create_task(call_in_thread(fail, grace_s=PATIENCE_S))
    await until(call.begun.is_set, "the call does not begin")
    task.cancel()
    await turns(5)
    call.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns(5)
    assert contexts == []


Arguments = TypeVarTuple("Arguments")


class LateThreads(asyncio.SelectorEventLoop):
    """A loop to which threads that have told it something fall behind, as they do where they lose the interpreter."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Arguments]], object], *args: *Arguments, context: Context | None = None
    ) -> asyncio.Handle:
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        if threading.get_ident() != self._thread_id:  # type: ignore[attr-defined]
            self.go_on.wait(0.1)
        return handle


def test_thread_that_falls_behind_holds_neither_what_the_call_returned_nor_what_it_was_for() -> None:
    async def main() -> tuple[bool, bool]:
        results, arguments = [Result()], [Result()]
        result, argument = weakref.ref(results[0]), weakref.ref(arguments[0])

        def call(argument: Result) -> Result:
            return results.pop()

        await call_in_thread(partial(call, arguments.pop()), grace_s=PATIENCE_S)
        return result() is None, argument() is None

    with asyncio.Runner(loop_factory=LateThreads) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, LateThreads)
        gone = runner.run(main())
        loop.go_on.set()
    assert gone == (True, True)


def test_cancelled_call_is_waited_for_until_its_thread_holds_no_result() -> None:
    async def main() -> bool:
        call = Call(held=True)
        async with calling(call, grace_s=PATIENCE_S) as task:
            task.cancel()
            await turns(3)
            call.release.set()
            await asyncio.wait([task])
            assert call.result is not None
            return call.result() is None

    with asyncio.Runner(loop_factory=LateThreads) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, LateThreads)
        is_gone = runner.run(main())
        loop.go_on.set()
    assert is_gone
