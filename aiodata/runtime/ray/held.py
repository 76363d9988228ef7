"""HeldOutputs: a task's blocks, kept for as long as Ray would otherwise keep what the task was given for ever."""

from __future__ import annotations

import ray

from aiodata.runtime.ray.compat import size_of


class HeldOutputs:
    """Keeps a running task's blocks until the task is complete, up to a number of bytes.

    Ray 2.60 notes when a task completes which of its blocks it may have to make again, those included that nobody
    refers to any more; of these it never learns that they are gone. So it keeps the task's arguments on its books for
    ever, and what they were made of. What `ray.put` has stored, which can not be made again, it keeps in the store.

    `let_go` may be called in any thread: a task may be complete only after the event loop is closed.

    Args:
        max_bytes: How much to keep; of a task that makes more, nothing is kept.
    """

    def __init__(self, max_bytes: int) -> None:
        """Keep nothing yet."""
        self._refs: list[ray.ObjectRef] = []
        self._left_bytes = max_bytes
        self._has_let_go = False

    def add(self, ref: ray.ObjectRef) -> None:
        """Keep a block, unless that is too much, or the task is complete."""
        if self._has_let_go:
            return
        self._left_bytes -= size_of(ref) or 0
        self._refs.append(ref)
        # Looked at last: the task may have been completed just now.
        if self._left_bytes <= 0 or self._has_let_go:
            self.let_go()

    def let_go(self) -> None:
        """Keep nothing any more."""
        self._has_let_go = True
        self._refs.clear()
