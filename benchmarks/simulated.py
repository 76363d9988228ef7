"""Run aiodata's executor on simulated workers, and time the turns of its event loop."""

from __future__ import annotations

import resource
import sys
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiodata.testing import SimulatedMap, SimulatedSource, Simulation, VirtualTimeLoop
from benchmarks.sources import check_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiodata.testing import SimulationReport

_ROWS_PER_BLOCK = 1000
_S_PER_BLOCK = 0.1

# Far above what a pass can take: this is about time, not about the byte budget.
_STORE_BYTES = 1 << 50

# Linux counts the peak of a process's memory in KiB, macOS in bytes.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class SimulatedPass:
    """What one pass took.

    Attributes:
        num_blocks: Blocks that its operators made, all together.
        cpu_s: Processor time, of the executor and the simulation.
        wall_s: Time.
        steps_s: Time of each turn of the event loop.
        grown_bytes: How much the peak of the process's memory grew.
    """

    num_blocks: int
    cpu_s: float
    wall_s: float
    steps_s: Sequence[float]
    grown_bytes: int


class _TimedLoop(VirtualTimeLoop):
    """Times its turns; in virtual time none of them waits."""

    def __init__(self) -> None:
        super().__init__()
        # An array is no work for the garbage collector, however many turns there are.
        self.steps_s = array("d")

    def _run_once(self) -> None:
        started = time.perf_counter()
        super()._run_once()  # type: ignore[misc]  # Private to asyncio, so its stubs lack it.
        self.steps_s.append(time.perf_counter() - started)


def simulated_pass(*, num_workers: int, blocks_per_worker: int, num_operators: int) -> SimulatedPass:
    """Have each worker make so many blocks, which pass through so many operators."""
    simulation = Simulation(
        source=SimulatedSource(
            num_pieces=num_workers,
            blocks_per_piece=blocks_per_worker,
            rows_per_block=_ROWS_PER_BLOCK,
            s_per_block=_S_PER_BLOCK,
        ),
        maps=[SimulatedMap(name=f"map_{number}", s_per_block=_S_PER_BLOCK) for number in range(1, num_operators)],
        num_workers=num_workers,
        store_bytes=_STORE_BYTES,
    )
    loops: list[_TimedLoop] = []

    def make_loop() -> _TimedLoop:
        loops.append(_TimedLoop())
        return loops[-1]

    peak_bytes, cpu_s, wall_s = _peak_bytes(), time.process_time(), time.perf_counter()
    report = simulation.run(loop_factory=make_loop)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    grown_bytes = _peak_bytes() - peak_bytes
    return SimulatedPass(_num_blocks(report), cpu_s, wall_s, loops[0].steps_s, grown_bytes)


def _num_blocks(report: SimulationReport) -> int:
    """Count the blocks, of a pass that went well."""
    if report.error is not None:
        raise report.error
    check_rows(report.rows_out, report.rows_in)
    return sum(operator.blocks for operator in report.operators)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
