"""The streaming executor: turns a plan into operators and runs them in one task group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import anyio
import pyarrow as pa

from aiodata.bundle import RefBundle
from aiodata.concurrency import ask_in_thread, cleared_frames, close_and_drop, start
from aiodata.errors import AiodataError, OptionError
from aiodata.execution.budget import ByteBudget
from aiodata.execution.context import RunContext
from aiodata.execution.failures import SkippedErrors, warn_of_skips
from aiodata.execution.metadata import MetadataPrefetcher
from aiodata.execution.operators import InputOperator, Inputs, LimitOperator, Operator, Output, UnionOperator
from aiodata.execution.task_operator import TaskOperator
from aiodata.execution.workers import TASKS_PER_CPU, ActorPool, SharedSlots, TaskWorkers, Workers
from aiodata.options import ExecutionOptions
from aiodata.plan.nodes import Plan, Union
from aiodata.plan.optimize import InputStage, LimitStage, MapStage, ReadStage, Stage, UnionStage, optimize
from aiodata.plan.passes import FIRST_PASS, Pass
from aiodata.plan.planning import find_plan_schema, find_union_schema
from aiodata.plan.source import raise_it
from aiodata.runtime.base import Runtime
from aiodata.stats import RunStats

# Bundles that may wait between two operators; a bundle is a reference, and tasks hold back when it is full.
_MAX_WAITING_BUNDLES = 8

# Tasks that each operator may have in flight whatever the others have: the least, and one of so many CPUs.
_MIN_TASKS = 2
_TASK_PARTS = 8

# Tasks of an operator that take no CPU.
_MAX_WEIGHTLESS_TASKS = 64

# The part of the runtime's memory for blocks that a run may use, unless it is told otherwise: one of so many.
_STORE_PARTS = 4


@dataclass(eq=False)
class _Node:
    """An operator, what comes before it, and the scope that ends it."""

    operator: Operator
    before: list[_Node]
    union: Union | None = None
    inputs: list[Inputs] = field(default_factory=list)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    # What it sends to: the operator after it, or, of the last one, whoever takes the run's bundles.
    taken_by: Inputs | None = None
    output: Output | None = None
    # Whether it has sent all that it has.
    is_done: bool = False

    @property
    def has_arrived(self) -> bool:
        """Whether whoever comes after it has taken all that it has sent."""
        if self.taken_by is not None:
            return self.taken_by.num_taken == self.operator.num_sent
        return self.output is None or not self.output.statistics().current_buffer_used

    def cancel_before(self) -> None:
        for node in self.before:
            node.scope.cancel()
            node.cancel_before()


class StreamingExecutor:
    """Runs a plan once: `run` sends its bundles to a stream and returns when all are sent.

    Args:
        plan: What to run.
        runtime: Where tasks run; open for as long as `run` is.
        options: How to run it.
        this_pass: Which pass over the dataset it is.
        is_quiet: Whether what is skipped is not logged, as where another run has told of it.

    Raises:
        OptionError: The plan's actors need more CPUs than there are.
    """

    def __init__(
        self,
        plan: Plan,
        runtime: Runtime,
        options: ExecutionOptions,
        this_pass: Pass = FIRST_PASS,
        *,
        is_quiet: bool = False,
    ) -> None:
        """Make the operators; nothing runs yet."""
        self.context = RunContext(
            runtime,
            options,
            ByteBudget(_budget_bytes(options, runtime)),
            MetadataPrefetcher(runtime.fetch_ready, runtime.fetch, is_inline=not options.metadata_prefetch),
            SkippedErrors(options.max_errored_blocks, is_quiet=is_quiet),
            this_pass,
        )
        # Until the run begins: a plan may hold blocks, which a traceback that keeps the executor must not keep.
        self._plan: Plan | None = plan
        self._known_schema: pa.Schema | None = None
        self._slots = SharedSlots(TASKS_PER_CPU * runtime.num_cpus)
        self._nodes: list[_Node] = []
        stages = optimize(plan)
        # CPUs that pools of actors may grow into.
        self._spare_cpus = check_cpus(stages, runtime.num_cpus)
        self._last = self._add(stages, [])
        self.counters = [node.operator.counters for node in self._nodes]

    @property
    def schema(self) -> pa.Schema | None:
        """The schema of the run's blocks, as soon as it is known; else None. A limit has that of what it limits."""
        if self._known_schema is not None:
            return self._known_schema
        node = self._last
        while isinstance(node.operator, LimitOperator):
            [node] = node.before
        return node.operator.counters.schema

    @property
    def has_skipped(self) -> bool:
        """Whether something failed and was skipped."""
        return bool(self.context.skipped.lines)

    def stats(self) -> RunStats:
        """Return a snapshot."""
        operators = tuple(counters.snapshot() for counters in self.counters)
        context, skipped = self.context, self.context.skipped
        return RunStats(
            context.runtime.name,
            operators,
            context.budget.stats(),
            tuple(skipped.lines),
            skipped.num_errors,
            skipped.num_rows,
        )

    def note_taken(self) -> None:
        """Take note that bundles were taken from the run's output: who waits for room may be next now."""
        self.context.budget.tell_refused()

    async def run(self, output: Output) -> None:
        """Run all operators; returns at the end of the data, or when `output` has no receiver any more.

        `output` is closed at the end of the data alone, as soon as that is known: it is never closed by a failure.

        Raises:
            AiodataError: An operator was cancelled from outside.
            TaskError: A transform failed. It comes out of a task group, so it may be in an exception group.
            SourceError: A file is missing, corrupt or unreadable, or no file matches.
            OptionError: The plan cannot work, for example since it asks for a column that is not there.
        """
        try:
            await self._run(output)
        finally:
            if not self.context.skipped.is_quiet:
                warn_of_skips(self.stats(), is_complete=self._last.is_done)

    async def _run(self, output: Output) -> None:
        await ask_in_thread(self._find_schemas)
        self._last.output = output
        with ExitStack() as streams:
            # What nobody takes any more must not be kept.
            streams.callback(setattr, self._last, "output", None)
            async with self.context.prefetcher.group:
                async with anyio.create_task_group() as group:
                    for node in self._nodes:
                        outputs = output
                        if node is not self._last:
                            outputs, receive = anyio.create_memory_object_stream[RefBundle](_MAX_WAITING_BUNDLES)
                            streams.enter_context(outputs)
                            # The operator closes it, unless its task never begins, as where the loop ends.
                            streams.callback(close_and_drop, receive)
                            node.taken_by = Inputs(receive)
                            self._after(node).inputs.append(node.taken_by)
                        start(group, _run_operator, node, outputs, name=node.operator.counters.name)
                # Metadata that nobody waits for any more.
                self.context.prefetcher.group.cancel_scope.cancel()
        if group.cancel_scope.cancel_called:
            raise AiodataError("an operator of the run was cancelled from outside")

    def _find_schemas(self) -> None:
        """Find out what is known of the run's schemas beforehand; called in a thread, since sources may block."""
        # Who reads a source tells of the files that are skipped.
        skip = _ignore if self.context.options.max_errored_blocks else raise_it
        plan, self._plan = self._plan, None
        if plan is not None:
            self._known_schema = find_plan_schema(plan, skip)
        for node in self._nodes:
            union, node.union = node.union, None
            if isinstance(node.operator, UnionOperator) and union is not None:
                node.operator.schema = find_union_schema(union, skip)

    def _add(self, stages: Sequence[Stage], after: list[_Node]) -> _Node:
        """Make the operators of a chain of stages, and of what comes before them; return the last one's node.

        Args:
            stages: The stages, in the order of the data.
            after: The nodes that come after the chain; they are filled in as they are made.
        """
        stage, later = stages[-1], _Later()
        union = stage.union if isinstance(stage, UnionStage) else None
        node = _Node(self._operator(stage, later, after), [], union)
        later.path = following = [node, *after]
        if isinstance(stage, UnionStage):
            node.before = [self._add(branch, following) for branch in stage.branches]
        elif len(stages) > 1:
            node.before = [self._add(stages[:-1], following)]
        self._nodes.append(node)
        return node

    def _after(self, node: _Node) -> _Node:
        return next(later for later in self._nodes if node in later.before)

    def _operator(self, stage: Stage, later: _Later, after: Sequence[_Node]) -> Operator:
        on_sent = self.context.budget.tell_refused
        is_learnt_from = partial(_is_learning, after)
        preserve_order = self.context.options.preserve_order
        match stage:
            case InputStage(source, shuffle):
                bundles = source.bundles() or ()
                in_order = partial(shuffle.shuffled, this_pass=self.context.this_pass) if shuffle else None
                return InputOperator(stage.name, bundles, in_order, on_sent)
            case LimitStage(num_rows):
                return LimitOperator(stage.name, num_rows, on_sent)
            case UnionStage():
                return UnionOperator(stage.name, on_sent, is_learnt_from, preserve_order=preserve_order)
            case ReadStage() | MapStage():
                num_later = sum(isinstance(node.operator, TaskOperator) for node in after)
                workers = self._workers(stage)
                return TaskOperator(stage, workers, self.context, later.are_idle, num_later, is_learnt_from)

    def _workers(self, stage: ReadStage | MapStage) -> Workers:
        num_cpus = self.context.runtime.num_cpus
        at_once = self.context.runtime.max_at_once(self.context.resources(stage))
        if isinstance(stage, MapStage) and stage.needs_actors:
            least, most = stage.workers or (1, num_cpus)
            most = most if at_once is None else min(most, max(least, at_once))
            if each := stage.resources.num_cpus:
                # Actors keep their CPUs while they wait, and tasks need one to go on.
                most = min(most, least + int(self._spare_cpus / each))
                self._spare_cpus -= (most - least) * each
            return ActorPool(stage.name, least, most, self.context.options.close_timeout_s)
        max_tasks, weight = TASKS_PER_CPU * num_cpus, 1.0
        if isinstance(stage, MapStage):
            weight = 1.0 if stage.resources.num_cpus is None else stage.resources.num_cpus
            max_tasks = max(1, int(max_tasks / weight)) if weight else _MAX_WEIGHTLESS_TASKS
            max_tasks = min(max_tasks, stage.workers[1]) if stage.workers else max_tasks
        if at_once is not None:
            max_tasks = min(max_tasks, TASKS_PER_CPU * at_once)
        return TaskWorkers(max_tasks, max(_MIN_TASKS, num_cpus // _TASK_PARTS), self._slots, weight)


def _is_learning(nodes: Sequence[_Node]) -> bool:
    """Whether an operator is to find out its schema yet, by what it is sent."""
    return any(isinstance(one.operator, TaskOperator) and one.operator.is_learning for one in nodes)


@dataclass(eq=False)
class _Later:
    """The way from an operator to the end of the plan, the operator itself first."""

    path: Sequence[_Node] = ()

    def are_idle(self) -> bool:
        """Whether nothing waits on the way.

        What another branch of a union has waiting does not count: it may have to wait for this one.
        """
        has_arrived = all(node.has_arrived for node in self.path)
        return has_arrived and all(node.operator.is_idle for node in self.path[1:])


async def _run_operator(node: _Node, output: Output) -> None:
    """Run one operator; when it ends, so does all that comes before it."""
    with node.scope:
        try:
            with cleared_frames():
                await node.operator.run(node.inputs, output)
                node.is_done = True
        except* anyio.BrokenResourceError:  # Whoever takes the outputs has enough.
            pass
        finally:
            for inputs in node.inputs:
                close_and_drop(inputs.stream)
        # Not where it failed: whoever takes the outputs must not take that for the end of the data.
        output.close()
    node.cancel_before()


def _ignore(error: AiodataError) -> None:
    """Be the `Skip` that allows any error."""


def max_held_bytes(options: ExecutionOptions, runtime: Runtime) -> int:
    """Return how many bytes of blocks consumers may hold ahead: half of the budget, so that tasks have the rest."""
    return _budget_bytes(options, runtime) // 2


def _budget_bytes(options: ExecutionOptions, runtime: Runtime) -> int:
    return options.max_object_store_bytes or runtime.store_bytes // _STORE_PARTS


def check_cpus(stages: Sequence[Stage], num_cpus: int) -> float:
    """Check that the actors of a plan leave a CPU for its tasks; return how many CPUs are left beside these.

    Raises:
        OptionError: They do not, so that the run would wait for ever.
    """
    all_stages = list(_flat(stages))
    pools = [stage for stage in all_stages if isinstance(stage, MapStage) and stage.needs_actors]
    for_tasks = any(isinstance(stage, ReadStage | MapStage) and stage not in pools for stage in all_stages)
    taken = sum((stage.workers or (1, 1))[0] * (stage.resources.num_cpus or 0) for stage in pools)
    spare = num_cpus - for_tasks - taken
    if spare < 0:
        names = ", ".join(stage.name for stage in pools)
        raise OptionError(
            f"the actors of {names} take {taken:g} CPUs of {num_cpus}"
            f"{', which leaves none for the tasks that feed them' if for_tasks else ''}; lower concurrency or num_cpus"
        )
    return spare


def _flat(stages: Sequence[Stage]) -> Iterator[Stage]:
    for stage in stages:
        if isinstance(stage, UnionStage):
            for branch in stage.branches:
                yield from _flat(branch)
        yield stage
