"""Steps: what a simulated task does, one output block after the other; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from aiodata.bundle import BlockRef
from aiodata.errors import OptionError
from aiodata.plan.pieces import BlockPiece
from aiodata.plan.transforms import LimitRows, Transform
from aiodata.plan.work import Position, Work
from aiodata.testing.blocks import RowRanges, SimulatedBlock, slice_rows
from aiodata.testing.models import SimulatedMap, SimulatedPiece


class Step(NamedTuple):
    """The work that ends with one output block.

    Attributes:
        position: Where the input of the step begins.
        seconds: Virtual seconds that it takes.
        inputs: The ids of the rows that go in.
        rows: The ids of the rows that come out.
        num_rows: Rows of the output block.
        num_bytes: Bytes of the output block.
        calls: Calls of user functions.
    """

    position: Position
    seconds: float
    inputs: RowRanges
    rows: RowRanges
    num_rows: int
    num_bytes: int
    calls: int


def check_chain(chain: Sequence[Transform]) -> None:
    """Raise `OptionError` if a transform can not be simulated."""
    for transform in chain:
        if not isinstance(transform, SimulatedMap | LimitRows):
            raise OptionError(f"{transform.name} can not be simulated; use a SimulatedMap")


def make_steps(work: Work, chain: Sequence[Transform], refs: Sequence[BlockRef]) -> Iterator[Step]:
    """Yield a task's steps, from the work's start to the end of its pieces: the same ones each time.

    A task on blocks can stop between any two steps. One that reads can stop between blocks of the source.
    """
    steps = _read(work, _slices(chain), refs)
    for index, transform in enumerate(chain):
        if isinstance(transform, LimitRows):
            steps = _limit(transform.num_rows, steps)
        elif isinstance(transform, SimulatedMap):
            steps = _apply(transform, steps, is_sliced=index == 0 and bool(refs))
    return steps


def _slices(chain: Sequence[Transform]) -> int:
    """In how many slices the first transform takes a block."""
    return chain[0].blocks_per_input if chain and isinstance(chain[0], SimulatedMap) else 1


def _read(work: Work, num_slices: int, refs: Sequence[BlockRef]) -> Iterator[Step]:
    start = work.start
    for index, piece in enumerate(work.pieces):
        unit, row = (start.unit, start.row) if index == start.piece else (0, 0)
        if index < start.piece:
            continue
        if isinstance(piece, SimulatedPiece):
            yield from _read_source(piece, index, unit)
        elif isinstance(piece, BlockPiece):
            yield from _read_block(refs[piece.index], piece, Position(index, 0, row), num_slices)
        else:
            raise OptionError(f"{type(piece).__name__} can not be simulated; use a SimulatedSource")


def _read_source(piece: SimulatedPiece, index: int, first_unit: int) -> Iterator[Step]:
    source = piece.source
    num_rows, num_bytes = source.rows_per_block, source.bytes_per_block
    for unit in range(first_unit, source.blocks_per_piece):
        first = (piece.index * source.blocks_per_piece + unit) * num_rows
        rows = ((first, first + num_rows),)
        yield Step(Position(index, unit), source.s_per_block, rows, rows, num_rows, num_bytes, 0)


def _read_block(block: SimulatedBlock, piece: BlockPiece, position: Position, num_slices: int) -> Iterator[Step]:
    num_rows = piece.stop - piece.start
    slice_size = max(1, -(-num_rows // num_slices))
    for row in range(position.row, num_rows, slice_size):
        first, last = piece.start + row, piece.start + min(row + slice_size, num_rows)
        rows = block.rows if last - first == block.num_rows else slice_rows(block.rows, first, last)
        num_bytes = block.num_bytes * (last - first) // block.num_rows
        yield Step(Position(position.piece, 0, row), 0.0, rows, rows, last - first, num_bytes, 0)


def _apply(transform: SimulatedMap, steps: Iterable[Step], *, is_sliced: bool) -> Iterator[Step]:
    seconds = transform.s_per_block / transform.blocks_per_input
    num_slices = 1 if is_sliced else transform.blocks_per_input
    for whole in steps:
        for step in (whole,) if num_slices == 1 else _split(whole, num_slices):
            rows, num_rows = step.rows, step.num_rows
            if transform.rows_ratio != 1.0:
                rows, num_rows = _scale(rows, num_rows, transform.rows_ratio)
            num_bytes = int(step.num_bytes * transform.bytes_ratio)
            calls = step.calls + 1
            yield Step(step.position, step.seconds + seconds, step.inputs, rows, num_rows, num_bytes, calls)


def _split(step: Step, num_slices: int) -> Iterator[Step]:
    """Split a step's output evenly; the first part takes the time of what came before."""
    slice_size = max(1, -(-step.num_rows // num_slices))
    seconds, calls = step.seconds, step.calls
    for row in range(0, step.num_rows, slice_size):
        last = min(row + slice_size, step.num_rows)
        rows = slice_rows(step.rows, row, last)
        num_bytes = step.num_bytes * (last - row) // step.num_rows
        yield Step(step.position, seconds, rows, rows, last - row, num_bytes, calls)
        seconds, calls = 0.0, 0


def _scale(rows: RowRanges, num_rows: int, ratio: float) -> tuple[RowRanges, int]:
    """Repeat rows, or keep the first ones."""
    times, rest = divmod(round(num_rows * ratio), max(1, num_rows))
    scaled = rows * times
    if rest:
        scaled += slice_rows(rows, 0, rest)
    return scaled, times * num_rows + rest


def _limit(num_rows: int, steps: Iterable[Step]) -> Iterator[Step]:
    left = num_rows
    for step in steps:
        if left <= 0:
            return
        if step.num_rows > left:
            num_bytes = step.num_bytes * left // step.num_rows
            step = step._replace(rows=slice_rows(step.rows, 0, left), num_rows=left, num_bytes=num_bytes)
        left -= step.num_rows
        yield step
