"""A service of splits in this process, with handles on it: what Ray hosts in an actor, without the actor."""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio

import aiodata
from aiodata.coordination.service import CoordinatorService, Splitting
from aiodata.options import ExecutionOptions, SplitOptions
from aiodata.split import SplitIterator


class Token:
    """What a consumer keeps while it is there."""


def new_token(on_released: Callable[[], None]) -> Token:
    """Return a token that tells when nobody holds it any more."""
    loop = asyncio.get_running_loop()

    def tell() -> None:
        with suppress(RuntimeError):  # The loop is closed: nobody is there to be told.
            loop.call_soon_threadsafe(on_released)

    token = Token()
    weakref.finalize(token, tell).atexit = False
    return token


class LocalService:
    """Calls go on when the one who made them is cancelled, as they do on Ray.

    Args:
        service: What is called.
        group: Where calls run.

    Attributes:
        calls: The calls that were made, of any method.
        held: Methods whose replies wait until `release`.
    """

    def __init__(self, service: CoordinatorService, group: anyio.abc.TaskGroup) -> None:
        self.service = service
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.held: set[str] = set()
        self._group = group
        self._released = anyio.Event()

    async def call(self, method: str, *args: Any) -> Any:
        outcome: list[tuple[Any, Exception | None]] = []
        done = anyio.Event()
        self._group.start_soon(self._call, method, args, outcome, done)
        await done.wait()
        result, error = outcome.pop()
        if error is not None:
            raise error
        return result

    def tell(self, method: str, *args: Any) -> None:
        self._group.start_soon(self._call, method, args, [], anyio.Event())

    def release(self) -> None:
        self.held.clear()
        self._released.set()

    async def aclose(self) -> None:
        self._group.cancel_scope.cancel()

    async def _call(
        self, method: str, args: tuple[Any, ...], outcome: list[tuple[Any, Exception | None]], done: anyio.Event
    ) -> None:
        self.calls.append((method, args))
        try:
            result = getattr(self.service, method)(*args)
            outcome.append((await result if inspect.iscoroutine(result) else result, None))
            del result
        except Exception as error:  # noqa: BLE001 - it is raised where the call came from.
            outcome.append((None, error))
        if method in self.held:
            await self._released.wait()
        done.set()


@asynccontextmanager
async def splits_of(
    ds: aiodata.Dataset, num_splits: int, *, equal: bool = False, options: SplitOptions | None = None, **execution: Any
) -> AsyncIterator[tuple[LocalService, list[SplitIterator]]]:
    """Host a coordinator of a dataset's splits here."""
    splitting = Splitting(num_splits, ExecutionOptions(**{"runtime": "local", **execution}), options or SplitOptions())
    service = CoordinatorService(ds._plan, splitting, "some id", new_token, equal=equal, nodes=())
    async with anyio.create_task_group() as group:
        group.start_soon(service.serve)
        local = LocalService(service, group)
        yield local, [SplitIterator(local, split, splitting) for split in range(num_splits)]
        group.cancel_scope.cancel()
