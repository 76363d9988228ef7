"""What failed and was skipped, and when that is too much."""

from __future__ import annotations


class SkippedErrors:
    """The account of a run's failures: so many may be skipped.

    Args:
        limit: How many; -1: any number.
    """

    def __init__(self, limit: int) -> None:
        """Nothing has failed."""
        self._limit = limit
        self.lines: list[str] = []

    @property
    def num_left(self) -> int:
        """How many more failures may be skipped; -1: any number."""
        return -1 if self._limit < 0 else self._limit - len(self.lines)

    def add(self, error: Exception) -> None:
        """Note that what an error is about was skipped.

        Raises:
            Exception: The error, if it is one too many.
        """
        if not self.num_left:
            if self._limit:
                error.add_note(f"{len(self.lines)} failures before it were skipped: max_errored_blocks={self._limit}")
            raise error
        self.lines.append(str(error))
