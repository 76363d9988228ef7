"""What failed and was skipped: when that is too much, and how it is told."""

from __future__ import annotations

import logging

from aiodata.plan.control import MAX_LISTED_ROWS, FailedRows
from aiodata.stats import RunStats

_logger = logging.getLogger("aiodata")


class SkippedErrors:
    """The account of a run's failures: so many may be skipped. The first one is warned of at once.

    Rows that a function gave up (`on_error`) are counted and listed, too, but not limited: that was asked for.

    Args:
        limit: How many; -1: any number.
        is_quiet: Whether nothing is logged, as where another run has told of the same failures.

    Attributes:
        is_quiet: As given.
        num_errors: Failures that were skipped.
        num_rows: Rows that were given up.
        lines: What failed, one line each; of rows the first ones.
    """

    def __init__(self, limit: int, *, is_quiet: bool = False) -> None:
        """Nothing has failed."""
        self._limit = limit
        self.is_quiet = is_quiet
        self.num_errors = 0
        self.num_rows = 0
        self._num_listed_rows = 0
        self.lines: list[str] = []

    @property
    def num_left(self) -> int:
        """How many more failures may be skipped; -1: any number."""
        return -1 if self._limit < 0 else self._limit - self.num_errors

    def add(self, error: Exception) -> None:
        """Note that what an error is about was skipped.

        Raises:
            Exception: The error, if it is one too many.
        """
        if not self.num_left:
            if self._limit:
                error.add_note(f"{self.num_errors} failures before it were skipped: max_errored_blocks={self._limit}")
            raise error
        self.num_errors += 1
        self._list(str(error))

    def add_rows(self, rows: FailedRows) -> None:
        """Note rows that a function gave up; the first ones are listed."""
        self.num_rows += rows.num_rows
        listed = rows.lines[: MAX_LISTED_ROWS - self._num_listed_rows]
        self._num_listed_rows += len(listed)
        for line in listed:
            self._list(line)

    def _list(self, line: str) -> None:
        self.lines.append(line)
        if len(self.lines) == 1 and not self.is_quiet:
            warn_of_first(line)


def warn_of_first(line: str) -> None:
    """Say that something was skipped, when it is the first."""
    _logger.warning("the run goes on after a failure: %s", line)


def warn_of_skips(run: RunStats, *, is_complete: bool) -> None:
    """Say what was skipped in a run that is over, if anything was: loudly, if no row is left.

    Args:
        run: What the run has done.
        is_complete: Whether it came to the end of its data.
    """
    if not run.errors:
        return
    amounts = ((run.errored_blocks, "failure"), (run.errored_rows, "failed row"))
    what = " and ".join(f"{count:,} {noun}{'' if count == 1 else 's'}" for count, noun in amounts if count)
    text = f"the run went on after {what}; the first: {run.errors[0]} (stats().errors has the list)"
    if is_complete and run.operators and not run.operators[-1].rows:
        _logger.error("no row is left: %s", text)
    else:
        _logger.warning("%s", text)
