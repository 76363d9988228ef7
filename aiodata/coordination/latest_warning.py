"""The latest warning of this process, for who waits in another: nobody reads the log of a coordinator."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

_logger = logging.getLogger("aiodata")


class LatestWarning(logging.Handler):
    """Keeps the text of the latest warning of the logger `aiodata`, and when it came."""

    def __init__(self) -> None:
        """There was none."""
        super().__init__(logging.WARNING)
        self._text = ""
        self._noted_s = -math.inf

    def emit(self, record: logging.LogRecord) -> None:
        """Note a warning."""
        self._text, self._noted_s = record.getMessage(), perf_counter()

    def within(self, seconds: float) -> str:
        """Return the latest warning, if it is not older; else nothing."""
        return self._text if perf_counter() - self._noted_s <= seconds else ""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the warnings of the body."""
        _logger.addHandler(self)
        try:
            yield
        finally:
            _logger.removeHandler(self)
