"""Source: the seam to where rows come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from aiodata.bundle import RefBundle
from aiodata.errors import AiodataError
from aiodata.plan.pieces import Piece

# Takes note of an error, to go on without what it is about; or raises it, if no more errors are allowed.
Skip = Callable[[AiodataError], None]


def raise_it(error: AiodataError) -> None:
    """Be the `Skip` that allows no error."""
    raise error


class Source(ABC):
    """An origin of rows. Its methods may block, except `name`, `bundles` and the `with_` ones; it does no work before.

    All its rows have one schema, which is known before the first of them is read: whatever pieces yield conforms to
    it, and so do the bundles.

    A subclass has a `name` (for `explain()`, statistics and errors), and either `pieces` or `bundles`.
    """

    __slots__ = ()

    if TYPE_CHECKING:  # A dataclass would take a property that it inherits for its field's default.

        @property
        def name(self) -> str:
            """The name that `explain()`, statistics and errors show."""

    def with_columns(self, columns: tuple[str, ...]) -> Source | None:
        """Return the source narrowed to some columns; None: it cannot do that itself."""
        return None

    def with_filter(self, expression: Any) -> Source | None:
        """Return the source narrowed to the rows where `expression` is true; None: it cannot do that itself."""
        return None

    @abstractmethod
    def schema(self, skip: Skip) -> pa.Schema:
        """Return the schema of all rows.

        Args:
            skip: What is told of a file that cannot be read.

        Raises:
            SourceError: A file is missing, corrupt or unreadable, or no file matches; or the files have schemas that
                do not go together.
            UnknownColumnError: A column that was asked for is not there.
        """

    def pieces(self, num_tasks: int, skip: Skip) -> Sequence[Piece]:
        """Return the parts that tasks are given; at least `num_tasks` of them, if there are as many.

        They are asked for in turn, as tasks start: a sequence may make each when it is asked for.

        Args:
            num_tasks: How many tasks are to share them.
            skip: What is told of a file that cannot be read: once for each.

        Raises:
            SourceError: As `schema`.
        """
        return ()

    def blocks(self, skip: Skip) -> Sequence[Piece]:
        """Return the parts whose order may be changed, which do not depend on anything but the source.

        Args:
            skip: As for `pieces`.

        Raises:
            SourceError: As `schema`.
        """
        return self.pieces(1, skip)

    def bundles(self) -> Iterable[RefBundle] | None:
        """Return the blocks, if they are stored somewhere already; else None."""
        return None

    def count_rows(self, skip: Skip) -> int | None:
        """Return the number of rows, if it is known without reading them."""
        return None

    @property
    def is_empty(self) -> bool:
        """Whether it is known, without asking anybody, that there are no rows; then their types say nothing."""
        return False
