"""Time a pass batch by batch, as its consumer sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.sources import check_rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Timing:
    """Hold the times of one pass, in seconds.

    Attributes:
        pass_s: From before the iteration was opened to its end.
        first_s: From there to the first batch.
        waits_s: Of each batch but the first, from when it is asked for.
    """

    pass_s: float
    first_s: float
    waits_s: Sequence[float]


class Stamps:
    """Take the time of each batch; the clock starts when this is made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._stamps: list[float] = []
        self._asked: list[float] = []
        self._num_rows = 0

    def batch(self, num_rows: int) -> None:
        """Note a batch."""
        self._stamps.append(time.perf_counter())
        self._num_rows += num_rows

    def ask(self) -> None:
        """Note that the consumer is done with a batch; one that never says so asks for the next one at once."""
        self._asked.append(time.perf_counter())

    def end(self, num_rows: int) -> Timing:
        """Stop the clock and check that there were so many rows.

        Raises:
            RowCountError: There were more, or fewer.
        """
        pass_s = time.perf_counter() - self._started
        check_rows(self._num_rows, num_rows)
        # What is asked for after the last batch is the end.
        waits_s = [got - asked for asked, got in zip(self._asked or self._stamps, self._stamps[1:], strict=False)]
        return Timing(pass_s, self._stamps[0] - self._started, waits_s)


async def time_async_pass(open_batches: Callable[[], AsyncIterable[Any]], column: str, num_rows: int) -> Timing:
    """Iterate with `async for` and nothing else; batches map `column` to values, one for each row."""
    stamps = Stamps()
    async for batch in open_batches():
        stamps.batch(len(batch[column]))
    return stamps.end(num_rows)


def time_pass(open_batches: Callable[[], Iterable[Any]], column: str, num_rows: int) -> Timing:
    """Iterate with a plain `for` and nothing else; batches map `column` to values, one for each row."""
    stamps = Stamps()
    for batch in open_batches():
        stamps.batch(len(batch[column]))
    return stamps.end(num_rows)
