"""Where datasets come from: files, Arrow data, Python objects. Nothing is read before iteration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from aiodata.block import as_block, from_rows
from aiodata.dataset import Dataset
from aiodata.errors import OptionError
from aiodata.options import ExecutionOptions, at_least, given_list, one_of, shown
from aiodata.plan.nodes import Plan, Read
from aiodata.plan.selecting import given_columns
from aiodata.plan.source import Source
from aiodata.schemas import check_names, with_plain_types
from aiodata.sources.files import check_paths
from aiodata.sources.memory import RangeSource, TableSource, split_table
from aiodata.sources.parquet import ParquetSource

# In-memory tables are cut into blocks of this size, in bytes, so that tasks can share them.
_MEMORY_BLOCK_BYTES = 32 << 20

_MAX_RANGE = 2**63 - 1


def read_parquet(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    columns: str | Sequence[str] | None = None,
    filter: pc.Expression | None = None,  # noqa: A002 - the field's name for it.
    filesystem: Any = None,
    partitioning: str | None = "hive",
    schema: pa.Schema | None = None,
) -> Dataset:
    """Read Parquet files, by row group.

    Args:
        paths: A file, a directory (with its subdirectories), a glob (`*` within a directory, `**` across), a URI that
            `pyarrow.fs` knows (`s3://...`), or a list of these. Files are read in the order of their paths.
        columns: The column or columns to read; None: all.
        filter: The rows to read, as a `pyarrow.compute.Expression`; row groups whose statistics rule them out are
            skipped.
        filesystem: A `pyarrow.fs` or fsspec file system that the paths are in; None: local, or the URI's.
        partitioning: `"hive"`: directories called `key=value` say what is in the column `key`; None: they do not.
        schema: The columns and their types, for files that lack some, or that have other types; columns that are not
            in it are not read. None: the types that hold the values of all files exactly.

    Returns:
        A Dataset; nothing is listed or read before it is iterated. Then a missing, corrupt or unreadable file, and a
        path that matches none, is a `SourceError` that names it.

    Example:
        ```python
        async for batch in aiodata.read_parquet("flights/*.parquet", columns=["dep_delay"]).aiter_batches():
            ...
        ```
    """
    found = check_paths(paths, filesystem)
    if filter is not None and not isinstance(filter, pc.Expression):
        raise OptionError(f"filter={shown(filter)} must be a pyarrow.compute.Expression, for example pc.field('x') > 0")
    chosen = None if columns is None else given_columns("columns", columns)
    if partitioning is not None:
        partitioning = one_of("partitioning", partitioning, ["hive"], unless="None to take no columns from directories")
    if schema is not None and not isinstance(schema, pa.Schema):
        raise OptionError(
            f"schema={shown(schema)} must be a pyarrow.Schema, or None to take what holds the values of all files"
        )
    return _dataset(ParquetSource(found, chosen, filter, partitioning, schema))


def range(n: int, *, num_blocks: int | None = None) -> Dataset:  # noqa: A001 - as in every such library.
    """Count from 0 to `n`, in the column `id` (int64).

    Args:
        n: The number of rows.
        num_blocks: The number of blocks, as long as no function is applied to them, and none is larger than 32 MiB;
            None: as suits the CPUs.

    Raises:
        OptionError: An argument has a value that cannot work.

    Example:
        >>> import asyncio
        >>> asyncio.run(range(3).take())
        [{'id': 0}, {'id': 1}, {'id': 2}]
    """
    num_rows, blocks = at_least("n", n, 0), at_least("num_blocks", num_blocks, 1, optional=True)
    if num_rows > _MAX_RANGE:
        raise OptionError(f"n={num_rows} must be at most 2**63 - 1: ids are of the type int64")
    return _dataset(RangeSource(num_rows, blocks))


def from_items(items: Iterable[Any]) -> Dataset:
    """Make a dataset of Python objects: dicts become columns, anything else the column `item`.

    Raises:
        OptionError: It is no list of rows, or the rows do not go together.

    Example:
        >>> import asyncio
        >>> asyncio.run(from_items(["a", "b"]).take())
        [{'item': 'a'}, {'item': 'b'}]
    """
    rows = given_list("items", items)
    try:
        block = with_plain_types(from_rows(rows))
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"items cannot be made a table: {error}") from error
    return _dataset(TableSource("from_items", (block,)))


def from_arrow(obj: Any) -> Dataset:
    """Make a dataset of Arrow data, without copying it.

    Args:
        obj: A Table, a dict of arrays, anything with `__arrow_c_stream__` (polars, duckdb, pandas, ...), or a list of
            these.

    Raises:
        OptionError: It is none of these.

    Example:
        >>> import asyncio, pyarrow as pa
        >>> asyncio.run(from_arrow(pa.table({"x": [1]})).take())
        [{'x': 1}]
    """
    try:
        tables = [with_plain_types(as_block(one)) for one in (obj if isinstance(obj, list | tuple) else [obj])]
        for table in tables:
            check_names(table.column_names)
    except (TypeError, ValueError) as error:
        raise OptionError(f"obj={shown(obj)} cannot be read: {error}") from error
    if not tables:
        raise OptionError("obj=[] must hold at least one table; an empty table will do")
    if any(table.num_rows and not table.num_columns for table in tables):
        raise OptionError("obj has rows but no columns; there is nothing to read")
    blocks = tuple(block for table in tables for block in split_table(table, _MEMORY_BLOCK_BYTES))
    return _dataset(TableSource("from_arrow", blocks))


def _dataset(source: Source) -> Dataset:
    return Dataset(Plan(Read(source)), ExecutionOptions())
