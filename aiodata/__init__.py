"""aiodata: stream data into asyncio programs, `async for batch in ds.aiter_batches()`."""

from aiodata.dataset import Dataset, from_arrow, from_items, range, read_parquet  # noqa: A004
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
from aiodata.stats import IterationStats, OperatorStats

__version__ = "0.1.0"

__all__ = [
    "AiodataError",
    "BatchIterator",
    "Batches",
    "BusyError",
    "ClosedError",
    "Dataset",
    "EpochError",
    "ExecutionOptions",
    "IterationStats",
    "OperatorStats",
    "OptionError",
    "RuntimeUnavailableError",
    "SourceError",
    "TaskError",
    "from_arrow",
    "from_items",
    "range",
    "read_parquet",
]
