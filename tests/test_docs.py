"""The examples work: every doctest, and every program in the README and the docs."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import aiodata
from tests.runtime.test_start import run

ROOT = Path(__file__).parents[1]
# The programs of extending.md add to the package; tests/test_extending.py runs them, and takes that back.
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "extending.md")]
EXAMPLES = {
    "quickstart.py": ["the first five:", "rows in"],
    "splits.py": ["epoch 0: split 0:", "epoch 1: split 0:", "all: 200,000", "epoch 1 ended: 200,000 rows in 2 splits"],
}
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A block of Python on a page."""

    label: str
    code: str

    @property
    def is_program(self) -> bool:
        return re.search(r"^(asyncio\.run|aiodata\.run|trainer\.fit)\(", self.code, re.MULTILINE) is not None

    @property
    def needs_ray(self) -> bool:
        return "streaming_split(" in self.code or self.needs_ray_train

    @property
    def needs_ray_train(self) -> bool:
        return "ray.train" in self.code


def modules_with_examples() -> list[str]:
    """Names of the package's modules that have doctests; the others are not imported."""
    names = ["aiodata", *(module.name for module in pkgutil.walk_packages(aiodata.__path__, "aiodata."))]
    specs = {name: find_spec(name) for name in names}
    return [name for name, spec in specs.items() if spec and spec.origin and ">>> " in Path(spec.origin).read_text()]


def examples() -> list[Example]:
    return [
        Example(f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}", match[1])
        for page in PAGES
        for text in [page.read_text()]
        for match in PYTHON_BLOCK.finditer(text)
    ]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with the data set that `make demo` makes, of a few rows; work runs locally."""
    flights = tmp_path / ".demo" / "flights"
    flights.mkdir(parents=True)
    rows = {
        "origin": ["EWR", "JFK", "LGA"] * 10,
        "distance": [200.0, 1000.0, 733.0] * 10,
        "air_time": [40.0, None, 9.0] * 10,
    }
    pq.write_table(pa.table(rows), flights / "part-0.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIODATA_RUNTIME", "local")
    return tmp_path


def test_modules_with_examples_are_found() -> None:
    assert {"aiodata.dataset", "aiodata.batcher", "aiodata.options"} <= set(modules_with_examples())


@pytest.mark.parametrize("name", modules_with_examples())
@pytest.mark.usefixtures("workplace")
def test_doctests_of_a_module_pass(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0


def test_pages_that_say_so_have_only_programs_that_run() -> None:
    pages = [
        str(page.relative_to(ROOT)) for page in PAGES if "Every program here runs as it stands" in page.read_text()
    ]
    assert "docs/iterating.md" in pages
    assert [one.label for one in examples() if one.label.split(":")[0] in pages and not one.is_program] == []


def programs(*, on_ray: bool) -> list[Any]:
    return [
        pytest.param(one, id=one.label)
        for one in examples()
        if one.is_program and one.needs_ray == on_ray and not one.needs_ray_train
    ]


@pytest.mark.parametrize("example", programs(on_ray=False))
def test_program_runs(example: Example, workplace: Path) -> None:
    run_program(example, workplace)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("example", programs(on_ray=True))
def test_program_runs_on_ray(example: Example, workplace: Path) -> None:
    run_program(example, workplace)


def run_program(example: Example, workplace: Path) -> None:
    program = workplace / "program.py"
    program.write_text(example.code)
    runpy.run_path(str(program), run_name="__main__")


def test_training_learns(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [training] = [one for one in examples() if one.label.startswith("README.md") and "optimizer.step()" in one.code]
    run_program(training, workplace)
    before, after = (float(line.split()[1]) for line in capsys.readouterr().out.splitlines())
    assert 0 < after < before


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("example", [pytest.param(one, id=one.label) for one in examples() if one.needs_ray_train])
def test_program_of_ray_train_runs(example: Example, workplace: Path) -> None:
    # Ray Train holds on to what it was given for as long as the process lives: it has one of its own.
    result = run(example.code, workplace, timeout_s=550, HOME=str(workplace), RAY_ADDRESS="local")
    assert result.returncode == 0, result.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster", "workplace")
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    printed = capsys.readouterr().out
    assert [words for words in EXAMPLES[name] if words not in printed] == []


@pytest.mark.parametrize("example", [pytest.param(one, id=one.label) for one in examples() if not one.is_program])
def test_snippet_compiles(example: Example) -> None:
    compile(example.code, example.label, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
