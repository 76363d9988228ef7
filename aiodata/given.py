"""Given: what a function was called with, so that what it hands back untouched is what it was before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types

from aiodata.memory import Memory


class Given:
    """A batch that a function is called with, and the rows that it was made of.

    Args:
        batch: The batch, in its format.
        make_rows: Returns the rows; it is called once at most, and only if something of the batch comes back.
        convert: Makes a batch of rows once more, to compare with what came back and might have been changed; may
            return None.

    Attributes:
        batch: The batch.
    """

    __slots__ = ("_columns", "_convert", "_make_rows", "_memory", "_names", "_rows", "_types", "batch")

    def __init__(
        self, batch: Any, make_rows: Callable[[], pa.Table], convert: Callable[[pa.Table], Any] | None = None
    ) -> None:
        """Note which arrays there are, for the function may put others in their places."""
        self.batch = batch
        self._columns: dict[str, Any] = dict(batch) if isinstance(batch, dict) else {}
        self._make_rows = make_rows
        self._convert = convert
        self._rows: pa.Table | None = None
        self._memory: Memory | None = None
        self._names: dict[int, str] | None = None
        self._types: dict[str, pa.DataType] | None = None

    @property
    def rows(self) -> pa.Table:
        """The rows of the batch."""
        if self._rows is None:
            self._rows = self._make_rows()
        return self._rows

    @property
    def schema(self) -> pa.Schema:
        """The schema of the rows."""
        return self.rows.schema

    @property
    def memory(self) -> Memory:
        """Where the rows lie."""
        if self._memory is None:
            self._memory = Memory(self.rows)
        return self._memory

    def type_of(self, name: str) -> pa.DataType | None:
        """Return the type of the column of that name, if there is one."""
        if self._types is None:
            schema = self.rows.schema
            self._types = dict(zip(schema.names, schema.types, strict=True))
        return self._types.get(name)

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of the rows."""
        return self.rows.column(name)

    def categories(self, name: str) -> pa.Array | None:
        """Return the values of a column's dictionary, if it has one."""
        kind = self.type_of(name)
        if kind is None or not types.is_dictionary(kind):
            return None
        chunks = self.column(name).unify_dictionaries().chunks
        return chunks[0].dictionary if chunks else None

    def name_of(self, values: Any) -> str | None:
        """Return which column of the batch an array is, itself and not a copy; None: none of them."""
        if self._names is None:
            self._names = {id(column): name for name, column in self._columns.items()}
        return self._names.get(id(values))

    def untouched(self, values: Any) -> pa.ChunkedArray | None:
        """Return the column that an array of the batch was made of, if nobody can have changed it since."""
        name = self.name_of(values)
        if name is None or not isinstance(values, np.ndarray) or not _is_read_only(values):
            return None
        kind = self.type_of(name)
        if kind is None or values.dtype.kind != "O" or _has_fixed_values(kind) or _have_read_only_values(values):
            return None if kind is None else self.column(name)
        return None

    def if_same(self, name: str, values: Any) -> pa.ChunkedArray | None:
        """Return a column if converting it once more gives just these values."""
        fresh = self.convert(name)
        return self.column(name) if fresh is not None and is_same(fresh[name], values) else None

    def convert(self, name: str) -> Any:
        """Return a batch of one column, converted once more; None where that cannot be."""
        return None if self._convert is None else self._convert(self.rows.select([name]))


def _has_fixed_values(kind: pa.DataType) -> bool:
    """Whether a type's values are Python objects that nobody can change."""
    if types.is_dictionary(kind):
        return _has_fixed_values(kind.value_type)
    return not getattr(kind, "storage_type", kind).num_fields


def _is_read_only(values: np.ndarray[Any, Any]) -> bool:
    mask = np.ma.getmask(values)
    return not values.flags.writeable and (mask is np.ma.nomask or not mask.flags.writeable)


def _have_read_only_values(values: np.ndarray[Any, Any]) -> bool:
    """Whether all objects in an array are None, or arrays of plain values that nobody can write to."""
    return all(
        one is None or (type(one) in (np.ndarray, np.ma.MaskedArray) and one.dtype.kind != "O" and _is_read_only(one))
        for one in values
    )


def is_same(a: Any, b: Any) -> bool:
    """Whether two values, or arrays or columns of them, are alike to the last bit and the last type."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ma.MaskedArray):
        return is_same(np.ma.getmaskarray(a), np.ma.getmaskarray(b)) and is_same(np.ma.getdata(a), np.ma.getdata(b))
    if isinstance(a, np.ndarray):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        if a.dtype.kind == "O":
            return all(map(is_same, a.reshape(-1), b.reshape(-1)))
        return bool(a.tobytes() == b.tobytes())
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    if isinstance(a, float):
        return bool(a.hex() == b.hex())
    if hasattr(a, "to_numpy") and hasattr(a, "dtype"):
        return bool(a.dtype == b.dtype) and is_same(a.to_numpy(), b.to_numpy())
    if hasattr(a, "__array__"):
        return is_same(np.asarray(a), np.asarray(b))
    return a is b or bool(a == b)
