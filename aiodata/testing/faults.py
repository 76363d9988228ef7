"""Faults: what goes wrong in a simulated run, by a seeded schedule."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from dataclasses import dataclass

from aiodata.errors import OptionError
from aiodata.options import amount, at_least
from aiodata.testing.blocks import RowRanges
from aiodata.testing.models import check_seconds


class FaultKind(enum.Enum):
    """What can go wrong.

    `KILL`: a worker dies in the middle of a block; its task is run again from its start. If that was done too often,
    the task is lost with its worker, and so are the tasks that wait for the same actor. `STALL`: a task stands still
    for a while. `SLOW`: all that a task does takes longer. `LOSE`: a block's metadata can not be fetched. `FAIL`: a
    user's function raises.
    """

    KILL = "kill"
    STALL = "stall"
    SLOW = "slow"
    LOSE = "lose"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How often what goes wrong; the same seed and the same run give the same faults.

    Attributes:
        seed: Of the one random generator that all faults are drawn from.
        kill: Chance that a worker dies, per block that is being made.
        stall: Chance that a task stands still for `stall_s`, per block.
        lose: Chance that a block's metadata can not be fetched, per block.
        fail: Chance that a user's function raises, per block.
        slow: Chance that a task takes `slow_factor` times as long, per task.
        stall_s: Virtual seconds that a stall takes.
        slow_factor: How many times as long a slow task takes.
        restart_s: Virtual seconds from a worker's death until its task waits for another.

    Example:
        >>> Faults(seed=1, kill=0.01, slow=0.1).kill
        0.01
    """

    seed: int = 0
    kill: float = 0.0
    stall: float = 0.0
    lose: float = 0.0
    fail: float = 0.0
    slow: float = 0.0
    stall_s: float = 10.0
    slow_factor: float = 10.0
    restart_s: float = 1.0

    def __post_init__(self) -> None:
        """Validate the chances."""
        at_least("seed", self.seed, 0)
        for name in ("kill", "stall", "lose", "fail", "slow"):
            chance = getattr(self, name)
            amount(name, chance, "chance")
            if chance > 1:
                raise OptionError(f"{name}={chance!r} must be a chance from 0 to 1")
        if self.kill + self.stall + self.lose + self.fail > 1:
            raise OptionError("kill, stall, lose and fail exclude one another: together they must be 1 at most")
        for name in ("stall_s", "slow_factor", "restart_s"):
            check_seconds(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that happened.

    Attributes:
        kind: What it was.
        at_s: When, in seconds of the loop's clock.
        operator: Whose task it happened to.
        task_index: Which of the operator's tasks, from 0 in the order of their submission.
        block_index: At which of the task's blocks.
        rows: The ids of the input rows that are missing from the output because of it.
    """

    kind: FaultKind
    at_s: float
    operator: str
    task_index: int
    block_index: int
    rows: RowRanges = ()


class FaultSchedule:
    """Draws faults, and keeps a record of those that happened.

    Args:
        faults: How often what goes wrong; None: nothing does.
        now: Returns the time.

    Attributes:
        happened: The record.
    """

    def __init__(self, faults: Faults | None, now: Callable[[], float]) -> None:
        """Seed the generator."""
        self.faults = faults or Faults()
        self.happened: list[Fault] = []
        self._now = now
        self._random = random.Random(self.faults.seed)
        chances = [(kind, getattr(self.faults, kind.value)) for kind in FaultKind if kind is not FaultKind.SLOW]
        self._chances = [(kind, chance) for kind, chance in chances if chance]

    def draw_for_task(self) -> FaultKind | None:
        """Draw what goes wrong with a whole task."""
        if self.faults.slow and self._random.random() < self.faults.slow:
            return FaultKind.SLOW
        return None

    def draw_for_block(self) -> FaultKind | None:
        """Draw what goes wrong while a block is being made."""
        if not self._chances:
            return None
        drawn = self._random.random()
        for kind, chance in self._chances:
            if drawn < chance:
                return kind
            drawn -= chance
        return None

    def note(self, kind: FaultKind, operator: str, task_index: int, block_index: int, rows: RowRanges = ()) -> None:
        """Add a fault to the record."""
        self.happened.append(Fault(kind, self._now(), operator, task_index, block_index, rows))
