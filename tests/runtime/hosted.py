"""A service to host, and a host without a process of its own: it calls the service directly."""

from __future__ import annotations

import asyncio
import inspect
import os
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from aiodata.concurrency import Supervisor, TaskSet
from aiodata.errors import AiodataError, CoordinatorLostError, SourceError
from aiodata.runtime.hosting import MakeService, NewToken, Service


class Counting:
    """Counts, waits, hands out tokens and fails, as it is told."""

    def __init__(self, new_token: NewToken, notes: Path | None = None) -> None:
        self._new_token = new_token
        self._notes = notes
        self._released: list[str] = []
        self._changed = anyio.Event()
        self._failure = anyio.Event()
        self._total = 0
        self._waiting = 0

    async def serve(self) -> None:
        try:
            await self._failure.wait()
            raise ValueError("as planned")
        except asyncio.CancelledError:
            if self._notes is not None:
                self._notes.write_text("cleaned up")
            raise

    def fail_serving(self) -> None:
        self._failure.set()

    def add(self, number: int) -> int:
        self._total += number
        return self._total

    async def add_async(self, number: int) -> int:
        await anyio.lowlevel.checkpoint()
        return self.add(number)

    def raises(self, error: Exception, cause: Exception | None = None) -> None:
        raise error from cause

    def raises_unpicklable(self) -> None:
        error = KeyError("held")
        error.loop = asyncio.get_running_loop()  # type: ignore[attr-defined]
        raise error

    def returns_unpicklable(self) -> Any:
        return asyncio.get_running_loop()

    def takes_reference(self, ref: Any) -> str:
        return type(ref).__name__

    async def wait(self) -> str:
        self._waiting += 1
        await self._changed.wait()
        return "let go"

    def let_go(self) -> None:
        self._changed.set()

    def num_waiting(self) -> int:
        return self._waiting

    def token(self, key: str) -> tuple[str, Any]:
        return key, self._new_token(partial(self._released.append, key))

    async def token_after_wait(self, key: str) -> tuple[str, Any]:
        await self.wait()
        return self.token(key)

    def released(self) -> list[str]:
        return self._released

    def process(self) -> tuple[int, int]:
        """Its id, and how many threads it has."""
        return os.getpid(), len(os.listdir("/proc/self/task"))


def fails_to_make(_: NewToken) -> Counting:
    raise ZeroDivisionError("as planned")


def fails_as_aiodata(_: NewToken) -> Counting:
    raise SourceError("jan.parquet", "it does not exist")


class Token:
    """What a consumer holds of a local service."""


class LocalService:
    """Calls a service in this process and loop; see `RemoteService`. For tests without a cluster."""

    def __init__(self, make: MakeService, *, label: str = "a service") -> None:
        self.service: Service = make(new_local_token)
        self._label = label
        self._tasks = TaskSet()
        self._serving = Supervisor(self.service.serve, name=label)
        self._serving.start()

    async def call(self, method: str, *args: Any) -> Any:
        # A call of another process takes turns of the loop, too.
        await anyio.lowlevel.checkpoint()
        if self._serving.error is not None:
            raise self._serving.error
        if self._serving.ended:
            raise CoordinatorLostError(f"{self._label} was closed")
        result = getattr(self.service, method)(*args)
        return await result if inspect.iscoroutine(result) else result

    def tell(self, method: str, *args: Any) -> None:
        task = self._tasks.create(self._told(method, args), name=method)
        assert not task.done()

    async def aclose(self) -> None:
        self._serving.cancel()
        await self._serving.wait()
        await self._tasks.aclose()

    async def _told(self, method: str, args: tuple[Any, ...]) -> None:
        try:
            await self.call(method, *args)
        except (AiodataError, RuntimeError, ValueError):
            return


def new_local_token(on_released: Callable[[], None]) -> Token:
    token = Token()
    weakref.finalize(token, asyncio.get_running_loop().call_soon, on_released).atexit = False
    return token
