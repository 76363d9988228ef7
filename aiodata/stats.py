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
        errors: What failed and was skipped, one line each.
    """

    runtime: str = ""
    operators: tuple[OperatorStats, ...] = ()
    budget: BudgetStats | None = None
    errors: tuple[str, ...] = ()


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
        errors: What failed and was skipped, one line each.
        operators: One entry per operator, in the order of the data.
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
            f"  {'operator':<48} {'tasks':>6} {'blocks':>7} {'rows':>13} {'MiB':>9} {'worker s':>9}",
        ]
        for op in self.operators:
            counts = f"{op.tasks:>6,} {op.blocks:>7,} {op.rows:>13,} {op.bytes / 2**20:>9.1f} {op.task_s:>9.3f}"
            lines.append(f"  {op.name[:48]:<48} {counts}")
        return "\n".join(lines + [f"  skipped: {error}" for error in self.errors])
