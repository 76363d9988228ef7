"""What a failure in a worker becomes before it travels: always an error of aiodata's, with what was raised as cause."""

from __future__ import annotations

from aiodata.errors import AiodataError, TaskError
from aiodata.plan.transforms import describe


def as_failure(error: BaseException) -> AiodataError:
    """Return an error of aiodata's as it is, and any other as the cause of one."""
    if isinstance(error, AiodataError):
        return error
    failure = TaskError("a worker", "a task", None, describe(error))
    failure.__cause__ = error
    return failure
