"""Turn: how much may be done before the event loop gets its turn."""

from __future__ import annotations

import asyncio

# The loop gets its turn at least this often, in seconds.
_TURN_S = 0.001

# And after so many steps: on a loop whose time stands still while something runs, the time says nothing.
_MAX_STEPS = 128


class Turn:
    """A stretch of work between two turns of the running event loop, measured by the loop's own clock.

    Example:
        >>> async def main():
        ...     turn = Turn()
        ...     return sum(1 for _ in iter(turn.is_over, True)) <= 128
        >>> asyncio.run(main())
        True
    """

    def __init__(self) -> None:
        """Begin."""
        self._time = asyncio.get_running_loop().time
        self._ends_at = self._time() + _TURN_S
        self._num_left = _MAX_STEPS

    def is_over(self) -> bool:
        """Whether the loop should have its turn; asked once per step."""
        self._num_left -= 1
        return self._num_left <= 0 or self._time() >= self._ends_at
