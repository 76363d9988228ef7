"""PassTimes: where the time of a pass goes, in seconds."""

from __future__ import annotations

from time import perf_counter


class PassTimes:
    """Counts batches and splits the time between waiting, cutting and the consumer's own code."""

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self.batches = 0
        self.first_batch_s: float | None = None
        self.wait_s = self.format_s = self.user_s = self.closing_s = 0.0
        self._started = 0.0
        self._asked = 0.0
        self._returned = 0.0
        self._closed = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds from the first request to the end, or to now."""
        return (self._closed or perf_counter()) - self._started if self._started else 0.0

    def on_ready_batch(self, asked: float) -> None:
        """Note a batch that was asked for at `asked` and took only cutting."""
        self.batches += 1
        self.user_s += asked - self._returned
        self._returned = now = perf_counter()
        self.format_s += now - asked

    def on_ask(self) -> float:
        """Note that a batch is waited for; return how long the consumer was busy with the one before, in seconds."""
        self._asked = now = perf_counter()
        busy_s = 0.0
        if self._started:
            busy_s = now - self._returned
            self.user_s += busy_s
        else:
            self._started = now
        self._returned = now
        return busy_s

    def on_batch(self) -> None:
        """Note that the batch that was waited for is there."""
        self.batches += 1
        self._returned = now = perf_counter()
        self.wait_s += now - self._asked
        if self.first_batch_s is None:
            self.first_batch_s = now - self._started

    def on_close(self) -> None:
        """Note the end of the pass."""
        if self._started:
            self._closed = perf_counter()
