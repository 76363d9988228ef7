"""What an operator has done so far; snapshots of it are `OperatorStats`."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from aiodata.plan.work import OutputMetadata
from aiodata.stats import OperatorStats


@dataclass(slots=True)
class OperatorCounters:
    """Counts of one operator; written by it alone."""

    name: str
    tasks: int = 0
    blocks: int = 0
    rows: int = 0
    bytes: int = 0
    task_s: float = 0.0
    # That of rows; as long as there are none, of the first job that has made a table without rows.
    schema: pa.Schema | None = None
    _empty_job: int | None = None

    def add(self, metadata: OutputMetadata, job: int) -> None:
        """Count an output of a job."""
        self.task_s += metadata.task_s
        block = metadata.block
        if block.num_rows or self.blocks or not len(block.schema):
            self.add_block(block.num_rows, block.num_bytes, block.schema)
        elif self._empty_job is None or job < self._empty_job:
            self._empty_job, self.schema = job, block.schema

    def add_block(self, num_rows: int, num_bytes: int, schema: pa.Schema) -> None:
        """Count a block; one without rows says nothing."""
        if num_rows:
            if not self.blocks:
                self.schema = schema
            self.blocks += 1
            self.rows += num_rows
            self.bytes += num_bytes

    def snapshot(self) -> OperatorStats:
        """Freeze the counts."""
        return OperatorStats(self.name, self.tasks, self.blocks, self.rows, self.bytes, self.task_s)
