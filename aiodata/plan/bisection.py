"""Bisection: of a batch that a function fails with, just the rows that it fails with alone are given up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import TypeAlias

import pyarrow as pa

from aiodata.errors import AiodataError, TaskError
from aiodata.plan.control import Control
from aiodata.plan.input_batches import InputBatch
from aiodata.plan.output_schema import OutputSchema
from aiodata.plan.pieces import Rows
from aiodata.schemas import conform


class OnError(Enum):
    """What becomes of rows that a function fails with.

    `RAISE`: the whole batch is a failure. `SKIP_ROW`: rows that it fails with alone are dropped. `NULL`: they stay, and
    what the function would have made of them is null.
    """

    RAISE = "raise"
    SKIP_ROW = "skip_row"
    NULL = "null"


# What came of a call: what it returned, or the error.
Outcome: TypeAlias = pa.Table | AiodataError


class Bisection:
    """Calls a function with halves of a batch that it fails with, and so on, down to single rows.

    Of k bad rows among n, that takes about 2 k log2(n) more calls. Halves are taken in the order of the input, so the
    first output is the same whatever else runs.

    Args:
        call: Calls the function with a part of a batch.
        fills_nulls: Whether a row that is given up stays, with nulls.
        control: What is told of rows that are given up.
        outputs: What makes the outputs conform; one that does not is a failure like any other.
    """

    def __init__(
        self, call: Callable[[InputBatch], Outcome], control: Control, outputs: OutputSchema, *, fills_nulls: bool
    ) -> None:
        """Call nothing yet."""
        self._call = call
        self._control = control
        self._outputs = outputs
        self._fills_nulls = fills_nulls

    def rows(self, batch: InputBatch, outcome: Outcome | None = None) -> Iterator[Rows]:
        """Yield what the function makes of a batch, without the rows that it fails with.

        Args:
            batch: The batch.
            outcome: What came of a call with all of it; None: there was none.
        """
        waiting = [(batch, outcome)]
        while waiting:
            part, outcome = waiting.pop()
            outcome = self._conformed(part, self._call(part) if outcome is None else outcome)
            if not isinstance(outcome, AiodataError):
                yield outcome, part.origin_of(outcome)
            elif not is_about_rows(outcome):
                self._control.skip(outcome)
            elif part.num_rows > 1:
                waiting += [(half, None) for half in reversed(part.halves())]
            else:
                self._control.give_up_row(outcome)
                if self._fills_nulls:
                    yield self._with_nulls(part.given.rows), part.origin

    def _conformed(self, part: InputBatch, outcome: Outcome) -> Outcome:
        if isinstance(outcome, AiodataError):
            return outcome
        try:
            return self._outputs.conform(outcome, part.origin)
        except AiodataError as error:
            return error

    def _with_nulls(self, row: pa.Table) -> pa.Table:
        """Return a row that the function failed with, in the schema of its outputs."""
        schema = self._outputs.schema
        assert schema is not None, "without one, nulls are refused beforehand"
        # Of another type, it is not the input's column that the function returns, but one that it has made.
        types = dict(zip(schema.names, schema.types, strict=True))
        kept = [field.name for field in row.schema if field.type == types.get(field.name)]
        return conform(row.select(kept), schema)


def is_about_rows(error: AiodataError) -> bool:
    """Whether an error is what a function raised, or what was wrong with its result: not so what ends programs."""
    return isinstance(error, TaskError) and isinstance(error.__cause__, Exception)
