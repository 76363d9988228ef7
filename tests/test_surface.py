"""What is public: a list that changes only on purpose, and is documented throughout."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import aiodata

PUBLIC = [
    "AiodataError",
    "BarrierTimeoutError",
    "BatchIterator",
    "Batches",
    "BudgetStats",
    "BusyError",
    "ClosedError",
    "CoordinatorLostError",
    "CoordinatorStats",
    "Dataset",
    "EpochError",
    "ExecutionOptions",
    "IterationStats",
    "LoopLag",
    "LoopLagMonitor",
    "OperatorStats",
    "OptionError",
    "RefBundle",
    "RowIterator",
    "Rows",
    "RunStats",
    "RuntimeUnavailableError",
    "SourceError",
    "SplitBusyError",
    "SplitIterator",
    "SplitLostError",
    "SplitOptions",
    "SplitService",
    "SplitStats",
    "TaskError",
    "UnknownColumnError",
    "attach",
    "from_arrow",
    "from_items",
    "range",
    "read_parquet",
    "run",
]


def public_callables() -> Iterator[tuple[str, Any]]:
    """Every public function and class, and the public methods and properties of the latter."""
    for name in PUBLIC:
        thing = getattr(aiodata, name)
        yield name, thing
        if not inspect.isclass(thing):
            continue
        owners = [owner for owner in thing.__mro__ if owner.__module__.startswith("aiodata.")]
        for owner in owners:
            for attribute, value in vars(owner).items():
                if not attribute.startswith("_") and (callable(value) or isinstance(value, property)):
                    yield f"{name}.{attribute}", value


def test_public_names_are_these() -> None:
    assert sorted(PUBLIC) == PUBLIC
    assert aiodata.__all__ == PUBLIC


def test_no_other_name_looks_public() -> None:
    names = [
        name for name, value in vars(aiodata).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    ]
    assert sorted(names) == PUBLIC


@pytest.mark.parametrize(("name", "thing"), list(public_callables()))
def test_public_callable_has_a_docstring(name: str, thing: Any) -> None:
    first, *_ = (inspect.getdoc(thing) or "").splitlines() or [""]
    assert first.endswith((".", ":", ";")), f"{name} needs a docstring whose first line is a sentence"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_says_where_it_lives(name: str) -> None:
    assert getattr(aiodata, name).__module__.startswith("aiodata.")


def test_version_is_set() -> None:
    assert aiodata.__version__.count(".") == 2


# Each of these takes as long to import as all of aiodata, or is needed by few.
HEAVY = ("pandas", "polars", "torch", "ray", "pyarrow.dataset", "pyarrow.acero", "pydantic", "fsspec", "rich", "typer")


def test_importing_it_imports_nothing_heavy() -> None:
    program = f"import sys, aiodata; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.split() == []
