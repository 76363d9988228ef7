"""What an operator has done so far; snapshots of it are `OperatorStats`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from aiodata.bundle import RefBundle
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
    schema: pa.Schema | None = None

    def add(self, metadata: OutputMetadata) -> None:
        """Count an output."""
        self.task_s += metadata.task_s
        self.add_block(metadata.block.num_rows, metadata.block.num_bytes, metadata.block.schema)

    def add_block(self, num_rows: int, num_bytes: int, schema: pa.Schema) -> None:
        """Count a block; one without rows counts only for its schema, as long as there are none with rows."""
        if num_rows:
            if not self.blocks:
                self.schema = schema
            self.blocks += 1
            self.rows += num_rows
            self.bytes += num_bytes
        elif self.schema is None and len(schema):
            self.schema = schema

    def remove(self, bundles: Sequence[RefBundle]) -> None:
        """Count blocks no more that nobody has seen: they are made again."""
        self.blocks -= len(bundles)
        self.rows -= sum(bundle.num_rows for bundle in bundles)
        self.bytes -= sum(bundle.metadata.num_bytes for bundle in bundles)

    def snapshot(self) -> OperatorStats:
        """Freeze the counts."""
        return OperatorStats(self.name, self.tasks, self.blocks, self.rows, self.bytes, self.task_s)
