"""Rows and RowIterator: `async for` over single rows."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any, NoReturn, Self

import anyio.lowlevel
import pyarrow as pa

from aiodata.batching.consumer import YIELD_EVERY_S
from aiodata.concurrency import AsyncOnly
from aiodata.errors import TaskError, is_failure
from aiodata.formats.python import has_tensors, to_rows
from aiodata.iterator import Batches, BatchIterator
from aiodata.stats import IterationStats

# Values that are turned into Python objects in one go: a fraction of a millisecond.
_VALUES_PER_STRETCH = 1024

# Bytes of tensors that are copied in one go, at most: this takes as long.
_BYTES_PER_STRETCH = 1 << 20


class Rows(AsyncOnly):
    """The rows of a dataset as dicts of Python values; each `async for` over it is one full pass.

    Tensors are NumPy arrays of their shape, which may be written to.

    Args:
        batches: The rows in batches, as `pyarrow.Table`s.

    Example:
        >>> import asyncio, aiodata
        >>> async def main():
        ...     async for row in aiodata.range(2, num_blocks=1).aiter_rows():
        ...         print(row)
        >>> asyncio.run(main())
        {'id': 0}
        {'id': 1}
    """

    def __init__(self, batches: Batches) -> None:
        """Hold the recipe; nothing runs."""
        self._batches = batches

    def __aiter__(self) -> RowIterator:
        """Return an iterator for one pass."""
        return RowIterator(aiter(self._batches))

    def __anext__(self) -> NoReturn:
        """Say what to write: these are all rows, and each `async for` begins anew.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "these rows begin anew with each `async for`; for one row at a time write `iterator = aiter(rows)`, then "
            "`await anext(iterator)`"
        )

    async def aclose(self) -> None:
        """End all passes that are running, and wait until they have stopped; idempotent."""
        await self._batches.aclose()

    async def __aenter__(self) -> RowIterator:
        """Return an iterator for one pass, which is closed when the `async with` is left."""
        return RowIterator(await self._batches.__aenter__())

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the iterator."""
        await self._batches.__aexit__(*exc_info)

    def __repr__(self) -> str:
        """Show what is iterated, and how."""
        return f"<Rows of {self._batches!r}>"


class RowIterator(AsyncOnly):
    """One pass over a dataset's rows; like a `BatchIterator`, it ends the run when it is dropped.

    A cancelled or timed-out `__anext__` loses no row: the next call returns it.
    """

    __slots__ = ("__weakref__", "_batches", "_position", "_rows", "_table", "_yield_at")

    def __init__(self, batches: BatchIterator) -> None:
        """Hold the batches; the run starts with the first `__anext__`."""
        self._batches = batches
        self._table: pa.Table | None = None
        self._position = 0
        self._rows: Iterator[dict[str, Any]] = iter(())
        self._yield_at = 0.0

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> dict[str, Any]:
        """Return the next row.

        Raises:
            StopAsyncIteration: The pass is over, or was closed.
            BusyError: Another task is waiting for a row of this iterator.
            TaskError: The user's function failed, or a read did.
            SourceError: A file is missing, corrupt or unreadable, or no file matches.
            RuntimeUnavailableError: Ray can not be reached or started.
        """
        try:
            if self._batches.closed:
                raise StopAsyncIteration
            if perf_counter() >= self._yield_at:
                await anyio.lowlevel.checkpoint()
                self._yield_at = perf_counter() + YIELD_EVERY_S
            while (row := next(self._rows, None)) is None:
                table: pa.Table | None = self._table
                if table is None or self._position >= table.num_rows:
                    self._table = table = await anext(self._batches)
                    self._position = 0
                try:
                    self._convert_stretch(table)
                except TaskError:
                    await self.aclose()
                    raise
            return row
        except BaseException:
            # The traceback keeps this frame; the frame must not keep the handle, whose dropping ends the run, nor rows.
            del self
            table = None
            raise

    async def aclose(self) -> None:
        """Stop the run and wait until it has stopped, as `BatchIterator.aclose` does; from any task of any loop."""
        await self._batches.aclose()
        self._table, self._rows = None, iter(())

    def stats(self) -> IterationStats:
        """Return what this pass has done so far; rows and batches count as they are cut, a little ahead of the rows."""
        return self._batches.stats()

    async def __aenter__(self) -> Self:
        """Return itself.

        Raises:
            ClosedError: It was closed before.
        """
        await self._batches.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close."""
        await self.aclose()

    def __repr__(self) -> str:
        """Show how far it is."""
        return f"<RowIterator of {self._batches!r}>"

    def _convert_stretch(self, table: pa.Table) -> None:
        num_rows = _VALUES_PER_STRETCH // table.num_columns
        if has_tensors(table.schema):
            num_rows = min(num_rows, _BYTES_PER_STRETCH * table.num_rows // max(1, table.nbytes))
        stretch = table.slice(self._position, max(1, num_rows))
        self._rows = iter(python_rows(stretch, "aiter_rows"))
        self._position += stretch.num_rows


def python_rows(table: pa.Table, operator: str) -> list[dict[str, Any]]:
    """Return rows as dicts of Python values; tensors are NumPy arrays of their shape.

    Args:
        table: The rows.
        operator: Who wants them, for errors.

    Raises:
        TaskError: Python has no such values; the column is named.
    """
    try:
        return to_rows(table)
    except BaseException as error:
        if not is_failure(error):
            raise
        raise _blame_column(table, operator, error) from error


def _blame_column(table: pa.Table, operator: str, error: BaseException) -> TaskError:
    source = "a block"
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            to_rows(table.select([name]))
        except BaseException as one:
            if not is_failure(one):
                raise
            source = f"column {name!r} ({column.type})"
            break
    reason = (
        f"{type(error).__name__}: {error}; Python's objects can not hold these values: take them with "
        "batch_format='pyarrow', or cast the column in a map_batches"
    )
    return TaskError(operator, source, None, reason)
