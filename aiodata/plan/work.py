"""Work: what one task does, from which position it starts, and where it stops to let others run.

A task is given pieces and a chain of transforms. It yields output blocks, and it ends when its pieces are done or its
allotment is spent; then its last output says at which position the rest begins, and the executor starts that as
another task when there is demand. So a task never waits for a slow consumer while it holds a CPU, two runs share the
CPUs in slices, and what a task produces depends on nothing but its arguments: one that is run again after its worker
died produces the same blocks.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from aiodata.block import concat_blocks
from aiodata.bundle import BlockMetadata
from aiodata.errors import AiodataError
from aiodata.plan.pieces import Origin, Piece
from aiodata.plan.transforms import Control, Rows, Transform, blame

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
        task_bytes: Output bytes after which the task stops.
        task_calls: Calls of user functions after which the task stops.
    """

    first_block_bytes: int
    target_block_bytes: int
    growth: int
    first_block_calls: int
    calls_per_block: int
    task_bytes: int
    task_calls: int


@dataclass(frozen=True, slots=True)
class OutputMetadata:
    """What a task says of each block it yields.

    Attributes:
        block: The block's metadata.
        calls: Calls of user functions that went into it.
        task_s: Seconds of work that went into it.
    """

    block: BlockMetadata
    calls: int
    task_s: float


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """How a task ended.

    Attributes:
        rest: Where the rest of its work begins, if it stopped before the end of its pieces.
        error: What failed, if something did; the rest, if there is one, begins after the rows that it is about.
    """

    rest: Position | None = None
    error: AiodataError | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What one task does; the chain of transforms goes along separately, once per run."""

    pieces: tuple[Piece, ...]
    cuts: Cuts
    start: Position = Position()

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
        chain: The transforms, first to last.
        blocks: The blocks that the work's pieces stand for.
        control: What stops the task.
    """
    feed = _Feed(work, chain, blocks, control)
    rows: Iterator[Rows] = feed.read()
    for transform in chain:
        rows = transform.apply(rows, control)
    started = time.perf_counter()
    calls = 0
    name = chain[-1].name if chain else "read"
    try:
        for table, source in _cut(rows, work.cuts, feed, control, name):
            block = BlockMetadata(table.num_rows, table.nbytes, table.schema, source)
            metadata = OutputMetadata(block, control.calls - calls, time.perf_counter() - started)
            calls = control.calls
            yield table, metadata
            started = time.perf_counter()
    except AiodataError as error:
        return TaskEnd(None, error)
    return TaskEnd(feed.rest)


class _Feed:
    """Reads a task's pieces in chunks, until they are done or the task's allotment is spent."""

    def __init__(self, work: Work, chain: Sequence[Transform], blocks: Sequence[pa.Table], control: Control) -> None:
        self._work = work
        self._blocks = blocks
        self._control = control
        self._slice_rows = _slice_rows(work.cuts, chain)
        self.chunk_bytes = work.cuts.first_block_bytes
        self.produced_bytes = 0
        self.rest: Position | None = None

    def read(self) -> Iterator[Rows]:
        start = self._work.start
        for index, piece in enumerate(self._work.pieces):
            unit, row = (start.unit, start.row) if index == 0 else (0, 0)
            self._control.checkpoint()
            for chunk in piece.bind(self._blocks).read(unit, row, self.chunk_bytes):
                offset = 0
                while offset == 0 or offset < chunk.table.num_rows:
                    if self._is_spent():
                        self.rest = Position(index, chunk.unit, chunk.row + offset)
                        return
                    self._control.checkpoint()
                    rows = chunk.table.slice(offset, self._slice_rows)
                    yield rows, chunk.origin.slice(offset, rows.num_rows)
                    offset += max(1, rows.num_rows)

    def _is_spent(self) -> bool:
        cuts = self._work.cuts
        return self.produced_bytes >= cuts.task_bytes or self._control.calls >= cuts.task_calls


def _slice_rows(cuts: Cuts, chain: Sequence[Transform]) -> int | None:
    """Rows to pass on at a time: whole batches of the first user function, as many as may share a block.

    The allotment is looked at between slices, and a slice that ends at a batch's end leaves no short batch behind.
    """
    for transform in chain:
        if transform.calls_user_code:
            return transform.batch_size and transform.batch_size * cuts.calls_per_block
    return None


def _cut(rows: Iterator[Rows], cuts: Cuts, feed: _Feed, control: Control, name: str) -> Iterator[tuple[pa.Table, str]]:
    """Gather rows into blocks that grow from the first size to the target."""
    size = cuts.first_block_bytes
    calls_limit, calls = cuts.first_block_calls, 0
    tables: list[pa.Table] = []
    num_bytes = num_blocks = 0
    source = ""
    empty: pa.Table | None = None
    for table, origin in rows:
        source = origin.source
        if not table.num_rows:
            empty = table if empty is None else empty
            continue
        tables.append(table)
        num_bytes += table.nbytes
        if num_bytes < size and control.calls - calls < calls_limit:
            continue
        feed.produced_bytes += num_bytes
        size = min(size * cuts.growth, cuts.target_block_bytes)
        feed.chunk_bytes = size
        calls_limit, calls = min(calls_limit * 2, cuts.calls_per_block), control.calls
        for block in _split(_gather(tables, name, source), num_bytes, cuts.target_block_bytes):
            yield block, source
            num_blocks += 1
        tables, num_bytes = [], 0
    if tables:
        yield _gather(tables, name, source), source
    elif feed.rest is not None or not num_blocks:
        yield empty if empty is not None else pa.table({}), source


def _gather(tables: list[pa.Table], name: str, source: str) -> pa.Table:
    with blame(name, Origin(source, None)):
        block = concat_blocks(tables)
    if block.num_columns and len(tables) > 1 and block.num_rows < len(tables) * _SMALL_CHUNK_ROWS:
        return block.combine_chunks()
    return block


def _split(block: pa.Table, num_bytes: int, target_bytes: int) -> Iterator[pa.Table]:
    """Split a block of more than twice the target size, which one call of a user function may return."""
    if num_bytes <= 2 * target_bytes:
        yield block
        return
    step = max(1, block.num_rows * target_bytes // num_bytes)
    for offset in range(0, block.num_rows, step):
        yield block.slice(offset, step)
