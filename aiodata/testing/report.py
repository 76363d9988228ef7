"""What a simulated run did, as a frozen snapshot that prints as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from aiodata.stats import OperatorStats
from aiodata.testing.blocks import RowRanges
from aiodata.testing.counts import TaskCounts
from aiodata.testing.faults import Fault


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """What a simulated run did.

    Attributes:
        virtual_s: Virtual seconds from the start to the end of the data, or to the failure.
        rows_in: Rows of the source.
        ranges: The ids of the rows that came out, in the order in which they came.
        tasks: What became of each operator's tasks, in the order in which the operators were started.
        operators: What each operator produced, in the order of the data.
        faults: What went wrong, in the order of time.
        peak_live_bytes: The most bytes of blocks that there were.
        left_bytes: Bytes of blocks that something still referred to after the run.
        error: What ended the run, if it failed.
    """

    virtual_s: float
    rows_in: int
    ranges: RowRanges
    tasks: tuple[TaskCounts, ...]
    operators: tuple[OperatorStats, ...]
    faults: tuple[Fault, ...]
    peak_live_bytes: int
    left_bytes: int
    error: Exception | None

    @property
    def rows_out(self) -> int:
        """Rows that came out."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def is_ordered(self) -> bool:
        """Whether the rows came in the order of their ids."""
        return all(before[1] <= after[0] for before, after in zip(self.ranges, self.ranges[1:], strict=False))

    @property
    def is_exact(self) -> bool:
        """Whether every row of the source came out once, none is missing and none is there twice."""
        return not self.missing and self.rows_out == self.rows_in

    @property
    def is_accounted_for(self) -> bool:
        """Whether every task that was started has finished or was cancelled."""
        return all(counts.started == counts.finished + counts.cancelled for counts in self.tasks)

    @property
    def missing(self) -> RowRanges:
        """The ids of the source's rows that did not come out, in their order."""
        missing = []
        end = 0
        for start, stop in (*merged(self.ranges), (self.rows_in, self.rows_in)):
            if start > end:
                missing.append((end, start))
            end = max(end, stop)
        return tuple(missing)

    @property
    def lost(self) -> RowRanges:
        """The ids of the rows that faults took away, in their order."""
        return merged(one for fault in self.faults for one in fault.rows)

    def __str__(self) -> str:
        """Print as a table."""
        rows = f"{self.rows_out:,} of {self.rows_in:,} rows"
        lines = [
            f"{rows} in {self.virtual_s:,.3f} virtual s, {self.peak_live_bytes / 2**20:,.1f} MiB live at most",
            f"  {'operator':<40} {'blocks':>9} {'rows':>13} {'worker s':>11}",
        ]
        lines += [f"  {op.name[:40]:<40} {op.blocks:>9,} {op.rows:>13,} {op.task_s:>11,.1f}" for op in self.operators]
        lines.append(f"  {'tasks of':<40} {'started':>9} {'finished':>13} {'cancelled':>11}")
        lines += [
            f"  {counts.name[:40]:<40} {counts.started:>9,} {counts.finished:>13,} {counts.cancelled:>11,}"
            for counts in self.tasks
        ]
        if self.faults:
            kinds = Counter(fault.kind.value for fault in self.faults)
            lines.append("  faults: " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items())))
        if self.error is not None:
            lines.append(f"  failed: {type(self.error).__name__}: {self.error}")
        return "\n".join(lines)


def merged(ranges: Iterable[tuple[int, int]]) -> RowRanges:
    """Return ranges in order, those that touch or overlap as one.

    Example:
        >>> merged([(5, 7), (0, 2), (2, 3)])
        ((0, 3), (5, 7))
    """
    together: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if together and start <= together[-1][1]:
            together[-1] = (together[-1][0], max(stop, together[-1][1]))
        else:
            together.append((start, stop))
    return tuple(together)
