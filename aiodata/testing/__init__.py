"""Tools for tests and studies: pipelines on simulated workers in virtual time, faults, and leak checks."""

from aiodata.testing.blocks import SimulatedBlock
from aiodata.testing.counts import TaskCounts
from aiodata.testing.faults import Fault, FaultKind, Faults
from aiodata.testing.leaks import no_leaks
from aiodata.testing.models import SimulatedMap, SimulatedSource
from aiodata.testing.report import SimulationReport
from aiodata.testing.simulated import SimulatedRuntime
from aiodata.testing.simulation import SimulatedDeadlockError, Simulation
from aiodata.testing.virtual_time import VirtualTimeLoop

__all__ = [
    "Fault",
    "FaultKind",
    "Faults",
    "SimulatedBlock",
    "SimulatedDeadlockError",
    "SimulatedMap",
    "SimulatedRuntime",
    "SimulatedSource",
    "Simulation",
    "SimulationReport",
    "TaskCounts",
    "VirtualTimeLoop",
    "no_leaks",
]
