"""The format `"pandas"`: a DataFrame."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from aiodata.formats.columns import python_values
from aiodata.formats.cost import Costed, PerSchema, count_objects, is_counted
from aiodata.formats.decoding import decoded, decoded_type
from aiodata.formats.dense import Look, filled_and_mask
from aiodata.formats.format import REFUSALS, BatchFormat, Library, blamed
from aiodata.schemas import has_known_categories, has_nulls


class PandasFormat(Costed):
    """Copies each stretch; strings stay in Arrow's memory, which pandas does not write to.

    Args:
        writable: Whether arrays within a column of lists are private copies.
    """

    name: BatchFormat = "pandas"
    join_copies = True
    library: str | None = "pandas"

    def __init__(self, *, writable: bool = False) -> None:
        """Look for pandas."""
        super().__init__()
        self._pandas = Library("pandas")
        self._look = Look(writable=writable)
        self._plan: PerSchema[list[tuple[int, pa.Field, _How]]] = PerSchema()

    @cached_property
    def _has_strings(self) -> bool:
        """Whether strings stay in Arrow's memory, as from pandas 3 on, before which they become objects."""
        return bool(pa.array(["a"]).to_pandas().dtype != object)

    def convert(self, segment: pa.RecordBatch) -> Any:
        """Return the rows as a frame."""
        plan = self._plan.of(segment.schema, self._look_at)
        made: dict[int, Any] = {}
        for index, field, how in plan:
            column = segment.column(index)
            if how is _How.NUMBERS and not column.null_count:
                continue
            try:
                column = decoded(column)
                made[index] = self._make(column, how)
            except REFUSALS as error:
                raise blamed(field.name, field.type, error) from error
        if not made:
            return self._to_pandas(segment)
        others = [index for index in range(segment.num_columns) if index not in made]
        if others:
            frame = self._to_pandas(segment.select(others))
            made.update({index: frame.iloc[:, position] for position, index in enumerate(others)})
        whole = self._pandas.DataFrame({index: made[index] for index in range(segment.num_columns)})
        whole.columns = self._pandas.Index(segment.schema.names)
        return whole

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        """Return a range of rows, numbered from zero."""
        return rows.iloc[start:stop].reset_index(drop=True)

    def join(self, pieces: Sequence[Any]) -> Any:
        """Copy frames into one."""
        return pieces[0] if len(pieces) == 1 else self._pandas.concat(pieces, ignore_index=True)

    def _cost(self, field: pa.Field) -> tuple[float, float]:
        if _is_category(field):
            return 0, 1  # All of a dictionary is converted for each stretch, so there should be few.
        kind = decoded_type(field.type)
        if pa.types.is_date(kind):
            return 1, 1
        is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        return 0 if self._has_strings and is_string else count_objects(kind), 1

    def _look_at(self, schema: pa.Schema) -> list[tuple[int, pa.Field, _How]]:
        """Return the columns that Arrow does not, or may not, make as they are to be, and how they are made."""
        plan = [(index, field, _how(field)) for index, field in enumerate(schema)]
        return [one for one in plan if one[2] is not _How.BY_ARROW]

    def _to_pandas(self, segment: pa.RecordBatch) -> Any:
        return segment.to_pandas(use_threads=False, ignore_metadata=True)

    def _nullable(self, column: pa.Array) -> Any:
        """Return integers or bools in the type of pandas that has nulls."""
        data, mask = filled_and_mask(column)
        arrays = self._pandas.arrays
        make = arrays.BooleanArray if data.dtype == bool else arrays.IntegerArray
        return make(data.copy(), np.zeros(len(data), bool) if mask is None else mask)

    def _make(self, column: pa.Array, how: _How) -> Any:
        if is_counted(column.type) and (column.null_count or how is _How.NULLABLE):
            return self._nullable(column)
        if how is _How.DECODED:
            return self._to_pandas(pa.record_batch({"x": column}))["x"]
        values = python_values(column, self._look)
        return self._pandas.Series(np.fromiter(values, object, count=len(values)), dtype=object)


class _How(Enum):
    """How a column is made: by Arrow at once with others, or alone."""

    BY_ARROW = auto()
    NUMBERS = auto()  # Integers and bools that are known to have no nulls: by Arrow, if that is true.
    NULLABLE = auto()
    OBJECTS = auto()
    DECODED = auto()  # By Arrow, once it is decoded.


def _how(field: pa.Field) -> _How:
    kind = decoded_type(field.type)
    if _is_category(field):
        return _How.BY_ARROW
    if is_counted(kind):
        if has_nulls(field) is not False:
            return _How.NULLABLE
        return _How.NUMBERS if kind == field.type else _How.DECODED
    if _is_of_objects(kind):
        return _How.OBJECTS
    return _How.BY_ARROW if kind == field.type else _How.DECODED


def _is_category(field: pa.Field) -> bool:
    """Whether a column is one of categories in every batch: where they are known to be the same in all."""
    if not pa.types.is_dictionary(field.type) or not has_known_categories(field):
        return False
    return not (_is_of_objects(field.type.value_type) or pa.types.is_null(field.type.value_type))


def _is_of_objects(kind: pa.DataType) -> bool:
    """Whether values are Python objects that Arrow would not make as exactly."""
    return bool(
        kind.num_fields
        or pa.types.is_date(kind)
        or pa.types.is_time(kind)
        or pa.types.is_interval(kind)
        or isinstance(kind, pa.BaseExtensionType)
    )
