"""What is pushed into a source, what is fused, and how it is explained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import ANY

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import aiodata
from aiodata.bundle import BlockMetadata, RefBundle
from aiodata.plan.nodes import Apply, Limit, Plan, Read, Resources, Step, Union
from aiodata.plan.optimize import InputStage, LimitStage, MapStage, ReadStage, UnionStage, explain, optimize, push_down
from aiodata.plan.pieces import Piece
from aiodata.plan.source import Skip, Source
from aiodata.plan.transforms import FilterRows, LimitRows, MapBatches, SelectColumns

FILTER = FilterRows(pc.field("x") > 1)
SELECT = SelectColumns(("x", "y"))
MAP = MapBatches(lambda batch: batch, None, "numpy")
OTHER = MapBatches(dict, 3, "numpy")
# A transform whose task must be its own.
ALONE = replace(OTHER, fuses=False)


class Model:
    """A stateful function."""

    def __call__(self, batch: Any) -> Any:
        return batch


ACTOR = MapBatches(Model, None, "numpy")
GPU = Resources(num_cpus=2, num_gpus=0.5)


@dataclass(frozen=True, slots=True)
class FakeSource(Source):
    """Takes in what it is told it can, and notes it."""

    selects: bool = True
    filters: bool = True
    stored: tuple[RefBundle, ...] | None = None
    pushed: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        return "fake"

    def with_columns(self, columns: tuple[str, ...]) -> Source | None:
        return replace(self, pushed=(*self.pushed, columns)) if self.selects else None

    def with_filter(self, expression: Any) -> Source | None:
        return replace(self, pushed=(*self.pushed, str(expression))) if self.filters else None

    def pieces(self, num_tasks: int, skip: Skip) -> Sequence[Piece]:
        return ()

    def bundles(self) -> Iterable[RefBundle] | None:
        return self.stored

    def schema(self, skip: Skip) -> pa.Schema:
        return pa.schema([])

    def count_rows(self, skip: Skip) -> int | None:
        return None


BUNDLE = RefBundle.whole("ref", BlockMetadata(1, 8, pa.schema([("x", pa.int64())])))
READ = FakeSource()
OPAQUE = FakeSource(selects=False, filters=False)
STORED = FakeSource(selects=False, filters=False, stored=(BUNDLE,))


def plan(source: Source, *steps: FilterRows | SelectColumns | MapBatches | int) -> Plan:
    """A plan of transforms; a number is a limit."""
    made = Plan(Read(source))
    for step in steps:
        made = made.then(Limit(step) if isinstance(step, int) else Apply(step))
    return made


def steps_plan(source: Source, *steps: Step) -> Plan:
    return Plan(Read(source), steps)


def union(*plans: Plan) -> Plan:
    return Plan(Union(plans))


def pushed(source: Source) -> tuple[Any, ...]:
    assert isinstance(source, FakeSource)
    return source.pushed


def branched(branches: Any) -> UnionStage:
    """A union's stage, whatever was asked."""
    return UnionStage(ANY, branches)


def test_filter_and_select_after_the_source_become_part_of_reading_it() -> None:
    source, steps = push_down(plan(READ, FILTER, SELECT))
    assert pushed(source) == ("(x > 1)", ("x", "y"))
    assert steps == ()


@pytest.mark.parametrize("barrier", [MAP, 5], ids=["map", "limit"])
def test_nothing_is_pushed_past_a_map_or_a_limit(barrier: MapBatches | int) -> None:
    source, steps = push_down(plan(READ, SELECT, barrier, FILTER, SELECT))
    assert pushed(source) == (("x", "y"),)
    assert [getattr(step, "transform", 5) for step in steps] == [barrier, FILTER, SELECT]


def test_what_a_source_refuses_stays_a_transform_as_does_what_follows() -> None:
    source, steps = push_down(plan(replace(READ, selects=False), FILTER, SELECT, FILTER))
    assert pushed(source) == ("(x > 1)",)
    assert steps == (Apply(SELECT), Apply(FILTER))


def test_plan_itself_is_not_changed() -> None:
    made = plan(READ, FILTER)
    optimize(made)
    assert made.origin == Read(READ)
    assert made.steps == (Apply(FILTER),)
    assert READ.pushed == ()


def test_source_alone_is_one_stage() -> None:
    assert optimize(plan(READ)) == (ReadStage(READ, ()),)


def test_source_and_transforms_are_one_stage() -> None:
    assert optimize(plan(OPAQUE, FILTER, MAP, SELECT, OTHER)) == (ReadStage(OPAQUE, (FILTER, MAP, SELECT, OTHER)),)


def test_limit_ends_a_stage_and_bounds_its_tasks() -> None:
    assert optimize(plan(OPAQUE, MAP, 7, OTHER, FILTER)) == (
        ReadStage(OPAQUE, (MAP, LimitRows(7))),
        LimitStage(7),
        MapStage((OTHER, FILTER)),
    )


def test_limit_right_after_the_source_bounds_reading() -> None:
    assert optimize(plan(OPAQUE, 7)) == (ReadStage(OPAQUE, (LimitRows(7),)), LimitStage(7))


def test_limits_in_a_row_make_no_stage_between_them() -> None:
    assert optimize(plan(OPAQUE, 7, 3)) == (ReadStage(OPAQUE, (LimitRows(7),)), LimitStage(7), LimitStage(3))


def test_limit_after_a_later_map_bounds_that_maps_tasks() -> None:
    assert optimize(plan(OPAQUE, 7, MAP, 3))[2:] == (MapStage((MAP, LimitRows(3))), LimitStage(3))


def test_stored_blocks_are_passed_on_without_a_task() -> None:
    assert optimize(plan(STORED)) == (InputStage(STORED),)
    assert optimize(plan(STORED, 2)) == (InputStage(STORED), LimitStage(2))


def test_transforms_of_stored_blocks_are_a_stage_of_their_own() -> None:
    assert optimize(plan(STORED, FILTER, MAP, 2)) == (
        InputStage(STORED),
        MapStage((FILTER, MAP, LimitRows(2))),
        LimitStage(2),
    )


def test_resources_begin_a_stage_that_has_them() -> None:
    made = steps_plan(OPAQUE, Apply(MAP), Apply(OTHER, GPU), Apply(MAP))
    assert optimize(made) == (ReadStage(OPAQUE, (MAP,)), MapStage((OTHER,), GPU), MapStage((MAP,)))


def test_transforms_with_the_same_resources_are_one_stage() -> None:
    made = steps_plan(OPAQUE, Apply(OTHER, GPU), Apply(MAP, GPU), Apply(MAP, Resources(num_cpus=2)))
    assert optimize(made)[1:] == (MapStage((OTHER, MAP), GPU), MapStage((MAP,), Resources(num_cpus=2)))


@pytest.mark.parametrize(
    "asked",
    [{"memory": 5}, {"custom": {"tpu": 1}}, {"scheduling_strategy": "SPREAD"}, {"runtime_env": {"env_vars": {}}}],
    ids=str,
)
def test_whatever_is_asked_of_ray_begins_a_stage_which_takes_what_asks_for_the_same(asked: dict[str, Any]) -> None:
    one, same = Resources(**asked), Resources(**asked)
    made = steps_plan(OPAQUE, Apply(MAP), Apply(OTHER, one), Apply(MAP, same), Apply(MAP))
    assert optimize(made) == (ReadStage(OPAQUE, (MAP,)), MapStage((OTHER, MAP), one), MapStage((MAP,)))


def test_number_of_workers_begins_a_stage_that_takes_no_more_user_code() -> None:
    made = steps_plan(OPAQUE, Apply(MAP), Apply(OTHER, workers=(3, 3)), Apply(FILTER), Apply(MAP))
    assert optimize(made) == (
        ReadStage(OPAQUE, (MAP,)),
        MapStage((OTHER, FILTER), workers=(3, 3)),
        MapStage((MAP,)),
    )


def test_class_begins_a_stage_of_actors_and_light_transforms_join_it() -> None:
    made = steps_plan(OPAQUE, Apply(ACTOR, GPU, (1, 4)), Apply(FILTER), Apply(SELECT), Apply(MAP), Apply(ACTOR))
    stages = optimize(made)
    assert stages == (
        ReadStage(OPAQUE, ()),
        MapStage((ACTOR, FILTER, SELECT), GPU, (1, 4)),
        MapStage((MAP,)),
        MapStage((ACTOR,)),
    )
    assert [stage.needs_actors for stage in stages if isinstance(stage, MapStage)] == [True, False, True]


def test_limit_joins_actors_and_ends_their_stage() -> None:
    made = steps_plan(OPAQUE, Apply(ACTOR), Limit(3), Apply(FILTER))
    assert optimize(made)[1:] == (MapStage((ACTOR, LimitRows(3))), LimitStage(3), MapStage((FILTER,)))


def test_what_does_not_fuse_has_a_stage_of_its_own() -> None:
    assert optimize(plan(OPAQUE, MAP, ALONE, MAP, FILTER)) == (
        ReadStage(OPAQUE, (MAP,)),
        MapStage((ALONE,)),
        MapStage((MAP, FILTER)),
    )


def test_union_has_the_stages_of_its_branches() -> None:
    made = union(plan(READ, FILTER), plan(STORED, MAP))
    assert optimize(made) == (
        branched(((ReadStage(replace(READ, pushed=("(x > 1)",)), ()),), (InputStage(STORED), MapStage((MAP,))))),
    )


def test_steps_after_a_union_are_stages_after_it() -> None:
    branches = ((ReadStage(OPAQUE, ()),), (ReadStage(READ, ()),))
    made = union(plan(OPAQUE), plan(READ)).then(Apply(FILTER)).then(Limit(5)).then(Limit(2))
    assert optimize(made) == (
        branched(branches),
        MapStage((FILTER, LimitRows(5))),
        LimitStage(5),
        LimitStage(2),
    )
    assert optimize(union(plan(OPAQUE), plan(READ)).then(Limit(5))) == (branched(branches), LimitStage(5))


def test_unions_nest() -> None:
    inner = union(plan(OPAQUE), plan(STORED))
    assert optimize(union(inner.then(Limit(1)), plan(STORED))) == (
        branched(
            (
                (branched(((ReadStage(OPAQUE, ()),), (InputStage(STORED),))), LimitStage(1)),
                (InputStage(STORED),),
            )
        ),
    )


def explained(made: Plan) -> list[str]:
    return [line.rstrip() for line in explain(made).splitlines()]


def test_explain_shows_one_stage_a_line_and_how_it_runs() -> None:
    assert explained(plan(OPAQUE, FILTER, 10, OTHER)) == [
        "fake -> filter((x > 1)) -> limit(10)    one task reads and transforms",
        "limit(10)                               narrows row ranges, then ends what is before it",
        "map_batches(dict)                       tasks transform blocks",
    ]


def test_explain_names_stored_blocks() -> None:
    assert explain(plan(STORED)) == "fake    blocks that are there already"


@pytest.mark.parametrize(
    ("step", "note"),
    [
        (Apply(ACTOR), "actors transform blocks"),
        (Apply(ACTOR, workers=(2, 2)), "2 actors transform blocks"),
        (Apply(ACTOR, workers=(1, 4)), "1 to 4 actors transform blocks"),
        (Apply(ACTOR, Resources(1, 0.5), (1, 4)), "1 to 4 actors with 1 CPU and 0.5 GPUs each transform blocks"),
        (Apply(MAP, GPU), "tasks with 2 CPUs and 0.5 GPUs each transform blocks"),
        (Apply(MAP, Resources(num_gpus=1), (3, 3)), "up to 3 tasks with 1 GPU each transform blocks"),
        (
            Apply(MAP, Resources(1, memory=3 << 30, custom={"tpu": 2})),
            "tasks with 1 CPU and 3,072 MiB of memory and 2 tpu each transform blocks",
        ),
    ],
)
def test_explain_says_what_transforms_blocks_and_what_it_takes(step: Apply, note: str) -> None:
    assert explained(steps_plan(STORED, step))[-1].endswith(f"    {note}")


def test_explain_shows_the_branches_of_a_union_above_it_indented() -> None:
    inner = union(plan(STORED), plan(OPAQUE, 1))
    assert explained(union(inner, plan(STORED)).then(Limit(5))) == [
        "    fake                blocks that are there already",
        "    fake -> limit(1)    one task reads and transforms",
        "    limit(1)            narrows row ranges, then ends what is before it",
        "  union(2)              passes on the blocks of all that is above",
        "  fake                  blocks that are there already",
        "union(2)                passes on the blocks of all that is above",
        "limit(5)                narrows row ranges, then ends what is before it",
    ]


def test_names_are_short_and_have_one_line_whatever_things_are_called() -> None:
    def clean(batch: Any) -> Any:
        return batch

    clean.__name__ = "clean\nup " * 50
    many = pc.field("x").isin([f"value\n{index}" for index in range(1000)])
    ds = aiodata.from_items([{"x": "value\n1"}])
    for one in (ds.filter(many), ds.map_batches(clean), ds.select_columns([f"c{index}" for index in range(500)])):
        one = one.limit(10).map_batches(clean, concurrency=1).map_batches(clean)
        stages = optimize(one._plan)
        for name in [stage.name for stage in stages] + [line.split("    ")[0] for line in one.explain().splitlines()]:
            assert name.isprintable()
        assert all(len(stage.name) <= 60 for stage in stages)
    assert FilterRows(many).name.startswith("filter(is_in(x, ")
