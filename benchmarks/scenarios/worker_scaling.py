"""Schedule simulated workers, from 50 to 5,000: the cost of a block must not depend on how many tasks run.

Each worker makes ten blocks, which pass through one, four or eight operators, in virtual time: what is left is the
processor time of the executor and of the simulation around it. It is divided by the blocks of all operators. Fifty
workers make too few blocks to be timed, so that their pass is made twenty times, and that of 500 workers twice.

A step is what the event loop does in one turn, without waiting in between. The memory is what the process has
grown by in a first pass, which is not timed, per worker; for fewer than 5,000 workers it says nothing.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.figures import percentile
from benchmarks.model import Contender, Metric, Scenario, at_most, times_as_long

if TYPE_CHECKING:
    from collections.abc import Mapping

_BLOCKS_PER_WORKER = 10
_PASSES = {50: 20, 500: 2, 5_000: 1}
_NUM_OPERATORS = (1, 4, 8)
_US_PER_S = 1e6
_MS_PER_S = 1e3


def _measure(num_workers: int, num_operators: int) -> Mapping[str, float]:
    from benchmarks.simulated import simulated_pass

    # The first one is the warm-up: memory grows in it alone.
    first, *passes = [
        simulated_pass(num_workers=num_workers, blocks_per_worker=_BLOCKS_PER_WORKER, num_operators=num_operators)
        for _ in range(1 + _PASSES[num_workers])
    ]
    steps_ms = [step_s * _MS_PER_S for one in passes for step_s in one.steps_s]
    return {
        "cpu_us": sum(one.cpu_s for one in passes) / sum(one.num_blocks for one in passes) * _US_PER_S,
        "step_p50_ms": percentile(steps_ms, 50),
        "step_p99_ms": percentile(steps_ms, 99),
        "worker_bytes": first.grown_bytes / num_workers,
    }


def _name(num_workers: int, num_operators: int) -> str:
    return f"workers_{num_workers}_operators_{num_operators}"


SCENARIO = Scenario(
    name="worker_scaling",
    summary="50 to 5,000 simulated workers, ten blocks each",
    timed="one pass in virtual time, executor and simulation together",
    notes=__doc__,
    metrics=(
        Metric("cpu_us", "us", "processor time per block and operator"),
        Metric("step_p50_ms", "ms", "the event loop's steps, median"),
        Metric("step_p99_ms", "ms", "the event loop's steps, 99th percentile"),
        Metric("worker_bytes", "B", "memory per worker"),
    ),
    baseline=_name(50, 1),
    contenders=tuple(
        Contender(
            _name(num_workers, num_operators),
            f"{num_workers:,} workers, {num_operators} operator{'s' if num_operators > 1 else ''}",
            ("aiodata",),
            partial(_measure, num_workers, num_operators),
            warms_itself=True,
        )
        for num_operators in _NUM_OPERATORS
        for num_workers in _PASSES
    ),
    aims=(
        at_most(_name(5_000, 8), "cpu_us", 40),
        *(
            times_as_long(_name(5_000, num_operators), "cpu_us", 1.25, against=_name(50, num_operators))
            for num_operators in _NUM_OPERATORS
        ),
    ),
)
