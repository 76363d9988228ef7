"""Sending and receiving without a turn of the loop where none is needed: anyio's own calls always take one."""

from __future__ import annotations

from typing import TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

T = TypeVar("T")


async def send(stream: MemoryObjectSendStream[T], item: T) -> None:
    """Send an item, waiting only if there is no room.

    Raises:
        anyio.BrokenResourceError: Nobody receives any more.
    """
    try:
        stream.send_nowait(item)
    except anyio.WouldBlock:
        pass
    else:
        return
    await stream.send(item)


async def receive(stream: MemoryObjectReceiveStream[T]) -> T:
    """Return the next item, waiting only if it is not there.

    Raises:
        anyio.EndOfStream: There is none, nor will there be.
    """
    try:
        return stream.receive_nowait()
    except anyio.WouldBlock:
        pass
    return await stream.receive()
