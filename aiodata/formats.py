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

# Values that are converted in one go where each becomes a Python object or is copied: well below a millisecond's
# worth, so that a conversion never holds an event loop (or, in a thread, the interpreter) for long.
_OBJECTS_PER_STRETCH = 4096
_COPIES_PER_STRETCH = 262_144


class Format(Protocol):
    """Converts stretches of a block, slices what was converted, joins slices."""

    name: BatchFormat

    def stretch(self, schema: pa.Schema) -> int | None:
        """Rows of `schema` to convert in one go; None: all of them."""

    def convert(self, segment: pa.RecordBatch) -> Any:
        """Return the rows of `segment` in this format."""

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        """Return a range of converted rows, without copying where the format allows."""

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
        names = dict.fromkeys(name for piece in pieces for name in piece)
        return {name: _join_columns(name, _gather(name, pieces)) for name in names}


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
        return segment.to_pandas(use_threads=False, ignore_metadata=True)

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        return rows.iloc[start:stop].reset_index(drop=True)

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
        try:
            return self._polars.concat(pieces, how="diagonal_relaxed", rechunk=False)
        except self._polars.exceptions.PolarsError as error:
            raise ValueError(f"blocks of one dataset have schemas that do not go together: {error}") from error


def column_to_numpy(array: pa.Array) -> np.ndarray[Any, Any]:
    """Convert one Arrow array by the rules at the top of this file; zero-copy where the layout allows."""
    kind = array.type
    shape: tuple[int, ...] = ()
    if isinstance(kind, pa.BaseExtensionType):
        shape = tuple(kind.shape) if isinstance(kind, pa.FixedShapeTensorType) else ()
        array, kind = array.storage, array.storage.type
    if pa.types.is_fixed_size_list(kind) and _is_plain(kind) and not array.null_count:
        values = array
        sizes: tuple[int, ...] = ()
        while pa.types.is_fixed_size_list(values.type) and not values.null_count:
            sizes, values = (*sizes, values.type.list_size), values.flatten()
        if not values.null_count:
            tensors: np.ndarray[Any, Any] = values.to_numpy(zero_copy_only=False)
            return tensors.reshape(len(array), *(shape or sizes))
    column: np.ndarray[Any, Any] = array.to_numpy(zero_copy_only=False)
    return column


def _is_plain(kind: pa.DataType) -> bool:
    """Whether values of this type convert without making Python objects."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return True
    if pa.types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    return bool(pa.types.is_primitive(kind) and not pa.types.is_decimal(kind))


def _gather(name: str, pieces: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    """Return a column's parts; where a piece lacks it, nulls."""
    present = [piece[name] for piece in pieces if name in piece]
    if len(present) == len(pieces):
        return present
    rows = [len(next(iter(piece.values()))) for piece in pieces]
    return [piece.get(name, _missing(num, present)) for piece, num in zip(pieces, rows, strict=True)]


def _join_columns(name: str, columns: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    if len({column.ndim for column in columns}) > 1:
        # Tensors are objects where some of them are null: then all of them have to be.
        columns = [_as_objects(column) for column in columns]
    try:
        return np.concatenate(columns)
    except (ValueError, TypeError) as error:
        kinds = [f"{column.dtype}{list(column.shape[1:])}" for column in columns]
        raise ValueError(f"column {name!r} has types that do not go together in different blocks: {kinds}") from error


def _as_objects(column: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    objects = np.empty(len(column), dtype=object)
    for index, value in enumerate(column):
        objects[index] = value
    return objects


def _missing(num_rows: int, others: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Return a column of nulls as they look beside columns of these types."""
    kind = np.result_type(*others) if all(other.dtype.kind in "iufmM" for other in others) else np.dtype(object)
    if kind.kind in "iu":
        kind = np.dtype(np.float64)
    null = None if kind.kind == "O" else np.nan if kind.kind == "f" else np.array("NaT", dtype=kind)
    return np.full((num_rows, *others[0].shape[1:]), null, dtype=kind)
