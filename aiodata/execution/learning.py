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

from aiodata.plan.output_schema import MAX_UNKNOWN_ROWS, Learned, Schemas
from aiodata.plan.transforms import Transform
from aiodata.schemas import is_known, refine_schema


class SchemaLearning:
    """What is known of the schemas of a stage's outputs.

    Args:
        chain: The stage's transforms.

    Attributes:
        schemas: The schema of each function's outputs, as far as it is known; None for other transforms.
        is_complete: Whether nothing is to be found out any more.
        num_changes: How often something was found out.
    """

    def __init__(self, chain: Sequence[Transform]) -> None:
        """Know what was asked for."""
        self._chain = tuple(chain)
        self._is_learnt = [one.calls_user_code and one.output_schema(None) is None for one in chain]
        self.schemas: Schemas = tuple(one.output_schema(None) if one.calls_user_code else None for one in chain)
        self.is_complete = not any(self._is_learnt)
        self.num_changes = 0
        # Rows that functions have returned for the jobs before the head of the input.
        self._num_rows = 0

    @property
    def max_unknown_rows(self) -> int:
        """Rows that the functions may still return at the head of the input before what is unknown stays so."""
        return max(0, MAX_UNKNOWN_ROWS - self._num_rows)

    def agrees_with(self, learned: Learned, *, began_at_head: bool) -> bool:
        """Whether what a task took for granted is what it would have been told, had it begun now.

        Args:
            learned: What it took for granted.
            began_at_head: Whether its job was at the head of the input when it began: then it was told what is known.
        """
        last = len(self._chain) - 1
        if learned.refined_at is not None and not began_at_head and any(self._is_learnt[:last]):
            # What comes next in the chain was given columns of nulls at first, whose types may have been known.
            return False
        return all(
            ours is None or theirs is None or self._agree(ours, theirs, is_last=index == last)
            for index, (ours, theirs) in enumerate(zip(self.schemas, learned.schemas, strict=True))
        )

    def _agree(self, ours: pa.Schema, theirs: pa.Schema, *, is_last: bool) -> bool:
        both = refine_schema(theirs, ours)
        if both is None or (self.is_complete and both != ours):
            return False
        # What comes next in the chain has been given columns of nulls where it is to be given others. What leaves the
        # stage conforms when it is fetched.
        return is_last or both == theirs

    def adopt(self, learned: Learned) -> bool:
        """Take over what a task has found out that is at the head of the input, and agrees.

        Returns:
            Whether that could be: not if it was found out too late, by what jobs before it have returned meanwhile.
        """
        if learned.refined_at is not None and learned.refined_at >= self.max_unknown_rows:
            return False
        schemas = tuple(
            ours if theirs is None or not is_learnt else theirs if ours is None else refine_schema(ours, theirs)
            for ours, theirs, is_learnt in zip(self.schemas, learned.schemas, self._is_learnt, strict=True)
        )
        known = [schema for schema, is_learnt in zip(schemas, self._is_learnt, strict=True) if is_learnt]
        self.is_complete = None not in known and (
            learned.num_rows >= self.max_unknown_rows or all(is_known(schema) for schema in known)
        )
        if self.is_complete or schemas != self.schemas:
            self.schemas = schemas
            self.num_changes += 1
        return True

    def conclude(self, learned: Learned) -> None:
        """Take note that a task at the head of the input has ended."""
        self._num_rows += learned.num_rows

    def finish(self) -> None:
        """Leave unknown what is so far."""
        self.is_complete = True
        self.num_changes += 1

    def output_schema(self) -> pa.Schema | None:
        """Return the schema of what comes out of the last transform; None: the last function has returned no rows."""
        last = max(index for index, transform in enumerate(self._chain) if transform.calls_user_code)
        schema = self.schemas[last]
        for transform in self._chain[last + 1 :]:
            schema = transform.output_schema(schema)
        return schema
