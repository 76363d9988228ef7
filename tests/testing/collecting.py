"""Event loops that collect garbage at every turn, and keep what is said of tasks that were destroyed."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from aiodata.testing import VirtualTimeLoop

T = TypeVar("T")


class _Collecting(asyncio.BaseEventLoop):
    """What only a reference cycle holds is gone in the next turn, a task that nobody refers to included."""

    num_turns = 0

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]  # Private to asyncio, so its stubs lack it.
        gc.collect()
        self.num_turns += 1


class CollectingLoop(_Collecting, asyncio.SelectorEventLoop):
    """In real time."""


class CollectingVirtualTimeLoop(_Collecting, VirtualTimeLoop):
    """In virtual time."""


def run_collecting(main: Callable[[], Coroutine[Any, Any, T]], loop: CollectingLoop | CollectingVirtualTimeLoop) -> T:
    """Run on a loop, and assert that nothing reached its exception handler, as a destroyed task would."""
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    # What was there before can not be what a task hangs on, and to go through it at every turn would take minutes.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(main())
    gc.collect()
    assert not complaints, complaints
    assert loop.num_turns > 0
    return result
