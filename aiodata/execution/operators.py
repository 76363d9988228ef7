"""Operators: coroutines that take bundles from a stream, and send bundles on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from aiodata.bundle import BlockMetadata, InlineBlock, RefBundle
from aiodata.execution.counters import OperatorCounters

Inputs = MemoryObjectReceiveStream[RefBundle]
Output = MemoryObjectSendStream[RefBundle]


class Operator(Protocol):
    """One stage of a run."""

    counters: OperatorCounters

    async def run(self, inputs: Inputs | None, output: Output) -> None:
        """Take all inputs, send all outputs; returns at the end of the data.

        Raises:
            anyio.BrokenResourceError: Nobody takes the outputs any more.
        """


class InputOperator:
    """Sends on blocks that are in memory."""

    def __init__(self, name: str, blocks: Sequence[pa.Table]) -> None:
        """Prepare."""
        self.counters = OperatorCounters(name)
        self._blocks = blocks

    async def run(self, inputs: Inputs | None, output: Output) -> None:
        """Send each block as its own reference."""
        for block in self._blocks:
            metadata = BlockMetadata(block.num_rows, block.nbytes, block.schema, self.counters.name)
            self.counters.add_block(block.num_rows, metadata.num_bytes, block.schema)
            if block.num_rows:
                await output.send(RefBundle.whole(InlineBlock(block), metadata))


class LimitOperator:
    """Sends on the first rows that come, narrowing the last bundle's range."""

    def __init__(self, name: str, num_rows: int) -> None:
        """Prepare."""
        self.counters = OperatorCounters(name)
        self._num_rows = num_rows

    async def run(self, inputs: Inputs | None, output: Output) -> None:
        """Send rows until there are enough; returning ends what comes before."""
        left = self._num_rows
        if inputs is None or left <= 0:
            return
        async for bundle in inputs:
            head = bundle.head(left)
            left -= head.num_rows
            self.counters.add_block(head.num_rows, head.metadata.num_bytes, head.metadata.schema)
            await output.send(head)
            if left <= 0:
                return
