"""Pieces for tests: rows in several units, with a record of what was read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from aiodata.plan.pieces import Chunk, Origin, Piece


@dataclass(frozen=True, slots=True)
class UnitsPiece:
    """One chunk per `chunk_rows` rows of each unit, like a file of row groups."""

    name: str
    units: tuple[pa.Table, ...]
    chunk_rows: int = 1 << 30
    reads: list[tuple[str, int]] = field(default_factory=list, compare=False)

    @property
    def weight(self) -> int:
        """Bytes of all units."""
        return sum(int(unit.nbytes) for unit in self.units)

    @property
    def num_rows(self) -> int | None:
        """Rows of all units."""
        return sum(int(unit.num_rows) for unit in self.units)

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        """Return itself."""
        return self

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Yield chunks from a row of a unit on."""
        for index in range(unit, len(self.units)):
            self.reads.append((self.name, index))
            table = self.units[index]
            start = row if index == unit else 0
            while True:
                part = table.slice(start, self.chunk_rows)
                origin = Origin(f"{self.name}, unit {index}", (start, start + part.num_rows))
                yield Chunk(index, start, part, origin)
                start += part.num_rows
                if start >= table.num_rows:
                    break
