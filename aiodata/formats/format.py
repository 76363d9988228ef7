"""Format: what every batch format can do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import pyarrow as pa

from aiodata.errors import OptionError

BatchFormat = Literal["numpy", "pyarrow", "pandas", "polars", "torch"]


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
        """Return the rows of `segment` in this format.

        Raises:
            ValueError: A column's type, or a value in it, has no exact counterpart in this format.
        """

    def slice(self, rows: Any, start: int, stop: int) -> Any:
        """Return a range of converted rows, without copying where the format allows."""

    def join(self, pieces: Sequence[Any]) -> Any:
        """Put pieces end to end that were converted from one schema."""


class Library:
    """A package that a format needs: looked for at once, imported when something of it is first used."""

    def __init__(self, name: str) -> None:
        """Look for the package called `name`."""
        self._name = name
        if sys.modules.get(name) is None and find_spec(name) is None:
            raise OptionError(f"batch_format={name!r} needs the package {name}: pip install {name}")

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


# What conversions raise; Arrow's own errors are kinds of these.
REFUSALS = (ValueError, NotImplementedError)


def blamed(name: str, kind: pa.DataType, error: Exception) -> ValueError:
    """Return the error with the column that it is about."""
    return ValueError(f"column {name!r} is {kind}: {error}")


def refuse_duplicates(schema: pa.Schema) -> None:
    """Raise a ValueError where columns share a name, which batches that look columns up by name cannot have."""
    names = schema.names
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"columns share a name: {twice}; rename them, or ask for batch_format='pyarrow'")
