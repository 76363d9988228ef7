"""Models: what the tasks of a simulated run do, instead of files and functions."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from aiodata.errors import OptionError
from aiodata.options import MIB, amount, at_least, settle, true_or_false
from aiodata.plan.output_schema import OutputSchema
from aiodata.plan.pieces import Chunk, Piece
from aiodata.plan.source import Skip, Source, raise_it
from aiodata.plan.transforms import Control, Rows, Transform
from aiodata.testing.blocks import SIMULATED_SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSource(Source):
    """A source whose pieces are so many blocks each; its rows are numbered in order.

    Attributes:
        num_pieces: Pieces that tasks are given.
        blocks_per_piece: Blocks that reading a piece yields.
        rows_per_block: Rows in each.
        bytes_per_block: Bytes of each.
        s_per_block: Virtual seconds that reading one takes.
        first_row: The id of its first row.
        name: The name that statistics and errors show.

    Example:
        >>> SimulatedSource(num_pieces=3, blocks_per_piece=2, rows_per_block=100).count_rows()
        600
    """

    num_pieces: int
    blocks_per_piece: int = 1
    rows_per_block: int = 1000
    bytes_per_block: int = MIB
    s_per_block: float = 0.01
    first_row: int = 0
    name: str = "simulated_source"

    def __post_init__(self) -> None:
        """Validate the numbers."""
        sizes = ("blocks_per_piece", "rows_per_block", "bytes_per_block")
        settle(
            self,
            num_pieces=at_least("num_pieces", self.num_pieces, 0),
            first_row=at_least("first_row", self.first_row, 0),
            **{name: at_least(name, getattr(self, name), 1) for name in sizes},
        )
        check_seconds("s_per_block", self.s_per_block)

    def pieces(self, num_tasks: int, skip: Skip) -> Sequence[Piece]:
        """Return all pieces, however many tasks there are."""
        return [SimulatedPiece(self, index) for index in range(self.num_pieces)]

    def schema(self, skip: Skip) -> pa.Schema:
        """Return the one schema of simulated blocks: the column `id`."""
        return SIMULATED_SCHEMA

    def count_rows(self, skip: Skip = raise_it) -> int:
        """Return the number of rows."""
        return self.num_pieces * self.blocks_per_piece * self.rows_per_block


@dataclass(frozen=True, slots=True)
class SimulatedPiece:
    """One of a simulated source's pieces; each of its blocks is a unit."""

    source: SimulatedSource
    index: int

    @property
    def weight(self) -> int:
        """Bytes of its blocks."""
        return self.source.blocks_per_piece * self.source.bytes_per_block

    @property
    def num_rows(self) -> int | None:
        """None: a simulated function takes blocks."""
        return None

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        """Return itself: it stands for no block."""
        return self

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Refuse: only a simulated runtime knows what it stands for.

        Raises:
            OptionError: Always.
        """
        raise OptionError("a SimulatedSource has no data to read; run it on a SimulatedRuntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedMap(Transform):
    """A transform that turns each input block into so many blocks, in so much virtual time.

    Attributes:
        name: The name that statistics and errors show; give each map of a plan its own.
        s_per_block: Virtual seconds per input block.
        rows_ratio: Rows out per row in. Below 1 the first rows of each block are kept, above 1 rows are repeated.
        bytes_ratio: Bytes out per byte in.
        blocks_per_input: Blocks out per block in. Each is one call of a function, of as many calls.
        needs_actor: Whether it runs on actors instead of in tasks.
        constructor_fails: Whether its actors can not build their state.
        batch_size: None: it takes what comes.
        calls_user_code: True: it stands for a function of the user's.
        calls_in_flight: Calls that one worker makes at a time.
        fuses: False: it is always a stage of its own.

    Example:
        >>> SimulatedMap(name="decode", s_per_block=0.2, bytes_ratio=8).bytes_ratio
        8
    """

    name: str = "simulated_map"
    s_per_block: float = 0.01
    rows_ratio: float = 1.0
    bytes_ratio: float = 1.0
    blocks_per_input: int = 1
    needs_actor: bool = False
    constructor_fails: bool = False
    batch_size: int | None = None
    calls_user_code: bool = True
    calls_in_flight: int = 1
    fuses: bool = False

    def __post_init__(self) -> None:
        """Validate the numbers."""
        settle(
            self,
            blocks_per_input=at_least("blocks_per_input", self.blocks_per_input, 1),
            calls_in_flight=at_least("calls_in_flight", self.calls_in_flight, 1),
            batch_size=at_least("batch_size", self.batch_size, 1, optional=True),
        )
        for name in ("rows_ratio", "bytes_ratio"):
            amount(name, getattr(self, name))
        for name in ("needs_actor", "constructor_fails", "calls_user_code", "fuses"):
            true_or_false(name, getattr(self, name))
        check_seconds("s_per_block", self.s_per_block)
        if self.constructor_fails and not self.needs_actor:
            raise OptionError("constructor_fails=True: only actors have one; set needs_actor=True, too")

    def output_schema(self, schema: pa.Schema | None) -> pa.Schema | None:
        """Return the one schema of simulated blocks."""
        return SIMULATED_SCHEMA

    def apply(self, rows: Iterable[Rows], control: Control, outputs: OutputSchema) -> Generator[Rows, None, None]:
        """Refuse: only a simulated runtime knows what it stands for.

        Raises:
            OptionError: Always.
        """
        raise OptionError("a SimulatedMap has no function to call; run it on a SimulatedRuntime")


def check_seconds(name: str, seconds: float) -> None:
    """Raise `OptionError` unless `seconds` is a time that can pass."""
    amount(name, seconds, "number of seconds")
