"""What runs in a Ray worker: the work, and the packing of errors that have to travel back."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray import cloudpickle

from aiodata.errors import AiodataError, TaskError
from aiodata.plan.transforms import describe
from aiodata.plan.work import OutputMetadata, Work, run_work


class UnpicklableError(Exception):
    """Stands in for an exception that could not be sent; its text is the original's."""


# How long a task stays after its goodbye, in seconds.
#
# Ray 2.60 ends the whole driver process ("Tried to complete task that was not pending") when a task is cancelled at
# the moment its completion is handled. So a task says goodbye some time before it completes, and whoever cancels it
# looks for the goodbye first. Ray's own backpressure would give a true handshake, but a task that waits in it loses
# one cancellation in ten, and each block costs the driver twice as much.
_LINGER_S = 0.003


@dataclass(frozen=True, slots=True)
class Goodbye:
    """What a task yields last, instead of metadata.

    Attributes:
        error: The packed error that ended the task, if one did.
    """

    error: bytes | None


def run_packed_work(chain: bytes, work: Work, *blocks: pa.Table) -> Iterator[tuple[Any, OutputMetadata | Goodbye]]:
    """Run work in a Ray worker; the last pair says goodbye, with the error if there was one."""
    # Ray gives each task its own CPU, so Arrow's pool must not take the others'.
    pa.set_cpu_count(1)
    goodbye = Goodbye(None)
    try:
        yield from run_work(work, cloudpickle.loads(chain), blocks)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is raised where the task's outputs are read.
        goodbye = Goodbye(pack_error(error))
    yield None, goodbye
    time.sleep(_LINGER_S)


def pack_error(error: BaseException) -> bytes:
    """Pickle an error with its cause, whose traceback becomes a note."""
    if not isinstance(error, AiodataError):
        failure = TaskError("a worker", "a task", None, describe(error))
        failure.__cause__ = error
        error = failure
    cause = error.__cause__
    if cause is not None:
        cause.add_note("in a worker:\n" + "".join(traceback.format_exception(cause)).rstrip())
    try:
        packed: bytes = cloudpickle.dumps((error, cause))
        cloudpickle.loads(packed)
    except Exception:  # noqa: BLE001 - whatever a user's exception does when pickled, its text gets through.
        stand_in = UnpicklableError("" if cause is None else describe(cause))
        for note in getattr(cause, "__notes__", []):
            stand_in.add_note(note)
        packed = cloudpickle.dumps((error, stand_in))
    return packed


def unpack_error(packed: bytes) -> AiodataError:
    """Return the error with its cause in place."""
    error: AiodataError
    cause: Any
    error, cause = cloudpickle.loads(packed)
    error.__cause__ = cause
    return error
