"""Parquet files: one schema for all of them, read by row group, with columns and filter pushed in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from aiodata.bundle import RefBundle
from aiodata.errors import OptionError, SourceError, UnknownColumnError
from aiodata.origin import Origin, Spans
from aiodata.plan.control import blame
from aiodata.plan.filtering import filter_table, show_expression
from aiodata.plan.naming import short_name
from aiodata.plan.pieces import Chunk, Piece
from aiodata.plan.source import Skip, Source, raise_it
from aiodata.schemas import duplicates, near_miss
from aiodata.sources.decoding import Decoded, Decoder
from aiodata.sources.files import FoundFile, Paths, blame_file, find_files, partition_fields, partition_value
from aiodata.sources.footers import (
    PARQUET,
    Footer,
    Footers,
    Found,
    open_parquet,
    unify,
    with_null_marks,
)
from aiodata.sources.int96 import Int96File
from aiodata.sources.pruning import can_be_true, constant
from aiodata.sources.scan import Scan, View

# Bytes of files that are read at once.
_SMALL_BYTES = 256 << 10

# Footers that are read before the first row: of more files, so many decide the schema, the others are checked.
_MAX_FOOTERS = 1024


@dataclass(frozen=True, slots=True)
class GroupsOrigin(Origin):
    """Several row groups that were read together; a part of their rows may be of one.

    Attributes:
        path: The file.
        first: The first row group.
        starts: The first row of each row group, counted from the start of `first`.
    """

    path: str
    first: int
    starts: tuple[int, ...]

    @classmethod
    def of(cls, path: str, first: int, last: int, metadata: pq.FileMetaData) -> GroupsOrigin:
        """Return where the rows of some row groups came from; those between may be left out, with all their rows."""
        counts = (metadata.row_group(group).num_rows for group in range(first, last + 1))
        *starts, num_rows = accumulate(counts, initial=0)
        return cls(f"{path}, row groups {first} to {last}", (0, num_rows), path, first, tuple(starts))

    def slice(self, start: int, num_rows: int) -> Origin:
        """Narrow the origin to `num_rows` rows from `start`, and to the row groups that these are of."""
        assert self.rows is not None
        begin = self.rows[0] + start
        end = begin + num_rows
        low, high = (bisect_right(self.starts, row) - 1 for row in (begin, max(begin, end - 1)))
        base = self.starts[low]
        rows = (begin - base, end - base)
        if low == high:
            return Origin(f"{self.path}, row group {self.first + low}", rows)
        starts = tuple(one - base for one in self.starts[low : high + 1])
        source = f"{self.path}, row groups {self.first + low} to {self.first + high}"
        return GroupsOrigin(source, rows, self.path, self.first + low, starts)

    def spans(self, num_rows: int) -> Spans:
        """Return what is known of each row group's rows."""
        if self.rows is None or self.rows[1] - self.rows[0] != num_rows:
            return ((self.source, self.source, None, num_rows),)
        return tuple(
            (source, source, max(self.rows[0] - start, 0), min(stop, self.rows[1]) - max(start, self.rows[0]))
            for place, (start, stop) in enumerate(pairwise((*self.starts, self.rows[1])))
            if (source := f"{self.path}, row group {self.first + place}")
        )


@dataclass(frozen=True, slots=True)
class ParquetPiece:
    """A Parquet file, or a run of its row groups.

    Attributes:
        file: The file.
        scan: What to read of it.
        weight: Bytes of the file that it covers.
        first: The first row group.
        stop: The row group to stop before; None: the file's end.
        footer: The file's footer, where it is known. It is not sent along: to read it again is quicker.
    """

    file: FoundFile
    scan: Scan
    weight: int
    first: int = 0
    stop: int | None = None
    footer: Footer | None = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments: a task may get thousands, and a dataclass with slots takes ten times as long."""
        file = self.file
        found = (file.path, file.filesystem, file.size, file.modified_ns, file.partition)
        return _piece, (*found, self.scan, self.weight, self.first, self.stop)

    @property
    def num_rows(self) -> int | None:
        """The rows of its row groups, if its footer is known and there is no filter."""
        if self.footer is None or self.scan.filter is not None:
            return None
        metadata = self.footer.metadata
        if self.stop is None and not self.first:
            return int(metadata.num_rows)
        stop = metadata.num_row_groups if self.stop is None else self.stop
        return sum(int(metadata.row_group(group).num_rows) for group in range(self.first, stop))

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        """Return itself: it stands for no block."""
        return self

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Yield the rows, in the scan's schema; a unit is a row group."""
        first = max(unit, self.first)
        if first == self.stop:
            yield self._nothing()
            return
        with blame_file(self.file.path, PARQUET), self.file.filesystem.open_input_file(self.file.path) as handle:
            if self._is_small and first == 0:
                handle = pa.BufferReader(handle.read_buffer())
            file, footer = self._open(handle)
            stop = footer.metadata.num_row_groups if self.stop is None else self.stop
            is_empty = True
            if footer.num_rows:
                for chunk in self._chunks(handle, file, footer, range(first, stop), row, chunk_bytes):
                    yield chunk
                    is_empty = False
                    del chunk
            if is_empty:
                yield self._nothing()

    @property
    def _is_small(self) -> bool:
        """Whether all of a file is wanted that is quicker read at once than column by column."""
        return self.file.size <= _SMALL_BYTES and not self.first and self.stop is None and self.scan.takes_all

    def _chunks(
        self, handle: Any, file: Any, footer: Footer, groups: Sequence[int], row: int, chunk_bytes: int
    ) -> Iterator[Chunk]:
        scan, metadata = self.scan, footer.metadata
        view = scan.view(self.file.path, footer.columns)
        constants = {one.name: partition_value(one, self.file) for one in scan.partitions}
        groups = scan.keep_groups(metadata, groups, view, constants)
        if view.timestamps and (exact := _int96_columns(metadata, view)):
            file = Int96File(handle, metadata, exact, scan.read_schema)
        decoder = Decoder(self.file.path, file, view.columns, view.layout, chunk_bytes)
        # How many rows a row group has left is known after the filter alone. Where no column is read, there is
        # nothing that could be read in part.
        is_skipped_late = scan.filter is not None or view.columns == []
        early, late = (0, row) if is_skipped_late else (row, 0)
        unit, position = -1, 0
        for decoded in decoder.decode(groups, early):
            if scan.filter is None or decoded.group != unit:
                unit, position = decoded.group, decoded.row
            origin = self._origin(decoded, metadata)
            table = scan.shape(self.file.path, decoded.table, view, constants)
            del decoded
            if scan.filter is not None:
                origin = origin.without_rows()
                table = self._filter(table, origin)
            skipped = min(late, table.num_rows)
            late -= skipped
            table = scan.select(table).slice(skipped)
            chunk = Chunk(unit, position + skipped, table, origin.slice(skipped, table.num_rows))
            position += skipped + table.num_rows
            del table
            if chunk.table.num_rows or not skipped:
                yield chunk
            del chunk

    def _open(self, handle: Any) -> tuple[Any, Footer]:
        """Return the file and its footer: what is known of it, if the file still has its size."""
        if self.footer is not None and handle.size() == self.file.size:
            return pq.ParquetFile(handle, metadata=self.footer.metadata), self.footer
        return open_parquet(self.file.path, handle, self.scan.schemas)

    def _filter(self, table: pa.Table, origin: Origin) -> pa.Table:
        with blame(f"filter({show_expression(self.scan.filter)})", origin):
            return filter_table(table, self.scan.filter)

    def _origin(self, decoded: Decoded, metadata: pq.FileMetaData) -> Origin:
        rows = (decoded.row, decoded.row + decoded.table.num_rows)
        if decoded.group == decoded.last_group:
            return Origin(f"{self.file.path}, row group {decoded.group}", rows)
        return GroupsOrigin.of(self.file.path, decoded.group, decoded.last_group, metadata)

    def _nothing(self) -> Chunk:
        return Chunk(self.first, 0, self.scan.schema.empty_table(), Origin(self.file.path, (0, 0)))


def _int96_columns(metadata: pq.FileMetaData, view: View) -> list[str]:
    leaves = metadata.schema
    return [name for name, places in view.timestamps if any(leaves.column(i).physical_type == "INT96" for i in places)]


def _piece(
    path: str,
    filesystem: pafs.FileSystem,
    size: int,
    modified_ns: int | None,
    partition: tuple[tuple[str, str | None], ...],
    scan: Scan,
    weight: int,
    first: int,
    stop: int | None,
) -> ParquetPiece:
    return ParquetPiece(FoundFile(path, filesystem, size, modified_ns, partition), scan, weight, first, stop)


@dataclass(frozen=True, slots=True)
class _Planned:
    """The files of a pass, without those that are known to be broken, and what to read of them."""

    files: list[FoundFile]
    scan: Scan


@dataclass(frozen=True, slots=True)
class ParquetSource(Source):
    """Parquet files; nothing is listed or opened before a run asks for pieces.

    Attributes:
        paths: Where the files are.
        columns: The columns to read; None: all.
        filter: The rows to read; None: all.
        partitioning: `"hive"`: directories called `key=value` are columns; None: they are not.
        asked_schema: The columns of the files, and their types; None: what holds the values of all files.
        footers: The footers that were read, which what is made of this source shares.
    """

    paths: Paths
    columns: tuple[str, ...] | None = None
    filter: Any = None
    partitioning: str | None = "hive"
    asked_schema: pa.Schema | None = None
    footers: Footers = field(default_factory=Footers, compare=False, repr=False)

    @property
    def name(self) -> str:
        """`read_parquet(<path>)`, with what is pushed down."""
        columns = "" if self.columns is None else f", columns={short_name(str(list(self.columns)))}"
        condition = "" if self.filter is None else f", filter={show_expression(self.filter)}"
        return f"read_parquet({self.paths.name}{columns}{condition})"

    def with_columns(self, columns: tuple[str, ...]) -> Source | None:
        """Read just these columns, if none were chosen yet or these are among them."""
        if self.columns is not None and not set(columns) <= set(self.columns):
            return None
        return replace(self, columns=columns)

    def with_filter(self, expression: Any) -> Source | None:
        """Read just these rows; what a selection has dropped cannot be filtered by any more."""
        if self.columns is not None:
            return None
        return replace(self, filter=expression if self.filter is None else self.filter & expression)

    def schema(self, skip: Skip = raise_it) -> pa.Schema:
        """Return the schema of the rows.

        Args:
            skip: Takes the error of a file whose footer cannot be read, to go on without it; or raises it.

        Raises:
            SourceError: A file is missing, corrupt or unreadable, no file matches, or the types of a column in two
                files do not go together.
            UnknownColumnError: A column is asked for that is not there.
            OptionError: The filter cannot be evaluated.
        """
        found = self._find(skip)
        self.footers.keep_found(found)
        return self._planned(found).scan.schema

    def pieces(self, num_tasks: int, skip: Skip = raise_it) -> Sequence[Piece]:
        """List the files; where they are fewer than the tasks, divide them by row groups.

        Args:
            num_tasks: How many pieces there should be at least.
            skip: As for `schema`.

        Raises:
            SourceError: As for `schema`.
            UnknownColumnError: As for `schema`.
            OptionError: As for `schema`.
        """
        files = self._file_pieces(skip)
        if len(files) >= num_tasks:
            return files
        return self._divide_files(files, -(-num_tasks // len(files)), skip)

    def blocks(self, skip: Skip = raise_it) -> Sequence[Piece]:
        """List all row groups.

        Args:
            skip: As for `schema`.

        Raises:
            SourceError: As for `schema`.
            UnknownColumnError: As for `schema`.
            OptionError: As for `schema`.
        """
        return self._divide_files(self._file_pieces(skip), None, skip)

    def bundles(self) -> Iterable[RefBundle] | None:
        """Return None: rows are read in tasks."""
        return None

    def count_rows(self, skip: Skip = raise_it) -> int | None:
        """Return the sum of the files' row counts, unless there is a filter.

        Args:
            skip: As for `schema`.

        Raises:
            SourceError: As for `schema`.
            UnknownColumnError: As for `schema`.
        """
        if self.filter is not None:
            return None
        planned = self._plan(skip)
        footers = self.footers.read(planned.files, skip)
        return sum(footer.num_rows for footer in footers if footer is not None)

    def _file_pieces(self, skip: Skip) -> list[ParquetPiece]:
        """List the files; where none can have rows that are wanted, one piece without rows."""
        planned = self._plan(skip)
        files, scan = _wanted_files(planned), planned.scan
        if not files:
            return [ParquetPiece(planned.files[0], scan, 1, 0, 0)]
        kept = self.footers.kept
        return [ParquetPiece(file, scan, max(1, file.size), 0, None, kept(file)) for file in files]

    def _divide_files(self, files: Sequence[ParquetPiece], num_parts: int | None, skip: Skip) -> list[ParquetPiece]:
        """Divide each file into so many runs of row groups, if there are as many; None: into its row groups."""
        footers = self.footers.read([piece.file for piece in files], skip)
        return [
            part
            for piece, footer in zip(files, footers, strict=True)
            if footer is not None
            for part in _divide_file(replace(piece, footer=footer), num_parts)
        ]

    def _plan(self, skip: Skip) -> _Planned:
        """Return what is to be read: of the files that were found for the schema, for which a run asks just before."""
        return self._planned(self.footers.take_found() or self._find(skip))

    def _planned(self, found: Found) -> _Planned:
        if self.asked_schema is None:
            return _Planned(found.files, self._scan(found.full, found.hive))
        full = self.asked_schema.remove_metadata()
        return _Planned(found.files, self._scan(full, [field for field in found.hive if field.name in full.names]))

    def _find(self, skip: Skip) -> Found:
        files = find_files(self.paths, PARQUET, partitioning=self.partitioning)
        hive = partition_fields(files) if self.partitioning else []
        if self.asked_schema is not None:
            return Found(files, hive, pa.schema([]), is_whole=True)
        is_complete = len(files) <= _MAX_FOOTERS
        asked = files if is_complete else _spread(files, _MAX_FOOTERS)
        footers = self.footers.read(asked, skip)
        broken = {file.path for file, footer in zip(asked, footers, strict=True) if footer is None}
        if len(broken) == len(asked):
            raise SourceError(self.paths.name, f"none of the files can be read, for example {asked[0].path}")
        directories = {one.name for one in hive}
        stored = pa.schema([one for one in unify(asked, footers) if one.name not in directories])
        if is_complete:
            stored = with_null_marks(stored, [footer for footer in footers if footer is not None])
        readable = [file for file in files if file.path not in broken]
        return Found(readable, hive, pa.schema([*stored, *hive]), is_whole=not broken)

    def _scan(self, full: pa.Schema, hive: Sequence[pa.Field]) -> Scan:
        """Choose columns out of all that there are."""
        columns = self.columns
        if twice := duplicates(columns or ()):
            raise OptionError(f"{self.name}: the columns have {twice} more than once; name each column once")
        for name in columns or ():
            if name not in full.names:
                raise UnknownColumnError(self.name, f"there is no column {name!r}{near_miss(name, full.names)}")
        directories = tuple(one.name for one in hive)
        is_strict = columns is None and self.asked_schema is None
        return Scan(full, columns, self.filter, directories, is_strict=is_strict)


def _wanted_files(planned: _Planned) -> list[FoundFile]:
    """Return the files whose directories do not rule out that the filter is true."""
    fields = planned.scan.filtered_partitions
    if not fields:
        return planned.files
    partitions = {file.partition: file for file in planned.files}
    guarantees = []
    for file in partitions.values():
        parts = [constant(one, partition_value(one, file)) for one in fields]
        known = [part for part in parts if part is not None]
        guarantees.append(pc.scalar(True) if not known else known[0])
        for part in known[1:]:
            guarantees[-1] = guarantees[-1] & part
    kept = can_be_true(planned.scan.filter, planned.scan.read_schema, guarantees)
    wanted = {partition for partition, is_kept in zip(partitions, kept, strict=True) if is_kept}
    return [file for file in planned.files if file.partition in wanted]


def _spread(files: Sequence[FoundFile], count: int) -> list[FoundFile]:
    """Return so many of the files, evenly spread, the first and the last among them."""
    return [files[index * (len(files) - 1) // (count - 1)] for index in range(count)]


def _divide_file(piece: ParquetPiece, num_parts: int | None) -> list[ParquetPiece]:
    """Divide a file, of which the footer is known, into runs of row groups of about equal number; None: of one each."""
    assert piece.footer is not None
    num_groups = piece.footer.metadata.num_row_groups
    count = num_groups if num_parts is None else min(num_parts, num_groups)
    if count <= 1:
        return [piece]
    bounds = [num_groups * index // count for index in range(count + 1)]
    weight = max(1, piece.weight // count)
    return [replace(piece, first=a, stop=b, weight=weight) for a, b in pairwise(bounds)]
