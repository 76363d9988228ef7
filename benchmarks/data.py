"""Make the Parquet files that the scenarios read, once, from a fixed seed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

_NUM_NAMES = 100_000


@dataclass(frozen=True, slots=True)
class DataShape:
    """Describe a generated data set.

    Attributes:
        num_files: Number of Parquet files.
        rows_per_file: Rows in each file.
        rows_per_group: Rows in each row group but the last of a file.
        seed: Seed of the values; file `i` draws from `(seed, i)`.
    """

    num_files: int = 32
    rows_per_file: int = 200_000
    rows_per_group: int = 50_000
    seed: int = 20_260

    @property
    def num_rows(self) -> int:
        """Count the rows of all files."""
        return self.num_files * self.rows_per_file

    @property
    def folder_name(self) -> str:
        """Name the folder after the shape, so that another shape never meets stale files."""
        return f"{self.num_files}x{self.rows_per_file}-groups{self.rows_per_group}-seed{self.seed}"


SHAPE = DataShape()


def cache_root() -> Path:
    """Return the folder that generated data lives in (`AIODATA_BENCH_DATA` overrides it)."""
    override = os.environ.get("AIODATA_BENCH_DATA")
    return Path(override) if override else Path.home() / ".cache" / "aiodata-bench"


def make_table(shape: DataShape, file_index: int) -> pa.Table:
    """Build the rows of one file.

    With names of 5.9 characters on average, 6.4 M rows weigh 242 MB in Arrow.

    Args:
        shape: The data set's shape.
        file_index: Which file, from 0.

    Returns:
        A table with the columns `id`, `x`, `y`, `label` and `s`.
    """
    random = np.random.default_rng((shape.seed, file_index))
    num_rows = shape.rows_per_file
    first_id = file_index * num_rows
    names = pa.array([f"s{number}" for number in range(_NUM_NAMES)])
    return pa.table(
        {
            "id": np.arange(first_id, first_id + num_rows, dtype=np.int64),
            "x": random.standard_normal(num_rows),
            "y": random.random(num_rows, dtype=np.float32),
            "label": random.integers(0, 10, num_rows),
            "s": names.take(pa.array(random.integers(0, _NUM_NAMES, num_rows))),
        }
    )


def _write_files(folder: Path, shape: DataShape, console: Console) -> None:
    for index in track(range(shape.num_files), "Making the data", console=console):
        path = folder / f"part-{index:03d}.parquet"
        pq.write_table(make_table(shape, index), path, row_group_size=shape.rows_per_group)


def ensure_parquet(shape: DataShape = SHAPE, *, root: Path | None = None, console: Console | None = None) -> Path:
    """Return the folder of Parquet files, making it when it is not there yet.

    Args:
        shape: The data set's shape.
        root: Folder that holds the data sets; by default `cache_root()`.
        console: Where progress is shown; by default standard error.
    """
    folder = (root or cache_root()) / shape.folder_name
    return made_at_once(folder, lambda unfinished: _write_files(unfinished, shape, console or Console(stderr=True)))


def made_at_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """Return a folder, having it written when it is not there yet.

    The files are written beside their place and moved there in one step: whoever finds the folder
    finds it whole.

    Args:
        folder: The folder.
        write: Writes what is to be in it into an empty one.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent))
    try:
        write(unfinished)
        unfinished.rename(folder)
    except OSError:
        # Another process may have moved its own, equal copy there first.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
