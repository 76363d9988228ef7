"""What runs in a Ray worker: the work, and the packing of errors that have to travel back."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from ray import cloudpickle

from aiodata.errors import AiodataError
from aiodata.plan.work import OutputMetadata, Work, run_work


class PackedError(Exception):
    """Carries an aiodata error and its cause through Ray, which keeps only what pickles."""

    def __init__(self, packed: bytes) -> None:
        """Hold a packed `(error, cause)`."""
        self.packed = packed
        super().__init__(packed)


class UnpicklableError(Exception):
    """Stands in for an exception that could not be sent; its text is the original's."""


def run_packed_work(chain: bytes, work: Work, *blocks: pa.Table) -> Iterator[tuple[pa.Table, OutputMetadata]]:
    """Run work in a Ray worker; errors leave as `PackedError`."""
    # Ray gives each task its own CPU, so Arrow's pool must not take the others'.
    pa.set_cpu_count(1)
    try:
        yield from run_work(work, cloudpickle.loads(chain), blocks)
    except AiodataError as error:
        raise PackedError(pack_error(error)) from None


def pack_error(error: AiodataError) -> bytes:
    """Pickle an error with its cause, whose traceback becomes a note."""
    cause = error.__cause__
    if cause is not None:
        cause.add_note("in a worker:\n" + "".join(traceback.format_exception(cause)).rstrip())
    try:
        packed: bytes = cloudpickle.dumps((error, cause))
        cloudpickle.loads(packed)
    except Exception:  # noqa: BLE001 - whatever a user's exception does when pickled, its text gets through.
        stand_in = UnpicklableError(f"{type(cause).__name__}: {cause}")
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
