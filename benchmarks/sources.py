"""Open the Parquet files in each library, with its progress displays off."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from benchmarks.data import SHAPE, ensure_parquet

if TYPE_CHECKING:
    import duckdb
    import pyarrow.dataset as pads
    import ray.data

    import aiodata

NUM_ROWS = SHAPE.num_rows
NUMERIC_COLUMNS = ("id", "x", "y", "label")


class RowCountError(Exception):
    """A contender delivered another number of rows than there are: its figures mean nothing."""


def check_rows(got: int, wanted: int = NUM_ROWS) -> None:
    """Fail when rows are missing, or come twice.

    Raises:
        RowCountError: The counts differ.
    """
    if got != wanted:
        raise RowCountError(f"got {got:,} rows instead of {wanted:,}")


def parquet_folder() -> str:
    """Return the folder of the files."""
    return str(ensure_parquet())


def parquet_paths() -> list[str]:
    """Return the paths of the files."""
    return sorted(str(path) for path in ensure_parquet().glob("*.parquet"))


def aiodata_parquet(runtime: str) -> aiodata.Dataset:
    """Open the files in aiodata, on one of its runtimes."""
    import aiodata

    return aiodata.read_parquet(parquet_folder()).with_options(runtime=runtime)


def arrow_parquet() -> pads.Dataset:
    """Open the files in pyarrow.dataset."""
    import pyarrow.dataset as pads

    return pads.dataset(parquet_folder(), format="parquet")


def duckdb_parquet() -> duckdb.DuckDBPyRelation:
    """Open the files in duckdb, for rows in any order."""
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET preserve_insertion_order = false")
    return connection.sql(f"SELECT * FROM read_parquet('{parquet_folder()}/*.parquet')")


def quiet_ray_data() -> None:
    """Turn off what Ray Data prints during a run."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def ray_data_parquet(**options: Any) -> ray.data.Dataset:
    """Open the files in Ray Data."""
    import ray.data

    quiet_ray_data()
    return ray.data.read_parquet(parquet_folder(), **options)
