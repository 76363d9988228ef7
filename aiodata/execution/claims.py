"""Claims: what tasks took for granted, and what is held back until it is known to be true; no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from aiodata.bundle import BlockRef
from aiodata.execution.data_op_task import DataOpTask
from aiodata.execution.learning import SchemaLearning
from aiodata.execution.ordering import OutputOrder
from aiodata.plan.output_schema import Learned
from aiodata.plan.work import OutputMetadata, TaskEnd


@dataclass(eq=False, slots=True)
class Claim:
    """What a task took for granted, and what has come of it.

    Attributes:
        task: The task.
        learned: What it took for granted.
        outputs: Its blocks that are held back.
        end: Its end, if that has come.
    """

    task: DataOpTask
    learned: Learned
    outputs: list[tuple[BlockRef, OutputMetadata]] = field(default_factory=list)
    end: TaskEnd | None = None


class Claims:
    """Holds back what tasks have produced that had to find out the schemas of their outputs.

    The blocks of a task may be passed on when its job is at the head of the input and the task has ended, so that it
    is the one to learn from; or when all schemas are known, and the task can take nothing else for granted any more.

    Args:
        learning: What is known.
        order: Which job is at the head of the input.
    """

    def __init__(self, learning: SchemaLearning, order: OutputOrder) -> None:
        """Nothing is held back."""
        self._learning = learning
        self._order = order
        self._claims: dict[int, Claim] = {}
        # Those that were not compared with what is known since the one or the other changed.
        self._unchecked: dict[int, Claim] = {}
        self._num_changes = 0

    def __len__(self) -> int:
        """Tasks of which something is held back, or may be."""
        return len(self._claims)

    def hold(self, task: DataOpTask, learned: Learned | None) -> Claim | None:
        """Return the claim of a task, with what it says now; None: it took nothing for granted."""
        claim = self._claims.get(task.job.number)
        if learned is not None:
            if claim is None:
                claim = self._claims[task.job.number] = Claim(task, learned)
            claim.learned = learned
            self._unchecked[task.job.number] = claim
        return claim

    def settled(self) -> Iterator[Claim]:
        """Yield the claims that are known to be true, as far as they go, to pass on what is held back; or not to be.

        Of the latter the tasks are void. Whoever takes the claims concludes those that have an end before the next one
        is asked for: so the next job comes to the head of the input.
        """
        while not self._learning.is_complete:
            yield from self._void()
            head = self._claims.get(self._order.head)
            if head is None:
                return
            if not self._learning.adopt(head.learned):
                yield self._pop_void(head)
                return
            if head.end is None:
                break
            self._learning.conclude(head.learned)
            yield self._claims.pop(head.task.job.number)
        yield from self._void()
        if self._learning.is_complete:
            for number, claim in sorted(self._claims.items()):
                if claim.end is not None or claim.learned.is_final:
                    yield self._claims.pop(number)

    def clear(self) -> None:
        """Let go of what is held back."""
        self._claims.clear()
        self._unchecked.clear()

    def _void(self) -> Iterator[Claim]:
        if self._num_changes != self._learning.num_changes:
            self._num_changes = self._learning.num_changes
            self._unchecked = dict(self._claims)
        while self._unchecked:
            _, claim = self._unchecked.popitem()
            if not self._learning.agrees_with(claim.learned, began_at_head=claim.task.began_at_head):
                yield self._pop_void(claim)

    def _pop_void(self, claim: Claim) -> Claim:
        claim.task.is_void = True
        claim.outputs.clear()
        return self._claims.pop(claim.task.job.number)
