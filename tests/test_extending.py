"""The programs in docs/extending.md do what the page says, and their parts keep the contracts that it names."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import aiodata
from aiodata.batcher import Batcher
from aiodata.errors import OptionError, SourceError, UnknownColumnError
from aiodata.formats import MAKERS
from aiodata.plan.nodes import Apply, Plan, Read
from aiodata.plan.source import raise_it
from aiodata.sources.files import check_paths
from aiodata.sources.memory import TableSource
from aiodata.sources.parquet import ParquetSource

pytestmark = pytest.mark.loops("asyncio")

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COLUMNS = pa.schema([("name", pa.string()), ("age", pa.int32())])
LINES = "".join(f"n{index:<4}{index:>2}\n" for index in range(50))


class Program:
    """A program of the page, run once.

    Attributes:
        names: What it defines.
        printed: What it printed, by lines.
    """

    def __init__(self, index: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Run the program with that place on the page."""
        path = folder / "program.py"
        path.write_text(PYTHON_BLOCK.findall(PAGE.read_text())[index])
        self.names = runpy.run_path(str(path), run_name="__main__")
        self.printed = capsys.readouterr().out.splitlines()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory; work runs locally, and formats that a program adds are gone afterwards."""
    monkeypatch.setenv("AIODATA_RUNTIME", "local")
    known = dict(MAKERS)
    yield tmp_path
    MAKERS.clear()
    MAKERS.update(known)


@pytest.fixture
def source_page(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    """The program about sources."""
    return Program(0, workplace, capsys)


@pytest.fixture
def verb_page(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    """The program about verbs."""
    return Program(1, workplace, capsys)


@pytest.fixture
def format_page(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    """The program about formats."""
    return Program(2, workplace, capsys)


def dataset(source: Any, *transforms: Any) -> aiodata.Dataset:
    plan = Plan(Read(source), tuple(Apply(transform) for transform in transforms))
    return aiodata.Dataset(plan, aiodata.ExecutionOptions(preserve_order=True))


def test_the_page_has_three_programs() -> None:
    assert len(PYTHON_BLOCK.findall(PAGE.read_text())) == 3


def test_fixed_width_files_are_counted_and_read(source_page: Program) -> None:
    people = [("ann", 12, 2023), ("bob", None, 2023), ("carl", 95, 2024)]
    rows = [{"name": name, "age": age, "year": year} for name, age, year in people]
    assert source_page.printed == ["3", str(rows), str([{"year": 2023, "name": "ann"}])]


def test_a_piece_reads_the_same_rows_from_any_position(source_page: Program, workplace: Path) -> None:
    (workplace / "ages.fwf").write_text(LINES)
    lines = source_page.names["Lines"](COLUMNS, (5, 2))
    source = source_page.names["FixedWidthSource"](check_paths(workplace / "ages.fwf", None), lines)
    pieces = source.pieces(3, raise_it)
    assert len(pieces) == 3
    for piece in pieces:
        [whole] = piece.read(0, 0, 1 << 20)
        for row in range(whole.table.num_rows):
            chunks = list(piece.read(0, row, 30))
            assert chunks[0].row == row
            assert all(chunk.table.schema.equals(source.schema(raise_it), check_metadata=True) for chunk in chunks)
            assert pa.concat_tables([chunk.table for chunk in chunks]).equals(whole.table.slice(row))


async def test_tasks_divide_a_file_of_the_new_source(source_page: Program, workplace: Path) -> None:
    (workplace / "ages.txt").write_text(LINES)
    ds = source_page.names["read_fixed_width"](workplace, COLUMNS, (5, 2))
    ds = ds.with_options(preserve_order=True, num_cpus=4, target_block_bytes=50)
    assert [row["age"] for row in await ds.take(100)] == list(range(50))
    assert await ds.filter(pc.field("age") >= 40).count() == 10


async def test_functions_get_full_batches_of_the_new_source(source_page: Program, workplace: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (workplace / name).write_text(LINES)
    ds = source_page.names["read_fixed_width"](workplace, COLUMNS, (5, 2)).with_options(num_cpus=4)
    calls: list[int] = []

    def note(batch: dict[str, Any]) -> dict[str, Any]:
        calls.append(len(batch["name"]))
        return batch

    assert len(await ds.map_batches(note, batch_size=7).take(200)) == 100
    assert sorted(calls) == [2, *[7] * 14]


async def test_files_of_the_new_source_that_cannot_be_read_are_errors_or_skipped(
    source_page: Program, workplace: Path
) -> None:
    (workplace / "good.fwf").write_text(LINES)
    (workplace / "short.fwf").write_text("n1\n")
    ds = source_page.names["read_fixed_width"](workplace, COLUMNS, (5, 2))
    with pytest.raises(SourceError, match=r"short\.fwf: 3 bytes are no multiple of 8"):
        await ds.take()
    assert await ds.with_options(max_errored_blocks=1).count() == 50
    (workplace / "short.fwf").write_text("n1   xx\n")
    with pytest.raises(SourceError, match=r"short\.fwf: cannot be read as fixed-width text: .*xx"):
        await ds.take(100)


async def test_unknown_columns_of_the_new_source_are_refused(source_page: Program, workplace: Path) -> None:
    (workplace / "ages.fwf").write_text(LINES)
    ds = source_page.names["read_fixed_width"](workplace, COLUMNS, (5, 2))
    with pytest.raises(UnknownColumnError, match="there is no column 'agee'; did you mean 'age'"):
        await ds.select_columns("agee").take()


def test_new_verbs_are_explained_and_applied(verb_page: Program) -> None:
    assert verb_page.printed[0].startswith("people  ")
    assert verb_page.printed[1].startswith("drop_nulls(['name']) -> add_row_hash('hash')")
    assert verb_page.printed[2:] == ["['name', 'age', 'hash']", "['ann', 'carl']"]


async def test_a_new_verb_is_pushed_into_a_source_that_filters(verb_page: Program, workplace: Path) -> None:
    pq.write_table(pa.table({"x": [1, None, 3]}), workplace / "x.parquet")
    ds = dataset(ParquetSource(check_paths(workplace / "x.parquet", None)), verb_page.names["DropNulls"](("x",)))
    assert "drop_nulls" not in ds.explain()
    assert "filter=is_valid(x)" in ds.explain()
    assert await ds.take() == [{"x": 1}, {"x": 3}]
    assert await ds.count() == 2


async def test_new_verbs_refuse_what_cannot_work_before_anything_runs(verb_page: Program) -> None:
    source = TableSource("people", [pa.table({"name": ["ann"]})])
    with pytest.raises(UnknownColumnError, match="there is no column 'nme'; did you mean 'name'"):
        await dataset(source, verb_page.names["DropNulls"](("nme",))).schema()
    with pytest.raises(OptionError, match="there is a column 'name' already"):
        await dataset(source, verb_page.names["AddRowHash"]("name")).schema()


async def test_a_verb_that_keeps_the_number_of_rows_is_not_run_to_count(verb_page: Program) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("it was run")

    failing = type("Failing", (verb_page.names["AddRowHash"],), {"apply": fail})
    source = TableSource("people", [pa.table({"name": ["ann", "bob"]})])
    assert await dataset(source, failing("hash")).count() == 2


async def test_a_verb_with_state_builds_it_in_its_actor_and_lets_go_of_it(verb_page: Program) -> None:
    add_row_hash = verb_page.names["AddRowHash"]
    closed = []
    stateful: Any = type(
        "Stateful",
        (add_row_hash,),
        {
            "needs_actor": True,
            "build": lambda self, loop: stateful(f"{self.column}_built"),
            "close": lambda self: closed.append(self.column),
            "output_schema": lambda self, schema: None,
        },
    )
    source = TableSource("people", [pa.table({"name": ["ann"]})])
    [row] = await dataset(source, stateful("hash")).take()
    assert list(row) == ["name", "hash_built"]
    assert closed == ["hash_built"]


def test_a_new_format_cuts_and_joins_batches(format_page: Program) -> None:
    assert format_page.printed == ["[(0,), (1,)]", "[(2,), (3,)]", "[(4,)]"]
    batcher = Batcher(MAKERS["records"](None, None, False), 3)
    for start in (0, 2):
        batcher.push(pa.table({"x": [start, start + 1], "y": ["a", None]}))
    batcher.finish()
    assert batcher.next_at_once() == [(0, "a"), (1, None), (2, "a")]
    assert batcher.next_at_once() == [(3, None)]
