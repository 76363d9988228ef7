"""Errors name who is to blame, and survive the way between processes."""

from __future__ import annotations

import pickle

import pytest

import aiodata
from aiodata import (
    AiodataError,
    BarrierTimeoutError,
    BusyError,
    ClosedError,
    CoordinatorLostError,
    EpochError,
    OptionError,
    RuntimeUnavailableError,
    SourceError,
    SplitBusyError,
    SplitLostError,
    TaskError,
    UnknownColumnError,
    errors,
)

ERRORS = [
    TaskError("map_batches(double)", "jan.parquet, row group 3", (10, 20), "ZeroDivisionError: division by zero"),
    TaskError("map_batches(double)", "jan.parquet", None, "KeyError: 'x'"),
    SourceError("jan.parquet", "it does not exist"),
    UnknownColumnError("select_columns(['x'])", "there is no column 'x'"),
    *(
        kind("words")
        for kind in (
            BarrierTimeoutError,
            BusyError,
            ClosedError,
            CoordinatorLostError,
            EpochError,
            OptionError,
            RuntimeUnavailableError,
            SplitBusyError,
            SplitLostError,
        )
    ),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_pickled_error_is_the_same_error(error: AiodataError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


@pytest.mark.parametrize(
    ("rows", "where"),
    [((10, 20), "data, rows 10-19"), ((7, 8), "data, row 7"), ((7, 7), "data, row 7"), (None, "data")],
)
def test_task_error_names_operator_place_and_reason(rows: tuple[int, int] | None, where: str) -> None:
    error = TaskError("filter(x > 1)", "data", rows, "KeyError: 'x'")
    assert str(error) == f"filter(x > 1) failed on {where}: KeyError: 'x'"
    assert (error.operator, error.source, error.rows) == ("filter(x > 1)", "data", rows)


def test_source_error_names_path_and_reason() -> None:
    error = SourceError("data/*.parquet", "no file matches")
    assert str(error) == "data/*.parquet: no file matches"
    assert error.path == "data/*.parquet"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_is_an_aiodata_error(error: Exception) -> None:
    assert isinstance(error, AiodataError)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (ClosedError, RuntimeError),
        (BusyError, RuntimeError),
        (EpochError, RuntimeError),
        (OptionError, ValueError),
        (BarrierTimeoutError, TimeoutError),
    ],
)
def test_error_is_also_the_builtin_one_for_it(kind: type[AiodataError], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)


def test_every_error_of_the_module_is_public_and_pickled_above() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AiodataError)}
    assert {type(error) for error in ERRORS} == kinds - {AiodataError}
    assert {kind.__name__ for kind in kinds} <= set(aiodata.__all__)
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in kinds)
