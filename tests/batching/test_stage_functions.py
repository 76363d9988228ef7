"""What is collated and finalized with: any kind of function, which may return anything."""

from __future__ import annotations

import asyncio
import enum
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aiodata import TaskError
from tests.batching.calls import BOTH_KINDS, BOTH_ORDERS, BOTH_PARTS, SIZE, Calls, blocks
from tests.batching.feeds import FakeFeed, at, drain, iterate


class Signal(enum.Enum):
    """Looks like what stages tell each other."""

    PENDING = enum.auto()
    END = enum.auto()


class Hostile:
    """Can neither be compared nor be asked whether it is true: only `is` tells what it is."""

    def __eq__(self, other: object) -> bool:
        raise TypeError

    def __bool__(self) -> bool:
        raise TypeError

    def __len__(self) -> int:
        raise TypeError

    __hash__ = None  # type: ignore[assignment]


VALUES: list[Any] = [
    None,
    False,
    (),
    Ellipsis,
    NotImplemented,
    ValueError("a value"),
    StopAsyncIteration(),
    asyncio.CancelledError(),
    TaskError("no", "failure", None, "at all"),
    StopIteration,
    Signal.PENDING,
    Signal.END,
    Hostile(),
    lambda: None,
    (one for one in range(3)),
]


@BOTH_PARTS
@BOTH_ORDERS
@BOTH_KINDS
async def test_any_value_passes_unharmed(is_async: bool, is_ordered: bool, part: str) -> None:
    calls = Calls(is_async=is_async)
    calls.results = dict(enumerate(VALUES))
    batches = iterate(blocks(len(VALUES)), is_ordered=is_ordered, batch_size=SIZE, **at(part, calls.function))
    got = await drain(batches)
    assert sorted(map(id, got)) == sorted(map(id, VALUES))


async def double(batch: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return batch["id"].tolist() * 2


async def scale(times: int, batch: Any) -> Any:
    return batch["id"].tolist() * times


class Doubler:
    """Its objects are called asynchronously; so is its method."""

    async def __call__(self, batch: Any) -> Any:
        return await double(batch)

    async def run(self, batch: Any) -> Any:
        return await double(batch)


ASYNC_FUNCTIONS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "function": double,
    "partial": functools.partial(scale, 2),
    "partial of partial": functools.partial(functools.partial(scale), 2),
    "object": Doubler(),
    "method": Doubler().run,
    "partial of object": functools.partial(Doubler()),
    "lambda": lambda batch: double(batch),
}


@BOTH_PARTS
@pytest.mark.parametrize("name", ASYNC_FUNCTIONS)
async def test_whatever_is_async_is_awaited_on_the_loop(name: str, part: str) -> None:
    function = ASYNC_FUNCTIONS[name]
    assert await drain(iterate(FakeFeed([2]), **at(part, function))) == [[0, 1, 0, 1]]


class Wrapped:
    """Made of a batch; that its objects can be called, and asynchronously, is another matter."""

    def __init__(self, batch: Any) -> None:
        self.ids = batch["id"].tolist()

    async def __call__(self) -> None:
        raise NotImplementedError


@BOTH_PARTS
async def test_class_is_called_for_an_object_even_if_its_objects_are_async(part: str) -> None:
    [value] = await drain(iterate(FakeFeed([2]), **at(part, Wrapped)))
    assert isinstance(value, Wrapped)
    assert value.ids == [0, 1]


@BOTH_PARTS
async def test_async_function_runs_on_the_loop_and_another_in_threads(part: str) -> None:
    here = threading.get_ident()
    for is_async in (True, False):
        calls = Calls(is_async=is_async)
        assert len(await drain(iterate(blocks(5), batch_size=SIZE, **at(part, calls.function)))) == 5
        assert (here in calls.threads) == is_async
        assert len(calls.threads) == 1 or not is_async
