"""InputBatches: rows on their way to a user's function, cut into batches that know where they came from."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from aiodata.batcher import Batcher
from aiodata.errors import AiodataError
from aiodata.formats import get_format
from aiodata.plan.control import Control, blame
from aiodata.plan.pieces import Origin, Rows


@dataclass(frozen=True, slots=True, eq=False)
class InputBatch:
    """What a user's function is called with.

    Attributes:
        rows: The batch, in its format.
        num_rows: Its rows.
        origin: Where they came from.
    """

    rows: Any
    num_rows: int
    origin: Origin


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
        self._origins: deque[tuple[int, Origin]] = deque()

    def cut(self, rows: Iterable[Rows]) -> Generator[InputBatch, None, None]:
        """Yield batches as soon as they are full; at the end, what is left."""
        for table, origin in rows:
            if not table.num_rows:
                continue
            if self._push(table, origin):
                yield from self._ready()
        self._batcher.finish()
        yield from self._ready()

    def _push(self, table: pa.Table, origin: Origin) -> bool:
        try:
            with blame(self._name, origin):
                self._batcher.push(table)
        except AiodataError as error:
            self._control.skip(error)
            return False
        self._origins.append((table.num_rows, origin))
        return True

    def _ready(self) -> Iterator[InputBatch]:
        while self._origins:
            before = self._batcher.rows
            try:
                with blame(self._name, self._origins[0][1]):
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
            yield InputBatch(batch, num_rows, self._take_origin(num_rows))

    def _take_origin(self, num_rows: int) -> Origin:
        """Take the origins of the next `num_rows` rows off the queue and return their span."""
        first: Origin | None = None
        while num_rows:
            available, origin = self._origins.popleft()
            taken = min(available, num_rows)
            num_rows -= taken
            part = origin.slice(0, taken)
            first = part if first is None else first.to(part)
            if taken < available:
                self._origins.appendleft((available - taken, origin.slice(taken, available - taken)))
        assert first is not None, "a batch has rows, so it has an origin"
        return first
