"""What runs in a Ray worker: the work, and the packing of errors that have to travel back."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa
import ray
from ray import cloudpickle

from aiodata.errors import AiodataError, is_failure
from aiodata.plan.transforms import Control, Stopped, Transform, build, describe
from aiodata.plan.work import OutputMetadata, TaskEnd, Work, run_work
from aiodata.runtime.failures import as_failure
from aiodata.runtime.ray.gate import Ticket, Waiter
from aiodata.runtime.ray.packed import Report, ReportPacker


class UnpicklableError(Exception):
    """Stands in for an exception that could not be sent; its text is the original's."""


# How the note that carries a traceback begins.
_NOTE = "in a worker:\n"

# How long a task stays after its goodbye, in seconds.
#
# Ray 2.60 ends the whole driver process ("Tried to complete task that was not pending") when a task is cancelled at
# the moment its completion is handled. So a task says goodbye some time before it completes, and whoever cancels it
# looks for the goodbye first. Ray's own backpressure would give a true handshake, but a task that waits in it loses
# one cancellation in ten, and each block costs the driver twice as much.
_LINGER_S = 0.003

# Blocks in a report of a task whose blocks come in groups: a report costs the driver as much as a dozen more of them.
_GROUP_BLOCKS = 16


@dataclass(frozen=True, slots=True)
class PackedEnd:
    """A task's end as it travels: its goodbye.

    Attributes:
        fields: The fields of the `TaskEnd`, with each error packed.
    """

    fields: dict[str, Any]

    @classmethod
    def pack(cls, end: TaskEnd) -> PackedEnd:
        """Pack the errors, which would lose their causes."""
        return cls({one.name: _packed(getattr(end, one.name)) for one in fields(end)})

    def unpack(self) -> TaskEnd:
        """Return the end with its errors as they were."""
        return TaskEnd(**{name: _unpacked(value) for name, value in self.fields.items()})


@dataclass(frozen=True, slots=True)
class PackedError:
    """An error as it travels."""

    packed: bytes

    def unpack(self) -> AiodataError:
        """Return the error as it was."""
        return unpack_error(self.packed)


def report_size(*, in_groups: bool) -> int:
    """Return how many objects the reports of a task have: blocks, and what is said of them."""
    return 1 + _report_blocks(in_groups)


def _report_blocks(in_groups: bool) -> int:
    return _GROUP_BLOCKS if in_groups else 1


def run_packed_work(chain: bytes, work: Work, ticket: Ticket, announces: bool, *blocks: pa.Table) -> Iterator[Report]:
    """Run work in a Ray worker; the last report says goodbye, with the error if there was one.

    Args:
        chain: The transforms, pickled.
        work: What to do.
        ticket: What it waits for room with.
        announces: Whether the first report has no blocks, and says that the task has started.
        *blocks: The blocks that the work's pieces stand for.
    """
    if announces:
        yield ReportPacker(_report_blocks(work.cuts.in_groups)).report()
    yield from _run(lambda: cloudpickle.loads(chain), work, blocks, ticket, Control())


class StageActor:
    """Keeps the state that a chain of transforms needs; one call runs at a time.

    The state is built by the first call, not by the constructor: Ray runs an actor's constructor again where that
    fails, and does not say why.
    """

    def __init__(self, chain: bytes) -> None:
        """Keep the chain."""
        self._packed = chain
        self._chain: tuple[Transform, ...] | None = None

    def prepare(self) -> bytes | None:
        """Build the state; return the packed error if that fails."""
        try:
            self._state()
        except BaseException as error:
            if not isinstance(error, SystemExit) and not is_failure(error):
                raise
            return pack_error(error)
        return None

    def probe(self) -> None:
        """Be there."""

    def run(self, work: Work, ticket: Ticket, *blocks: pa.Table) -> Iterator[Report]:
        """Run work on the state."""
        yield from self._reports(work, ticket, blocks)

    def run_in_groups(self, work: Work, ticket: Ticket, *blocks: pa.Table) -> Iterator[Report]:
        """Do the same; a method of its own, since Ray has to know how long its reports are."""
        yield from self._reports(work, ticket, blocks)

    def _reports(self, work: Work, ticket: Ticket, blocks: Sequence[pa.Table]) -> Iterator[Report]:
        control = Control()
        is_canceled = ray.get_runtime_context().is_canceled
        for report in _run(self._state, work, blocks, ticket, control):
            yield report
            if is_canceled():
                control.stop()

    def _state(self) -> tuple[Transform, ...]:
        if self._chain is None:
            self._chain = build(cloudpickle.loads(self._packed))
        return self._chain


def _run(
    chain: Callable[[], Sequence[Transform]],
    work: Work,
    blocks: Sequence[pa.Table],
    ticket: Ticket,
    control: Control,
) -> Iterator[Report]:
    # Ray gives each task its own CPU, so Arrow's pool must not take the others'.
    pa.set_cpu_count(1)
    packer = ReportPacker(_report_blocks(work.cuts.in_groups))
    try:
        end = yield from _packing(run_work(work, chain(), blocks, control), packer, Waiter(ticket, control))
    except Stopped:
        end = TaskEnd()
    except BaseException as error:
        if not isinstance(error, SystemExit) and not is_failure(error):
            raise
        end = TaskEnd(None, as_failure(error))
    yield packer.report(PackedEnd.pack(end))
    time.sleep(_LINGER_S)


def _packing(
    outputs: Generator[tuple[pa.Table, OutputMetadata], None, TaskEnd], packer: ReportPacker, waiter: Waiter
) -> Generator[Report, None, TaskEnd]:
    num_beyond = 0
    with closing(outputs):
        while True:
            try:
                table, metadata = next(outputs)
            except StopIteration as stop:
                end: TaskEnd = stop.value
                return end
            packer.add(table, metadata, _packed(metadata.errors))
            num_beyond += metadata.needs_room
            del table
            if packer.is_full:
                yield packer.report()
                waiter.wait(num_beyond)


def _packed(value: Any) -> Any:
    if isinstance(value, AiodataError):
        return PackedError(pack_error(value))
    return tuple(_packed(one) for one in value) if isinstance(value, tuple) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, PackedError):
        return value.unpack()
    return tuple(_unpacked(one) for one in value) if isinstance(value, tuple) else value


def pack_error(error: BaseException) -> bytes:
    """Pickle an error as one of aiodata's, with its cause, whose traceback becomes a note."""
    return pack_exception(as_failure(error))


def pack_exception(error: BaseException) -> bytes:
    """Pickle any error with its cause; their tracebacks become notes, but not that of an error of aiodata's."""
    cause = error.__cause__
    if cause is not None:
        _note_traceback(cause)
    if not isinstance(error, AiodataError):
        _note_traceback(error)
    # Whatever a user's exception does when pickled, its text gets through.
    for sent in ((error, cause), (error, _stand_in(cause)), (_stand_in(error), None)):
        with suppress(Exception):
            packed: bytes = cloudpickle.dumps(sent)
            cloudpickle.loads(packed)
            return packed
    raise AssertionError("a text can be pickled")


def _note_traceback(error: BaseException) -> None:
    """Note it once: an error may travel twice, or be sent to many."""
    if not any(note.startswith(_NOTE) for note in getattr(error, "__notes__", [])):
        error.add_note(_NOTE + "".join(traceback.format_exception(error)).rstrip())


def _stand_in(error: BaseException | None) -> UnpicklableError:
    stand_in = UnpicklableError("" if error is None else describe(error))
    for note in getattr(error, "__notes__", []):
        stand_in.add_note(note)
    return stand_in


def unpack_error(packed: bytes) -> AiodataError:
    """Return the error with its cause in place."""
    error: AiodataError
    cause: Any
    error, cause = cloudpickle.loads(packed)
    error.__cause__ = cause
    return error
