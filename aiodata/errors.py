"""The errors users see, named by who is to blame.

AiodataError
├─ TaskError                 the user's function or a read failed in a worker
├─ SourceError               a file is missing, corrupt or unreadable
├─ EpochError                a coordinator was asked what its epoch can not answer (also a RuntimeError)
├─ SplitLostError            the consumer of a split is gone without a word
├─ SplitBusyError            misuse: a split has a live consumer already
├─ BarrierTimeoutError       not all splits have arrived at an epoch in time
├─ RuntimeUnavailableError   Ray can not be reached or started
├─ CoordinatorLostError      the coordinator of splits is gone
├─ ClosedError               misuse: something closed was used (also a RuntimeError)
├─ BusyError                 misuse: two tasks used one iterator at once (also a RuntimeError)
└─ OptionError               misuse: an argument has a value that can not work (also a ValueError)
   └─ UnknownColumnError     a column that is asked for is not there (also a SourceError)
"""

from __future__ import annotations

import asyncio
from typing import Any

# By these Python ends programs, generators and tasks, alone or in groups.
_ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, BaseExceptionGroup)


class AiodataError(Exception):
    """Base of every error that aiodata raises on its own account."""


class TaskError(AiodataError):
    """A user's function, or a read, failed in a worker.

    `__cause__` is the original exception, on every runtime; when it was raised in another process its
    traceback there is attached to it as a note.

    Attributes:
        operator: The operator that failed, for example `map_batches(double)`.
        source: Where its input came from, for example `flights/jan.parquet, row group 3`.
        rows: The rows of that source that were being processed, as a half-open range, if known.
    """

    def __init__(self, operator: str, source: str, rows: tuple[int, int] | None, reason: str) -> None:
        """Describe the failure of `operator` on `rows` of `source`."""
        self.operator = operator
        self.source = source
        self.rows = rows
        self.reason = reason
        where = source if rows is None else f"{source}, {_shown(*rows)}"
        super().__init__(f"{operator} failed on {where}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the arguments, so that the error can travel between processes."""
        return (type(self), (self.operator, self.source, self.rows, self.reason), self.__dict__)


def _shown(first: int, stop: int) -> str:
    """Return a half-open range of rows as text."""
    return f"row {first}" if stop <= first + 1 else f"rows {first}-{stop - 1}"


class SourceError(AiodataError):
    """A file is missing, corrupt or unreadable.

    Attributes:
        path: The path (or pattern) as it was given or found.
    """

    def __init__(self, path: str, reason: str) -> None:
        """Describe why `path` can not be read."""
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the arguments, so that the error can travel between processes."""
        return (type(self), (self.path, self.reason), self.__dict__)


class EpochError(AiodataError, RuntimeError):
    """A coordinator was asked what it can not answer in the epoch that it is running."""


class SplitLostError(AiodataError):
    """The consumer of a split is gone without a word; the message names the split."""


class SplitBusyError(AiodataError):
    """A split has a live consumer already; the message names the split."""


class BarrierTimeoutError(AiodataError, TimeoutError):
    """Not all splits have arrived at an epoch in time; the message names those that have not."""


class RuntimeUnavailableError(AiodataError):
    """Ray can not be reached or started; the message says how to."""


class CoordinatorLostError(AiodataError):
    """The coordinator of splits is gone; the message says how to go on."""


class ClosedError(AiodataError, RuntimeError):
    """Something that was closed was used."""


class BusyError(AiodataError, RuntimeError):
    """Two tasks used one iterator at the same time."""


class OptionError(AiodataError, ValueError):
    """An argument has a value that can not work; the message has the value and the remedy."""


class UnknownColumnError(OptionError, SourceError):
    """A column that is asked for is not there; the message says who asks, and which columns there are."""


def is_failure(error: BaseException) -> bool:
    """Whether an exception says that something failed: an `Exception`, or what an extension raises in place of one.

    A panic in a library that is written in Rust is a `BaseException` of its own, so that nobody takes it for an error
    that was expected; but it does not end the program, as those of Python do.
    """
    return isinstance(error, Exception) or not isinstance(error, _ENDS)
