"""Batch formats: how the rows of a block look to the user's code.

A block is converted one stretch of rows at a time and the result is sliced per batch: slicing a converted
column costs a fraction of converting a slice.

How Arrow types look as `"numpy"`:

| Arrow | numpy |
|---|---|
| integers, floats, no nulls | the same type, zero-copy and read-only |
| integers with nulls | float64, null is NaN |
| bool | bool; with nulls: object, null is None |
| timestamp, date, duration | datetime64 / timedelta64, null is NaT |
| fixed-size lists and tensors of numbers | shape `(rows, ...)`; with nulls: as lists |
| lists | object: one numpy array per row, null is None |
| string, binary, decimal, struct, other | object: Python values, null is None |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
import pyarrow as pa

from aiodata.block import concat_blocks
from aiodata.errors import OptionError

BatchFormat = Literal["numpy", "pyarrow", "pandas", "polars"]

# Values that are converted in one go where each becomes a Python object or is copied: about a millisecond's worth,
# so that a conversion never holds an event loop (or, in a thread, the interpreter) for longer.
_OBJECTS_PER_STRETCH = 16_384
_COPIES_PER_STRETCH = 262_144


class Format(Protocol):
    """Converts stretches of a block, slices what was converted, joins slices."""

    name: BatchFormat

    def stretch(self, schema: pa.Schema) -> int | None:
        """Rows of `schema` to convert in one go; None: all of them."""

    def convert(self, segment: pa.RecordBatch) -> Any:
        """Return the rows of `segment` in this format."""

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        """Return a range of converted rows, without copying."""

    def join(self, pieces: Sequence[Any]) -> Any:
        """Put converted pieces end to end."""


def get_format(name: str) -> Format:
    """Return the format called `name`.

    Raises:
        OptionError: There is none of that name, or its library is not installed.
    """
    match name:
        case "numpy":
            return _Numpy()
        case "pyarrow":
            return _Arrow()
        case "pandas":
            return _Pandas()
        case "polars":
            return _Polars()
    raise OptionError(f"batch_format={name!r} is unknown; use one of {get_args(BatchFormat)}")


def _require(module: str) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        raise OptionError(f"batch_format={module!r} needs the package {module}: pip install {module}") from error


class _Numpy:
    name: BatchFormat = "numpy"

    def stretch(self, schema: pa.Schema) -> int | None:
        costly = sum(not _is_plain(field.type) for field in schema)
        return max(1, _OBJECTS_PER_STRETCH // costly) if costly else None

    def convert(self, segment: pa.RecordBatch) -> dict[str, np.ndarray[Any, Any]]:
        return {name: column_to_numpy(segment.column(i)) for i, name in enumerate(segment.schema.names)}

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        return {name: column[start:stop] for name, column in rows.items()}

    def join(self, pieces: Sequence[Any]) -> Any:
        first = pieces[0]
        if any(piece.keys() != first.keys() for piece in pieces):
            raise ValueError(f"blocks of one dataset have different columns: {sorted({*map(tuple, pieces)})}")
        return {name: _join_columns(name, [piece[name] for piece in pieces]) for name in first}


class _Arrow:
    name: BatchFormat = "pyarrow"

    def stretch(self, schema: pa.Schema) -> int | None:
        return None

    def convert(self, segment: pa.RecordBatch) -> pa.Table:
        return pa.Table.from_batches([segment])

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        return rows.slice(start, stop - start)

    def join(self, pieces: Sequence[Any]) -> Any:
        return concat_blocks(pieces)


class _Pandas:
    name: BatchFormat = "pandas"

    def __init__(self) -> None:
        self._pandas = _require("pandas")

    def stretch(self, schema: pa.Schema) -> int | None:
        costly = sum(not _is_plain(field.type) for field in schema)
        per_stretch = _OBJECTS_PER_STRETCH if costly else _COPIES_PER_STRETCH
        return max(1, per_stretch // max(1, costly or len(schema)))

    def convert(self, segment: pa.RecordBatch) -> Any:
        return segment.to_pandas(use_threads=False)

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        return rows.iloc[start:stop]

    def join(self, pieces: Sequence[Any]) -> Any:
        return self._pandas.concat(pieces, ignore_index=True)


class _Polars:
    name: BatchFormat = "polars"

    def __init__(self) -> None:
        self._polars = _require("polars")

    def stretch(self, schema: pa.Schema) -> int | None:
        return _COPIES_PER_STRETCH

    def convert(self, segment: pa.RecordBatch) -> Any:
        return self._polars.from_arrow(segment, rechunk=False)

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        return rows.slice(start, stop - start)

    def join(self, pieces: Sequence[Any]) -> Any:
        return self._polars.concat(pieces, how="vertical_relaxed", rechunk=False)


def column_to_numpy(array: pa.Array) -> np.ndarray[Any, Any]:
    """Convert one Arrow array by the rules at the top of this file; zero-copy where the layout allows."""
    kind = array.type
    if isinstance(kind, pa.FixedShapeTensorType) and not array.null_count:
        tensor: np.ndarray[Any, Any] = array.to_numpy_ndarray()
        return tensor
    if isinstance(kind, pa.BaseExtensionType):
        return column_to_numpy(array.storage)
    if pa.types.is_fixed_size_list(kind) and _is_plain(kind.value_type) and not array.null_count:
        values = array.flatten()
        if not values.null_count:
            tensor = values.to_numpy(zero_copy_only=False).reshape(len(array), kind.list_size)
            return tensor
    column: np.ndarray[Any, Any] = array.to_numpy(zero_copy_only=False)
    return column


def _is_plain(kind: pa.DataType) -> bool:
    """Whether values of this type convert without making Python objects."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return True
    if pa.types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    return bool(pa.types.is_primitive(kind) and not pa.types.is_decimal(kind))


def _join_columns(name: str, columns: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    try:
        return np.concatenate(columns)
    except ValueError as error:
        shapes = [column.shape for column in columns]
        raise ValueError(f"column {name!r} has different shapes in different blocks: {shapes}") from error
