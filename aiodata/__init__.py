"""aiodata: stream data into asyncio programs, `async for batch in ds.aiter_batches()`."""

from aiodata.bundle import RefBundle
from aiodata.concurrency import LoopLagMonitor
from aiodata.dataset import Dataset
from aiodata.errors import (
    AiodataError,
    BarrierTimeoutError,
    BusyError,
    ClosedError,
    CoordinatorLostError,
    EpochError,
    OptionError,
    RuntimeUnavailableError,
    SourceError,
    SplitBusyError,
    SplitLostError,
    TaskError,
    UnknownColumnError,
)
from aiodata.iterator import Batches, BatchIterator
from aiodata.options import ExecutionOptions, SplitOptions
from aiodata.reading import from_arrow, from_items, range, read_parquet  # noqa: A004
from aiodata.rows import RowIterator, Rows
from aiodata.running import run
from aiodata.service import SplitService, attach
from aiodata.split import SplitIterator
from aiodata.stats import (
    BudgetStats,
    CoordinatorStats,
    IterationStats,
    LoopLag,
    OperatorStats,
    RunStats,
    SplitStats,
)

__version__ = "0.1.0"

__all__ = [
    "AiodataError",
    "BarrierTimeoutError",
    "BatchIterator",
    "Batches",
    "BudgetStats",
    "BusyError",
    "ClosedError",
    "CoordinatorLostError",
    "CoordinatorStats",
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
    "RunStats",
    "RuntimeUnavailableError",
    "SourceError",
    "SplitBusyError",
    "SplitIterator",
    "SplitLostError",
    "SplitOptions",
    "SplitService",
    "SplitStats",
    "TaskError",
    "UnknownColumnError",
    "attach",
    "from_arrow",
    "from_items",
    "range",
    "read_parquet",
    "run",
]
