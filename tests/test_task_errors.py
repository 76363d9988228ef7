"""What a user's function raises reaches the consumer: the same on every runtime, with the place where it happened."""

from __future__ import annotations

import asyncio
import decimal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import aiodata
from tests.conftest import collect

pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.loops("asyncio")]

Batch = dict[str, Any]


class PairError(Exception):
    """Takes two arguments, hands on both."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code


class RewordedError(Exception):
    """Hands on other arguments than it takes, so that it can not be rebuilt from them."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code


class KeywordError(Exception):
    """Must be given its argument by name."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class UnpicklableError(Exception):
    """Holds what no pickle takes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.generator = (one for one in range(3))


class SpeechlessError(Exception):
    """Fails when it is asked for its text."""

    def __str__(self) -> str:
        raise ZeroDivisionError("no text")


def fail_from(row: int, error: Exception) -> Callable[[Batch], Batch]:
    """Return a function that raises `error` when a batch holds row `row`."""

    def fail(batch: Batch) -> Batch:
        if row in batch["id"]:
            raise error
        return batch

    return fail


def blocks_of_ten(runtime: str, **options: Any) -> aiodata.Dataset:
    return aiodata.range(100, num_blocks=1).with_options(runtime=runtime, **options)


async def failure_of(ds: aiodata.Dataset) -> aiodata.TaskError:
    with pytest.raises(aiodata.TaskError) as caught:
        await collect(ds)
    return caught.value


@pytest.mark.parametrize(
    "error", [ValueError("bad value", 5), KeyError("x"), ZeroDivisionError(), PairError(5, "both"), OSError(2, "gone")]
)
async def test_function_error_is_the_cause_with_type_and_arguments(runtime: str, error: Exception) -> None:
    failure = await failure_of(blocks_of_ten(runtime).map_batches(fail_from(55, error), batch_size=10))
    cause = failure.__cause__
    assert type(cause) is type(error)
    assert cause.args == error.args
    assert vars(cause).get("code") == vars(error).get("code")
    assert str(failure).endswith(f"{type(error).__name__}: {error}")


async def test_function_error_names_operator_file_row_group_and_rows(runtime: str, parquet_dir: Path) -> None:
    ds = aiodata.read_parquet(parquet_dir).with_options(runtime=runtime)
    failure = await failure_of(ds.map_batches(fail_from(6234, ValueError("bad row")), batch_size=100))
    path = parquet_dir / "part-2.parquet"
    assert failure.operator == "map_batches(fail)"
    assert failure.source == f"{path}, row group 1"
    # Row group 1 of the file with rows 5,000 to 7,499 begins at 6,000.
    assert failure.rows == (200, 300)
    assert str(failure) == f"map_batches(fail) failed on {path}, row group 1, rows 200-299: ValueError: bad row"


async def test_function_error_in_memory_names_the_rows(runtime: str) -> None:
    items = aiodata.from_items([{"id": one} for one in range(100)]).with_options(runtime=runtime)
    failure = await failure_of(items.map_batches(fail_from(55, ValueError("bad")), batch_size=10))
    assert failure.source == "from_items"
    assert failure.rows == (50, 60)


async def test_function_error_after_a_filter_names_the_row_groups_without_rows(runtime: str, parquet_dir: Path) -> None:
    ds = aiodata.read_parquet(parquet_dir).filter(pc.field("id") >= 6100).with_options(runtime=runtime)
    failure = await failure_of(ds.map_batches(fail_from(6234, ValueError("bad")), batch_size=100))
    # These were read at once, and what is left of one is not told from what is left of the other.
    assert failure.source == f"{parquet_dir / 'part-2.parquet'}, row groups 1 to 2"
    assert failure.rows is None


async def test_remote_traceback_is_a_note_of_the_cause(ray_cluster: None) -> None:
    ds = blocks_of_ten("ray").map_batches(fail_from(55, ValueError("bad")), batch_size=10)
    cause = (await failure_of(ds)).__cause__
    assert cause is not None
    (note,) = cause.__notes__
    assert "in a worker" in note
    assert "test_task_errors.py" in note
    assert "raise error" in note


async def test_local_traceback_leads_to_the_line_that_raised() -> None:
    ds = blocks_of_ten("local").map_batches(fail_from(55, ValueError("bad")), batch_size=10)
    cause = (await failure_of(ds)).__cause__
    assert cause is not None
    traceback = cause.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    assert traceback is not None
    assert traceback.tb_frame.f_code.co_name == "fail"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: RewordedError(5, "both"), "both (5)"),
        (lambda: KeywordError(code=7), "code 7"),
        (lambda: UnpicklableError("holds a generator"), "holds a generator"),
    ],
    ids=["reworded", "keyword", "unpicklable"],
)
async def test_error_that_does_not_pickle_arrives_with_its_text(
    runtime: str, make: Callable[[], Exception], text: str
) -> None:
    def fail(batch: Batch) -> Batch:
        raise make()

    failure = await failure_of(blocks_of_ten(runtime).map_batches(fail))
    name = type(make()).__name__
    assert failure.operator == "map_batches(fail)"
    assert f"{name}: {text}" in str(failure)
    assert text in str(failure.__cause__)
    if runtime == "ray":
        assert failure.__cause__ is not None
        assert any("in a worker" in note for note in failure.__cause__.__notes__)


async def test_error_without_a_text_still_names_operator_and_rows(runtime: str) -> None:
    def fail(batch: Batch) -> Batch:
        raise SpeechlessError

    failure = await failure_of(blocks_of_ten(runtime).map_batches(fail))
    assert failure.operator == "map_batches(fail)"
    assert "SpeechlessError" in str(failure)


@pytest.mark.loops("asyncio", "uvloop")
@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit, StopIteration, StopAsyncIteration])
async def test_exception_that_steers_the_interpreter_is_an_error_and_no_end_of_data(
    runtime: str, kind: type[BaseException]
) -> None:
    def fail(batch: Batch) -> Batch:
        if 55 in batch["id"]:
            raise kind("from the function")
        return batch

    failure = await failure_of(blocks_of_ten(runtime).map_batches(fail, batch_size=10))
    assert failure.operator == "map_batches(fail)"
    assert kind.__name__ in str(failure)


async def test_error_that_was_raised_from_another_shows_both(runtime: str) -> None:
    def fail(batch: Batch) -> Batch:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error

    cause = (await failure_of(blocks_of_ten(runtime).map_batches(fail))).__cause__
    assert isinstance(cause, ValueError)
    shown = repr(cause.__cause__) + "".join(getattr(cause, "__notes__", []))
    assert "inner" in shown


async def test_second_of_two_fused_functions_is_the_one_named(runtime: str) -> None:
    def first(batch: Batch) -> Batch:
        return {"id": batch["id"]}

    ds = blocks_of_ten(runtime).map_batches(first).map_batches(fail_from(55, ValueError("bad")), batch_size=10)
    failure = await failure_of(ds)
    assert failure.operator == "map_batches(fail)"
    assert "first" not in str(failure)


async def test_function_behind_a_limit_is_named(runtime: str) -> None:
    ds = blocks_of_ten(runtime).limit(60).map_batches(fail_from(55, ValueError("bad")), batch_size=10)
    failure = await failure_of(ds)
    assert failure.operator == "map_batches(fail)"
    assert failure.rows == (50, 60)


async def test_error_in_a_generator_after_some_outputs(runtime: str) -> None:
    def outputs(batch: Batch) -> Iterator[Batch]:
        yield {"id": batch["id"]}
        yield {"id": batch["id"] + 1000}
        if 55 in batch["id"]:
            raise LookupError("third output")

    failure = await failure_of(blocks_of_ten(runtime).map_batches(outputs, batch_size=10))
    assert failure.operator == "map_batches(outputs)"
    assert failure.rows == (50, 60)
    assert isinstance(failure.__cause__, LookupError)


async def test_wrong_output_of_a_generator_names_it(runtime: str) -> None:
    def outputs(batch: Batch) -> Iterator[Any]:
        yield batch
        yield "text"

    failure = await failure_of(blocks_of_ten(runtime).map_batches(outputs, batch_size=10))
    assert failure.operator == "map_batches(outputs)"
    assert isinstance(failure.__cause__, TypeError)


async def test_iteration_ends_with_the_error_and_rows_before_it_are_whole(runtime: str) -> None:
    ds = blocks_of_ten(runtime, preserve_order=True).map_batches(fail_from(55, ValueError("bad")), batch_size=10)
    batches = aiter(ds.aiter_batches(batch_size=5))
    ids: list[int] = []

    async def consume() -> None:
        async for batch in batches:
            ids.extend(batch["id"].tolist())

    with pytest.raises(aiodata.TaskError, match="bad"):
        await consume()
    assert ids == list(range(len(ids)))
    assert len(ids) <= 50
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(batches)
    await batches.aclose()


async def test_error_before_the_first_batch_ends_the_iteration(runtime: str) -> None:
    batches = aiter(blocks_of_ten(runtime).map_batches(fail_from(0, ValueError("bad"))).aiter_batches())
    with pytest.raises(aiodata.TaskError, match="bad"):
        await anext(batches)
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_error_of_many_tasks_at_once_arrives_as_one(runtime: str) -> None:
    def fail(batch: Batch) -> Batch:
        raise ValueError("each task fails")

    ds = aiodata.range(1000, num_blocks=8).map_batches(fail).limit(900).map_batches(fail)
    failure = await failure_of(ds.with_options(runtime=runtime))
    assert isinstance(failure.__cause__, ValueError)


async def test_questions_raise_the_error_too(runtime: str) -> None:
    ds = blocks_of_ten(runtime).map_batches(fail_from(0, ValueError("bad")))
    for ask in (ds.count, ds.schema, ds.take, ds.take_batch):
        with pytest.raises(aiodata.TaskError, match="bad") as caught:
            await ask()
        assert isinstance(caught.value.__cause__, ValueError)


async def test_dataset_can_be_iterated_again_after_an_error(runtime: str) -> None:
    ds = blocks_of_ten(runtime)
    await failure_of(ds.map_batches(fail_from(55, ValueError("bad"))))
    assert await collect(ds) == list(range(100))


@pytest.mark.parametrize("batch_format", ["numpy", "pyarrow", "pandas", "polars"])
async def test_blocks_that_can_not_share_a_batch_end_the_iteration(runtime: str, batch_format: str) -> None:
    def change_shape(batch: Batch) -> Batch:
        return {
            "id": batch["id"],
            "x": [[1.0]] * len(batch["id"]) if 55 in batch["id"] else ["text"] * len(batch["id"]),
        }

    ds = blocks_of_ten(runtime, preserve_order=True).map_batches(change_shape, batch_size=10)
    batches = aiter(ds.aiter_batches(batch_size=7, batch_format=batch_format))
    ids: list[int] = []
    try:
        async for batch in batches:
            ids += list(batch["id"])
    except aiodata.AiodataError:
        with pytest.raises(StopAsyncIteration):
            await anext(batches)
    else:
        assert len(ids) == 100


async def test_batch_that_can_not_be_joined_ends_the_iteration_and_skips_no_rows(runtime: str) -> None:
    columns: list[list[Any]] = [[1, 2], ["a", "b"], ["c", "d", "e", "f"]]
    ds = aiodata.from_arrow([pa.table({"x": values}) for values in columns]).with_options(runtime=runtime)
    batches = aiter(ds.aiter_batches(batch_size=3, batch_format="pyarrow"))
    with pytest.raises(aiodata.AiodataError, match="x"):
        await anext(batches)
    with pytest.raises(StopAsyncIteration):
        await anext(batches)
    await batches.aclose()


class Panic(BaseException):
    """What a library that is written in Rust raises in place of an error."""


class PanickingClass:
    def __init__(self) -> None:
        raise Panic("ouch")

    def __call__(self, batch: Batch) -> Batch:
        return batch


def panic(batch: Batch) -> Batch:
    raise Panic("ouch")


async def panic_later(batch: Batch) -> Batch:
    raise Panic("ouch")


def panic_after_output(batch: Batch) -> Iterator[Batch]:
    yield batch
    raise Panic("ouch")


@pytest.mark.parametrize("function", [panic, panic_later, panic_after_output, PanickingClass])
async def test_panic_of_a_library_is_an_error_with_its_cause(runtime: str, function: Any) -> None:
    ds = aiodata.range(10).with_options(runtime=runtime).map_batches(function)
    with pytest.raises(aiodata.TaskError, match="Panic: ouch") as caught:
        await ds.count()
    assert type(caught.value.__cause__).__name__ == "Panic"
    with pytest.raises(aiodata.TaskError, match="Panic: ouch"):
        await collect(ds)


async def test_panic_may_be_skipped_like_an_error(runtime: str) -> None:
    ds = aiodata.range(10, num_blocks=2).with_options(runtime=runtime, max_errored_blocks=-1).map_batches(panic)
    assert await ds.count() == 0


@pytest.mark.parametrize("function", [panic, panic_later])
async def test_panic_in_a_collate_function_is_an_error(runtime: str, function: Any) -> None:
    ds = aiodata.range(10).with_options(runtime=runtime)
    with pytest.raises(aiodata.TaskError, match="Panic: ouch"):
        async for _ in ds.aiter_batches(collate_fn=function):
            pass


async def test_what_polars_has_no_type_for_is_an_error_where_it_is_converted(runtime: str) -> None:
    table = pa.table({"x": pa.array([decimal.Decimal("1.25")], pa.decimal256(50, 2))})
    ds = aiodata.from_arrow(table).with_options(runtime=runtime)
    with pytest.raises(aiodata.TaskError, match=r"'x' is decimal256\(50, 2\).*polars"):
        await ds.map_batches(lambda batch: batch, batch_format="polars").take()
    for ask in (lambda: ds.take_batch(batch_format="polars"), lambda: collect_polars(ds)):
        with pytest.raises(aiodata.TaskError):
            await ask()


async def collect_polars(ds: aiodata.Dataset) -> None:
    async for _ in ds.aiter_batches(batch_format="polars"):
        pass


@pytest.mark.parametrize(
    "values", [pa.array([10**18], pa.timestamp("s")), pa.array([10**9], pa.date32())], ids=["timestamp", "date"]
)
async def test_values_that_python_cannot_hold_are_an_error_that_names_the_column(
    runtime: str, values: pa.Array
) -> None:
    ds = aiodata.from_arrow(pa.table({"id": [1], "when": values})).with_options(runtime=runtime)
    with pytest.raises(aiodata.TaskError, match=r"take failed on column 'when' .*batch_format='pyarrow'"):
        await ds.take()
    with pytest.raises(aiodata.TaskError, match=r"aiter_rows failed on column 'when' "):
        async for _ in ds.aiter_rows():
            pass
    assert (await ds.take_batch(batch_format="pyarrow"))["when"].equals(pa.chunked_array([values]))
