"""Parquet files: found by path, directory, glob, list or URI; read by row group, with columns and filter pushed in."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from aiodata.bundle import RefBundle
from aiodata.errors import SourceError
from aiodata.plan.pieces import Chunk, Origin, Piece
from aiodata.plan.source import Skip, Source

# A row group larger than this many chunks is read in parts, so that its first rows come early.
_CHUNKS_PER_ROW_GROUP = 8

_HIDDEN = ("_", ".")
_GLOB_CHARACTERS = "*?["


@dataclass(frozen=True, slots=True)
class ParquetPiece:
    """A Parquet file, or a run of its row groups.

    Attributes:
        path: The file, in `filesystem`.
        filesystem: Where it is.
        first: The first row group.
        stop: The row group to stop before; None: the file's end.
        weight: Bytes of the file that it covers.
        columns: The columns to read; None: all.
        filter: The rows to keep; None: all.
    """

    path: str
    filesystem: pafs.FileSystem
    weight: int
    columns: tuple[str, ...] | None
    filter: Any
    first: int = 0
    stop: int | None = None

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        """Return itself: it stands for no block."""
        return self

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Yield the rows, one row group at a time; a unit is a row group."""
        with blame_file(self.path), self.filesystem.open_input_file(self.path) as handle:
            file = pq.ParquetFile(handle)
            read_group = self._read_whole_group if self.filter is None else self._read_filtered_group
            check_columns(self.path, self.columns, file.schema_arrow.names)
            names = None if self.columns is None else list(self.columns)
            first = max(unit, self.first)
            stop = file.num_row_groups if self.stop is None else self.stop
            if first >= stop:
                yield Chunk(first, 0, self._empty(file, names), Origin(self.path, (0, 0)))
            for group in range(first, stop):
                yield from read_group(file, group, row if group == unit else 0, chunk_bytes, names)

    def _read_whole_group(
        self, file: pq.ParquetFile, group: int, row: int, chunk_bytes: int, names: list[str] | None
    ) -> Iterator[Chunk]:
        """Yield a row group at once, or in parts if it is large; one thread: tasks are what runs side by side."""
        metadata = file.metadata.row_group(group)
        origin = Origin(f"{self.path}, row group {group}", (0, metadata.num_rows))
        if metadata.total_byte_size <= _CHUNKS_PER_ROW_GROUP * chunk_bytes:
            table = _plain(file.read_row_group(group, columns=names, use_threads=False)).slice(row)
            yield Chunk(group, row, table, origin.slice(row, table.num_rows))
            return
        rows_per_chunk = max(1, metadata.num_rows * chunk_bytes // metadata.total_byte_size)
        position = 0
        for batch in file.iter_batches(rows_per_chunk, row_groups=[group], columns=names, use_threads=False):
            end = position + batch.num_rows
            if end > row:
                table = _plain(pa.Table.from_batches([batch])).slice(max(0, row - position))
                start = end - table.num_rows
                yield Chunk(group, start, table, origin.slice(start, table.num_rows))
            position = end

    def _read_filtered_group(
        self, file: pq.ParquetFile, group: int, row: int, chunk_bytes: int, names: list[str] | None
    ) -> Iterator[Chunk]:
        """Yield the rows of a row group that pass the filter; its statistics may rule out all of them."""
        fragment = pads.ParquetFileFormat().make_fragment(self.path, self.filesystem, row_groups=[group])
        columns = None if self.columns is None else list(self.columns)
        table = _plain(fragment.to_table(columns=columns, filter=self.filter, use_threads=False)).slice(row)
        yield Chunk(group, row, table, Origin(f"{self.path}, row group {group}", None))

    def _empty(self, file: pq.ParquetFile, names: list[str] | None) -> pa.Table:
        table = _plain(file.schema_arrow.empty_table())
        return table if names is None else table.select(names)


@dataclass(frozen=True, slots=True)
class ParquetSource(Source):
    """Parquet files; nothing is listed or opened before a run asks for pieces."""

    paths: tuple[str, ...]
    columns: tuple[str, ...] | None = None
    filter: Any = None
    filesystem: pafs.FileSystem | None = None

    @property
    def name(self) -> str:
        """`read_parquet(<path>)`, with what is pushed down."""
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        columns = "" if self.columns is None else f", columns={list(self.columns)}"
        condition = "" if self.filter is None else f", filter={self.filter}"
        return f"read_parquet({self.paths[0]}{more}{columns}{condition})"

    def with_columns(self, columns: tuple[str, ...]) -> Source | None:
        """Read just these columns, if none were chosen yet or these are among them."""
        if self.columns is not None and not set(columns) <= set(self.columns):
            return None
        return replace(self, columns=columns)

    def with_filter(self, expression: Any) -> Source | None:
        """Read just these rows; what a selection has dropped can not be filtered by any more."""
        if self.columns is not None:
            return None
        return replace(self, filter=expression if self.filter is None else self.filter & expression)

    def pieces(self, num_tasks: int, skip: Skip) -> Sequence[Piece]:
        """List the files; where they are fewer than the tasks, divide them by row groups."""
        files = self._files()
        pieces = [
            ParquetPiece(info.path, filesystem, max(1, info.size or 1), self.columns, self.filter)
            for filesystem, info in files
        ]
        if len(pieces) >= num_tasks:
            return pieces
        return [part for piece in pieces for part in _divide_file(piece, -(-num_tasks // len(pieces)))]

    def bundles(self) -> Iterable[RefBundle] | None:
        """Return None: rows are read in tasks."""
        return None

    def schema(self, skip: Skip) -> pa.Schema:
        """Return the first file's schema."""
        filesystem, info = self._files()[0]
        with blame_file(info.path), filesystem.open_input_file(info.path) as handle:
            schema = pq.read_schema(handle).remove_metadata()
        check_columns(info.path, self.columns, schema.names)
        return schema if self.columns is None else pa.schema([schema.field(name) for name in self.columns])

    def count_rows(self, skip: Skip) -> int | None:
        """Return the sum of the files' row counts, unless there is a filter."""
        if self.filter is not None:
            return None
        total = 0
        for filesystem, info in self._files():
            with blame_file(info.path), filesystem.open_input_file(info.path) as handle:
                metadata = pq.read_metadata(handle)
            check_columns(info.path, self.columns, metadata.schema.to_arrow_schema().names)
            total += metadata.num_rows
        return total

    def _files(self) -> list[tuple[pafs.FileSystem, pafs.FileInfo]]:
        return [found for path in self.paths for found in find_files(path, self.filesystem)]


def find_files(path: str, filesystem: pafs.FileSystem | None) -> list[tuple[pafs.FileSystem, pafs.FileInfo]]:
    """Return the files that a path, directory, glob or URI stands for, sorted by path.

    In directories, and of a glob, files whose names start with `_` or `.` do not count; nor, in directories, do
    files that do not end in `.parquet` where some do.

    Raises:
        SourceError: It does not exist, or no file matches.
    """
    with blame_file(path):
        if filesystem is None:
            filesystem, inner = pafs.FileSystem.from_uri(path) if "://" in path else (pafs.LocalFileSystem(), path)
        else:
            inner = path
        info = filesystem.get_file_info(inner)
        if info.type == pafs.FileType.NotFound:
            if not any(character in inner for character in _GLOB_CHARACTERS):
                raise SourceError(path, "no such file or directory")
            found = _match_glob(filesystem, inner)
        else:
            found = [info] if info.type == pafs.FileType.File else _list_directory(filesystem, inner)
    if not found:
        raise SourceError(path, "no Parquet file is there")
    return [(filesystem, info) for info in sorted(found, key=lambda info: str(info.path))]


def check_columns(path: str, wanted: Sequence[str] | None, known: Sequence[str]) -> None:
    """Raise a `SourceError` that names the columns that a file lacks."""
    if missing := [name for name in wanted or () if name not in known]:
        raise SourceError(path, f"has no column {', '.join(map(repr, missing))}; its columns are {list(known)}")


@contextmanager
def blame_file(path: str) -> Iterator[None]:
    """Turn an error of reading into a `SourceError` that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise SourceError(path, f"can not be read as Parquet: {error}") from error


def _plain(table: pa.Table) -> pa.Table:
    """Drop the schema's metadata: it is about the file, for example which column was a data frame's index."""
    return table.replace_schema_metadata(None)


def _list_directory(filesystem: pafs.FileSystem, directory: str) -> list[pafs.FileInfo]:
    infos = filesystem.get_file_info(pafs.FileSelector(directory, recursive=True))
    files = [info for info in infos if info.is_file and not _is_hidden(info.path, directory)]
    return [info for info in files if info.path.endswith(".parquet")] or files


def _match_glob(filesystem: pafs.FileSystem, pattern: str) -> list[pafs.FileInfo]:
    """Match as shells do: a star stays within one directory, two stars cross them."""
    parts = pattern.split("/")
    fixed = next(index for index, part in enumerate(parts) if any(c in part for c in _GLOB_CHARACTERS))
    base = "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ".")
    if filesystem.get_file_info(base).type != pafs.FileType.Directory:
        return []
    recursive = "**" in parts or len(parts) - fixed > 1
    infos = filesystem.get_file_info(pafs.FileSelector(base, recursive=recursive))
    wanted = parts[fixed:]
    return [
        info
        for info in infos
        if info.is_file and not _is_hidden(info.path, base) and _matches(_below(info.path, base), wanted)
    ]


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_matches(names[skip:], patterns[1:]) for skip in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _is_hidden(path: str, base: str) -> bool:
    return any(part.startswith(_HIDDEN) for part in _below(path, base))


def _below(path: str, base: str) -> list[str]:
    """Return the names that lead from a directory to a path in it; some file systems list without leading slashes."""
    return posixpath.relpath("/" + path.lstrip("/"), "/" + base.removeprefix("./").lstrip("/")).split("/")


def _divide_file(piece: ParquetPiece, num_parts: int) -> list[ParquetPiece]:
    """Divide a file into runs of row groups of about equal number."""
    with blame_file(piece.path), piece.filesystem.open_input_file(piece.path) as handle:
        num_groups = pq.read_metadata(handle).num_row_groups
    count = min(num_parts, num_groups)
    if count <= 1:
        return [piece]
    bounds = [num_groups * index // count for index in range(count + 1)]
    weight = max(1, piece.weight // count)
    return [replace(piece, first=a, stop=b, weight=weight) for a, b in pairwise(bounds)]
