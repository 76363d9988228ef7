"""A block's metadata as it travels: bytes, which Ray hands on as they are; of anything else it unpacks one by one."""

from __future__ import annotations

import pickle
from functools import lru_cache

import pyarrow as pa
from ray import cloudpickle

from aiodata.bundle import BlockMetadata
from aiodata.plan.work import OutputMetadata

# Schemas that the driver keeps unpacked: the operators of some runs, each with one or two.
_MAX_SCHEMAS = 128


class MetadataPacker:
    """Packs the metadata of a task's blocks; a schema that is like the one before is not packed again."""

    def __init__(self) -> None:
        """Know no schema yet."""
        self._schema: pa.Schema | None = None
        self._packed_schema = b""

    def pack(self, metadata: OutputMetadata) -> bytes:
        """Return what `unpack_metadata` takes."""
        block = metadata.block
        if self._schema is None or not block.schema.equals(self._schema, check_metadata=True):
            self._schema, self._packed_schema = block.schema, cloudpickle.dumps(block.schema)
        fields = (block.num_rows, block.num_bytes, self._packed_schema, block.source, metadata.calls, metadata.task_s)
        return pickle.dumps(fields, pickle.HIGHEST_PROTOCOL)


def unpack_metadata(packed: bytes) -> OutputMetadata:
    """Return the metadata; schemas that are the same are one object."""
    num_rows, num_bytes, packed_schema, source, calls, task_s = pickle.loads(packed)
    return OutputMetadata(BlockMetadata(num_rows, num_bytes, _unpack_schema(packed_schema), source), calls, task_s)


@lru_cache(_MAX_SCHEMAS)
def _unpack_schema(packed: bytes) -> pa.Schema:
    return cloudpickle.loads(packed)
