"""Waits that take long are told of, at intervals that grow; waits that do not are not."""

from __future__ import annotations

import asyncio
import gc
import weakref

import anyio
import pytest

from aiodata.concurrency import reminding
from aiodata.testing import VirtualTimeLoop


def told_within(seconds: float, *, is_repeated: bool = True) -> list[float]:
    """Return after how many (virtual) seconds a wait of so many was told of."""
    told: list[float] = []

    async def main() -> None:
        with reminding(told.append, first_s=7.0, is_repeated=is_repeated):
            await anyio.sleep(seconds)
        await anyio.sleep(1000)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
    return told


@pytest.mark.parametrize(("seconds", "told"), [(6.9, []), (7.1, [7]), (27.9, [7, 14]), (60, [7, 14, 28, 56])])
def test_wait_is_told_of_whenever_it_has_doubled(seconds: float, told: list[float]) -> None:
    assert told_within(seconds) == told


def test_wait_may_be_told_of_once() -> None:
    assert told_within(60, is_repeated=False) == [7]


def test_failing_wait_is_told_of_no_more() -> None:
    told: list[float] = []

    async def main() -> None:
        with pytest.raises(ZeroDivisionError), reminding(told.append, first_s=1.0):
            raise ZeroDivisionError
        await anyio.sleep(10)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
    assert told == []


async def test_what_was_told_is_let_go_of_at_once() -> None:
    class Told:
        def tell(self, waited_s: float) -> None: ...

    told = Told()
    gone = weakref.ref(told)
    gc.disable()
    try:
        with reminding(told.tell):
            del told
        assert gone() is None
    finally:
        gc.enable()
