"""held_interrupts: what must not be cut off in the middle is done first."""

from __future__ import annotations

import signal
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
