"""Operators: coroutines that take bundles from a stream, and send bundles on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from aiodata.bundle import RefBundle
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
    """Sends on blocks that are stored already."""

    def __init__(self, name: str, bundles: Iterable[RefBundle]) -> None:
        """Prepare."""
        self.counters = OperatorCounters(name)
        self._bundles = bundles

    async def run(self, inputs: Inputs | None, output: Output) -> None:
        """Send every bundle that has rows."""
        # A cancellation's traceback may keep the operator, which must not keep the blocks.
        bundles, self._bundles = self._bundles, ()
        for bundle in bundles:
            self.counters.add_block(bundle.num_rows, bundle.metadata.num_bytes, bundle.metadata.schema)
            if bundle.num_rows:
                await output.send(bundle)


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
