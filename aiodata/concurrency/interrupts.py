"""Interrupts: what must not be cut off in the middle is done first, and what waits is woken."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType


class held_interrupts:
    """Holds back an interrupt, as Ray's cancellation of a task is one, until the body is done; it takes effect then.

    Only the main thread is interrupted; in others there is nothing to hold back.

    Args:
        holds: Asked at each interrupt, with the frame that it comes in: whether to hold it back; None: always.

    Example:
        >>> import signal
        >>> try:
        ...     with held_interrupts():
        ...         signal.raise_signal(signal.SIGINT)
        ...         print("done")
        ... except KeyboardInterrupt:
        ...     print("interrupted")
        done
        interrupted
    """

    __slots__ = ("_handler", "_held", "_holds")

    def __init__(self, holds: Callable[[FrameType | None], bool] | None = None) -> None:
        """Hold back nothing yet."""
        self._holds = holds
        # What handles interrupts otherwise; None: nothing that is written in Python, or it is another thread's.
        self._handler: Callable[[int, FrameType | None], object] | None = None
        self._held: list[tuple[int, FrameType | None]] = []

    def __enter__(self) -> None:
        """Begin to hold back."""
        if threading.get_ident() != threading.main_thread().ident:
            return
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            self._handler = handler
            signal.signal(signal.SIGINT, self._hold)

    def __exit__(self, *exc_info: object) -> None:
        """Let what was held back take effect."""
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if self._held:
                self._handler(*self._held[0])

    def _hold(self, number: int, frame: FrameType | None) -> None:
        assert self._handler is not None
        if self._holds is None or self._holds(frame):
            self._held.append((number, frame))
        else:
            self._handler(number, frame)


class interrupts_wake:
    """Has interrupts wake an event loop that is run in the body.

    Ray interrupts a task within its process, by no signal of the operating system; so a loop that waits for its calls
    would go on waiting for them.

    Args:
        loop: The loop; `close` has to be called before it is closed.
    """

    __slots__ = ("_before", "_loop", "_sockets")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare; the sockets are made when they are needed."""
        self._loop = loop
        self._sockets: tuple[socket.socket, ...] = ()
        # What was to be woken before; None: it is none of the main thread's business.
        self._before: int | None = None

    def __enter__(self) -> None:
        """Begin."""
        if threading.get_ident() != threading.main_thread().ident:
            return
        if not self._sockets:
            self._sockets = receiver, sender = socket.socketpair()
            receiver.setblocking(False)
            sender.setblocking(False)
            self._loop.add_reader(receiver, receiver.recv, 4096)
        self._before = signal.set_wakeup_fd(self._sockets[1].fileno(), warn_on_full_buffer=False)

    def __exit__(self, *exc_info: object) -> None:
        """End."""
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
            self._before = None

    def close(self) -> None:
        """Leave the loop."""
        if self._sockets:
            self._loop.remove_reader(self._sockets[0])
            for one in self._sockets:
                one.close()
            self._sockets = ()
