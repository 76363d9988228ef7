"""InputBatches: rows on their way to a user's function, cut into batches that know where they came from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from aiodata.batcher import Batcher
from aiodata.block import Given, concat_blocks
from aiodata.errors import AiodataError
from aiodata.formats import get_format
from aiodata.origin import join_spans, origin_of
from aiodata.plan.control import Control, blame
from aiodata.plan.pieces import Origin, Rows
from aiodata.schemas import conform, refine_schema


@dataclass(frozen=True, slots=True, eq=False)
class InputBatch:
    """What a user's function is called with.

    Attributes:
        rows: The batch, in its format.
        num_rows: Its rows.
        origin: Where they came from.
        given: What the batch was made of, to compare with what the function returns.
        convert: Makes a batch of some rows.
    """

    rows: Any
    num_rows: int
    origin: Origin
    given: Given
    convert: Callable[[pa.Table], Any]

    def origin_of(self, output: pa.Table) -> Origin:
        """Return where what a function returned came from: row by row, where it has as many."""
        return self.origin if output.num_rows == self.num_rows else self.origin.without_rows()

    def halves(self) -> tuple[InputBatch, InputBatch]:
        """Return the batch's first half and its second one, which look as the batch did before anybody changed it."""
        middle = self.num_rows // 2
        return self._part(0, middle), self._part(middle, self.num_rows - middle)

    def _part(self, start: int, num_rows: int) -> InputBatch:
        rows = self.given.rows.slice(start, num_rows)
        batch = self.convert(rows)
        given = Given(batch, lambda: rows, self.convert)
        return InputBatch(batch, num_rows, self.origin.slice(start, num_rows), given, self.convert)


class InputBatches:
    """Cuts rows into batches.

    Rows that can not be converted are skipped, where errors may be: all that wait to be cut at that moment.

    Args:
        name: The operator that the batches are for.
        batch_format: Their format.
        batch_size: Rows per batch; None: one batch per table.
        control: Where errors are noted.
    """

    def __init__(self, name: str, batch_format: str, batch_size: int | None, control: Control) -> None:
        """Start empty."""
        self._name = name
        self._format = get_format(batch_format)
        self._batch_size = batch_size
        self._control = control
        self._batcher = Batcher(self._format, batch_size)
        self._schema: pa.Schema | None = None
        # What has not been cut off yet: a table, where its rows that are left begin, and where these came from.
        self._origins: deque[tuple[pa.Table, int, Origin]] = deque()

    def cut(self, rows: Iterable[Rows]) -> Generator[InputBatch, None, None]:
        """Yield batches as soon as they are full; at the end, what is left."""
        for table, origin in rows:
            if not table.num_rows:
                continue
            if self._schema is not None and self._schema != table.schema:
                # A column's type is known now that was not before: a batch has the one or the other.
                yield from self._end()
            self._schema = table.schema
            if self._push(table, origin):
                yield from self._ready()
        yield from self._end()

    def _end(self) -> Iterator[InputBatch]:
        """Yield what is left, and begin anew."""
        self._batcher.finish()
        yield from self._ready()
        self._batcher = Batcher(self._format, self._batch_size)

    def _push(self, table: pa.Table, origin: Origin) -> bool:
        try:
            with blame(self._name, origin):
                table = self._refined(table)
                self._batcher.push(table)
        except AiodataError as error:
            self._control.skip(error)
            return False
        self._origins.append((table, 0, origin))
        return True

    def _refined(self, table: pa.Table) -> pa.Table:
        """Return a table in the schema of those before it, or have them take on what its schema knows and theirs not.

        A function before this one that has returned nothing but nulls so far may return values now.
        """
        known = table.schema if self._schema is None else refine_schema(self._schema, table.schema)
        if known is None or (self._schema is not None and known.equals(self._schema)):
            return table
        is_first, self._schema = self._schema is None, known
        if is_first:
            return table
        self._batcher = Batcher(self._format, self._batch_size)
        waiting = [(conform(one.slice(start), known), 0, origin) for one, start, origin in self._origins]
        self._origins = deque(waiting)
        for one, _, _ in waiting:
            self._batcher.push(one)
        return conform(table, known)

    def _ready(self) -> Iterator[InputBatch]:
        while self._origins:
            before = self._batcher.rows
            try:
                with blame(self._name, self._origins[0][2]):
                    batch = self._batcher.next_at_once()
            except AiodataError as error:
                self._control.skip(error)
                # Rows may be missing inside of it now.
                self._batcher = Batcher(self._format, self._batch_size)
                self._origins.clear()
                return
            if batch is None:
                return
            num_rows = self._batcher.rows - before
            origin, parts = self._take(num_rows)
            given = Given(batch, partial(_join, parts), self._convert)
            yield InputBatch(batch, num_rows, origin, given, self._convert)

    def _take(self, num_rows: int) -> tuple[Origin, list[tuple[pa.Table, int, int]]]:
        """Take the next `num_rows` rows off the queue and return their origin, and the rows."""
        origins: list[tuple[Origin, int]] = []
        parts = []
        while num_rows:
            table, start, origin = self._origins.popleft()
            available = table.num_rows - start
            taken = min(available, num_rows)
            num_rows -= taken
            parts.append((table, start, taken))
            origins.append((origin.slice(0, taken), taken))
            if taken < available:
                self._origins.appendleft((table, start + taken, origin.slice(taken, available - taken)))
        if len(origins) == 1:
            return origins[0][0], parts
        return origin_of(join_spans(span for origin, taken in origins for span in origin.spans(taken))), parts

    def _convert(self, rows: pa.Table) -> Any:
        """Return rows as they look to the function."""
        segments = [self._format.convert(segment) for segment in rows.combine_chunks().to_batches()]
        return segments[0] if len(segments) == 1 else self._format.join(segments)


def _join(parts: list[tuple[pa.Table, int, int]]) -> pa.Table:
    return concat_blocks([table.slice(start, num_rows) for table, start, num_rows in parts])
