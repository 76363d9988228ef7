"""What a pass over a dataset did, as frozen snapshots that print as tables."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OperatorStats:
    """What one operator did so far.

    Attributes:
        name: The operator, as `explain()` shows it.
        tasks: Tasks started.
        blocks: Blocks produced.
        rows: Rows produced.
        bytes: Bytes produced, as Arrow counts them.
        task_s: Seconds spent in workers, summed over tasks.
    """

    name: str
    tasks: int
    blocks: int
    rows: int
    bytes: int
    task_s: float


@dataclass(frozen=True, slots=True)
class LoopLag:
    """How late an event loop served a timer; all zero before the first sample.

    Attributes:
        samples: Turns of the timer that were noted since the monitor was made.
        p50_s: Median lateness of the last 4,096 samples, in seconds.
        p99_s: 99th percentile of the lateness of the last 4,096 samples, in seconds.
        max_s: Greatest lateness of all samples, in seconds.

    Example:
        >>> print(LoopLag(samples=1234, p50_s=0.0001, p99_s=0.0012, max_s=0.0034))
        loop lag p50 0.1 ms, p99 1.2 ms, max 3.4 ms (1,234 samples)
    """

    samples: int
    p50_s: float
    p99_s: float
    max_s: float

    def __str__(self) -> str:
        """Print as one line, in milliseconds."""
        p50, p99, longest = (f"{lag_s * 1e3:.1f} ms" for lag_s in (self.p50_s, self.p99_s, self.max_s))
        return f"loop lag p50 {p50}, p99 {p99}, max {longest} ({self.samples:,} samples)"


@dataclass(frozen=True, slots=True)
class BudgetStats:
    """What a run's blocks took of its byte budget.

    Attributes:
        limit_bytes: The budget, in bytes.
        live_bytes: Bytes of blocks that something refers to.
        peak_live_bytes: The most that there were.
    """

    limit_bytes: int
    live_bytes: int
    peak_live_bytes: int

    def __str__(self) -> str:
        """Print as one line, in MiB."""
        limit, live, peak = (f"{n / 2**20:,.1f}" for n in (self.limit_bytes, self.live_bytes, self.peak_live_bytes))
        return f"blocks {live} MiB, {peak} MiB at most, of a budget of {limit} MiB"


@dataclass(frozen=True, slots=True)
class RunStats:
    """What one run has done so far; all empty before it has begun.

    Attributes:
        runtime: The runtime that its tasks run on.
        operators: One entry per operator, in the order of the data.
        budget: What its blocks take of the byte budget.
        errors: What failed and was skipped, one line each; of single rows the first 100.
        errored_blocks: Failures that were skipped, which `max_errored_blocks` limits.
        errored_rows: Rows that a function failed with and that were given up (`on_error`).
    """

    runtime: str = ""
    operators: tuple[OperatorStats, ...] = ()
    budget: BudgetStats | None = None
    errors: tuple[str, ...] = ()
    errored_blocks: int = 0
    errored_rows: int = 0

    def __str__(self) -> str:
        """Print as a table."""
        lines = [f"run on {self.runtime or '-'}", *([f"  {self.budget}"] if self.budget else [])]
        return "\n".join(lines + _operator_lines(self.operators) + _skip_lines(self))


@dataclass(frozen=True, slots=True)
class SplitStats:
    """What one split was given in an epoch.

    Attributes:
        split_index: The split.
        rows: Rows that are its own: delivered to its consumers, or kept for the next one.
        bundles: Bundles that were delivered.
        bytes: Bytes of the rows that were delivered, as Arrow counts them.
        acked_rows: Rows that its consumers have said they are done with; the end of a pass is not counted.
        unacked_rows: Rows that its consumer has, and is not done with.
        prefetched_bytes: Bytes of blocks that its consumer holds ahead, as it reported last.
        wait_s: Seconds in which its consumers waited for bundles.
    """

    split_index: int
    rows: int
    bundles: int
    bytes: int
    acked_rows: int
    unacked_rows: int
    prefetched_bytes: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class CoordinatorStats:
    """What a coordinator of splits has done, in its latest epoch.

    Attributes:
        epoch: The epoch's number, from 0.
        phase: `"gathering"`, `"running"` or `"ended"`.
        absent: Splits that the next epoch waits for.
        splits: One entry per split.
        dropped_rows: Rows that nobody got, so that all got the same number; fewer than there are splits.
        overhead_s: Seconds that the coordinator has spent on deciding who gets what, in all epochs.
        run: What the run behind it has done.
    """

    epoch: int
    phase: str
    absent: tuple[int, ...]
    splits: tuple[SplitStats, ...]
    dropped_rows: int
    overhead_s: float
    run: RunStats

    def __str__(self) -> str:
        """Print as a table."""
        rows = sum(split.rows for split in self.splits)
        lines = [
            f"epoch {self.epoch} {self.phase}: {rows:,} rows in {len(self.splits):,} splits"
            + (f", {self.dropped_rows} dropped" if self.dropped_rows else ""),
            f"  coordinator's own {self.overhead_s * 1e3:.1f} ms",
            *([f"  {self.run.budget}"] if self.run.budget else []),
            f"  {'split':>5} {'rows':>13} {'bundles':>8} {'MiB':>9} {'unacked':>9} {'ahead MiB':>9} {'waited s':>9}",
        ]
        lines += [
            f"  {split.split_index:>5} {split.rows:>13,} {split.bundles:>8,} {split.bytes / 2**20:>9.1f} "
            f"{split.unacked_rows:>9,} {split.prefetched_bytes / 2**20:>9.1f} {split.wait_s:>9.3f}"
            for split in self.splits
        ]
        return "\n".join(lines + _skip_lines(self.run))


@dataclass(frozen=True, slots=True)
class IterationStats:
    """Where the time of one pass went; the pass's time ends when the consumer stops.

    Attributes:
        runtime: The runtime that the tasks ran on; empty before the first batch was asked for.
        epoch: The pass's number among those of its `Batches`, from 0.
        rows: Rows handed to the consumer.
        batches: Batches handed to the consumer.
        bytes: Bytes of the blocks that were fetched, as Arrow counts them.
        blocks: Blocks that were fetched.
        prefetched_bytes: Bytes of the blocks that the consumer holds now, the one that batches are cut from included,
            and of batches that are being collated; not of the batch in hand, or of one that is being put together.
        peak_prefetched_bytes: The most that it has held.
        first_batch_s: Seconds from the first request to the first batch; None before it.
        elapsed_s: Seconds from the first request to the end, or to now.
        closing_s: Seconds that closing took, not part of `elapsed_s`.
        wait_s: Seconds in which the consumer waited for data.
        format_s: Seconds spent cutting and converting batches where it waited for none.
        user_s: Seconds in the consumer's own code.
        loop_lag: How late the event loop served a timer; None unless `measure_loop_lag` is on.
        budget: What its blocks took of the byte budget; None before the first batch was asked for.
        errors: What failed and was skipped, one line each; of single rows the first 100.
        operators: One entry per operator, in the order of the data.
        errored_blocks: Failures that were skipped, which `max_errored_blocks` limits.
        errored_rows: Rows that a function failed with and that were given up (`on_error`).
    """

    runtime: str
    epoch: int
    rows: int
    batches: int
    bytes: int
    blocks: int
    prefetched_bytes: int
    peak_prefetched_bytes: int
    first_batch_s: float | None
    elapsed_s: float
    closing_s: float
    wait_s: float
    format_s: float
    user_s: float
    loop_lag: LoopLag | None
    budget: BudgetStats | None
    errors: tuple[str, ...]
    operators: tuple[OperatorStats, ...]
    errored_blocks: int = 0
    errored_rows: int = 0

    def __str__(self) -> str:
        """Print as a table."""
        first = "-" if self.first_batch_s is None else f"{self.first_batch_s * 1e3:.1f} ms"
        lines = [
            f"{self.rows:,} rows in {self.batches:,} batches on {self.runtime or '-'}, {self.elapsed_s:.3f} s",
            f"  first batch {first}, closing {self.closing_s * 1e3:.1f} ms",
            f"  waited {self.wait_s:.3f} s, formatted {self.format_s:.3f} s, consumer's own {self.user_s:.3f} s",
            f"  held {self.peak_prefetched_bytes / 2**20:.1f} MiB at most"
            + (f", {self.loop_lag}" if self.loop_lag else ""),
            *([f"  {self.budget}"] if self.budget else []),
        ]
        return "\n".join(lines + _operator_lines(self.operators) + _skip_lines(self))


def _operator_lines(operators: tuple[OperatorStats, ...]) -> list[str]:
    lines = [f"  {'operator':<48} {'tasks':>6} {'blocks':>7} {'rows':>13} {'MiB':>9} {'worker s':>9}"]
    for op in operators:
        counts = f"{op.tasks:>6,} {op.blocks:>7,} {op.rows:>13,} {op.bytes / 2**20:>9.1f} {op.task_s:>9.3f}"
        lines.append(f"  {op.name[:48]:<48} {counts}")
    return lines


def _skip_lines(stats: RunStats | IterationStats) -> list[str]:
    lines = [f"  skipped: {error}" for error in stats.errors]
    if unlisted := max(0, stats.errored_blocks + stats.errored_rows - len(stats.errors)):
        lines.append(f"  skipped: {unlisted:,} more rows")
    return lines


class LatestRun:
    """What the latest of some runs has done that has ended.

    Attributes:
        stats: The run's statistics.
    """

    __slots__ = ("stats",)

    def __init__(self, stats: RunStats = RunStats()) -> None:
        """Know of no run, or of one."""
        self.stats = stats

    def note(self, stats: RunStats) -> None:
        """Note what a run has done that has just ended."""
        self.stats = stats
