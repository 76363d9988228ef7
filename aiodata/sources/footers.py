"""Footers of Parquet files: read once, kept for a while, and made into the one schema of all files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from aiodata.errors import SourceError
from aiodata.plan.source import Skip
from aiodata.schemas import SchemaError, duplicates, mark_nulls, plain_type, unify_schemas
from aiodata.sources.files import FileKind, FoundFile, blame_file
from aiodata.sources.layout import Layout

PARQUET = FileKind("Parquet", (".parquet", ".parq", ".pq"))

# The unit in which INT96 timestamps are read, which has no unit of its own: in ns the year 9999 is no more than 1816.
INT96_UNIT = "us"

# Bytes of footers, as they are in the files, that a source and what is made of it keep.
_KEPT_BYTES = 128 << 20

# Footers of other than local files are waited for this many at a time. Local ones are in memory, mostly, and parsed
# while the interpreter is held.
_THREADS = 16

# Statistics that are looked at for nulls; a look takes about a microsecond.
_MAX_STATISTICS = 50_000

_INDEX_NAME = re.compile(r"__index_level_\d+__")


@dataclass(frozen=True, slots=True)
class FileColumns:
    """The columns of a file, in types that Arrow can work with.

    Attributes:
        stored: All of them.
        schema: Those that are not the index, without a name, of a data frame.
    """

    stored: pa.Schema
    schema: pa.Schema


@dataclass(frozen=True, slots=True)
class Footer:
    """What a file says of itself.

    Attributes:
        metadata: The file's metadata.
        columns: Its columns; files that have the same share this.
    """

    metadata: pq.FileMetaData
    columns: FileColumns

    @property
    def num_rows(self) -> int:
        """The file's rows."""
        return int(self.metadata.num_rows)


@dataclass(frozen=True, slots=True)
class Found:
    """The files of a source, and what is known of all of them.

    Attributes:
        files: The files that can be read.
        hive: The columns that their directories stand for.
        full: The schema of all their rows, if none was asked for.
        is_whole: Whether no file was left out, of which somebody has to be told.
    """

    files: list[FoundFile]
    hive: list[pa.Field]
    full: pa.Schema
    is_whole: bool


class Footers:
    """Reads footers, and keeps them for whoever needs them next: the plan of a pass, its pieces, the next pass.

    Example:
        >>> Footers().read([], lambda error: None)
        []
    """

    def __init__(self, max_bytes: int = _KEPT_BYTES) -> None:
        """Keep footers of up to so many bytes."""
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: dict[tuple[str, int, int], Footer] = {}
        self._schemas = FileSchemas()
        self._found: Found | None = None

    def keep_found(self, found: Found) -> None:
        """Keep what was found for whoever asks next, once: the pieces of the run whose schema was asked for."""
        self._found = found if found.is_whole else None

    def take_found(self) -> Found | None:
        """Return what was found just now, if anything was; later it may be out of date."""
        found, self._found = self._found, None
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without what is kept, which is quick to read again, and large."""
        return Footers, (self._max_bytes,)

    def read(self, files: Sequence[FoundFile], skip: Skip) -> list[Footer | None]:
        """Return the footer of each file; None where it cannot be read and `skip` has taken the error.

        Raises:
            SourceError: One cannot be read, and `skip` raised it.
        """
        footers = [self.kept(file) for file in files]
        missing = [index for index, footer in enumerate(footers) if footer is None]
        for index, read in zip(missing, self._read_all([files[index] for index in missing]), strict=True):
            if isinstance(read, SourceError):
                skip(read)
            else:
                footers[index] = read
                self._keep(files[index], read)
        return footers

    def kept(self, file: FoundFile) -> Footer | None:
        """Return the footer of a file, if it was read before and the file has not changed since."""
        return None if file.modified_ns is None else self._kept.get((file.path, file.size, file.modified_ns))

    def _keep(self, file: FoundFile, footer: Footer) -> None:
        if file.modified_ns is None:
            return
        self._num_bytes += footer.metadata.serialized_size
        self._kept[file.path, file.size, file.modified_ns] = footer
        while self._num_bytes > self._max_bytes and self._kept:
            oldest = self._kept.pop(next(iter(self._kept)))
            self._num_bytes -= oldest.metadata.serialized_size

    def _read_all(self, files: Sequence[FoundFile]) -> Iterator[Footer | SourceError]:
        if len(files) < 2 or all(isinstance(file.filesystem, pafs.LocalFileSystem) for file in files):
            yield from map(self._read_one, files)
            return
        with ThreadPoolExecutor(min(_THREADS, len(files))) as pool:
            yield from pool.map(self._read_one, files)

    def _read_one(self, file: FoundFile) -> Footer | SourceError:
        try:
            with blame_file(file.path, PARQUET), file.filesystem.open_input_file(file.path) as handle:
                return open_parquet(file.path, handle, self._schemas)[1]
        except SourceError as error:
            return error


class FileSchemas:
    """Makes what files say of their columns into schemas; equal ones become the same object, and are made once."""

    def __init__(self) -> None:
        """Begin without any."""
        self._latest: tuple[pa.Schema, FileColumns] | None = None
        self._distinct: dict[tuple[pa.Schema, int], FileColumns] = {}

    def columns(self, path: str, raw: pa.Schema) -> FileColumns:
        """Return a file's columns, given what Arrow says of them.

        Raises:
            SourceError: Two columns have one name.
        """
        latest = self._latest
        if latest is not None and raw.equals(latest[0], check_metadata=True):
            return latest[1]
        columns = _file_columns(path, raw)
        columns = self._distinct.setdefault((columns.stored, len(columns.schema)), columns)
        self._latest = raw, columns
        return columns


def open_parquet(path: str, handle: Any, schemas: FileSchemas) -> tuple[pq.ParquetFile, Footer]:
    """Return an open file as Parquet, and its footer.

    Raises:
        SourceError: Two columns have one name.
    """
    opened = pq.ParquetFile(handle, coerce_int96_timestamp_unit=INT96_UNIT)
    return opened, Footer(opened.metadata, schemas.columns(path, opened.schema_arrow))


def unify(files: Sequence[FoundFile], footers: Sequence[Footer | None]) -> pa.Schema:
    """Return the schema that holds all values of all files exactly; a file without rows says nothing, unless all do.

    Raises:
        SourceError: A column has types that no type holds exactly; it names them and two files.
    """
    named = [(file.path, footer) for file, footer in zip(files, footers, strict=True) if footer is not None]
    with_rows = [(path, footer.columns.schema) for path, footer in named if footer.num_rows]
    try:
        return unify_schemas(with_rows or [(path, footer.columns.schema) for path, footer in named])
    except SchemaError as error:
        raise SourceError(
            _common_start([path for path, _ in named]), f"{error}, or say the types by schema="
        ) from error


def with_null_marks(schema: pa.Schema, footers: Sequence[Footer]) -> pa.Schema:
    """Mark the columns that have nulls in some row of these files, and those that have none, by their statistics.

    Only integers and bools are looked at: no format has another type where there are nulls.

    Args:
        schema: The schema, or a part of it.
        footers: The footers of all files.
    """
    with_rows = [footer for footer in footers if footer.num_rows]
    layouts: dict[int, Layout] = {}
    budget = _MAX_STATISTICS
    fields = []
    for field in schema:
        if not (pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)):
            fields.append(field)
            continue
        has_nulls: bool | None = False
        for footer in with_rows:
            layout = layouts.get(id(footer.columns)) or Layout.of(footer.columns.stored)
            layouts[id(footer.columns)] = layout
            found = layout.leaves.get(field.name)
            if found is None or pa.types.is_null(footer.columns.schema.field(field.name).type):
                has_nulls = True
            else:
                budget -= footer.metadata.num_row_groups * len(found)
                has_nulls = None if budget < 0 else _any_nulls(footer, found, has_nulls)
            if has_nulls:
                break
        fields.append(mark_nulls(field, has_nulls=has_nulls) if with_rows else field)
    return pa.schema(fields)


def _any_nulls(footer: Footer, leaves: range, so_far: bool | None) -> bool | None:
    """Return whether a column of a file has nulls; `so_far` is what is known of the files before it."""
    for group in range(footer.metadata.num_row_groups):
        info = footer.metadata.row_group(group)
        for leaf in leaves:
            statistics = info.column(leaf).statistics
            if statistics is None or not statistics.has_null_count:
                so_far = None
            elif statistics.null_count:
                return True
    return so_far


def _file_columns(path: str, raw: pa.Schema) -> FileColumns:
    if twice := duplicates(raw.names):
        raise SourceError(path, f"has several columns of one name: {twice}; write it with other names")
    stored = pa.schema([pa.field(field.name, plain_type(field.type), metadata=_extension(field)) for field in raw])
    index = set(_unnamed_index(raw))
    return FileColumns(stored, pa.schema([field for field in stored if field.name not in index]) if index else stored)


def _extension(field: pa.Field) -> dict[bytes, bytes] | None:
    """Return what a field says of an extension type that is not known here."""
    return {key: value for key, value in (field.metadata or {}).items() if key.startswith(b"ARROW:extension:")} or None


def _unnamed_index(schema: pa.Schema) -> Iterable[str]:
    """Return the columns that pandas made of an index that has no name."""
    pandas = (schema.metadata or {}).get(b"pandas")
    names = [name for name in schema.names if _INDEX_NAME.fullmatch(name)]
    if not names or pandas is None:
        return ()
    try:
        index = json.loads(pandas)["index_columns"]
    except (ValueError, KeyError, TypeError):
        return ()
    return [name for name in names if name in index]


def _common_start(paths: Sequence[str]) -> str:
    """Return the directory that all paths are in, for an error that is about several."""
    first, last = min(paths), max(paths)
    same = next((index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:same].rpartition("/")[0] or first
