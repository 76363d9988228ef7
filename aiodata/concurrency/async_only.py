"""AsyncOnly: what `async for` goes through, and `for` does not."""

from __future__ import annotations

from typing import NoReturn


class AsyncOnly:
    """Says, where `for` is tried, that it is `async for`: Python would say that nothing can be iterated here."""

    __slots__ = ()

    def __iter__(self) -> NoReturn:
        """Say what to write.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            f"{type(self).__name__} needs `async for`, since its loop waits for data: write `async for x in ...` in an "
            "async function, and run that with aiodata.run(main)"
        )
