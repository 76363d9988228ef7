"""Columns: how Arrow arrays become numpy arrays, how these are joined, and what makes a type costly to convert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

# How long a list is, is a guess.
_VALUES_PER_LIST = 8


def column_to_numpy(array: pa.Array) -> np.ndarray[Any, Any]:
    """Convert one Arrow array by the rules in `formats`; zero-copy where the layout allows."""
    kind = array.type
    shape: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()
    if isinstance(kind, pa.BaseExtensionType):
        if isinstance(kind, pa.FixedShapeTensorType):
            shape, axes = tuple(kind.shape), tuple(1 + axis for axis in kind.permutation or ())
        array, kind = array.storage, array.storage.type
    if pa.types.is_fixed_size_list(kind) and is_plain(kind) and not array.null_count:
        values = array
        sizes: tuple[int, ...] = ()
        while pa.types.is_fixed_size_list(values.type) and not values.null_count:
            sizes, values = (*sizes, values.type.list_size), values.flatten()
        if not values.null_count:
            tensors: np.ndarray[Any, Any] = values.to_numpy(zero_copy_only=False).reshape(len(array), *(shape or sizes))
            # Not to_numpy_ndarray, which (in pyarrow 26) mixes up the values where a permutation is a cycle of three.
            return tensors.transpose(0, *axes) if axes else tensors
    if pa.types.is_map(kind):
        array = pa.concat_arrays([array])  # As in `compact`.
    column: np.ndarray[Any, Any] = array.to_numpy(zero_copy_only=False)
    return column


def compact(segment: pa.RecordBatch, needs_it: Callable[[pa.Array], bool]) -> pa.RecordBatch:
    """Copy nested columns of which else all would be converted that they are a slice of, for each slice again."""
    for index, kind in enumerate(segment.schema.types):
        if getattr(kind, "storage_type", kind).num_fields and needs_it(column := segment.column(index)):
            segment = segment.set_column(index, segment.schema.field(index), pa.concat_arrays([column]))
    return segment


def is_plain(kind: pa.DataType) -> bool:
    """Whether values of this type convert without making Python objects, unless there are nulls."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return True
    if pa.types.is_fixed_size_list(kind):
        return is_plain(kind.value_type)
    return bool(pa.types.is_primitive(kind) and not (pa.types.is_time(kind) or pa.types.is_interval(kind)))


def weigh(kind: pa.DataType, weigh_leaf: Callable[[pa.DataType], float], *, count_containers: bool = False) -> float:
    """Sum up the leaves in a value, and for what holds them one each and one per field, as often as a row has them."""
    kind = getattr(kind, "storage_type", kind)
    if not kind.num_fields:
        return weigh_leaf(kind)
    is_one = pa.types.is_struct(kind) or pa.types.is_union(kind)
    times = kind.list_size if pa.types.is_fixed_size_list(kind) else 1 if is_one else _VALUES_PER_LIST
    fields = [kind.field(i).type for i in range(kind.num_fields)]
    values = times * sum(weigh(one, weigh_leaf, count_containers=count_containers) for one in fields)
    return values + (1 + len(fields) if count_containers else 0)


def count_objects(kind: pa.DataType) -> float:
    """Return how many Python objects a value of this type becomes, about."""
    return weigh(kind, lambda leaf: 0 if is_plain(leaf) else 1, count_containers=True)


def gather_columns(name: str, pieces: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    """Return a column's parts; where a piece lacks it, nulls."""
    present = [piece[name] for piece in pieces if name in piece]
    return [piece[name] if name in piece else _missing(len(next(iter(piece.values()))), present) for piece in pieces]


def join_columns(name: str, columns: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Put a column's parts end to end; see `concatenate`."""
    if len({column.ndim for column in columns}) > 1:
        # Tensors are objects where some of them are null: then all of them have to be.
        columns = [np.fromiter(column, object, count=len(column)) for column in columns]
    return concatenate(name, columns)


def concatenate(name: str, columns: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Put arrays of equal numbers of dimensions end to end.

    Raises:
        ValueError: They have types or shapes that do not go together; the message has the column's name.
    """
    try:
        return np.concatenate(columns)
    except (ValueError, TypeError) as error:
        kinds = [f"{column.dtype}{list(column.shape[1:])}" for column in columns]
        raise ValueError(f"column {name!r} has types that do not go together in different blocks: {kinds}") from error


def _missing(num_rows: int, others: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Return a column of nulls as they look beside columns of these types."""
    kind = np.result_type(*others) if all(other.dtype.kind in "iufmM" for other in others) else np.dtype(object)
    if kind.kind in "iu":
        kind = np.dtype(np.float64)
    null = None if kind.kind == "O" else np.nan if kind.kind == "f" else np.array("NaT", dtype=kind)
    return np.full((num_rows, *others[0].shape[1:]), null, dtype=kind)
