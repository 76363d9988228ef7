"""What is pushed into a source, what is fused, and how it is explained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from aiodata.bundle import BlockMetadata, RefBundle
from aiodata.plan.nodes import Apply, Limit, Plan, Read, Source
from aiodata.plan.optimize import InputStage, LimitStage, MapStage, ReadStage, explain, optimize, push_down
from aiodata.plan.pieces import Piece
from aiodata.plan.transforms import FilterRows, LimitRows, MapBatches, SelectColumns

FILTER = FilterRows(pc.field("x") > 1)
SELECT = SelectColumns(("x", "y"))
MAP = MapBatches(lambda batch: batch, None, "numpy")
OTHER = MapBatches(dict, 3, "numpy")


@dataclass(frozen=True, slots=True)
class FakeSource:
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

    def pieces(self, num_tasks: int) -> Sequence[Piece]:
        return ()

    def bundles(self) -> Iterable[RefBundle] | None:
        return self.stored

    def schema(self) -> pa.Schema | None:
        return None

    def count_rows(self) -> int | None:
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


def pushed(source: Source) -> tuple[Any, ...]:
    assert isinstance(source, FakeSource)
    return source.pushed


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
    assert made.read.source is READ
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


def test_explain_shows_one_stage_a_line_and_how_it_runs() -> None:
    lines = explain(plan(OPAQUE, FILTER, 10, OTHER)).splitlines()
    assert [line.rstrip() for line in lines] == [
        "fake -> filter((x > 1)) -> limit(10)    one task reads and transforms",
        "limit(10)                               narrows row ranges, then ends what is before it",
        "map_batches(dict)                       one task per block",
    ]


def test_explain_names_stored_blocks() -> None:
    assert explain(plan(STORED)) == "fake    blocks that are there already"
