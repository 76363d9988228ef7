"""Run a coroutine on the event loop that all contenders use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

_Value = TypeVar("_Value")


def run(coroutine: Coroutine[object, object, _Value]) -> _Value:
    """Run a coroutine to its end, on uvloop where it is installed, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)
