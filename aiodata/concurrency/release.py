"""Letting go: what a cancelled task leaves behind must not keep blocks alive until the cyclic garbage collection.

The traceback of a cancellation refers to every frame that it went through, and is often part of a reference cycle.
The frames' variables are references to blocks and tasks, so they are cleared as the cancellation passes.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream


@contextmanager
def cleared_frames() -> Iterator[None]:
    """Clear the variables of the frames that an exception of the body has left."""
    try:
        yield
    except BaseException as error:
        _clear_frames(error)
        raise


def close_and_drop(stream: MemoryObjectReceiveStream[Any]) -> None:
    """Close a stream and let go of what is in it, which `close` alone does not."""
    with suppress(anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
        while True:
            stream.receive_nowait()
    stream.close()


def without_frames(error: BaseException) -> BaseException:
    """Return an error that is kept as a value without the frames that it went through; Ray's hold the error itself."""
    _clear_frames(error)
    error.__traceback__ = error.__context__ = None
    return error


def _clear_frames(error: BaseException) -> None:
    traceback.clear_frames(error.__traceback__)
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            _clear_frames(one)
    # A stream that was full raised an exception, too, with what was to be sent, before the wait that was cancelled.
    if isinstance(error, asyncio.CancelledError) and isinstance(error.__context__, anyio.WouldBlock):
        _clear_frames(error.__context__)
