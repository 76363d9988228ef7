"""The format `"torch"`: a dict of CPU tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from aiodata.errors import OptionError
from aiodata.formats.columns import column_to_numpy
from aiodata.formats.cost import Costed, count_words
from aiodata.formats.dense import Array, to_floats
from aiodata.formats.format import REFUSALS, BatchFormat, Library, blamed, refuse_duplicates
from aiodata.options import shown
from aiodata.schemas import has_nulls

# What counts as so many words: a cast to a type that numpy lacks, for torch casts more than 32,768 values in threads,
# and waits for them.
_WORDS_PER_CAST = 8


class TorchFormat(Costed):
    """Copies each stretch once: so tensors can be written to, and keep no block alive.

    Args:
        dtypes: A `torch.dtype` for every column, or a mapping of columns to theirs.
    """

    name: BatchFormat = "torch"
    join_copies = True
    library: str | None = "torch"

    def __init__(self, dtypes: Any) -> None:
        """Look for torch."""
        super().__init__()
        self._torch: Any = Library("torch")
        self._dtypes = dict(dtypes) if isinstance(dtypes, Mapping) else {}
        self._dtype = None if isinstance(dtypes, Mapping) else dtypes
        asked = [*self._dtypes.values()] if self._dtype is None else [self._dtype]
        if any(not isinstance(one, self._torch.dtype) for one in asked):
            raise OptionError(f"dtypes={shown(dtypes)} must be a torch.dtype, or a mapping of columns to one each")
        self._numpy_has_all = None not in map(_numpy_type, asked)

    def convert(self, segment: pa.RecordBatch) -> dict[str, Any]:
        """Return the columns as tensors."""
        names = segment.schema.names
        if unknown := [name for name in self._dtypes if name not in names]:
            raise ValueError(f"dtypes names columns that are not there: {unknown}; there are {names}")
        refuse_duplicates(segment.schema)
        with np.errstate(all="ignore"):  # A cast may overflow, as torch's do.
            return {
                field.name: self._to_tensor(field, column)
                for field, column in zip(segment.schema, segment.columns, strict=True)
            }

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        """Return a range of rows, zero-copy."""
        # Plain slices of a tensor share its version counter: to change one in place fails the backward pass of those
        # used before. And pickled, each is as large as the tensor. By way of numpy, neither is so, in the same time.
        if self._numpy_has_all:
            from_numpy = self._torch.from_numpy
            return {name: from_numpy(tensor.numpy()[start:stop]) for name, tensor in rows.items()}
        return {name: tensor[start:stop].data for name, tensor in rows.items()}

    def join(self, pieces: Sequence[Any]) -> Any:
        """Copy tensors into one per column."""
        return {name: self._join_tensors([piece[name] for piece in pieces]) for name in pieces[0]}

    def _cost(self, field: pa.Field) -> tuple[float, float]:
        dtype = self._dtypes.get(field.name, self._dtype)
        least = 0.0 if dtype is None else dtype.itemsize / 8
        words = max(1.0, count_words(field.type, least=least))
        return 0, words * (1 if self._numpy_has_all else _WORDS_PER_CAST)

    def _to_tensor(self, field: pa.Field, array: pa.Array) -> Any:
        name, kind = field.name, field.type
        try:
            column = column_to_numpy(array)
        except REFUSALS as error:
            raise blamed(name, kind, error) from error
        if column.dtype.kind not in "biuf":
            raise ValueError(
                f"column {name!r} is {kind}, which torch has no tensors for: leave it out with select_columns, convert "
                "it with map_batches, or give a collate_fn, which gets numpy columns"
            )
        dtype = self._dtypes.get(name, self._dtype)
        return self._own_tensor(_without_mask(column, dtype, field), dtype)

    def _own_tensor(self, column: Array, dtype: Any = None) -> Any:
        kind = column.dtype if dtype is None else _numpy_type(dtype)
        if kind is None:
            return self._torch.tensor(np.ascontiguousarray(column), dtype=dtype, device="cpu")
        # Not by torch, which would warn of read-only arrays; those that are not are copies already.
        return self._torch.from_numpy(column.astype(kind, order="C", copy=not column.flags.writeable))

    def _join_tensors(self, tensors: Sequence[Any]) -> Any:
        """Join by way of numpy, as long as that has the type; torch would join in threads, and wait for them."""
        if len(tensors) == 1:
            return tensors[0]
        if _numpy_type(tensors[0].dtype) is not None:
            return self._torch.from_numpy(np.concatenate([one.numpy() for one in tensors]))
        return self._own_tensor(np.concatenate([one.float().numpy() for one in tensors]), tensors[0].dtype)


def _without_mask(column: Array, dtype: Any, field: pa.Field) -> Array:
    """Return the column with NaN for null, where its tensors are of a type that has NaN in every batch.

    Raises:
        ValueError: It has nulls, and no NaN.
    """
    data: Array = np.ma.getdata(column)
    mask = np.ma.getmaskarray(column) if np.ma.is_masked(column) else None
    if dtype is None and has_nulls(field) and data.dtype.kind != "f":
        try:
            return to_floats(data, mask)
        except ValueError as error:
            raise blamed(field.name, field.type, error) from error
    has_nan = dtype is None or dtype.is_floating_point or dtype.is_complex
    if not has_nan and (mask is not None or (data.dtype.kind == "f" and np.isnan(data).any())):
        raise ValueError(
            f"column {field.name!r} has nulls or NaN, but {dtype} none; fill them, or ask for a float type"
        )
    if mask is None:
        return data
    if dtype is not None:
        return np.where(mask, np.nan, data)
    raise ValueError(
        f"column {field.name!r} is {field.type} with nulls, which tensors of its type cannot hold: fill them with "
        f"map_batches, or give dtypes={{{field.name!r}: torch.float64}}, which has NaN for them"
    )


def _numpy_type(dtype: Any) -> Any:
    """Return numpy's type for torch's, or None where there is none, as for bfloat16."""
    return getattr(np, str(dtype).removeprefix("torch."), None)
