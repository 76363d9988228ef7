"""Statistics are frozen, and print all that they know."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from aiodata import BudgetStats, CoordinatorStats, IterationStats, LoopLag, OperatorStats, RunStats, SplitStats

OPERATOR = OperatorStats("read_parquet(flights)", 12, 34, 5_678_901, 3 << 20, 4.5678)
STATS = IterationStats(
    runtime="local",
    epoch=0,
    rows=1_234_567,
    batches=4_823,
    bytes=1 << 20,
    blocks=3,
    prefetched_bytes=1 << 20,
    peak_prefetched_bytes=5 << 20,
    first_batch_s=0.0123,
    elapsed_s=9.8765,
    closing_s=0.0021,
    wait_s=1.111,
    format_s=2.222,
    user_s=3.333,
    loop_lag=LoopLag(samples=200, p50_s=0.0001, p99_s=0.0012, max_s=0.0034),
    budget=BudgetStats(limit_bytes=64 << 20, live_bytes=3 << 20, peak_live_bytes=40 << 20),
    errors=(),
    operators=(OPERATOR,),
)

SPLIT = SplitStats(
    split_index=0,
    rows=1_234_567,
    bundles=89,
    bytes=5 << 20,
    acked_rows=1_234_000,
    unacked_rows=567,
    prefetched_bytes=3 << 19,
    wait_s=0.1234,
)
COORDINATOR = CoordinatorStats(
    epoch=3,
    phase="running",
    absent=(),
    splits=(SPLIT, replace(SPLIT, split_index=1, rows=1_000)),
    dropped_rows=0,
    overhead_s=0.0123,
    run=RunStats("ray", (OPERATOR,), BudgetStats(64 << 20, 3 << 20, 40 << 20), ()),
)


def test_first_line_has_rows_batches_runtime_and_time() -> None:
    assert str(STATS).splitlines()[0] == "1,234,567 rows in 4,823 batches on local, 9.877 s"


@pytest.mark.parametrize(
    "words",
    [
        "first batch 12.3 ms",
        "closing 2.1 ms",
        "waited 1.111 s",
        "formatted 2.222 s",
        "consumer's own 3.333 s",
        "5.0 MiB",
        "p99 1.2 ms",
        "blocks 3.0 MiB, 40.0 MiB at most, of a budget of 64.0 MiB",
    ],
)
def test_table_says_where_the_time_went(words: str) -> None:
    assert words in str(STATS)


def test_each_operator_has_a_line_under_its_headings() -> None:
    *_, headings, line = str(STATS).splitlines()
    assert headings.split() == ["operator", "tasks", "blocks", "rows", "MiB", "worker", "s"]
    assert line.split() == ["read_parquet(flights)", "12", "34", "5,678,901", "3.0", "4.568"]
    assert len(line) == len(headings)


def test_columns_stay_aligned_under_a_long_name() -> None:
    *_, headings, line = str(replace(STATS, operators=(replace(OPERATOR, name="x" * 100),))).splitlines()
    assert len(line) == len(headings)


def test_stats_before_the_first_batch_say_so() -> None:
    text = str(replace(STATS, runtime="", first_batch_s=None))
    assert " on -, " in text
    assert "first batch -," in text


def test_skipped_blocks_are_listed() -> None:
    lines = str(replace(STATS, errors=("jan.parquet: corrupt", "feb.parquet: corrupt"))).splitlines()
    assert lines[-2:] == ["  skipped: jan.parquet: corrupt", "  skipped: feb.parquet: corrupt"]


def test_snapshots_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        STATS.rows = 0  # type: ignore[misc]


def test_first_line_of_a_coordinator_has_epoch_phase_rows_and_splits() -> None:
    assert str(COORDINATOR).splitlines()[0] == "epoch 3 running: 1,235,567 rows in 2 splits"
    assert str(replace(COORDINATOR, dropped_rows=1)).splitlines()[0].endswith("in 2 splits, 1 dropped")


def test_coordinator_says_what_it_took_itself_and_what_the_run_holds() -> None:
    assert "coordinator's own 12.3 ms" in str(COORDINATOR)
    assert "blocks 3.0 MiB, 40.0 MiB at most, of a budget of 64.0 MiB" in str(COORDINATOR)


def test_each_split_has_a_line_under_its_headings() -> None:
    *_, headings, first, second = str(COORDINATOR).splitlines()
    assert headings.split() == ["split", "rows", "bundles", "MiB", "unacked", "ahead", "MiB", "waited", "s"]
    assert first.split() == ["0", "1,234,567", "89", "5.0", "567", "1.5", "0.123"]
    assert second.split()[:2] == ["1", "1,000"]
    assert len(first) == len(second) == len(headings)


def test_coordinator_before_the_first_epoch_prints_without_a_budget() -> None:
    text = str(replace(COORDINATOR, epoch=0, phase="gathering", run=RunStats()))
    assert text.startswith("epoch 0 gathering")
    assert "budget" not in text


def test_coordinator_lists_what_its_run_skipped() -> None:
    stats = replace(COORDINATOR, run=replace(COORDINATOR.run, errors=("jan.parquet: corrupt",)))
    assert str(stats).splitlines()[-1] == "  skipped: jan.parquet: corrupt"
