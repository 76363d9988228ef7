"""Footers: read once, kept while the file is the same, and not kept without bound."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from aiodata.errors import AiodataError, SourceError
from aiodata.plan.source import raise_it
from aiodata.sources import footers as footers_module
from aiodata.sources.files import check_paths, find_files
from aiodata.sources.footers import PARQUET, Footers
from aiodata.sources.parquet import ParquetPiece, ParquetSource


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which footers are parsed."""
    paths: list[str] = []
    open_parquet = footers_module.open_parquet

    def note(path: str, *arguments: Any) -> Any:
        paths.append(Path(path).name)
        return open_parquet(path, *arguments)

    monkeypatch.setattr(footers_module, "open_parquet", note)
    monkeypatch.setattr("aiodata.sources.parquet.open_parquet", note)
    return paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(3):
        pq.write_table(pa.table({"id": [index]}), tmp_path / f"{index}.parquet")
    return tmp_path


def read(source: ParquetSource) -> list[int]:
    pieces = source.pieces(8, raise_it)
    return [one for piece in pieces for chunk in piece.read(0, 0, 1 << 20) for one in chunk.table["id"].to_pylist()]


def test_footer_is_read_once_whatever_is_asked(folder: Path, parsed: list[str]) -> None:
    source = ParquetSource(check_paths(folder, None))
    narrow = source.with_columns(("id",))
    assert isinstance(narrow, ParquetSource)
    for one in (source, narrow):
        one.schema(raise_it)
        assert one.count_rows(raise_it) == 3
        assert read(one) == [0, 1, 2]
    assert parsed == ["0.parquet", "1.parquet", "2.parquet"]


def test_footer_of_a_file_that_has_changed_is_read_again(folder: Path, parsed: list[str]) -> None:
    source = ParquetSource(check_paths(folder, None))
    assert read(source) == [0, 1, 2]
    pq.write_table(pa.table({"id": [7, 8]}), folder / "1.parquet")
    assert read(source) == [0, 7, 8, 2]
    assert parsed == ["0.parquet", "1.parquet", "2.parquet", "1.parquet"]


def test_footers_stay_behind_when_a_piece_or_a_source_is_sent(folder: Path) -> None:
    source = ParquetSource(check_paths(folder, None))
    piece = source.pieces(1)[0]
    sent = pickle.dumps(source)
    assert len(sent) == len(pickle.dumps(ParquetSource(check_paths(folder, None))))
    assert isinstance(piece, ParquetPiece)
    assert piece.footer is not None
    assert pickle.loads(pickle.dumps(piece)).footer is None
    assert read(pickle.loads(sent)) == [0, 1, 2]


def test_footers_are_kept_up_to_so_many_bytes(folder: Path, parsed: list[str]) -> None:
    files = find_files(check_paths(folder, None), PARQUET)
    size = pq.read_metadata(files[0].path).serialized_size
    footers = Footers(2 * size)
    assert all(footers.read(files, raise_it))
    assert [footers.kept(file) is None for file in files] == [True, False, False]
    assert all(footers.read(files, raise_it))
    assert parsed == ["0.parquet", "1.parquet", "2.parquet", "0.parquet"]


def test_broken_files_are_noted_each_once_and_left_out(folder: Path) -> None:
    (folder / "1.parquet").write_bytes(b"PAR1 cut off")
    (folder / "3.parquet").write_bytes(b"")
    files = find_files(check_paths(folder, None), PARQUET)
    skipped: list[AiodataError] = []
    footers = Footers().read(files, skipped.append)
    assert [footer is None for footer in footers] == [False, True, False, True]
    assert [isinstance(error, SourceError) and Path(error.path).name for error in skipped] == ["1.parquet", "3.parquet"]
    with pytest.raises(SourceError, match=r"1\.parquet"):
        Footers().read(files, raise_it)


def test_footers_of_other_file_systems_are_read_side_by_side_in_their_order(folder: Path) -> None:
    filesystem = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
    source = ParquetSource(check_paths(".", filesystem))
    assert read(source) == [0, 1, 2]
