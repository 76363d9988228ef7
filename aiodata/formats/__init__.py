"""Batch formats: how the rows of a block look to the user's code.

A block is converted one stretch of rows at a time and the result is sliced per batch: slicing a converted
column costs a fraction of converting a slice.

A column's dtype follows from its Arrow type, and from what its field says of all rows of the dataset (`schemas`), never
from the rows that share a batch. How each type looks in each format stands in docs/types.md, which a test keeps true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiodata.errors import OptionError
from aiodata.formats.arrow import ArrowFormat
from aiodata.formats.format import BatchFormat, Format
from aiodata.formats.numpy import NumpyFormat
from aiodata.formats.pandas import PandasFormat
from aiodata.formats.polars import PolarsFormat
from aiodata.formats.torch import TorchFormat
from aiodata.options import one_of, shown

__all__ = ["MAKERS", "BatchFormat", "Format", "get_format"]

_NULLS = ("mask", "nan")

# What makes each format, given `dtypes`, `nulls` and `writable` of `get_format`.
MAKERS: dict[str, Callable[[Any, str | None, bool], Format]] = {
    "numpy": lambda _, nulls, writable: NumpyFormat(nulls or "mask", writable=writable),
    "pyarrow": lambda *_: ArrowFormat(),
    "pandas": lambda _, __, writable: PandasFormat(writable=writable),
    "polars": lambda _, __, writable: PolarsFormat(writable=writable),
    "torch": lambda dtypes, *_: TorchFormat(dtypes),
}


def get_format(name: str, dtypes: Any = None, *, nulls: str | None = None, writable: bool = False) -> Format:
    """Return the format called `name`.

    Args:
        name: One of `BatchFormat`.
        dtypes: For `"torch"`: a `torch.dtype` for every column, or a mapping of columns to theirs; columns that it
            does not name keep their type.
        nulls: For `"numpy"`: how integers and bools look whose column may have nulls. `"mask"`, the default: as masked
            arrays of their own type, wherever there are nulls. `"nan"`: as float64, NaN where null, in every batch.
        writable: Whether batches may be written to: then they share no memory with the rows they were converted from.
            Else numpy's arrays are read-only. Tensors and pandas' frames are copies either way.

    Raises:
        OptionError: There is none of that name, its library is not installed, or it cannot have these options.
    """
    name = one_of("batch_format", name, tuple(MAKERS))
    if dtypes is not None and name != "torch":
        raise OptionError(f"dtypes={dtypes!r} goes with batch_format='torch', not with {name!r}; leave it out")
    if nulls is not None and name != "numpy":
        raise OptionError(f"nulls={shown(nulls)} goes with batch_format='numpy', not with {name!r}; leave it out")
    return MAKERS[name](dtypes, None if nulls is None else one_of("nulls", nulls, _NULLS), writable)
