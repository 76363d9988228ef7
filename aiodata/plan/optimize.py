"""From what was asked to how it is done: push down, then fuse into stages.

- `select_columns` and `filter(expression)` right after a source become part of reading it, where it can do that.
- Transforms that follow one another, and the source before them, become one stage: one task does them all. What needs
  actors, resources or a number of workers of its own begins another stage.
- A limit ends a stage; inside the stage before it, no task produces more rows than the limit asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiodata.options import MIB
from aiodata.plan.naming import short_name
from aiodata.plan.nodes import Apply, Limit, Plan, Read, Resources, Step, Union
from aiodata.plan.passes import BlockShuffle
from aiodata.plan.source import Source
from aiodata.plan.transforms import LimitRows, Transform

_SHUFFLED = ", in another order in each pass"


@dataclass(frozen=True, slots=True)
class ReadStage:
    """Tasks that read pieces of a source and transform their rows.

    Attributes:
        source: The source.
        chain: The transforms.
        shuffle: The order of the source's blocks; None: their own.
    """

    source: Source
    chain: tuple[Transform, ...]
    shuffle: BlockShuffle | None = None

    @property
    def steps(self) -> str:
        """Source and transforms, joined by arrows."""
        return " -> ".join([self.source.name, *(transform.name for transform in self.chain)])

    @property
    def name(self) -> str:
        """The steps, shortened."""
        return short_name(self.steps)

    @property
    def note(self) -> str:
        """Who does it."""
        return "one task reads and transforms" + (_SHUFFLED if self.shuffle else "")


@dataclass(frozen=True, slots=True)
class InputStage:
    """Blocks that are stored already, passed on as they are.

    Attributes:
        source: The source.
        shuffle: The order of the blocks; None: their own.
    """

    source: Source
    shuffle: BlockShuffle | None = None

    @property
    def name(self) -> str:
        """The source."""
        return short_name(self.source.name)

    @property
    def note(self) -> str:
        """Where they come from."""
        return "blocks that are there already" + (_SHUFFLED if self.shuffle else "")


@dataclass(frozen=True, slots=True)
class MapStage:
    """Tasks or actors that transform blocks.

    Attributes:
        chain: The transforms.
        resources: What each task or actor takes.
        workers: How many there are at a time; None: as many tasks as fit.
    """

    chain: tuple[Transform, ...]
    resources: Resources = Resources()
    workers: tuple[int, int] | None = None

    @property
    def steps(self) -> str:
        """The transforms, joined by arrows."""
        return " -> ".join(transform.name for transform in self.chain)

    @property
    def name(self) -> str:
        """The steps, shortened."""
        return short_name(self.steps)

    @property
    def needs_actors(self) -> bool:
        """Whether a transform has state that is built once."""
        return any(transform.needs_actor for transform in self.chain)

    @property
    def note(self) -> str:
        """Who does it, with what."""
        who = "actors" if self.needs_actors else "tasks"
        match self.workers:
            case (least, most) if self.needs_actors:
                who = f"{least} {who}" if least == most else f"{least} to {most} {who}"
            case (_, most):
                who = f"up to {most} {who}"
        resources = self.resources
        takes = [
            f"{amount:g} {unit}{'' if amount == 1 else 's'}"
            for amount, unit in ((resources.num_cpus, "CPU"), (resources.num_gpus, "GPU"))
            if amount is not None
        ]
        takes += [f"{resources.memory / MIB:,.0f} MiB of memory"] if resources.memory is not None else []
        takes += [f"{amount:g} {name}" for name, amount in resources.custom.items()]
        return f"{who} with {' and '.join(takes)} each transform blocks" if takes else f"{who} transform blocks"


@dataclass(frozen=True, slots=True)
class LimitStage:
    """Passes on so many rows, then ends everything before it."""

    num_rows: int
    note: str = "narrows row ranges, then ends what is before it"

    @property
    def name(self) -> str:
        """`limit(<rows>)`."""
        return f"limit({self.num_rows})"


@dataclass(frozen=True, slots=True)
class UnionStage:
    """Passes on the blocks of several chains of stages.

    Attributes:
        union: What was asked.
        branches: The chains.
    """

    union: Union
    branches: tuple[tuple[Stage, ...], ...]
    note: str = "passes on the blocks of all that is above"

    @property
    def name(self) -> str:
        """`union(<branches>)`."""
        return f"union({len(self.branches)})"


Stage = ReadStage | InputStage | MapStage | LimitStage | UnionStage


def optimize(plan: Plan) -> tuple[Stage, ...]:
    """Return the stages that carry out a plan, in the order of the data."""
    match plan.origin:
        case Union(plans):
            return _Fusing(UnionStage(plan.origin, tuple(optimize(branch) for branch in plans))).stages(plan.steps)
        case Read(_, shuffle):
            source, steps = push_down(plan)
            stored = InputStage(source, shuffle) if source.bundles() is not None else None
            return _Fusing(stored or ReadStage(source, (), shuffle)).stages(steps)


class _Fusing:
    """Gathers steps into stages; the last stage takes what fuses with it."""

    def __init__(self, first: Stage) -> None:
        self._stages: list[Stage] = [first]

    def stages(self, steps: tuple[Step, ...]) -> tuple[Stage, ...]:
        for step in steps:
            match step:
                case Limit(num_rows):
                    if isinstance(self._stages[-1], ReadStage | MapStage):
                        self._extend(LimitRows(num_rows))
                    self._stages.append(LimitStage(num_rows))
                case Apply(transform, resources, workers):
                    if self._fuses(step):
                        self._extend(transform)
                    else:
                        self._stages.append(MapStage((transform,), resources, workers))
        return tuple(self._stages)

    def _fuses(self, step: Apply) -> bool:
        """Whether a step can be done by the workers of the last stage."""
        last = self._stages[-1]
        if not step.transform.fuses or step.transform.needs_actor or step.workers is not None:
            return False
        match last:
            case ReadStage():
                return step.resources == Resources() and all(transform.fuses for transform in last.chain)
            case MapStage():
                is_light = not step.transform.calls_user_code
                takes_same = step.resources == last.resources and last.workers is None and not last.needs_actors
                return all(transform.fuses for transform in last.chain) and (takes_same or is_light)
            case _:
                return False

    def _extend(self, transform: Transform) -> None:
        match self._stages[-1]:
            case ReadStage(source, chain, shuffle):
                self._stages[-1] = ReadStage(source, (*chain, transform), shuffle)
            case MapStage(chain, resources, workers):
                self._stages[-1] = MapStage((*chain, transform), resources, workers)


def push_down(plan: Plan) -> tuple[Source, tuple[Step, ...]]:
    """Let the source of a plan that reads one do what it can of the first steps; return it with the steps left."""
    assert isinstance(plan.origin, Read)
    source = plan.origin.source
    for index, step in enumerate(plan.steps):
        narrowed = step.transform.push_into(source) if isinstance(step, Apply) else None
        if narrowed is None:
            return source, plan.steps[index:]
        source = narrowed
    return source, ()


def explain(plan: Plan) -> str:
    """Show how a plan is carried out, one stage a line; what a union takes is above it, indented.

    Example:
        read_parquet(flights) -> map_batches(clean)    one task reads and transforms
        limit(10)                                      narrows row ranges, then ends what is before it
    """
    lines = list(_lines(optimize(plan), 0))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}    {note}" for name, note in lines)


def _lines(stages: tuple[Stage, ...], depth: int) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for stage in stages:
        if isinstance(stage, UnionStage):
            for branch in stage.branches:
                lines += _lines(branch, depth + 1)
        steps = stage.steps if isinstance(stage, ReadStage | MapStage) else stage.name
        lines.append(("  " * depth + steps, stage.note))
    return lines
