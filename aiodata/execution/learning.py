"""SchemaLearning: the schema of what each function of a stage returns, found out while the stage runs; no I/O.

It is the schema of the function's first rows *in the order of the input*, whichever task ends first. Tasks run side
by side all the same: each takes the schema of its own first rows for granted, and says so. When those of the jobs
before it are known, they are nearly always the same. Where they are not, the task's outputs are dropped, before
anybody has seen one, and its job is done again with the right schema. (As in optimistic concurrency control: Kung and
Robinson, 1981.)
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from aiodata.plan.transforms import Transform
from aiodata.plan.work import Schemas
from aiodata.schemas import is_known, refine_schema

# A column whose values are null in the first so many rows stays one of nulls.
MAX_ROWS = 1024


class SchemaLearning:
    """What is known of the schemas of a stage's outputs.

    Args:
        chain: The stage's transforms.

    Attributes:
        schemas: The schema of each function's outputs, as far as it is known; None for other transforms.
        is_complete: Whether nothing is to be found out any more.
    """

    def __init__(self, chain: Sequence[Transform]) -> None:
        """Know what was asked for."""
        self._chain = tuple(chain)
        self._is_learnt = [one.calls_user_code and one.output_schema(None) is None for one in chain]
        self.schemas: Schemas = tuple(one.output_schema(None) if one.calls_user_code else None for one in chain)
        self.is_complete = not any(self._is_learnt)

    @property
    def num_functions(self) -> int:
        """Functions whose outputs' schemas are learnt."""
        return sum(self._is_learnt)

    def agrees_with(self, learned: Schemas) -> bool:
        """Whether what a task took for granted is what is known."""
        return all(
            ours is None or theirs is None or refine_schema(theirs, ours) is not None
            for ours, theirs in zip(self.schemas, learned, strict=False)
        )

    def adopt(self, learned: Schemas) -> None:
        """Take over what a task has found out that is at the head of the input, and agrees."""
        if not learned or self.is_complete:
            return
        self.schemas = tuple(
            ours if theirs is None or not is_learnt else theirs if ours is None else refine_schema(ours, theirs)
            for ours, theirs, is_learnt in zip(self.schemas, learned, self._is_learnt, strict=True)
        )
        self.is_complete = all(
            not is_learnt or (schema is not None and is_known(schema))
            for schema, is_learnt in zip(self.schemas, self._is_learnt, strict=True)
        )

    def finish(self) -> None:
        """Leave unknown what is so far."""
        self.is_complete = True

    def output_schema(self) -> pa.Schema | None:
        """Return the schema of what comes out of the last transform; None: the last function has returned no rows."""
        last = max(index for index, transform in enumerate(self._chain) if transform.calls_user_code)
        schema = self.schemas[last]
        for transform in self._chain[last + 1 :]:
            schema = transform.output_schema(schema)
        return schema
