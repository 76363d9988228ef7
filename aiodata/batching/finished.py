"""What the user is done with: FinishedRows counts it, FinishedReport tells the supply; no I/O, no awaits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiodata.batching.feed import BundleSource


class FinishedRows:
    """Counts the rows before the first batch that the user is not done with; batches may come in any order.

    The user is done with a batch when the next one is asked for.

    Attributes:
        rows: Rows that are finished, from the first on, in the order in which they were cut.

    Example:
        >>> finished = FinishedRows()
        >>> finished.hand_over(2, 4)
        >>> finished.hand_over(0, 2)
        >>> finished.rows
        0
        >>> finished.ask()
        >>> finished.rows
        4
    """

    def __init__(self) -> None:
        """Nothing has been handed over."""
        self.rows = 0
        self._in_hand: tuple[int, int] | None = None
        # Batches that are finished while one before them is not: their first row, and the row after their last.
        self._beyond: dict[int, int] = {}

    def hand_over(self, start: int, stop: int) -> None:
        """Note that the batch of those rows is in the user's hands, who had asked for it."""
        self.ask()
        self._in_hand = start, stop

    def ask(self) -> None:
        """Note that the user is done with the batch in hand, if there is one."""
        if self._in_hand is None:
            return
        start, stop = self._in_hand
        self._in_hand = None
        self._beyond[start] = stop
        while self.rows in self._beyond:
            self.rows = self._beyond.pop(self.rows)

    def reach(self, rows: int) -> None:
        """Note that the user is done with the first `rows` rows; only before any batch is handed over here."""
        self.rows = rows


class FinishedReport:
    """Tells a supply of bundles how many of its rows are finished, while there is one; the number never falls."""

    def __init__(self) -> None:
        """Nobody is to be told."""
        self._bundles: BundleSource | None = None
        self._count: Callable[[], int] = int
        self._rows = 0

    @contextmanager
    def to(self, bundles: BundleSource, count: Callable[[], int]) -> Iterator[None]:
        """Tell `bundles` what `count` returns, inside the `with`."""
        self._bundles, self._count = bundles, count
        try:
            yield
        finally:
            self._bundles, self._count = None, int

    def tell(self) -> None:
        """Tell how many rows are finished now."""
        if self._bundles is not None:
            # What is closed has let go of what it counted by.
            self._rows = max(self._rows, self._count())
            self._bundles.note_finished(self._rows)
