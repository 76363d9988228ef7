"""ReorderBuffer: what was numbered and then finished in any order leaves in order; no I/O, no awaits."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class ReorderBuffer(Generic[T]):
    """Releases numbered items in order; the first has the number 0.

    Its length is the number of items that wait, those that may leave included.

    Example:
        >>> buffer = ReorderBuffer[str]()
        >>> buffer.put(1, "second")
        >>> buffer.has_next
        False
        >>> buffer.put(0, "first")
        >>> buffer.pop(), buffer.pop()
        ('first', 'second')
    """

    def __init__(self) -> None:
        """Expect number 0 first."""
        self._next = 0
        self._waiting: dict[int, T] = {}

    @property
    def has_next(self) -> bool:
        """Whether the item that comes next in order is there."""
        return self._next in self._waiting

    def put(self, number: int, item: T) -> None:
        """Take an item.

        Raises:
            ValueError: The number waits already, or items up to a higher one have left.
        """
        if number < self._next:
            raise ValueError(f"number {number} comes too late; the next to leave is {self._next}")
        if number in self._waiting:
            raise ValueError(f"number {number} is given twice")
        self._waiting[number] = item

    def pop(self) -> T:
        """Return the item that comes next in order.

        Raises:
            LookupError: It is not there; see `has_next`.
        """
        if not self.has_next:
            raise LookupError(f"number {self._next} is not there; {len(self)} later ones are")
        item = self._waiting.pop(self._next)
        self._next += 1
        return item

    def clear(self) -> None:
        """Let go of every item that waits; the number that comes next stays."""
        self._waiting.clear()

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"<ReorderBuffer next={self._next} waiting={len(self)}>"
