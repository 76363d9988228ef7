"""From what was asked to how it is done: push down, then fuse into stages.

- `select_columns` and `filter(expression)` right after a source become part of reading it, where it can do that.
- Transforms that follow one another, and the source before them, become one stage: one task does them all.
- A limit ends a stage; inside the stage before it, no task produces more rows than the limit asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiodata.plan.nodes import Apply, Limit, Plan, Source
from aiodata.plan.transforms import FilterRows, LimitRows, SelectColumns, Transform


@dataclass(frozen=True, slots=True)
class ReadStage:
    """Tasks that read pieces of a source and transform their rows."""

    source: Source
    chain: tuple[Transform, ...]

    @property
    def name(self) -> str:
        """Source and transforms, joined by arrows."""
        return " -> ".join([self.source.name, *(transform.name for transform in self.chain)])


@dataclass(frozen=True, slots=True)
class InputStage:
    """Blocks that are stored already, passed on as they are."""

    source: Source

    @property
    def name(self) -> str:
        """The source."""
        return self.source.name


@dataclass(frozen=True, slots=True)
class MapStage:
    """Tasks that transform blocks."""

    chain: tuple[Transform, ...]

    @property
    def name(self) -> str:
        """The transforms, joined by arrows."""
        return " -> ".join(transform.name for transform in self.chain)


@dataclass(frozen=True, slots=True)
class LimitStage:
    """Passes on so many rows, then ends everything before it."""

    num_rows: int

    @property
    def name(self) -> str:
        """`limit(<rows>)`."""
        return f"limit({self.num_rows})"


Stage = ReadStage | InputStage | MapStage | LimitStage


def optimize(plan: Plan) -> tuple[Stage, ...]:
    """Return the stages that carry out a plan, in the order of the data."""
    source, steps = push_down(plan)
    is_stored = source.bundles() is not None
    stages: list[Stage] = [InputStage(source)] if is_stored else []
    chain: list[Transform] = []

    def end_stage() -> None:
        if not stages:
            stages.append(ReadStage(source, tuple(chain)))
        elif chain:
            stages.append(MapStage(tuple(chain)))
        chain.clear()

    for step in steps:
        if isinstance(step, Apply):
            chain.append(step.transform)
            continue
        if chain or not stages:
            chain.append(LimitRows(step.num_rows))
        end_stage()
        stages.append(LimitStage(step.num_rows))
    end_stage()
    return tuple(stages)


def push_down(plan: Plan) -> tuple[Source, tuple[Apply | Limit, ...]]:
    """Let the source do what it can of the first steps; return it with the steps that are left."""
    source = plan.read.source
    for index, step in enumerate(plan.steps):
        match step:
            case Apply(SelectColumns(columns=columns)):
                narrowed = source.with_columns(columns)
            case Apply(FilterRows(expression=expression)):
                narrowed = source.with_filter(expression)
            case _:
                narrowed = None
        if narrowed is None:
            return source, plan.steps[index:]
        source = narrowed
    return source, ()


def explain(plan: Plan) -> str:
    """Show how a plan is carried out, one stage a line.

    Example:
        read_parquet(flights) -> map_batches(clean)    one task reads and transforms
        limit(10)                                      narrows row ranges, ends what is before it
    """
    notes = {
        ReadStage: "one task reads and transforms",
        InputStage: "blocks that are there already",
        MapStage: "one task per block",
        LimitStage: "narrows row ranges, then ends what is before it",
    }
    stages = optimize(plan)
    width = max(len(stage.name) for stage in stages)
    return "\n".join(f"{stage.name:<{width}}    {notes[type(stage)]}" for stage in stages)
