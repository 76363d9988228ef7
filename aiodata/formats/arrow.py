"""The format `"pyarrow"`: tables, as the blocks are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from aiodata.formats.cost import PerSchema
from aiodata.formats.format import BatchFormat
from aiodata.schemas import without_marks


class ArrowFormat:
    """Refers to the block's memory; takes off the fields what is for aiodata alone."""

    name: BatchFormat = "pyarrow"
    join_copies = False
    library: str | None = None

    def __init__(self) -> None:
        """Start with no schema."""
        self._cleaned: PerSchema[pa.Schema] = PerSchema()

    def stretch(self, schema: pa.Schema) -> int | None:
        """All rows: nothing is converted."""
        return None

    def convert(self, segment: pa.RecordBatch) -> pa.Table:
        """Return the rows as a table."""
        return pa.Table.from_arrays(segment.columns, schema=self._cleaned.of(segment.schema, without_marks))

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        """Return a range of rows, zero-copy."""
        return rows.slice(start, stop - start)

    def join(self, pieces: Sequence[Any]) -> Any:
        """Put tables end to end, zero-copy."""
        return pieces[0] if len(pieces) == 1 else pa.concat_tables(pieces)
