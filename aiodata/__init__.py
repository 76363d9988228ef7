"""aiodata: stream data into asyncio programs, `async for batch in ds.aiter_batches()`."""

from aiodata.bundle import RefBundle
from aiodata.concurrency import LoopLagMonitor
from aiodata.dataset import Dataset
from aiodata.errors import (
    AiodataError,
    BusyError,
    ClosedError,
    EpochError,
    OptionError,
    RuntimeUnavailableError,
    SourceError,
    TaskError,
)
from aiodata.iterator import Batches, BatchIterator
from aiodata.options import ExecutionOptions
from aiodata.reading import from_arrow, from_items, range, read_parquet  # noqa: A004
from aiodata.rows import RowIterator, Rows
from aiodata.running import run
from aiodata.stats import BudgetStats, IterationStats, LoopLag, OperatorStats

__version__ = "0.1.0"

__all__ = [
    "AiodataError",
    "BatchIterator",
    "Batches",
    "BudgetStats",
    "BusyError",
    "ClosedError",
    "Dataset",
    "EpochError",
    "ExecutionOptions",
    "IterationStats",
    "LoopLag",
    "LoopLagMonitor",
    "OperatorStats",
    "OptionError",
    "RefBundle",
    "RowIterator",
    "Rows",
    "RuntimeUnavailableError",
    "SourceError",
    "TaskError",
    "from_arrow",
    "from_items",
    "range",
    "read_parquet",
    "run",
]
