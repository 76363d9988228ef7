"""What a task reports, as it travels: blocks, and one object that says what they are, or that the task has ended.

What it says is packed as bytes, which Ray hands on as they are; of anything else it unpacks one by one.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
from ray import cloudpickle

from aiodata.bundle import BlockMetadata
from aiodata.plan.output_schema import Learned
from aiodata.plan.work import OutputMetadata

# Schemas that the driver keeps unpacked: the operators of some runs, each with one or two.
_MAX_SCHEMAS = 128

# So many blocks, then what is said of them.
Report = tuple[Any, ...]


class ReportPacker:
    """Gathers a task's blocks into reports; a schema that is like the one before is not packed again.

    Args:
        num_blocks: How many blocks a report has; a shorter one is filled up with None.
    """

    def __init__(self, num_blocks: int) -> None:
        """Have nothing to report yet."""
        self._num_blocks = num_blocks
        self._blocks: list[pa.Table | None] = []
        self._said: list[tuple[Any, ...]] = []
        self._schema: pa.Schema | None = None
        self._packed_schema = b""

    @property
    def is_full(self) -> bool:
        """Whether a report is complete."""
        return len(self._blocks) == self._num_blocks

    def add(self, table: pa.Table, metadata: OutputMetadata, errors: tuple[Any, ...] = ()) -> None:
        """Add a block, where a report is not complete.

        Args:
            table: The block.
            metadata: What is said of it.
            errors: The metadata's errors, each packed.
        """
        block = metadata.block
        if self._schema is None or not block.schema.equals(self._schema, check_metadata=True):
            self._schema, self._packed_schema = block.schema, cloudpickle.dumps(block.schema)
        self._blocks.append(table)
        self._said.append(
            (
                block.num_rows,
                block.num_bytes,
                self._packed_schema,
                block.source,
                block.spans,
                metadata.calls,
                metadata.task_s,
                _pack_learned(metadata.learned),
                errors,
                metadata.failed_rows,
                metadata.needs_room,
            )
        )

    def report(self, end: Any = None) -> Report:
        """Return what was added since the last report, and the task's end, if this is its last one."""
        filling = [None] * (self._num_blocks - len(self._blocks))
        packed = pickle.dumps((self._said, end), pickle.HIGHEST_PROTOCOL)
        report = (*self._blocks, *filling, packed)
        self._blocks, self._said = [], []
        return report


@lru_cache(1)  # Where pairs are asked for one by one, those of a report follow one another.
def unpack_report(packed: bytes) -> tuple[tuple[OutputMetadata, ...], Any]:
    """Return what a report says of its blocks, and the task's end or None; schemas that are the same are one object."""
    said, end = pickle.loads(packed)
    outputs = tuple(
        OutputMetadata(
            BlockMetadata(num_rows, num_bytes, _unpack_schema(packed_schema), source, spans),
            calls,
            task_s,
            _unpack_learned(learned),
            tuple(error.unpack() for error in errors),
            *rest,
        )
        for num_rows, num_bytes, packed_schema, source, spans, calls, task_s, learned, errors, *rest in said
    )
    return outputs, end


def _pack_learned(learned: Learned | None) -> Learned | None:
    """Return it with its schemas as bytes."""
    if learned is None:
        return None
    return replace(learned, schemas=tuple(None if one is None else cloudpickle.dumps(one) for one in learned.schemas))


def _unpack_learned(learned: Learned | None) -> Learned | None:
    if learned is None:
        return None
    return replace(learned, schemas=tuple(None if one is None else _unpack_schema(one) for one in learned.schemas))


@lru_cache(_MAX_SCHEMAS)
def _unpack_schema(packed: bytes) -> pa.Schema:
    return cloudpickle.loads(packed)
