"""Work: what one task does, from which position it starts, and where it stops to let others run.

A task is given pieces and a chain of transforms. It yields output blocks, and it ends when its pieces are done or its
allotment is spent; then its last output says at which position the rest begins, and the executor starts that as
another task when there is demand. So a task never waits for a slow consumer while it holds a CPU, two runs share the
CPUs in slices, and what a task produces depends on nothing but its arguments: one that is run again after its worker
died produces the same blocks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import pyarrow as pa

from aiodata.block import concat_blocks, copy_rows
from aiodata.bundle import BlockMetadata
from aiodata.errors import AiodataError
from aiodata.origin import Span, Spans, bound_spans, describe_spans, join_spans, origin_of, slice_spans
from aiodata.plan.control import Control, FailedRows, blame
from aiodata.plan.output_schema import Learned, OutputSchema, Progress, Schemas
from aiodata.plan.pieces import Chunk, Origin, Piece, Rows
from aiodata.plan.transforms import Transform
from aiodata.schemas import conform

# Below this many rows per chunk a block of many chunks is copied into one: its consumer pays per chunk.
_SMALL_CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Position:
    """Where the rest of some work begins: a piece, a unit in it, and a row of what the unit yields."""

    piece: int = 0
    unit: int = 0
    row: int = 0


@dataclass(frozen=True, slots=True)
class Cuts:
    """When a task cuts its output into blocks, and when it stops.

    Attributes:
        first_block_bytes: Size of the first block, in bytes; it is small, so that it comes early.
        target_block_bytes: Size that blocks grow to, in bytes.
        growth: Factor from one block to the next.
        first_block_calls: Calls of user functions after which the first block is cut, whatever its size.
        calls_per_block: What that doubles up to.
        task_bytes: Output bytes that the task stops at, or before, if there is no room for half a block more.
        task_calls: Calls of user functions after which the task stops.
        in_groups: Whether blocks are so small, and come so fast, that some may be handed over at a time.
        room_bytes: Output bytes that there is room for. A task may only make more in a call of a user function, which
            cannot be cut; then it waits after each block until it is given room for the next (`Task.give_room`).
    """

    first_block_bytes: int
    target_block_bytes: int
    growth: int
    first_block_calls: int
    calls_per_block: int
    task_bytes: int
    task_calls: int
    in_groups: bool = False
    room_bytes: int = sys.maxsize

    def are_spent(self, produced_bytes: int, calls: int) -> bool:
        """Return whether a task has produced enough, or called user functions often enough."""
        is_last_block = produced_bytes > 0 and 2 * (self.task_bytes - produced_bytes) <= self.target_block_bytes
        return is_last_block or calls >= self.task_calls


@dataclass(frozen=True, slots=True)
class OutputMetadata:
    """What a task says of each block it yields.

    Attributes:
        block: The block's metadata.
        calls: Calls of user functions that went into it.
        task_s: Seconds of work that went into it.
        learned: What the task has found out; None where its `Work` left nothing to find out.
        errors: What failed since the block before, in the order of the input; just what these are about is missing.
        failed_rows: Single rows that were given up since the block before; None: there were none.
        needs_room: Whether the task has no room left and is in the middle of a call, so that it has to be given room
            for another block before it goes on. Like the block, it depends on the task's arguments alone.
    """

    block: BlockMetadata
    calls: int
    task_s: float
    learned: Learned | None = field(default=None, compare=False)
    errors: tuple[AiodataError, ...] = ()
    failed_rows: FailedRows | None = None
    needs_room: bool = False


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """How a task ended.

    Attributes:
        rest: Where the rest of its work begins, if it stopped before the end of its pieces. After an error it begins
            with the next piece where reading one failed, and after the last rows that were read where a function
            failed; rows that were under way to the function or back are lost then.
        error: What ended it, if something failed and no more errors were allowed.
        errors: What failed before that and since its last block, as in `OutputMetadata`.
        is_worker_lost: Whether it did not end by itself: its worker is lost.
        learned: As in `OutputMetadata`.
        failed_rows: As in `OutputMetadata`.
    """

    rest: Position | None = None
    error: AiodataError | None = None
    errors: tuple[AiodataError, ...] = ()
    is_worker_lost: bool = False
    learned: Learned | None = field(default=None, compare=False)
    failed_rows: FailedRows | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What one task does; the chain of transforms goes along separately, once per run.

    Attributes:
        pieces: What to read.
        cuts: When to cut blocks, and when to stop.
        start: Where in the pieces to start.
        max_errors: Errors after which to go on, without the batch or the rest of the piece that failed; -1: any number.
        schemas: The schema of the outputs of each transform, as far as that is known: None where only a run can tell,
            and where it follows from the input. Empty: nothing is known.
        are_schemas_final: Whether what they leave unknown stays so.
        max_unknown_rows: Rows that the functions may return before it stays so; None: any number.
        input_schema: What the pieces' rows are made to conform to; None: they do.
    """

    pieces: Sequence[Piece]
    cuts: Cuts
    start: Position = Position()
    max_errors: int = 0
    schemas: Schemas = ()
    are_schemas_final: bool = False
    max_unknown_rows: int | None = None
    input_schema: pa.Schema | None = None

    def rest(self, position: Position) -> Work:
        """Return what is left of the work from `position` on."""
        return replace(self, pieces=self.pieces[position.piece :], start=replace(position, piece=0))


def run_work(
    work: Work,
    chain: Sequence[Transform],
    blocks: Sequence[pa.Table],
    control: Control,
) -> Generator[tuple[pa.Table, OutputMetadata], None, TaskEnd]:
    """Do the work; yield each output block with its metadata, at least one if nothing fails; return how it ended.

    Args:
        work: The pieces, and where to start.
        chain: The transforms, first to last; classes among them have been replaced by `build`.
        blocks: The blocks that the work's pieces stand for.
        control: What stops the task.
    """
    control.max_errors = work.max_errors
    feed = _Feed(work, chain, blocks, control)
    cutter = _Cutter(work.cuts, chain, feed, control)
    given = work.schemas or (None,) * len(chain)
    progress = Progress(work.max_unknown_rows)
    outputs = [_output_schema(one, schema, work, progress) for one, schema in zip(chain, given, strict=True)]
    learnt = [out for one, out in zip(chain, outputs, strict=True) if one.calls_user_code and out.is_learning]

    def learned() -> Learned | None:
        if not learnt:
            return None
        is_final = not any(one.is_learning for one in learnt)
        return Learned(tuple(one.schema for one in outputs), is_final, progress.num_rows, progress.refined_at)

    # Each generator is closed on the way out, the last one first, so that no call is left in flight.
    with ExitStack() as stack:
        rows = feed.read()
        stack.callback(rows.close)
        for transform, output in zip(chain, outputs, strict=True):
            rows = transform.apply(rows, control, output)
            stack.callback(rows.close)
        started = time.perf_counter()
        calls = made_bytes = 0
        try:
            for table, spans in cutter.cut(rows):
                block = BlockMetadata(table.num_rows, table.nbytes, table.schema, describe_spans(spans), spans)
                made_bytes += block.num_bytes
                needs_room = made_bytes > work.cuts.room_bytes and (cutter.has_more or control.open_calls > 0)
                new_calls, seconds = control.calls - calls, time.perf_counter() - started
                calls = control.calls
                yield table, OutputMetadata(block, new_calls, seconds, learned(), *control.news(), needs_room)
                started = time.perf_counter()
        except AiodataError as error:
            errors, failed_rows = control.news()
            return TaskEnd(feed.next, error, errors, learned=learned(), failed_rows=failed_rows)
    errors, failed_rows = control.news()
    return TaskEnd(feed.rest, feed.error, errors, learned=learned(), failed_rows=failed_rows)


def _output_schema(transform: Transform, schema: pa.Schema | None, work: Work, progress: Progress) -> OutputSchema:
    asked = transform.output_schema(None) if transform.calls_user_code else None
    is_final = asked is not None or (schema is not None and work.are_schemas_final)
    return OutputSchema(transform.name, asked or schema, None if is_final else progress)


class _Feed:
    """Reads a task's pieces in chunks, until they are done or the task's allotment is spent.

    Attributes:
        chunk_bytes: Size of the chunks of the next piece, about.
        produced_bytes: What the task has made of the chunks.
        ends_block: Whether a block ends with the rows that were passed on last.
        next: What follows on the rows that were passed on last.
        rest: What is left after the end.
        error: Why it ended, if a piece could not be read.
    """

    def __init__(self, work: Work, chain: Sequence[Transform], blocks: Sequence[pa.Table], control: Control) -> None:
        self._work = work
        self._blocks = blocks
        self._control = control
        self._batch_rows = _batch_rows(chain)
        self._slice_rows = self._batch_rows * work.cuts.calls_per_block
        # Rows that the batch lacks which was begun last.
        self._missing_rows = 0
        self.chunk_bytes = work.cuts.first_block_bytes
        self.produced_bytes = 0
        self.ends_block = False
        self.next: Position | None = work.start
        self.rest: Position | None = None
        self.error: AiodataError | None = None

    def read(self) -> Generator[Rows, None, None]:
        """Yield rows; a piece that fails ends just itself, or all without an exception: what was read is finished."""
        for index in range(len(self._work.pieces)):
            self._control.checkpoint()
            try:
                for chunk in self._chunks(index):
                    yield from self._slices(index, chunk)
                    if self.rest is not None:
                        return
            except AiodataError as error:
                self.next = Position(index + 1) if index + 1 < len(self._work.pieces) else None
                if not self._control.may_skip(1):
                    self.rest, self.error = self.next, error
                    return
                self._control.skip(error)

    def _chunks(self, index: int) -> Iterator[Chunk]:
        start = self._work.start
        unit, row = (start.unit, start.row) if index == 0 else (0, 0)
        origin = Origin("a source", None)
        with blame("read", origin):
            chunks = self._work.pieces[index].bind(self._blocks).read(unit, row, self.chunk_bytes)
        while True:
            with blame("read", origin):
                chunk = next(chunks, None)
            if chunk is None:
                return
            if (schema := self._work.input_schema) is not None:
                with blame("conform", chunk.origin):
                    chunk = replace(chunk, table=conform(chunk.table, schema))
            yield chunk
            origin = chunk.origin.without_rows()

    def _slices(self, index: int, chunk: Chunk) -> Iterator[Rows]:
        """Yield rows by whole batches of the first user function, as many as may share a block.

        The allotment is looked at between batches, so that the task's end leaves no short batch behind.
        """
        offset = 0
        while offset == 0 or offset < chunk.table.num_rows:
            if not self._missing_rows and self._is_spent():
                self.rest = Position(index, chunk.unit, chunk.row + offset)
                return
            self._control.checkpoint()
            # Arrow does not bound the slice of a table without columns.
            left = chunk.table.num_rows - offset
            rows = chunk.table.slice(offset, min(left, self._missing_rows or self._slice_rows or left))
            if self._batch_rows:
                self._missing_rows = (self._missing_rows - rows.num_rows) % self._batch_rows
            origin = chunk.origin.slice(offset, rows.num_rows)
            self.next = Position(index, chunk.unit, chunk.row + offset + rows.num_rows)
            offset += max(1, rows.num_rows)
            self.ends_block = chunk.ends_block and offset >= chunk.table.num_rows
            yield rows, origin

    def _is_spent(self) -> bool:
        return self._work.cuts.are_spent(self.produced_bytes, self._control.calls)


def _batch_rows(chain: Sequence[Transform]) -> int:
    """Return the rows of a batch of the first user function; 0: it takes what comes, or there is none."""
    return next((transform.batch_size or 0 for transform in chain if transform.calls_user_code), 0)


class _Cutter:
    """Gathers rows into blocks that grow from the first size to the target.

    Attributes:
        has_more: Whether the block that was yielded last is a part of something larger, and not its last one.
    """

    def __init__(self, cuts: Cuts, chain: Sequence[Transform], feed: _Feed, control: Control) -> None:
        self._name = chain[-1].name if chain else "read"
        # A user's function may merge rows of several chunks, or make several tables of one.
        self._ends_blocks_with_chunks = not any(transform.calls_user_code for transform in chain)
        self._feed = feed
        self._control = control
        self._target_bytes = cuts.target_block_bytes
        self._task_bytes = cuts.task_bytes
        self._growth = cuts.growth
        self._max_calls = cuts.calls_per_block
        # Of the block that is being gathered: its rows, and when it is cut.
        self._tables: list[pa.Table] = []
        self._num_bytes = 0
        self._spans: list[Span] = []
        self._size = cuts.first_block_bytes
        self._calls = 0
        self._calls_limit = cuts.first_block_calls
        self.has_more = False

    def cut(self, rows: Iterable[Rows]) -> Iterator[tuple[pa.Table, Spans]]:
        """Yield blocks, each with what is known of its rows; after an error, what was gathered before it."""
        num_blocks = 0
        empty: pa.Table | None = None
        try:
            for table, origin in rows:
                if table.num_rows:
                    self._tables.append(table)
                    self._spans += origin.spans(table.num_rows)
                    self._num_bytes += table.nbytes
                elif empty is None or (table.num_columns and not empty.num_columns):
                    empty = table
                if self._is_complete(table):
                    for block in self._take():
                        yield block
                        num_blocks += 1
        except AiodataError:
            yield from self._take()
            raise
        for block in self._take():
            yield block
            num_blocks += 1
        if not num_blocks and self._feed.error is None:
            yield empty if empty is not None else pa.table({}), ()

    def _is_complete(self, last: pa.Table) -> bool:
        if self._ends_blocks_with_chunks and self._feed.ends_block:
            return True
        has_calls = self._control.calls - self._calls >= self._calls_limit
        return last.num_rows > 0 and (self._num_bytes >= self._size or has_calls)

    def _take(self) -> Iterator[tuple[pa.Table, Spans]]:
        """Yield what was gathered, as one block unless it is very large, and begin the next."""
        tables, num_bytes = self._tables, self._num_bytes
        spans = join_spans(self._spans)
        self._tables, self._spans, self._num_bytes = [], [], 0
        if not tables:
            return
        feed = self._feed
        feed.produced_bytes += num_bytes
        left_bytes = max(1, self._task_bytes - feed.produced_bytes)
        self._size = feed.chunk_bytes = min(self._size * self._growth, self._target_bytes, left_bytes)
        self._calls_limit, self._calls = min(self._calls_limit * 2, self._max_calls), self._control.calls
        try:
            block = _gather(tables, self._name, spans)
        except AiodataError as error:
            self._control.skip(error)
            return
        first = 0
        for part, has_more in _split(block, num_bytes, self._target_bytes):
            self.has_more = has_more
            yield part, bound_spans(slice_spans(spans, first, part.num_rows))
            first += part.num_rows


def _gather(tables: list[pa.Table], name: str, spans: Spans) -> pa.Table:
    with blame(name, origin_of(spans)):
        block = concat_blocks(tables)
    if block.num_columns and len(tables) > 1 and block.num_rows < len(tables) * _SMALL_CHUNK_ROWS:
        return block.combine_chunks()
    return block


def _split(block: pa.Table, num_bytes: int, target_bytes: int) -> Iterator[tuple[pa.Table, bool]]:
    """Split a block of more than twice the target size, which one call of a user function may return.

    Yields each part, and whether there are more.
    """
    if num_bytes <= 2 * target_bytes:
        yield block, False
        return
    step = max(1, block.num_rows * target_bytes // num_bytes)
    for offset in range(0, block.num_rows, step):
        # Each has memory of its own: a slice would keep all of the block, and count for its own part alone.
        yield copy_rows(block.slice(offset, step)), offset + step < block.num_rows
