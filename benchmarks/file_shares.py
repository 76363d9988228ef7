"""Share Parquet files out among the workers of a torch DataLoader."""

# Where torch is not installed, its classes are Any for the type checker.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import torch.utils.data

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa


class FileShares(torch.utils.data.IterableDataset["pa.RecordBatch"]):
    """Iterate over record batches: of n workers, each reads every n-th file.

    Args:
        paths: The files.
        batch_rows: Rows in a batch.
        columns: What is read; None: all columns.
    """

    def __init__(self, paths: Sequence[str], batch_rows: int, columns: Sequence[str] | None = None) -> None:
        self._paths = paths
        self._batch_rows = batch_rows
        self._columns = columns

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Read this worker's files."""
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for path in self._paths[first::step]:
            yield from pq.ParquetFile(path).iter_batches(batch_size=self._batch_rows, columns=self._columns)
