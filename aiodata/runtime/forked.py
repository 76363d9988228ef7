"""Whether this process was forked from one that had Ray: it has Ray's state then, but not its threads."""

from __future__ import annotations

import os
import sys
from typing import Any

from aiodata.errors import RuntimeUnavailableError

# What Ray called the process that this one was forked from.
_inherited: list[str] = []


def check_not_forked() -> None:
    """Look whether Ray can be used in this process, where a call would wait for ever.

    Raises:
        RuntimeUnavailableError: It was initialised before this process was forked.
    """
    if is_forked():
        raise RuntimeUnavailableError(
            "Ray was initialised before this process was forked, and cannot be used here: its threads are in the "
            "parent. Start processes with multiprocessing.get_context('spawn'), fork before Ray is initialised, or use "
            "runtime='local'"
        )


def is_forked() -> bool:
    """Whether the Ray of this process is the parent's."""
    return bool(_inherited) and _worker_id() in _inherited


def _worker_id() -> str | None:
    """Look without importing ray."""
    ray: Any = sys.modules.get("ray")
    if ray is None or not hasattr(ray, "is_initialized") or not ray.is_initialized():
        return None
    worker_id: str = ray.get_runtime_context().get_worker_id()
    return worker_id


def _note_fork() -> None:
    if (worker_id := _worker_id()) is not None:
        _inherited[:] = [worker_id]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
