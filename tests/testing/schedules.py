"""Schedules: simulated runs with faults, each made from one number, and what must be true of all of them."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise

from aiodata.options import MIB, ExecutionOptions
from aiodata.testing import (
    Faults,
    SimulatedMap,
    SimulatedSource,
    Simulation,
    SimulationReport,
    VirtualTimeLoop,
    no_leaks,
)
from aiodata.testing.report import merged

# Runs that lose no row try a task again as often as it takes.
MANY_RETRIES = 1000


def simulation_of(seed: int) -> Simulation:
    """Make a run: the same one for the same number."""
    draw = random.Random(seed)
    num_workers = draw.choice((1, 2, 3, 5, 10, 25, 50))
    source = _source(draw)
    is_lossy = draw.random() < 0.3
    has_limit = not is_lossy and draw.random() < 0.2
    return Simulation(
        source=source,
        others=[_source(draw) for _ in range(draw.choice((0, 0, 0, 1, 2)))],
        maps=_maps(draw, num_workers),
        num_workers=num_workers,
        options=ExecutionOptions(
            preserve_order=draw.random() < 0.5,
            metadata_prefetch=draw.random() < 0.7,
            max_errored_blocks=-1 if is_lossy else 0,
            task_max_retries=draw.choice((0, 1, 3)) if is_lossy else MANY_RETRIES,
            # As many blocks as a chain of operators can just go on with, or more than there are.
            max_object_store_bytes=draw.choice((32, 64, 10_000)) * source.bytes_per_block,
        ),
        faults=_faults(draw, is_lossy=is_lossy),
        consumer_s_per_block=draw.choice((0.0, 0.0, 0.0, 0.05, 0.5)),
        consumer_max_blocks=draw.randint(1, 30) if draw.random() < 0.15 else None,
        limit_rows=draw.randint(0, 1000) if has_limit else None,
        metadata_delay_s=draw.choice((0.0, 0.0, 0.01, 0.3)),
        cancel_delay_s=draw.choice((0.0, 0.1)),
    )


def _source(draw: random.Random) -> SimulatedSource:
    return SimulatedSource(
        num_pieces=draw.randint(1, 40),
        blocks_per_piece=draw.randint(1, 8),
        rows_per_block=10,
        bytes_per_block=4 * MIB,
        s_per_block=draw.choice((0.0, 0.01, 0.1, 1.0)),
    )


def _maps(draw: random.Random, num_workers: int) -> list[SimulatedMap]:
    maps = []
    # One worker is left for the tasks that feed the actors.
    actors_left = num_workers - 1
    for number in range(draw.randint(0, 3)):
        needs_actor = actors_left > 0 and draw.random() < 0.25
        actors_left -= needs_actor
        maps.append(
            SimulatedMap(
                name=f"map_{number}",
                s_per_block=draw.choice((0.0, 0.02, 0.2, 2.0)),
                blocks_per_input=draw.choice((1, 1, 2, 3)),
                needs_actor=needs_actor,
            )
        )
    return maps


def _faults(draw: random.Random, *, is_lossy: bool) -> Faults:
    return Faults(
        seed=draw.randrange(1 << 30),
        kill=draw.choice((0.0, 0.02, 0.1)),
        stall=draw.choice((0.0, 0.02, 0.1)),
        slow=draw.choice((0.0, 0.1, 0.3)),
        lose=draw.choice((0.0, 0.05)) if is_lossy else 0.0,
        fail=draw.choice((0.0, 0.05)) if is_lossy else 0.0,
    )


def check(simulation: Simulation) -> SimulationReport:
    """Run it, and assert what is true of every run."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        report = runner.run(_run(simulation))
    assert report.error is None, report.error
    assert report.is_accounted_for, report.tasks
    assert report.left_bytes == 0
    _check_rows(simulation, report)
    _check_order(simulation, report)
    _check_budget(simulation, report)
    return report


async def _run(simulation: Simulation) -> SimulationReport:
    async with no_leaks():
        return await simulation.simulate()


def _check_rows(simulation: Simulation, report: SimulationReport) -> None:
    num_distinct = sum(stop - start for start, stop in merged(report.ranges))
    assert report.rows_out == num_distinct, "rows came twice"
    if simulation.consumer_max_blocks is not None:
        return
    if simulation.limit_rows is not None:
        assert report.rows_out == min(simulation.limit_rows, report.rows_in)
        return
    assert report.missing == report.lost
    assert report.rows_out == report.rows_in - sum(stop - start for start, stop in report.lost)


def _check_order(simulation: Simulation, report: SimulationReport) -> None:
    if simulation.options.preserve_order:
        assert report.is_ordered
        if simulation.options.max_errored_blocks == 0:
            assert merged(report.ranges) == (((0, report.rows_out),) if report.rows_out else ())
    elif not simulation.maps:
        # What one piece gives comes in its order, whatever comes in between.
        for source in simulation.sources():
            piece_rows = source.blocks_per_piece * source.rows_per_block
            last_row = source.first_row + source.count_rows()
            pieces: dict[int, list[int]] = {}
            for start, _ in report.ranges:
                if source.first_row <= start < last_row:
                    pieces.setdefault((start - source.first_row) // piece_rows, []).append(start)
            assert all(before < after for starts in pieces.values() for before, after in pairwise(starts))


def _check_budget(simulation: Simulation, report: SimulationReport) -> None:
    """What a task will produce is learnt from others, so it may be underestimated; twice the limit is never reached."""
    limit_bytes = simulation.options.max_object_store_bytes
    assert limit_bytes is not None
    assert report.peak_live_bytes <= 2 * limit_bytes, f"{report.peak_live_bytes / limit_bytes:.2f} times the limit"
