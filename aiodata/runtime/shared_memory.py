"""Shared memory: which of a task's output is the memory of its input, passed on as it is. No copy, no second count."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import pyarrow as pa


class InputMemory:
    """The memory of a task's input blocks.

    Args:
        tables: The blocks.
    """

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        """Note where it is."""
        regions = sorted(
            (buffer.address, buffer.address + buffer.size, index)
            for index, table in enumerate(tables)
            for buffer in _value_buffers(table)
        )
        self._starts = [start for start, _, _ in regions]
        self._regions = regions

    def shared_with(self, table: pa.Table) -> dict[int, int]:
        """Return how many bytes of a table are memory of which input."""
        shared: dict[int, int] = {}
        if not self._regions:
            return shared
        for column in table.columns:
            for chunk in column.chunks:
                index = self._owner_of(chunk)
                if index is not None:
                    shared[index] = shared.get(index, 0) + chunk.nbytes
        return shared

    def _owner_of(self, chunk: pa.Array) -> int | None:
        """Return the input whose memory a chunk's values are; they come last among its buffers."""
        buffer = next((one for one in reversed(chunk.buffers()) if one is not None and one.size), None)
        if buffer is None:
            return None
        at = bisect_right(self._starts, buffer.address) - 1
        if at < 0 or buffer.address >= self._regions[at][1]:
            return None
        return self._regions[at][2]


def _value_buffers(table: pa.Table) -> Iterator[pa.Buffer]:
    for column in table.columns:
        for chunk in column.chunks:
            yield from (buffer for buffer in chunk.buffers() if buffer is not None and buffer.size)
