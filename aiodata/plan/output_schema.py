"""OutputSchema: how the outputs of a user's function come to have one schema."""

from __future__ import annotations

import pyarrow as pa

from aiodata.errors import TaskError
from aiodata.plan.pieces import Origin
from aiodata.schemas import SchemaError, conform


class OutputSchema:
    """Makes the outputs of a function conform to one schema, in one task.

    Args:
        name: The operator, for errors.
        schema: The schema; None: that of the first output that has rows.

    Attributes:
        schema: The schema, as soon as it is known.
    """

    __slots__ = ("_name", "schema")

    def __init__(self, name: str, schema: pa.Schema | None) -> None:
        """Know what is given."""
        self._name = name
        self.schema = schema

    def conform(self, table: pa.Table, origin: Origin) -> pa.Table:
        """Return an output as the others are; one without rows says nothing, and is passed on as it is.

        Raises:
            TaskError: Its types do not go together with those of the first output.
        """
        if not table.num_rows:
            return table
        if self.schema is None:
            self.schema = table.schema
        try:
            return conform(table, self.schema)
        except SchemaError as error:
            reason = (
                f"{error}; what a function returns first, in the order of the input, sets the types: return the same "
                "ones each time, or say which they are: map_batches(..., schema=...)"
            )
            raise TaskError(self._name, origin.source, origin.rows, reason) from error
