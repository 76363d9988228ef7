"""The format `"numpy"`: a dict of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from aiodata.formats.columns import column_to_numpy, join_columns, slice_masked
from aiodata.formats.cost import Costed, PerSchema, count_objects, count_words, is_plain
from aiodata.formats.dense import Look
from aiodata.formats.format import REFUSALS, BatchFormat, blamed, refuse_duplicates
from aiodata.kinds import is_extension
from aiodata.schemas import has_nulls

# To make a copy of a column takes as long as to copy so many numbers: with hundreds of columns a stretch has more rows.
_LEAST_COPIED_ROWS = 4096


class NumpyFormat(Costed):
    """Zero-copy and read-only, or copied once per stretch.

    Args:
        nulls: How integers and bools that may be null look: `"mask"` or `"nan"`.
        writable: Whether each stretch is a private copy.
    """

    name: BatchFormat = "numpy"
    join_copies = True
    library: str | None = None

    def __init__(self, nulls: str = "mask", *, writable: bool = False) -> None:
        """Start with no schema."""
        super().__init__()
        self._look = Look(nulls_as_nan=nulls == "nan", writable=writable)
        self._known: PerSchema[list[tuple[str, bool | None]]] = PerSchema()

    def convert(self, segment: pa.RecordBatch) -> dict[str, np.ndarray[Any, Any]]:
        """Return the columns as arrays."""
        columns = {}
        for (name, may_be_null), array in zip(self._known.of(segment.schema, _known), segment.columns, strict=True):
            try:
                columns[name] = column_to_numpy(array, self._look, has_nulls=may_be_null)
            except REFUSALS as error:
                raise blamed(name, array.type, error) from error
        return _Masked(columns) if any(isinstance(one, np.ma.MaskedArray) for one in columns.values()) else columns

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        """Return a range of rows, zero-copy."""
        if type(rows) is dict:
            return {name: column[start:stop] for name, column in rows.items()}
        return {
            name: slice_masked(column, start, stop) if isinstance(column, np.ma.MaskedArray) else column[start:stop]
            for name, column in rows.items()
        }

    def join(self, pieces: Sequence[Any]) -> Any:
        """Copy arrays into one per column."""
        return {name: join_columns([piece[name] for piece in pieces], self._look) for name in pieces[0]}

    def _num_rows(self, schema: pa.Schema) -> int | None:
        rows = super()._num_rows(schema)
        are_numbers = all(is_plain(kind) and not pa.types.is_fixed_size_list(kind) for kind in schema.types)
        if rows is None or not self._look.writable or not are_numbers or any(map(is_extension, schema.types)):
            return rows
        return max(rows, _LEAST_COPIED_ROWS)

    def _cost(self, field: pa.Field) -> tuple[float, float]:
        # Where there are nulls more is copied, but a schema does not tell.
        words = count_words(field.type) if self._look.writable else 0.0
        if not is_plain(field.type):
            return count_objects(field.type), words
        is_made = pa.types.is_boolean(field.type) or pa.types.is_date(field.type)
        is_cast = self._look.nulls_as_nan and has_nulls(field) is not False
        return 0, max(words, float(is_made), count_words(field.type) if is_cast else 0.0)


class _Masked(dict[str, np.ndarray[Any, Any]]):
    """Columns of which some are masked; of others it need not be asked, batch by batch."""


def _known(schema: pa.Schema) -> list[tuple[str, bool | None]]:
    """Return the columns' names, and whether they are known to have nulls."""
    refuse_duplicates(schema)
    return [(field.name, has_nulls(field)) for field in schema]
