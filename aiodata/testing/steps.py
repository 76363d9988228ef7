"""Steps: what a simulated task does, one output block after the other; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from aiodata.bundle import BlockRef
from aiodata.errors import OptionError
from aiodata.plan.pieces import BlockPiece, Piece
from aiodata.plan.transforms import LimitRows, Transform
from aiodata.plan.work import Position
from aiodata.testing.blocks import RowRanges, SimulatedBlock, slice_rows
from aiodata.testing.models import SimulatedMap, SimulatedPiece


class Step(NamedTuple):
    """The work that ends with one output block.

    Attributes:
        piece: Where the input of the step begins: the piece,
        unit: the unit in it,
        row: and the row in that.
        seconds: Virtual seconds that it takes.
        inputs: The ids of the rows that go in.
        rows: The ids of the rows that come out.
        num_rows: Rows of the output block.
        num_bytes: Bytes of the output block.
        calls: Calls of user functions.
    """

    piece: int
    unit: int
    row: int
    seconds: float
    inputs: RowRanges
    rows: RowRanges
    num_rows: int
    num_bytes: int
    calls: int

    @property
    def position(self) -> Position:
        """Where its input begins."""
        return Position(self.piece, self.unit, self.row)


def check_chain(chain: Sequence[Transform]) -> None:
    """Raise `OptionError` if a transform can not be simulated."""
    for transform in chain:
        if not isinstance(transform, SimulatedMap | LimitRows):
            raise OptionError(f"{transform.name} can not be simulated; use a SimulatedMap")


def make_steps(
    pieces: Sequence[Piece], start: Position, chain: Sequence[Transform], refs: Sequence[BlockRef]
) -> Iterator[Step]:
    """Yield a task's steps, from the start in its pieces to their end: the same ones each time.

    A task on blocks can stop between any two steps. One that reads can stop between blocks of the source.
    """
    first = chain[0] if chain and isinstance(chain[0], SimulatedMap) else None
    steps = _first_steps(pieces, start, first, refs)
    for transform in chain if first is None else chain[1:]:
        if isinstance(transform, LimitRows):
            steps = _limit(transform.num_rows, steps)
        elif isinstance(transform, SimulatedMap):
            steps = _apply(transform, steps)
    return steps


def _first_steps(
    pieces: Sequence[Piece], start: Position, first: SimulatedMap | None, refs: Sequence[BlockRef]
) -> Iterator[Step]:
    """Read, and apply the chain's first map.

    Thousands of tasks stand still in theirs; so it is a single generator, and none of its variables is a step.
    """
    for index in range(start.piece, len(pieces)):
        piece = pieces[index]
        first_unit, first_row = (start.unit, start.row) if index == start.piece else (0, 0)
        if isinstance(piece, SimulatedPiece):
            for unit in range(first_unit, piece.source.blocks_per_piece):
                if first is None:
                    yield _read(piece, index, unit)
                elif first.blocks_per_input == 1:
                    yield _mapped(first, _read(piece, index, unit))
                else:
                    for part in _split(_read(piece, index, unit), first.blocks_per_input):
                        yield _mapped(first, part)
        elif isinstance(piece, BlockPiece):
            block, first_of_block, num_rows = refs[piece.index], piece.start, piece.stop - piece.start
            del piece
            slice_size = max(1, -(-num_rows // (first.blocks_per_input if first is not None else 1)))
            for row in range(first_row, num_rows, slice_size):
                last_row = first_of_block + min(row + slice_size, num_rows)
                if first is None:
                    yield _read_block(block, index, row, first_of_block + row, last_row)
                else:
                    yield _mapped(first, _read_block(block, index, row, first_of_block + row, last_row))
        else:
            raise OptionError(f"{type(piece).__name__} can not be simulated; use a SimulatedSource")


def _read(piece: SimulatedPiece, index: int, unit: int) -> Step:
    source = piece.source
    first = source.first_row + (piece.index * source.blocks_per_piece + unit) * source.rows_per_block
    rows = ((first, first + source.rows_per_block),)
    return Step(index, unit, 0, source.s_per_block, rows, rows, source.rows_per_block, source.bytes_per_block, 0)


def _read_block(block: SimulatedBlock, index: int, row: int, first: int, last: int) -> Step:
    rows = block.rows if last - first == block.num_rows else slice_rows(block.rows, first, last)
    num_bytes = block.num_bytes * (last - first) // block.num_rows
    return Step(index, 0, row, 0.0, rows, rows, last - first, num_bytes, 0)


def _apply(transform: SimulatedMap, steps: Iterable[Step]) -> Iterator[Step]:
    for whole in steps:
        for step in _split(whole, transform.blocks_per_input):
            yield _mapped(transform, step)


def _mapped(transform: SimulatedMap, step: Step) -> Step:
    """Return a step with one call of a function after it."""
    piece, unit, row, seconds, inputs, rows, num_rows, num_bytes, calls = step
    if transform.rows_ratio != 1.0:
        rows, num_rows = _scale(rows, num_rows, transform.rows_ratio)
    seconds += transform.s_per_block / transform.blocks_per_input
    return Step(piece, unit, row, seconds, inputs, rows, num_rows, int(num_bytes * transform.bytes_ratio), calls + 1)


def _split(step: Step, num_slices: int) -> Sequence[Step]:
    """Split a step's output evenly; the first part takes the time of what came before."""
    if num_slices == 1:
        return (step,)
    slice_size = max(1, -(-step.num_rows // num_slices))
    parts: list[Step] = []
    for row in range(0, step.num_rows, slice_size):
        last = min(row + slice_size, step.num_rows)
        num_bytes = step.num_bytes * (last - row) // step.num_rows
        part = step._replace(rows=slice_rows(step.rows, row, last), num_rows=last - row, num_bytes=num_bytes)
        parts.append(part._replace(seconds=0.0, calls=0) if parts else part)
    return parts


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
