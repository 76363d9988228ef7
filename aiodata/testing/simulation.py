"""Simulation: a whole pipeline, run by the real executor on simulated workers, in virtual time."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import anyio

from aiodata.errors import AiodataError
from aiodata.execution.run import Run
from aiodata.options import ExecutionOptions, at_least, given_list, instance_of, settle
from aiodata.plan.nodes import Apply, Limit, Plan, Read, Union
from aiodata.stats import OperatorStats
from aiodata.testing.blocks import slice_rows
from aiodata.testing.counts import TaskCounts
from aiodata.testing.faults import Faults
from aiodata.testing.models import SimulatedMap, SimulatedSource, check_seconds
from aiodata.testing.report import SimulationReport
from aiodata.testing.simulated import SimulatedRuntime
from aiodata.testing.virtual_time import VirtualTimeLoop


class SimulatedDeadlockError(AiodataError):
    """A simulated run stood still before it was done; the message has the operators' states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A pipeline of models, its workers, its consumer, and what goes wrong.

    Everything but the work itself is real: the plan is optimized and executed as that of any dataset, with the same
    operators, budget and order. So it shows how a pipeline behaves on thousands of workers, in seconds, and what comes
    of faults, the same each time.

    Attributes:
        source: Where rows come from.
        others: More sources, if their rows are to be put together; rows are numbered on from source to source.
        maps: What is done to them, one operator each.
        num_workers: CPUs.
        num_gpus: GPUs, for maps that take some.
        options: How it is executed.
        faults: What goes wrong; None: nothing.
        consumer_s_per_block: Virtual seconds that the consumer takes for each block.
        consumer_max_blocks: After how many blocks the consumer stops; None: at the end of the data.
        limit_rows: How many rows the plan lets through; None: all.
        metadata_delay_s: Virtual seconds from a block's surfacing until its metadata is known.
        cancel_delay_s: Virtual seconds from a task's cancellation until it has stopped.
        store_bytes: Bytes that blocks may take; a GiB per worker by default.
        max_virtual_s: Virtual seconds after which a run that is not done counts as one that stands still.

    Example:
        >>> source = SimulatedSource(num_pieces=20, blocks_per_piece=5, rows_per_block=10, s_per_block=0.1)
        >>> simulation = Simulation(source=source, maps=[SimulatedMap(s_per_block=1.0)], num_workers=10)
        >>> report = simulation.run()
        >>> report.is_exact, report.rows_out
        (True, 1000)
    """

    source: SimulatedSource
    others: Sequence[SimulatedSource] = ()
    maps: Sequence[SimulatedMap] = ()
    num_workers: int = 50
    num_gpus: float = 0
    options: ExecutionOptions = field(default_factory=ExecutionOptions)
    faults: Faults | None = None
    consumer_s_per_block: float = 0.0
    consumer_max_blocks: int | None = None
    limit_rows: int | None = None
    metadata_delay_s: float = 0.0
    cancel_delay_s: float = 0.0
    store_bytes: int | None = None
    max_virtual_s: float = 1e6

    def __post_init__(self) -> None:
        """Validate what the runtime does not."""
        check_seconds("consumer_s_per_block", self.consumer_s_per_block)
        check_seconds("max_virtual_s", self.max_virtual_s)
        settle(
            self,
            others=given_list("others", self.others),
            maps=given_list("maps", self.maps),
            consumer_max_blocks=at_least("consumer_max_blocks", self.consumer_max_blocks, 1, optional=True),
            limit_rows=at_least("limit_rows", self.limit_rows, 0, optional=True),
        )
        instance_of("options", self.options, ExecutionOptions)
        for index, source in enumerate((self.source, *self.others)):
            instance_of(f"others[{index - 1}]" if index else "source", source, SimulatedSource)
        for index, one in enumerate(self.maps):
            instance_of(f"maps[{index}]", one, SimulatedMap)

    def run(self, *, loop_factory: Callable[[], VirtualTimeLoop] = VirtualTimeLoop) -> SimulationReport:
        """Run it in an event loop of its own; what failed the run is the report's `error`.

        Args:
            loop_factory: Makes the event loop, for those who watch it.

        Raises:
            SimulatedDeadlockError: The run stood still before it was done.
            OptionError: A value that can not work.
            RuntimeError: Called where an event loop runs.
        """
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(self.simulate())

    async def simulate(self) -> SimulationReport:
        """Run it in this event loop, which should be a `VirtualTimeLoop`; see `run`."""
        async with self.runtime() as runtime:
            run = _SimulatedRun(self, runtime)
            await run.execute()
            operators = run.operators()
            virtual_s, ranges, error = run.ended_s - run.started_s, tuple(run.ranges), run.error
            del run
            if runtime.live_bytes:
                # Blocks that only reference cycles hold are not left behind.
                gc.collect()
            return SimulationReport(
                virtual_s=virtual_s,
                rows_in=sum(source.count_rows() for source in self.sources()),
                ranges=ranges,
                tasks=tuple(runtime.tasks),
                operators=operators,
                faults=runtime.faults,
                peak_live_bytes=runtime.peak_live_bytes,
                left_bytes=runtime.live_bytes,
                error=error,
            )

    def sources(self) -> list[SimulatedSource]:
        """Return all sources, their rows numbered on from one to the next."""
        numbered: list[SimulatedSource] = []
        first_row = 0
        for source in (self.source, *self.others):
            numbered.append(replace(source, first_row=first_row))
            first_row += source.count_rows()
        return numbered

    def plan(self) -> Plan:
        """Return the plan that is executed."""
        branches = tuple(Plan(Read(source)) for source in self.sources())
        plan = Plan(Union(branches)) if self.others else branches[0]
        for transform in self.maps:
            plan = plan.then(Apply(transform))
        return plan if self.limit_rows is None else plan.then(Limit(self.limit_rows))

    def runtime(self) -> SimulatedRuntime:
        """Return the runtime that it is executed on, to be opened."""
        return SimulatedRuntime(
            self.num_workers,
            num_gpus=self.num_gpus,
            store_bytes=self.store_bytes,
            metadata_delay_s=self.metadata_delay_s,
            cancel_delay_s=self.cancel_delay_s,
            task_max_retries=self.options.task_max_retries,
            faults=self.faults,
        )


class _SimulatedRun:
    """One run of a simulation, its consumer, and a guard against both standing still."""

    def __init__(self, simulation: Simulation, runtime: SimulatedRuntime) -> None:
        self._simulation = simulation
        self._runtime = runtime
        self._run = Run(simulation.plan(), simulation.options, open_runtime=lambda: nullcontext(runtime))
        self._scope = anyio.CancelScope()
        self._stuck: list[str] = []
        self.ranges: list[tuple[int, int]] = []
        self.error: Exception | None = None
        self.started_s = self.ended_s = anyio.current_time()

    async def execute(self) -> None:
        """Run until the end of the data, the consumer's stop, a failure or a standstill."""
        limit_s = self._simulation.max_virtual_s
        # Where nothing else will happen, time jumps to this at once.
        guard = asyncio.get_running_loop().call_later(limit_s, self._on_standstill)
        try:
            with self._scope:
                await self._run.execute(self._consume)
        except Exception as error:  # noqa: BLE001 - it is part of the report.
            self.error = _first_leaf(error)
        finally:
            guard.cancel()
        if self._stuck:
            since_s = self._runtime.last_event_s - self.started_s
            headline = f"not done after {limit_s:g} virtual s; no task has done anything since {since_s:g} virtual s"
            raise SimulatedDeadlockError("\n  ".join([headline, *self._stuck]))

    def operators(self) -> tuple[OperatorStats, ...]:
        """Return what each operator has done."""
        return self._run.stats().operators

    async def _consume(self, run: Run) -> None:
        left = self._simulation.consumer_max_blocks
        try:
            async for bundle in run:
                self.ranges += slice_rows(bundle.ref.rows, bundle.start, bundle.stop)
                if self._simulation.consumer_s_per_block:
                    await anyio.sleep(self._simulation.consumer_s_per_block)
                del bundle
                left = None if left is None else left - 1
                if left == 0:
                    break
        finally:
            self.ended_s = anyio.current_time()

    def _on_standstill(self) -> None:
        self._stuck = list(self._states())
        self._scope.cancel()

    def _states(self) -> Iterator[str]:
        for op in self.operators():
            yield f"{op.name}: {op.tasks:,} tasks started, {op.blocks:,} blocks and {op.rows:,} rows produced"
        for counts in self._runtime.tasks:
            yield _describe(counts)


def _describe(counts: TaskCounts) -> str:
    return (
        f"tasks of {counts.name}: {counts.waiting:,} wait for a worker, {counts.running:,} run, "
        f"{counts.finished:,} finished, {counts.cancelled:,} cancelled"
    )


def _first_leaf(error: Exception) -> Exception:
    """Return what is in a group of errors first: the others are mostly its consequences."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
