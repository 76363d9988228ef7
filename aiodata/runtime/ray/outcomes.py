"""What became of a task's pairs: metadata, ends and failures, read from Ray without waiting, or waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, ObjectRefStreamEndOfStreamError, RayError, RayTaskError

from aiodata.bundle import BlockRef
from aiodata.concurrency import without_frames
from aiodata.errors import AiodataError, TaskError
from aiodata.plan.work import OutputMetadata, TaskEnd
from aiodata.runtime.base import Outcome, Pair
from aiodata.runtime.ray.compat import read_now
from aiodata.runtime.ray.fetching import fetch
from aiodata.runtime.ray.packed import unpack_report


@dataclass(frozen=True, slots=True)
class RayMetadata:
    """What stands for a pair's metadata: the reference of what its report says, its place there, and its task."""

    ref: ray.ObjectRef
    index: int
    task_name: str


def ready_outcomes(pairs: Sequence[Pair]) -> list[Outcome]:
    """Return what is there of pairs' metadata: one call of Ray where nothing has failed."""
    refs = list(dict.fromkeys(pair.metadata.ref for pair in pairs if isinstance(pair.metadata, RayMetadata)))
    read, error = read_now(refs)
    if error is not None:
        return [_ready_outcome(pair) for pair in pairs]
    reports = dict(zip(refs, map(_outcomes_of, read), strict=True))
    return [
        _outcome_at(reports[pair.metadata.ref], pair) if isinstance(pair.metadata, RayMetadata) else pair.metadata
        for pair in pairs
    ]


async def outcome(pair: Pair) -> OutputMetadata | TaskEnd:
    """Return what became of a pair, waiting for it.

    Raises:
        AiodataError: Its metadata is lost, or does not come.
    """
    if not isinstance(pair.metadata, RayMetadata):
        end: TaskEnd = pair.metadata
        return end
    try:
        return _outcome_at(_outcomes_of(await fetch(pair.metadata.ref, "metadata")), pair)
    except RayError as error:
        failure = _failed_outcome(pair, error)
    if isinstance(failure, TaskEnd):
        return failure
    raise failure


def failed_end(task_name: str, error: BaseException | None) -> TaskEnd:
    """Return the end of a task that could not say one itself: its worker is lost, unless Python there raised it."""
    reason = "it ended without a word" if error is None else f"{type(error).__name__}: {error}"
    failure = TaskError(task_name, "a Ray worker that did not finish", None, reason)
    failure.__cause__ = without_frames(error) if error is not None else None
    return TaskEnd(None, failure, is_worker_lost=not isinstance(error, RayTaskError))


def lost(what: str, error: BaseException) -> AiodataError:
    """Return the error that says that an object can not be had."""
    reason = str(error).strip().partition("\n")[0]
    failure = AiodataError(
        f"{what} is lost: {type(error).__name__}: {reason} Its node or the process that owned it is gone, and it could "
        "not be made again. Raise task_max_retries, or look after the cluster's nodes (`ray status`), and run again."
    )
    failure.__cause__ = without_frames(error)
    return failure


def is_end(metadata: ray.ObjectRef) -> bool:
    """Return whether what a report says is there and tells its task's end."""
    value, error = read_now(metadata)
    if error is not None:
        return not isinstance(error, GetTimeoutError | ObjectLostError)
    return unpack_report(value)[1] is not None


def _ready_outcome(pair: Pair) -> Outcome:
    if not isinstance(pair.metadata, RayMetadata):
        end: TaskEnd = pair.metadata
        return end
    value, error = read_now(pair.metadata.ref)
    match error:
        case None:
            return _outcome_at(_outcomes_of(value), pair)
        case GetTimeoutError():
            return None
        case _:
            return _failed_outcome(pair, error)


def _outcomes_of(packed: bytes) -> Sequence[OutputMetadata | TaskEnd]:
    outputs, end = unpack_report(packed)
    return outputs if end is None else (*outputs, end.unpack())


def _outcome_at(report: Sequence[OutputMetadata | TaskEnd], pair: Pair) -> OutputMetadata | TaskEnd:
    """Return what a report says of a pair; what comes after the task's end just fills the report up."""
    index: int = pair.metadata.index
    return report[min(index, len(report) - 1)]


def _failed_outcome(pair: Pair, error: RayError) -> TaskEnd | AiodataError:
    if isinstance(error, ObjectLostError):
        return lost("a block's metadata", error)
    cause: BaseException = error
    if isinstance(error, ObjectRefStreamEndOfStreamError):
        cause = _error_in(pair.ref) or error
    return failed_end(pair.metadata.task_name, cause)


def _error_in(ref: BlockRef) -> RayError | None:
    """Return the error of a task that Ray has put where its next block would be."""
    _, error = read_now(ref)
    return None if isinstance(error, GetTimeoutError) else error
