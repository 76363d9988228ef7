"""Parquet: which files a path stands for, what is read of them, and what is said of one that can not be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

import aiodata
from tests.conftest import collect

pytestmark = pytest.mark.loops("asyncio")

ALL = list(range(10_000))

Ask = Callable[[aiodata.Dataset], Any]

ASKS: dict[str, Ask] = {
    "iterate": collect,
    "schema": lambda ds: ds.schema(),
    "count": lambda ds: ds.count(),
    "take": lambda ds: ds.take(),
}


def read(path: Any, runtime: str = "local", *, target_block_bytes: int = 1 << 25, **arguments: Any) -> aiodata.Dataset:
    ds = aiodata.read_parquet(path, **arguments)
    return ds.with_options(runtime=runtime, preserve_order=True, target_block_bytes=target_block_bytes)


def make_file(path: Path, ids: range, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": list(ids)}), path, **options)


def damage_chunk(path: Path, *, group: int, column: int) -> None:
    """Overwrite the pages of one column in one row group; the footer stays as it was."""
    chunk = pq.read_metadata(path).row_group(group).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)


def missing_file(base: Path) -> str:
    return str(base / "gone.parquet")


def missing_directory(base: Path) -> str:
    return str(base / "gone" / "part-0.parquet")


def empty_directory(base: Path) -> str:
    (base / "empty").mkdir()
    return str(base / "empty")


def directory_with_hidden_files_alone(base: Path) -> str:
    make_file(base / "hidden" / "_part.parquet", range(3))
    return str(base / "hidden")


def glob_without_match(base: Path) -> str:
    return str(base / "*.orc")


def glob_in_a_missing_directory(base: Path) -> str:
    return str(base / "gone" / "*.parquet")


def garbage(base: Path) -> str:
    (base / "garbage.parquet").write_bytes(bytes(range(256)) * 40)
    return str(base / "garbage.parquet")


def text(base: Path) -> str:
    (base / "notes.txt").write_text("id\n1\n2\n")
    return str(base / "notes.txt")


def empty_file(base: Path) -> str:
    (base / "empty.parquet").touch()
    return str(base / "empty.parquet")


def truncated(base: Path) -> str:
    make_file(base / "whole.parquet", range(1000))
    whole = (base / "whole.parquet").read_bytes()
    (base / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    return str(base / "cut.parquet")


def link_to_itself(base: Path) -> str:
    (base / "loop.parquet").symlink_to(base / "loop.parquet")
    return str(base / "loop.parquet")


BROKEN = [
    missing_file,
    missing_directory,
    empty_directory,
    directory_with_hidden_files_alone,
    glob_without_match,
    glob_in_a_missing_directory,
    garbage,
    text,
    empty_file,
    truncated,
    link_to_itself,
]


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
async def test_what_can_not_be_read_is_named_whatever_is_asked(
    tmp_path: Path, broken: Callable[[Path], str], ask: Ask
) -> None:
    path = broken(tmp_path)
    ds = read(path)
    with pytest.raises(aiodata.SourceError) as caught:
        await ask(ds)
    assert caught.value.path == path
    assert path in str(caught.value)


@pytest.mark.parametrize("broken", [missing_file, garbage, empty_directory])
async def test_what_can_not_be_read_is_named_on_every_runtime(
    runtime: str, clean: None, tmp_path: Path, broken: Callable[[Path], str]
) -> None:
    path = broken(tmp_path)
    with pytest.raises(aiodata.SourceError) as caught:
        await collect(read(path, runtime))
    assert caught.value.path == path


async def test_broken_file_among_good_ones_is_named(runtime: str, clean: None, parquet_dir: Path) -> None:
    (parquet_dir / "part-2.parquet").write_bytes(b"PAR1" + bytes(500) + b"PAR1")
    with pytest.raises(aiodata.SourceError) as caught:
        await collect(read(parquet_dir, runtime))
    assert caught.value.path == str(parquet_dir / "part-2.parquet")


async def test_missing_path_among_good_ones_is_named(parquet_dir: Path) -> None:
    with pytest.raises(aiodata.SourceError) as caught:
        await collect(read([parquet_dir, parquet_dir / "gone.parquet"]))
    assert caught.value.path == str(parquet_dir / "gone.parquet")


async def test_damaged_page_is_an_error_that_names_the_file(runtime: str, clean: None, tmp_path: Path) -> None:
    path = tmp_path / "damaged.parquet"
    make_file(path, range(1000), row_group_size=100, compression="zstd")
    damage_chunk(path, group=5, column=0)
    with pytest.raises(aiodata.SourceError) as caught:
        await collect(read(path, runtime))
    assert caught.value.path == str(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
async def test_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.parquet"
    make_file(path, range(3))
    path.chmod(0)
    with pytest.raises(aiodata.SourceError, match="secret"):
        await collect(read(path))


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("how", ["argument", "select_columns"])
async def test_missing_column_is_named_with_the_file_and_its_columns(parquet_dir: Path, ask: Ask, how: str) -> None:
    columns = ["id", "nope"]
    ds = read(parquet_dir, columns=columns) if how == "argument" else read(parquet_dir).select_columns(columns)
    with pytest.raises(aiodata.SourceError, match=r"no column 'nope'; the columns are .*'id', 'x', 's'"):
        await ask(ds)


async def test_missing_column_of_a_filter_is_named(runtime: str, parquet_dir: Path) -> None:
    with pytest.raises(aiodata.SourceError, match="nope"):
        await collect(read(parquet_dir, runtime, filter=pc.field("nope") > 1))


async def test_nothing_is_looked_for_before_iteration(tmp_path: Path) -> None:
    ds = read(tmp_path / "later.parquet")
    assert "later.parquet" in repr(ds)
    make_file(tmp_path / "later.parquet", range(3))
    assert await collect(ds) == [0, 1, 2]


PATHS: dict[str, Callable[[Path], Any]] = {
    "directory": str,
    "directory_with_slash": lambda base: f"{base}/",
    "pathlib": lambda base: base,
    "glob": lambda base: str(base / "*.parquet"),
    "glob_one_character": lambda base: str(base / "part-?.parquet"),
    "glob_set": lambda base: str(base / "part-[0-3].parquet"),
    "glob_in_directory": lambda base: f"{base.parent}/{base.name[:-1]}[{base.name[-1]}]/*.parquet",
    "two_stars": lambda base: str(base / "**" / "*.parquet"),
    "list_of_files": lambda base: [base / f"part-{index}.parquet" for index in range(4)],
    "list_of_globs": lambda base: [str(base / "*-[01].parquet"), str(base / "*-[23].parquet")],
    "uri": lambda base: base.as_uri(),
    "uri_glob": lambda base: base.as_uri() + "/*.parquet",
    "list_of_uri_and_path": lambda base: [(base / "part-0.parquet").as_uri(), str(base / "part-[1-3].parquet")],
}


@pytest.mark.parametrize("make", PATHS.values(), ids=PATHS)
async def test_path_stands_for_the_files(runtime: str, parquet_dir: Path, make: Callable[[Path], Any]) -> None:
    ds = read(make(parquet_dir), runtime)
    assert await collect(ds) == ALL
    assert await ds.count() == len(ALL)


@pytest.mark.parametrize("make", [pafs.LocalFileSystem, lambda: pafs.SubTreeFileSystem("/", pafs.LocalFileSystem())])
async def test_file_system_of_the_user_is_used(runtime: str, parquet_dir: Path, make: Callable[[], Any]) -> None:
    for path in (str(parquet_dir), f"{parquet_dir}/*.parquet", f"{parquet_dir}/**"):
        assert await collect(read(path, runtime, filesystem=make())) == ALL


@pytest.mark.parametrize("path", ["sub", "sub/*.parquet", "sub/**", "*/part-*", "**/*.parquet", "**", ".", ""])
async def test_relative_path_is_relative_to_the_file_system_given(runtime: str, tmp_path: Path, path: str) -> None:
    make_file(tmp_path / "sub" / "part-0.parquet", range(5))
    make_file(tmp_path / "sub" / "part-1.parquet", range(5, 9))
    filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    assert await collect(read(path, runtime, filesystem=filesystem)) == list(range(9))


@pytest.mark.parametrize("filesystem", [None, pafs.LocalFileSystem()], ids=["none", "local"])
async def test_relative_path_keeps_its_meaning_when_the_working_directory_changes(
    runtime: str, parquet_dir: Path, monkeypatch: pytest.MonkeyPatch, filesystem: Any
) -> None:
    monkeypatch.chdir(parquet_dir)
    datasets = [read(path, runtime, filesystem=filesystem) for path in (".", "part-?.parquet", Path("./"))]
    (parquet_dir / "elsewhere").mkdir()
    monkeypatch.chdir(parquet_dir / "elsewhere")
    for ds in datasets:
        assert await collect(ds) == ALL


async def test_nested_directories_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    make_file(tmp_path / "b" / "part.parquet", range(4, 6))
    make_file(tmp_path / "a" / "deep" / "part.parquet", range(2))
    make_file(tmp_path / "a" / "part.parquet", range(2, 4))
    make_file(tmp_path / "c.parquet", range(6, 7))
    assert await collect(read(tmp_path)) == list(range(7))
    assert await collect(read(tmp_path / "**")) == list(range(7))
    assert await collect(read(tmp_path / "*")) == list(range(7))
    assert await collect(read(tmp_path / "*" / "*")) == list(range(6))
    assert await collect(read(tmp_path / "?.parquet")) == [6]
    assert await collect(read(tmp_path / "a" / "**" / "*.parquet")) == [0, 1, 2, 3]


async def test_hidden_and_other_files_in_a_directory_are_left_out(tmp_path: Path) -> None:
    make_file(tmp_path / "part.parquet", range(3))
    for name in ("_metadata", ".part.parquet.crc", "_SUCCESS", "notes.txt", "_temporary/part.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no Parquet")
    assert await collect(read(tmp_path)) == [0, 1, 2]
    assert await collect(read(tmp_path / "*.parquet")) == [0, 1, 2]
    assert await collect(read(tmp_path / "**" / "*.parquet")) == [0, 1, 2]


async def test_hidden_file_that_is_named_is_read(tmp_path: Path) -> None:
    make_file(tmp_path / "_part.parquet", range(3))
    assert await collect(read(tmp_path / "_part.parquet")) == [0, 1, 2]


async def test_directory_below_a_hidden_one_is_read(tmp_path: Path) -> None:
    make_file(tmp_path / ".cache" / "_tmp" / "part.parquet", range(3))
    assert await collect(read(tmp_path / ".cache" / "_tmp")) == [0, 1, 2]


async def test_file_with_brackets_in_its_name_is_found(tmp_path: Path) -> None:
    make_file(tmp_path / "part[1].parquet", range(3))
    assert await collect(read(tmp_path / "part[1].parquet")) == [0, 1, 2]
    assert await collect(read(tmp_path)) == [0, 1, 2]
