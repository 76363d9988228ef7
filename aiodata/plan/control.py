"""What a task and whoever runs it know of one another, and how a failure in a task is told."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from aiodata.concurrency.interrupts import held_interrupts
from aiodata.errors import AiodataError, TaskError
from aiodata.plan.call_loop import CallLoop
from aiodata.plan.pieces import Origin

# Rows that a task lists of those that functions failed with, at most; it counts all.
MAX_LISTED_ROWS = 100


@dataclass(frozen=True, slots=True)
class FailedRows:
    """Rows that a function failed with, each alone, and that were given up.

    Attributes:
        num_rows: How many.
        lines: What failed with the first of them, one line each.
    """

    num_rows: int
    lines: tuple[str, ...]


class Stopped(BaseException):
    """Raised in a task, between two calls of user functions, to stop it."""


class Control:
    """What a task and whoever runs it know of one another: calls, errors, and whether to stop.

    Attributes:
        calls: Calls of user functions so far.
        max_errors: Errors that the task goes on after; -1: any number.
        errors: The errors that it went on after.
        open_calls: Calls that have made something, and may make more, as far as that is known.
    """

    def __init__(self) -> None:
        """Go on until `stop`, or until the first error."""
        self.calls = 0
        self.max_errors = 0
        self.errors: list[AiodataError] = []
        self.open_calls = 0
        self._num_told = 0
        self._num_failed_rows = 0
        self._num_listed_rows = 0
        self._row_lines: list[str] = []
        self._is_stopped = False
        self._own_loop: CallLoop | None = None
        # A loop is in here once for each transform that uses it.
        self._loops: list[CallLoop] = []

    def checkpoint(self) -> None:
        """Raise `Stopped` if the task is to stop."""
        if self._is_stopped:
            raise Stopped

    def call(self) -> None:
        """Note that a user function is about to be called."""
        self.checkpoint()
        self.calls += 1

    def may_skip(self, num_errors: int) -> bool:
        """Return whether the task goes on after so many more errors."""
        return self.max_errors < 0 or len(self.errors) + num_errors <= self.max_errors

    def skip(self, error: AiodataError) -> None:
        """Note an error, to go on without the rows that it is about; raise it if there were too many."""
        if not self.may_skip(1):
            raise error
        _forget_frames(error)
        self.errors.append(error)

    def give_up_row(self, error: AiodataError) -> None:
        """Note that a function failed with a row alone, to go on without what it would have made of it."""
        self._num_failed_rows += 1
        if self._num_listed_rows < MAX_LISTED_ROWS:
            self._num_listed_rows += 1
            self._row_lines.append(str(error))

    def news(self) -> tuple[tuple[AiodataError, ...], FailedRows | None]:
        """Return the errors, and the rows, that the task went on after since this was called last."""
        errors = tuple(self.errors[self._num_told :])
        failed_rows = FailedRows(self._num_failed_rows, tuple(self._row_lines)) if self._num_failed_rows else None
        self._num_told, self._num_failed_rows, self._row_lines = len(self.errors), 0, []
        return errors, failed_rows

    def stop(self) -> None:
        """Have the task stop before its next call, and stop waiting for async ones; from any thread."""
        self._is_stopped = True
        for loop in tuple(self._loops):
            loop.interrupt()

    def settle(self) -> None:
        """Wait for calls that are in flight; called where the task is not stepped, before it stands still a while.

        Between two steps nothing runs a task's async calls, but the timeouts in them go on. This lets those that
        have started come to their ends, and starts none. What they return, or raise, the next step takes.
        """
        with suppress(Stopped):
            for loop in dict.fromkeys(self._loops):
                loop.settle(self.checkpoint)

    @contextmanager
    def call_loop(self, kept: CallLoop | None) -> Iterator[CallLoop]:
        """Give the loop for a transform's calls: the one that an actor keeps, else one that lasts as long as the task.

        Args:
            kept: The actor's loop, if there is one; it is left open.
        """
        loop = kept or self._own_loop
        try:
            with held_interrupts():
                if loop is None:
                    loop = self._own_loop = CallLoop()
                self._loops.append(loop)
            yield loop
        finally:
            with held_interrupts():
                if loop in self._loops:
                    self._loops.remove(loop)
                if loop is not None and kept is None and loop not in self._loops:
                    self._own_loop = None
                    loop.close()


class blame:
    """Turns an exception of the body into a `TaskError` that names the operator and the rows.

    It is no generator: one that an interrupt drops at its `yield` would turn its own end into an error.
    """

    __slots__ = ("_operator", "_origin")

    def __init__(self, operator: str, origin: Origin) -> None:
        """Note whom to blame."""
        self._operator = operator
        self._origin = origin

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, frames: object) -> None:
        """Raise the error as what it is to be.

        Raises:
            TaskError: There is an error, and it is no error of aiodata's yet.
        """
        # From a user's function all else is an error like any other: it must not pass for the end of the data, nor a
        # panic in some library for a cancellation.
        if error is None or isinstance(error, AiodataError | Stopped | KeyboardInterrupt):
            return
        raise TaskError(self._operator, self._origin.source, self._origin.rows, describe(error)) from error


def describe(error: BaseException) -> str:
    """Return an exception's type and text, even where it has no text to give."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a __str__ of the user's may do anything.
        return type(error).__name__


def _forget_frames(error: AiodataError) -> None:
    """Let go of what an error's frames hold, which is batches and blocks, but keep where the user's function failed."""
    error.__traceback__ = None
    cause = error.__cause__
    if cause is None:
        return
    frames = cause.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith("aiodata."):
        frames = frames.tb_next
    cause.__traceback__ = frames
    traceback.clear_frames(frames)
