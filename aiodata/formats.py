"""Batch formats: how the rows of a block look to the user's code.

A block is converted one stretch of rows at a time and the result is sliced per batch: slicing a converted
column costs a fraction of converting a slice.

How Arrow types look as `"numpy"`; a column has nulls where there are some in its stretch:

| Arrow | numpy |
|---|---|
| integers, floats, no nulls | the same type, zero-copy and read-only |
| integers with nulls; floats with nulls | float64, exact up to 2**53; the same type; null is NaN |
| bool | bool; with nulls: object, null is None |
| date32, date64 | datetime64[D], datetime64[ms]; null is NaT |
| timestamp, duration | datetime64 (UTC where there is a time zone), timedelta64, of the same unit; null is NaT |
| fixed-size lists of these, tensors | shape `(rows, ...)`, permuted as the type says; with nulls anywhere: as lists |
| lists | object: one numpy array per row, by these rules; null is None |
| dictionary, run-end encoded; extension | as their values; as its storage |
| string, binary, decimal, time, struct, map, null | object: Python values, a map's a list of pairs; null is None |

The others:

| format | rows |
|---|---|
| `"pyarrow"` | a Table, zero-copy |
| `"pandas"` | copied, as numpy has them; but str (pandas 3), category, dates as objects, time zones, tensors flat |
| `"polars"` | its own types, null is null, tensors flat; strings, binary, dictionaries and times are copied |
| `"torch"` | copied, CPU tensors of what is numbers or bools as numpy; a ValueError for what is not |
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, reduce
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol, get_args

import numpy as np
import pyarrow as pa

from aiodata.block import concat_blocks
from aiodata.columns import (
    column_to_numpy,
    compact,
    concatenate,
    count_objects,
    gather_columns,
    is_plain,
    join_columns,
    weigh,
)
from aiodata.errors import OptionError

BatchFormat = Literal["numpy", "pyarrow", "pandas", "polars", "torch"]

# What may be converted in one go: 0.1 to 0.8 ms of work, so that nothing holds an event loop (or, in a thread, the
# interpreter) for long. A Python object takes 25 ns (a string) to 200 ns (a dict, an array), a word of 8 bytes that is
# copied 0.2 ns (as it is) to 3 ns (an integer among nulls).
_OBJECTS_PER_STRETCH = 4096
_COPIES_PER_STRETCH = 262_144

# A column takes 1 to 3 µs per stretch, however few its rows: as long as 64 strings or 512 words. With more columns than
# these a stretch grows with their number, so that the rows have a fair share of the time.
_COLUMNS_OF_OBJECTS = 64
_COLUMNS_OF_COPIES = 512

# What counts as so many words: a string that polars refers to (7 to 14 ns), and a cast to a type that numpy lacks, for
# torch casts more than 32,768 values in threads, and waits for them.
_WORDS_PER_STRING = 8
_WORDS_PER_CAST = 8

# Columns that polars is given one by one, at most: each costs about 10 µs more than it would among others.
_COLUMNS_ALONE = 16


class Format(Protocol):
    """Converts stretches of a block, slices what was converted, joins slices.

    Attributes:
        name: What users call it.
        join_copies: Whether `join` copies the rows, rather than referring to them.
        library: The package that converting imports, if it does; that may take a second.
    """

    name: BatchFormat
    join_copies: bool
    library: str | None

    def stretch(self, schema: pa.Schema) -> int | None:
        """Rows of `schema` to convert in one go, at least one; None: all of them."""

    def convert(self, segment: pa.RecordBatch) -> Any:
        """Return the rows of `segment` in this format."""

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        """Return a range of converted rows, without copying where the format allows."""

    def join(self, pieces: Sequence[Any]) -> Any:
        """Put converted pieces end to end."""


def get_format(name: str, dtypes: Any = None) -> Format:
    """Return the format called `name`.

    Args:
        name: One of `BatchFormat`.
        dtypes: For `"torch"`: a `torch.dtype` for every column, or a mapping of columns to theirs; columns that it
            does not name keep their type.

    Raises:
        OptionError: There is none of that name, its library is not installed, or it can not have these `dtypes`.
    """
    if name == "torch":
        return _Torch(dtypes)
    known: dict[str, Callable[[], Format]] = {"numpy": _Numpy, "pyarrow": _Arrow, "pandas": _Pandas, "polars": _Polars}
    if name not in known:
        raise OptionError(f"batch_format={name!r} is unknown; use one of {get_args(BatchFormat)}")
    if dtypes is not None:
        raise OptionError(f"dtypes={dtypes!r} goes with batch_format='torch', not with {name!r}; leave it out")
    return known[name]()


class _Library:
    """A package that a format needs: looked for at once, imported when something of it is first used."""

    def __init__(self, name: str) -> None:
        self._name = name
        if sys.modules.get(name) is None and find_spec(name) is None:
            raise OptionError(f"batch_format={name!r} needs the package {name}: pip install {name}")

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


class _Costed:
    """Remembers how many rows to convert in one go: with many columns that takes as long as converting them."""

    def __init__(self) -> None:
        self._schema: pa.Schema | None = None
        self._stretch: int | None = None

    def stretch(self, schema: pa.Schema) -> int | None:
        if self._schema is None or not schema.equals(self._schema):
            self._schema, self._stretch = schema, self._num_rows(schema)
        return self._stretch

    def _num_rows(self, schema: pa.Schema) -> int | None:
        objects, words = map(sum, zip((0.0, 0.0), *map(self._cost, schema), strict=True))
        limits = []
        if objects:
            limits.append(_OBJECTS_PER_STRETCH * max(1, len(schema) / _COLUMNS_OF_OBJECTS) / objects)
        if words:
            limits.append(_COPIES_PER_STRETCH * max(1, len(schema) / _COLUMNS_OF_COPIES) / words)
        return max(1, int(min(limits))) if limits else None

    def _cost(self, field: pa.Field) -> tuple[float, float]:
        """Return how many Python objects a row's value makes, and how many words are copied for it."""
        raise NotImplementedError


class _Numpy(_Costed):
    name: BatchFormat = "numpy"
    join_copies = True
    library: str | None = None

    def convert(self, segment: pa.RecordBatch) -> dict[str, np.ndarray[Any, Any]]:
        return dict(zip(segment.schema.names, map(column_to_numpy, segment.columns), strict=True))

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        return {name: column[start:stop] for name, column in rows.items()}

    def join(self, pieces: Sequence[Any]) -> Any:
        names = dict.fromkeys(name for piece in pieces for name in piece)
        return {name: join_columns(name, gather_columns(name, pieces)) for name in names}

    def _cost(self, field: pa.Field) -> tuple[float, float]:
        if not is_plain(field.type):
            return count_objects(field.type), 0
        # Where there are nulls more is copied, or even made an object, but a schema does not tell.
        return 0, pa.types.is_boolean(field.type) or pa.types.is_date(field.type)


class _Arrow:
    name: BatchFormat = "pyarrow"
    join_copies = False
    library: str | None = None

    def stretch(self, schema: pa.Schema) -> int | None:
        return None

    def convert(self, segment: pa.RecordBatch) -> pa.Table:
        return pa.Table.from_batches([segment])

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        return rows.slice(start, stop - start)

    def join(self, pieces: Sequence[Any]) -> Any:
        return concat_blocks(pieces)


class _Pandas(_Costed):
    name: BatchFormat = "pandas"
    join_copies = True
    library: str | None = "pandas"

    def __init__(self) -> None:
        super().__init__()
        self._pandas = _Library("pandas")

    @cached_property
    def _has_strings(self) -> bool:
        """Whether strings stay in Arrow's memory, as from pandas 3 on, before which they become objects."""
        return bool(pa.array(["a"]).to_pandas().dtype != object)

    def convert(self, segment: pa.RecordBatch) -> Any:
        segment = compact(segment, lambda column: bool(pa.types.is_map(column.type)))
        return segment.to_pandas(use_threads=False, ignore_metadata=True)

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        return rows.iloc[start:stop].reset_index(drop=True)

    def join(self, pieces: Sequence[Any]) -> Any:
        return self._pandas.concat(pieces, ignore_index=True)

    def _cost(self, field: pa.Field) -> tuple[float, float]:
        kind = field.type
        if pa.types.is_date(kind):
            return 1, 1
        if pa.types.is_dictionary(kind):
            return 0, 1  # All of a dictionary is converted for each stretch, so there should be few.
        is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        return 0 if self._has_strings and is_string else count_objects(kind), 1


class _Polars(_Costed):
    name: BatchFormat = "polars"
    join_copies = False
    library: str | None = "polars"

    def __init__(self) -> None:
        super().__init__()
        self._polars = _Library("polars")

    def convert(self, segment: pa.RecordBatch) -> Any:
        segment = compact(segment, self._needs_copy)
        converted = [
            name for name, kind in zip(segment.schema.names, segment.schema.types, strict=True) if self._words(kind)
        ]
        if not 0 < len(converted) <= _COLUMNS_ALONE or len(set(segment.schema.names)) < segment.num_columns:
            return self._polars.from_arrow(segment, rechunk=False)
        # Polars converts a column alone in this thread, several by its own threads; where decoding keeps the processors
        # busy, those take milliseconds to be scheduled, and the event loop would wait for them.
        alone = [self._polars.from_arrow(segment.column(name)).alias(name) for name in converted]
        if len(alone) == segment.num_columns:
            return self._polars.DataFrame(alone)
        frame = self._polars.from_arrow(segment.drop_columns(converted), rechunk=False)
        for series in alone:
            frame.insert_column(segment.schema.get_field_index(series.name), series)
        return frame

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        return rows.slice(start, stop - start)

    def join(self, pieces: Sequence[Any]) -> Any:
        try:
            # As in `convert`: `concat` would wait for polars' threads.
            return reduce(self._polars.DataFrame.vstack, pieces)
        except self._polars.exceptions.PolarsError:
            pass
        try:
            return self._polars.concat(pieces, how="diagonal_relaxed", rechunk=False)
        except self._polars.exceptions.PolarsError as error:
            raise ValueError(f"blocks of one dataset have schemas that do not go together: {error}") from error

    def _cost(self, field: pa.Field) -> tuple[float, float]:
        return 0, self._words(field.type)

    def _words(self, kind: pa.DataType) -> float:
        return weigh(kind, lambda leaf: 0 if is_plain(leaf) or pa.types.is_decimal128(leaf) else _WORDS_PER_STRING)

    def _needs_copy(self, column: pa.Array) -> bool:
        kind = getattr(column.type, "storage_type", column.type)
        # Polars (2.1) refuses slices of fixed-size lists with nulls.
        return self._words(kind) > 0 or (column.null_count > 0 and bool(pa.types.is_fixed_size_list(kind)))


class _Torch(_Costed):
    # Each stretch is copied once: so tensors can be written to, and keep no block alive.
    name: BatchFormat = "torch"
    join_copies = True
    library: str | None = "torch"

    def __init__(self, dtypes: Any) -> None:
        super().__init__()
        self._torch: Any = _Library("torch")
        self._dtypes = dict(dtypes) if isinstance(dtypes, Mapping) else {}
        self._dtype = None if isinstance(dtypes, Mapping) else dtypes
        asked = [*self._dtypes.values()] if self._dtype is None else [self._dtype]
        if any(not isinstance(one, self._torch.dtype) for one in asked):
            raise OptionError(f"dtypes={dtypes!r} must be a torch.dtype, or a mapping of columns to one each")
        self._numpy_has_all = None not in map(_numpy_type, asked)

    def convert(self, segment: pa.RecordBatch) -> dict[str, Any]:
        names = segment.schema.names
        if unknown := [name for name in self._dtypes if name not in names]:
            raise ValueError(f"dtypes names columns that are not there: {unknown}; there are {names}")
        with np.errstate(all="ignore"):  # A cast may overflow, as torch's do.
            return {name: self._to_tensor(name, column) for name, column in zip(names, segment.columns, strict=True)}

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        # Plain slices of a tensor share its version counter: to change one in place fails the backward pass of those
        # used before. And pickled, each is as large as the tensor. By way of numpy, neither is so, in the same time.
        if self._numpy_has_all:
            from_numpy = self._torch.from_numpy
            return {name: from_numpy(tensor.numpy()[start:stop]) for name, tensor in rows.items()}
        return {name: tensor[start:stop].data for name, tensor in rows.items()}

    def join(self, pieces: Sequence[Any]) -> Any:
        names = dict.fromkeys(name for piece in pieces for name in piece)
        return {name: self._join_tensors(name, [piece.get(name) for piece in pieces]) for name in names}

    def _cost(self, field: pa.Field) -> tuple[float, float]:
        dtype = self._dtypes.get(field.name, self._dtype)
        least = 0 if dtype is None else dtype.itemsize / 8
        words = max(1, weigh(field.type, lambda leaf: max(least, leaf.bit_width / 64 if is_plain(leaf) else 0)))
        return 0, words * (1 if self._numpy_has_all else _WORDS_PER_CAST)

    def _to_tensor(self, name: str, array: pa.Array) -> Any:
        column = column_to_numpy(array)
        if column.dtype.kind not in "biuf":
            nulls = " with nulls" if is_plain(array.type) and column.dtype == object else ""
            raise ValueError(
                f"column {name!r} is {array.type}{nulls}, which torch has no tensors for: leave it out with "
                "select_columns, convert it with map_batches, or give a collate_fn, which gets numpy columns"
            )
        dtype = self._dtypes.get(name, self._dtype)
        has_nan = dtype is None or dtype.is_floating_point or dtype.is_complex
        if not has_nan and column.dtype.kind == "f" and np.isnan(column).any():
            raise ValueError(f"column {name!r} has nulls or NaN, but {dtype} none; fill them, or ask for a float type")
        return self._own_tensor(column, dtype)

    def _own_tensor(self, column: np.ndarray[Any, Any], dtype: Any = None) -> Any:
        kind = column.dtype if dtype is None else _numpy_type(dtype)
        if kind is None:
            return self._torch.tensor(np.ascontiguousarray(column), dtype=dtype, device="cpu")
        # Not by torch, which would warn of read-only arrays; those that are not are copies already.
        return self._torch.from_numpy(column.astype(kind, order="C", copy=not column.flags.writeable))

    def _join_tensors(self, name: str, tensors: Sequence[Any]) -> Any:
        """Join by numpy's rules, for torch has others."""
        if any(one is None for one in tensors):
            raise ValueError(f"column {name!r} is missing in some blocks; add it with map_batches, or leave it out")
        dtype = tensors[0].dtype
        if _numpy_type(dtype) is not None:
            return self._own_tensor(concatenate(name, [one.numpy() for one in tensors]))
        return self._own_tensor(concatenate(name, [one.float().numpy() for one in tensors]), dtype)


def _numpy_type(dtype: Any) -> Any:
    """Return numpy's type for torch's, or None where there is none, as for bfloat16."""
    return getattr(np, str(dtype).removeprefix("torch."), None)
