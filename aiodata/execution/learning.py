"""SchemaLearning: the schema of what each function of a stage returns, found out while the stage runs; no I/O.

It is the schema of the function's first rows *in the order of the input*, whichever task ends first. Tasks run side
by side all the same: each takes the schema of its own first rows for granted, and says so. When those of the jobs
before it are known, they are nearly always the same. Where they are not, the task's outputs are dropped, before
anybody has seen one, and its job is done again with the right schema. (As in optimistic concurrency control: Kung and
Robinson, 1981.)
"""

from __future__ import annotations

from collections.abc import Sequence

from aiodata.plan.transforms import Transform
from aiodata.plan.work import Schemas


class SchemaLearning:
    """What is known of the schemas of a stage's outputs.

    Args:
        chain: The stage's transforms.
    """

    def __init__(self, chain: Sequence[Transform]) -> None:
        """Know what was asked for."""
        self._is_learnt = [one.calls_user_code and one.output_schema(None) is None for one in chain]
        self.schemas: Schemas = tuple(one.output_schema(None) if one.calls_user_code else None for one in chain)

    @property
    def num_functions(self) -> int:
        """Functions whose outputs' schemas are learnt."""
        return sum(self._is_learnt)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is to be found out any more."""
        return all(
            schema is not None or not is_learnt for schema, is_learnt in zip(self.schemas, self._is_learnt, strict=True)
        )

    def agrees_with(self, learned: Schemas) -> bool:
        """Whether what a task took for granted is what is known."""
        return all(
            ours is None or theirs is None or theirs.equals(ours)
            for ours, theirs in zip(self.schemas, learned, strict=False)
        )

    def adopt(self, learned: Schemas) -> None:
        """Take over what a task has found out that is at the head of the input, and agrees."""
        if learned and not self.is_complete:
            self.schemas = tuple(
                theirs if is_learnt and ours is None else ours
                for ours, theirs, is_learnt in zip(self.schemas, learned, self._is_learnt, strict=True)
            )
