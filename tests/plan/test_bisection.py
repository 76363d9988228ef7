"""Of a batch that a function fails with, just the rows that it fails with alone are given up, and each is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata import AiodataError, OptionError, TaskError
from aiodata.plan.bisection import OnError
from aiodata.plan.control import MAX_LISTED_ROWS
from aiodata.plan.output_schema import OutputSchema, Progress
from aiodata.plan.pieces import Origin
from aiodata.plan.transforms import MapBatches, Transform, build, close
from aiodata.plan.work import Cuts, OutputMetadata, Work
from tests.plan.calls import all_cuts
from tests.plan.running import EAGER, UNLIMITED, Batch, Output, counted, ids_of, rows_of, run

KINDS = ["function", "async function", "class", "async class"]
SCHEMA = pa.schema({"id": pa.int64(), "twice": pa.float64()})


def as_kind(kind: str, fn: Callable[[Batch], Any]) -> Callable[..., Any]:
    """A function as one of the kinds that there are."""

    async def async_function(batch: Batch) -> Any:
        return fn(batch)

    class Plain:
        def __call__(self, batch: Batch) -> Any:
            return fn(batch)

    class Async:
        async def __call__(self, batch: Batch) -> Any:
            return fn(batch)

    made: list[Callable[..., Any]] = [fn, async_function, Plain, Async]
    return made[KINDS.index(kind)]


def doubling(bad: set[int]) -> Callable[[Batch], Batch]:
    """A function that fails with some ids."""

    def double(batch: Batch) -> Batch:
        for one in batch["id"]:
            if int(one) in bad:
                raise KeyError(int(one))
        return {"id": batch["id"], "twice": batch["id"] * 2.0}

    return double


def giving_up(
    fn: Callable[..., Any], size: int | None, how: OnError = OnError.SKIP_ROW, schema: pa.Schema | None = None
) -> MapBatches:
    return MapBatches(fn, size, "numpy", concurrency=3, schema=schema, on_error=how)


def run_all(work: Work, chain: Sequence[Transform]) -> tuple[list[Output], list[AiodataError], int, list[str]]:
    """The outputs of a work and its rests, the errors, and the rows that were given up, with what is listed of them."""
    built = build(chain)
    outputs: list[Output] = []
    errors: list[AiodataError] = []
    num_rows, lines = 0, list[str]()
    try:
        while True:
            some, end = run(work, built)
            outputs += some
            errors += [*end.errors, *([] if end.error is None else [end.error])]
            for told in (*(metadata.failed_rows for _, metadata in some), end.failed_rows):
                if told is not None:
                    num_rows += told.num_rows
                    lines += told.lines
            if end.rest is None:
                return outputs, errors, num_rows, lines
            work = work.rest(end.rest)
    finally:
        close(built)


def line(row: int) -> str:
    return f"map_batches(double) failed on t, row {row}: KeyError: {row}"


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 60),
    bad=st.sets(st.integers(0, 59), max_size=8),
    size=st.none() | st.integers(1, 17),
    after=st.none() | st.integers(1, 7),
    limits=all_cuts(),
)
def test_rows_kept_and_rows_listed_are_the_rows_that_went_in(
    kind: str, count: int, bad: set[int], size: int | None, after: int | None, limits: Cuts
) -> None:
    chain = [giving_up(as_kind(kind, doubling(bad)), size), MapBatches(lambda batch: batch, after, "numpy")]
    outputs, errors, num_rows, lines = run_all(Work((counted(count),), limits), chain)
    lost = sorted(bad & set(range(count)))
    assert not errors
    assert ids_of(outputs) == [one for one in range(count) if one not in bad]
    assert num_rows == len(lost)
    name = chain[0].name
    assert lines == [f"{name} failed on t, row {row}: KeyError: {row}" for row in lost]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_bad", [1, 3])
def test_few_bad_rows_take_few_calls(kind: str, num_bad: int) -> None:
    sizes: list[int] = []
    double = doubling(set(range(100, 100 + num_bad)))

    def noted(batch: Batch) -> Batch:
        sizes.append(len(batch["id"]))
        return double(batch)

    outputs, _, num_rows, _ = run_all(Work((counted(1024),), UNLIMITED), [giving_up(as_kind(kind, noted), 1024)])
    assert num_rows == num_bad
    assert len(ids_of(outputs)) == 1024 - num_bad
    assert sizes[0] == 1024
    assert len(sizes) <= 1 + 2 * num_bad * math.log2(1024)
    assert sum(metadata.calls for _, metadata in outputs) == len(sizes)


def test_batch_that_fails_but_not_its_halves_loses_nothing() -> None:
    def flaky(batch: Batch) -> Batch:
        if len(batch["id"]) > 4:
            raise TimeoutError("too much at once")
        return batch

    outputs, errors, num_rows, _ = run_all(Work((counted(10),), UNLIMITED), [giving_up(flaky, 10)])
    assert (ids_of(outputs), errors, num_rows) == (list(range(10)), [], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_result_that_does_not_go_with_the_first_costs_just_its_rows(kind: str) -> None:
    def change(batch: Batch) -> Any:
        return {"id": batch["id"], "x": ["seven" if one == 7 else int(one) for one in batch["id"]]}

    chain = [giving_up(as_kind(kind, change), 4)]
    outputs, errors, num_rows, lines = run_all(Work((counted(10),), UNLIMITED), chain)
    assert not errors
    assert ids_of(outputs) == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert num_rows == 1
    assert "t, row 7: " in lines[0]


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_a_batch_is_what_it_was_before_the_function_changed_it(kind: str) -> None:
    def change(batch: Any) -> Any:
        batch["id"] = batch["id"] + 100
        if 105 in set(batch["id"]):
            raise ValueError("bad")
        return batch

    transform = MapBatches(as_kind(kind, change), 4, "pandas", on_error=OnError.SKIP_ROW)
    outputs, _, num_rows, _ = run_all(Work((counted(8),), UNLIMITED), [transform])
    assert ids_of(outputs) == [100, 101, 102, 103, 104, 106, 107]
    assert num_rows == 1


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    bad=st.sets(st.integers(0, 29), max_size=8),
    size=st.integers(1, 9),
    limits=all_cuts(),
)
def test_bad_rows_stay_with_nulls_in_the_columns_that_the_input_does_not_have(
    kind: str, bad: set[int], size: int, limits: Cuts
) -> None:
    chain = [giving_up(as_kind(kind, doubling(bad)), size, OnError.NULL, SCHEMA)]
    outputs, errors, num_rows, _ = run_all(Work((counted(30),), limits), chain)
    assert not errors
    assert num_rows == len(bad)
    assert rows_of(outputs) == [{"id": one, "twice": None if one in bad else 2.0 * one} for one in range(30)]
    assert all(table.schema.equals(SCHEMA) for table, _ in outputs)


def test_bad_row_of_which_no_column_is_kept_is_null_whatever_the_types() -> None:
    kinds = {
        "tensor": pa.fixed_shape_tensor(pa.float32(), [2, 2]),
        "list": pa.list_(pa.int64()),
        "struct": pa.struct({"a": pa.int8()}),
        "word": pa.dictionary(pa.int32(), pa.string()),
        "at": pa.timestamp("us", "UTC"),
    }

    def refuse(batch: Batch) -> Batch:
        raise ValueError("bad")

    outputs, _, num_rows, _ = run_all(
        Work((counted(3),), UNLIMITED), [giving_up(refuse, 3, OnError.NULL, pa.schema(kinds))]
    )
    assert num_rows == 3
    assert rows_of(outputs) == [dict.fromkeys(kinds)] * 3
    assert all(table.schema.equals(pa.schema(kinds)) for table, _ in outputs)


def test_column_of_another_type_than_the_input_is_null_in_a_bad_row() -> None:
    schema = pa.schema({"id": pa.string()})

    def change(batch: Batch) -> Any:
        if 1 in batch["id"]:
            raise ValueError("bad")
        return {"id": [str(one) for one in batch["id"]]}

    outputs, _, _, _ = run_all(Work((counted(3),), UNLIMITED), [giving_up(change, 3, OnError.NULL, schema)])
    assert rows_of(outputs) == [{"id": "0"}, {"id": None}, {"id": "2"}]


def test_rows_without_number_are_listed_with_their_source() -> None:
    def drop_odd(batch: Batch) -> Batch:
        return {"id": batch["id"][batch["id"] % 2 == 0]}

    chain = [MapBatches(drop_odd, 10, "numpy"), giving_up(doubling({4}), 5)]
    _, _, num_rows, lines = run_all(Work((counted(10),), UNLIMITED), chain)
    assert (num_rows, lines) == (1, ["map_batches(double) failed on t: KeyError: 4"])


def test_all_rows_are_counted_and_the_first_are_listed() -> None:
    bad = set(range(3 * MAX_LISTED_ROWS))
    _, _, num_rows, lines = run_all(Work((counted(len(bad)),), EAGER), [giving_up(doubling(bad), 7)])
    assert num_rows == len(bad)
    assert lines == [line(row) for row in range(MAX_LISTED_ROWS)]


def test_rows_are_told_with_the_block_that_follows_them() -> None:
    outputs, end = run(Work((counted(8),), EAGER), [giving_up(doubling({1, 6, 7}), 2)])

    def told(metadata: OutputMetadata) -> int:
        return 0 if metadata.failed_rows is None else metadata.failed_rows.num_rows

    assert [(ids_of([one]), told(one[1])) for one in outputs] == [([0], 0), ([2, 3], 1), ([4, 5], 0)]
    assert end.failed_rows is not None
    assert end.failed_rows.num_rows == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_ends_programs_is_no_failure_of_rows(kind: str) -> None:
    calls: list[int] = []

    def leave(batch: Batch) -> Batch:
        calls.append(len(batch["id"]))
        raise SystemExit(3)

    _, errors, num_rows, _ = run_all(Work((counted(8),), UNLIMITED), [giving_up(as_kind(kind, leave), 8)])
    [error] = errors
    assert isinstance(error, TaskError)
    assert isinstance(error.__cause__, SystemExit)
    assert (calls, num_rows, error.rows) == ([8], 0, (0, 8))


def test_function_that_turns_out_to_be_a_generator_is_refused() -> None:
    def numbers(batch: Batch) -> Iterator[Batch]:
        yield batch

    _, errors, num_rows, _ = run_all(Work((counted(8),), UNLIMITED), [giving_up(lambda batch: numbers(batch), 8)])
    [error] = errors
    assert isinstance(error, OptionError)
    assert "on_error='raise'" in str(error)
    assert num_rows == 0


def test_rows_that_do_not_conform_do_not_count_for_the_type_of_a_column_of_nulls() -> None:
    outputs = OutputSchema("f", None, Progress(1024))
    origin = Origin("t", None)
    outputs.conform(pa.table({"x": [1], "y": pa.nulls(1)}), origin)
    with pytest.raises(TaskError, match="'x'"):
        outputs.conform(pa.table({"x": ["one"] * 2000, "y": pa.nulls(2000)}), origin)
    assert outputs.conform(pa.table({"x": [2], "y": ["two"]}), origin).to_pydict() == {"x": [2], "y": ["two"]}
