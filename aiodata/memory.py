"""Memory: whose buffers an Arrow array lies in, and copies that lie in nobody else's."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import pyarrow as pa
from pyarrow import types


def copy_array(array: pa.Array) -> pa.Array:
    """Return a copy of an array of any type that shares no memory with it, and holds no other rows."""
    if isinstance(array.type, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(array.type, copy_array(array.storage))
    if not _is_shared_by_concat(array.type):
        return pa.concat_arrays([array])
    batch = pa.record_batch([array], ["column"])
    with pa.BufferOutputStream() as sink:
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        with pa.ipc.open_stream(sink.getvalue()) as reader:
            return reader.read_next_batch().column(0)


def _is_shared_by_concat(kind: pa.DataType) -> bool:
    """Whether a type has buffers that Arrow shares when it puts arrays end to end: dictionaries', and views'."""
    kind = getattr(kind, "storage_type", kind)
    if types.is_dictionary(kind) or types.is_string_view(kind) or types.is_binary_view(kind):
        return True
    return any(_is_shared_by_concat(kind.field(i).type) for i in range(kind.num_fields))


class Memory:
    """The buffers of a table, whose rows nobody changes.

    Args:
        table: The table.
    """

    def __init__(self, table: pa.Table) -> None:
        """Note where the buffers lie."""
        spans = {span for column in table.columns for chunk in column.chunks for span in _spans(chunk)}
        merged: list[tuple[int, int]] = []
        for start, stop in sorted(spans):
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        self._starts = [start for start, _ in merged]
        self._stops = [stop for _, stop in merged]

    def own(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the column, with copies of those chunks of which any part lies elsewhere."""
        chunks = [chunk if all(map(self._has, _spans(chunk))) else copy_array(chunk) for chunk in column.chunks]
        if all(new is old for new, old in zip(chunks, column.chunks, strict=True)):
            return column
        return pa.chunked_array(chunks, column.type)

    def _has(self, span: tuple[int, int]) -> bool:
        index = bisect_right(self._starts, span[0]) - 1
        return index >= 0 and span[1] <= self._stops[index]


def _spans(array: pa.Array) -> Iterator[tuple[int, int]]:
    """Yield where each buffer of an array begins and ends, dictionaries included."""
    for buffer in array.buffers():
        if buffer is not None and buffer.size:
            yield buffer.address, buffer.address + buffer.size
    yield from _dictionary_spans(array)


def _dictionary_spans(array: pa.Array) -> Iterator[tuple[int, int]]:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        yield from _dictionary_spans(array.storage)
    elif types.is_dictionary(kind):
        yield from _spans(array.dictionary)
    elif types.is_struct(kind):
        for index in range(kind.num_fields):
            yield from _dictionary_spans(array.field(index))
    elif types.is_map(kind):
        yield from _dictionary_spans(array.keys)
        yield from _dictionary_spans(array.items)
    elif types.is_run_end_encoded(kind) or kind.num_fields == 1:
        yield from _dictionary_spans(array.values)
