"""OutputSchema: how the outputs of a user's function come to have one schema."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from aiodata.errors import TaskError
from aiodata.plan.pieces import Origin
from aiodata.schemas import SchemaError, conform, is_known, refine_schema

# A schema for each transform of a chain, or None.
Schemas = tuple[pa.Schema | None, ...]

# A column whose values are null in the first so many rows that a stage's functions return stays one of nulls.
MAX_UNKNOWN_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Learned:
    """What a task has found out, so far, of what its `Work` did not say.

    Attributes:
        schemas: The schema of the outputs of each transform; None where it is not known, or not asked for.
        is_final: Whether nothing can be added to them any more.
        num_rows: Rows that its functions have returned.
        refined_at: Of them, those before the last output that told the type of a column which had been null before;
            None: there was none.
    """

    schemas: Schemas
    is_final: bool
    num_rows: int
    refined_at: int | None = None


class Progress:
    """How many rows the functions of a task have returned.

    Args:
        max_rows: How many may leave the type of a column unknown; None: any number.

    Attributes:
        num_rows: Rows so far.
        refined_at: As in `Learned`.
    """

    __slots__ = ("_max_rows", "num_rows", "refined_at")

    def __init__(self, max_rows: int | None = None) -> None:
        """None so far."""
        self._max_rows = max_rows
        self.num_rows = 0
        self.refined_at: int | None = None

    @property
    def may_refine(self) -> bool:
        """Whether what is unknown may still become known."""
        return self._max_rows is None or self.num_rows < self._max_rows


class OutputSchema:
    """Makes the outputs of a function conform to one schema, in one task.

    Args:
        name: The operator, for errors.
        schema: The schema; None: that of the first output that has rows.
        progress: The task's; what the schema leaves unknown, since all values were null so far, is as in the first
            output that has values there, as long as it may be. None: it stays unknown.

    Attributes:
        schema: The schema, as far as it is known.
    """

    __slots__ = ("_name", "_progress", "schema")

    def __init__(self, name: str, schema: pa.Schema | None, progress: Progress | None) -> None:
        """Know what is given."""
        self._name = name
        self._progress = progress
        self.schema = schema

    @property
    def is_learning(self) -> bool:
        """Whether outputs may still add to the schema."""
        if self.schema is None:
            return True
        return self._progress is not None and self._progress.may_refine and not is_known(self.schema)

    def conform(self, table: pa.Table, origin: Origin) -> pa.Table:
        """Return an output as the others are; one without rows says nothing, and is passed on as it is.

        Raises:
            TaskError: Its types do not go together with those of the first output.
        """
        if not table.num_rows:
            return table
        if self.is_learning:
            self._learn_from(table.schema)
        try:
            conformed = conform(table, self.schema)
        except SchemaError as error:
            reason = (
                f"{error}; what a function returns first, in the order of the input, sets the types: return the same "
                "ones each time, or say which they are: map_batches(..., schema=...)"
            )
            raise TaskError(self._name, origin.source, origin.rows, reason) from error
        # Rows that are dropped do not count: parts of them may come again.
        if self._progress is not None:
            self._progress.num_rows += table.num_rows
        return conformed

    def _learn_from(self, schema: pa.Schema) -> None:
        if self.schema is None:
            self.schema = schema
            return
        refined = refine_schema(self.schema, schema)
        if refined is not None and refined != self.schema:
            self.schema = refined
            if self._progress is not None:
                self._progress.refined_at = self._progress.num_rows
