"""Files: which ones paths stand for, whatever their format, and what the names of their directories say.

Everything that is found is read or named, once: a file that two patterns or a link find again counts the first time;
what a directory holds beside the files of the format is logged; what cannot be read is an error.
"""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from aiodata.errors import AiodataError, OptionError, SourceError
from aiodata.schemas import mark_nulls
from aiodata.sources.paths import Paths, check_paths, is_uri, open_uri, printable
from aiodata.sources.trees import Node, NodeKind, Tree, tree_of

__all__ = [
    "FileKind",
    "FoundFile",
    "Paths",
    "blame_file",
    "check_paths",
    "find_files",
    "partition_fields",
    "partition_value",
]

_logger = logging.getLogger("aiodata")

# How many of the files that are left out a message names.
_NAMED = 3

# What Hive and those after it call the directory of the rows that are null in its key.
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a format looks for.

    Attributes:
        name: Of the format, for messages.
        suffixes: In lower case; names are compared without regard to case.
    """

    name: str
    suffixes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that is to be read.

    Attributes:
        path: In `filesystem`.
        filesystem: Where it is.
        size: In bytes; 0 if the file system does not say.
        modified_ns: When it was changed, in ns since 1970; None: the file system does not say.
        partition: Keys and values of the Hive directories that it is in, outermost first.
    """

    path: str
    filesystem: pafs.FileSystem
    size: int
    modified_ns: int | None
    partition: tuple[tuple[str, str | None], ...] = ()


@dataclass(slots=True)
class _Match:
    """What one path stands for.

    Attributes:
        base: The directory that it is about: given, or the fixed part of a pattern. None: a file was given.
        groups: Files that were found in the same way: by name, or in directories.
    """

    base: Node | None
    groups: list[list[Node]]


def find_files(paths: Paths, kind: FileKind, *, partitioning: str | None = "hive") -> list[FoundFile]:
    """Find the files that paths stand for; this blocks.

    A file that is given is read whatever its name is. In directories, and of what a pattern matches, files with one
    of the kind's suffixes are, or all if none has; names that start with `_` or `.` do not count, except
    directories like `_key=value`.

    Args:
        paths: Where to look.
        kind: What to look for.
        partitioning: `"hive"`: directories called `key=value`, below the one that was given or below the fixed part
            of a pattern, say what the values of a column are; None: they do not.

    Returns:
        The files, each once: in the order of the paths, and for each path sorted.

    Raises:
        OptionError: The partitioning is unknown.
        SourceError: A path does not exist, stands for no file, or for one that cannot be read.
    """
    if partitioning not in ("hive", None):
        raise OptionError(f"partitioning={partitioning!r} must be 'hive', or None to take no columns from directories")
    trees: list[Tree] = []
    found: dict[tuple[int, str], FoundFile] = {}
    left_out: dict[tuple[int, str], str] = {}
    for entry in paths.entries:
        tree, path = _tree_for(entry, paths.filesystem, trees)
        index = trees.index(tree)
        match = _match(tree, path)
        if match is None:
            raise SourceError(printable(entry), "no such file or directory")
        groups = [_choose(group, kind) if match.base else (group, []) for group in match.groups]
        if not any(chosen for chosen, _ in groups):
            raise SourceError(printable(entry), f"no {kind.name} file is there; names like _* and .* do not count")
        new = _distinct(node for chosen, _ in groups for node in chosen if (index, node.real) not in found)
        base = match.base if partitioning else None
        found |= {(index, node.real): file for node, file in _files(tree, base, new)}
        left_out |= {(index, node.real): node.path for _, rest in groups for node in rest}
    if names := sorted(path for key, path in left_out.items() if key not in found):
        _log_left_out(paths.name, kind, tuple(map(printable, names[:_NAMED])), len(names))
    return list(found.values())


def partition_fields(files: Iterable[FoundFile]) -> list[pa.Field]:
    """Return the columns that Hive directories give, in the order in which the keys were found.

    A column is of integers if all its values are, as they would be written; else of strings. A file lacks a value
    where it is in no directory with the key, or in one for nulls; the fields are marked with whether one does.
    """
    partitions = [file.partition for file in files]
    values: dict[str, list[str | None]] = {}
    for partition in partitions:
        for key, value in partition:
            values.setdefault(key, []).append(value)
    fields = []
    for key, known in values.items():
        present = {value for value in known if value is not None}
        column_type = pa.int64() if present and all(map(_is_integer, present)) else pa.string()
        has_nulls = None in known or len(known) < len(partitions)
        fields.append(mark_nulls(pa.field(key, column_type), has_nulls=has_nulls))
    return fields


def partition_value(field: pa.Field, file: FoundFile) -> pa.Scalar:
    """Return what a file's directories say of all its rows, in the field's type; null if they say nothing.

    Raises:
        SourceError: The type has no such value.
    """
    value = dict(file.partition).get(field.name)
    try:
        return pa.scalar(value, pa.string()).cast(field.type)
    except pa.ArrowException as error:
        reason = f"its directory says {field.name}={value!r}, which is no {field.type}: {error}"
        raise SourceError(file.path, reason) from error


@contextmanager
def blame_file(path: str, kind: FileKind) -> Iterator[None]:
    """Turn an error of reading into a `SourceError` that names the file: a reader may raise anything."""
    try:
        yield
    except AiodataError:
        raise
    except Exception as error:
        raise SourceError(path, f"cannot be read as {kind.name}: {str(error) or type(error).__name__}") from error


def _tree_for(entry: str, filesystem: pafs.FileSystem | None, trees: list[Tree]) -> tuple[Tree, str]:
    """Return the tree, one for each file system, and the path in it."""
    path = entry
    if filesystem is None and is_uri(entry):
        try:
            filesystem, path = open_uri(entry)
        except Exception as error:  # File systems are of many libraries, each with errors of its own.
            raise SourceError(printable(entry), f"cannot be connected to: {error}") from error
    elif filesystem is None:
        filesystem = pafs.LocalFileSystem()
    tree = next((tree for tree in trees if tree.filesystem == filesystem), None)
    if tree is None:
        tree = tree_of(filesystem)
        trees.append(tree)
    return tree, tree.locate(path)


def _match(tree: Tree, path: str) -> _Match | None:
    """Return what a path stands for, None: nothing; what exists as it is written is no pattern."""
    node = tree.look(path)
    if node is None:
        return _match_glob(tree, path) if _is_magic(path) else None
    if node.kind is NodeKind.DIRECTORY:
        return _Match(node, [_below(tree, [node])])
    return _Match(None, [[_readable(node)]])


def _match_glob(tree: Tree, pattern: str) -> _Match | None:
    """Match as shells do: a star stays within one directory, two stars cross them. None: it is no pattern."""
    parts = pattern.split("/")
    prefix = ""
    for fixed, part in enumerate(parts):  # noqa: B007 - it ends at the first part that is a pattern.
        if _is_magic(part) and tree.look(prefix + part) is None:
            break
        prefix += f"{part}/"
    else:
        return None
    base = tree.look(prefix)
    if base is None or _readable(base).kind is not NodeKind.DIRECTORY:
        return _Match(base, [])
    patterns = parts[fixed:]
    if len(patterns) > 1 or "**" in patterns:
        tree.load(base)
    matched = _match_parts(tree, base, patterns)
    directories = [node for node in matched if node.kind is NodeKind.DIRECTORY]
    by_name = [node for node in matched if node.kind is not NodeKind.DIRECTORY]
    return _Match(base, [by_name, _below(tree, directories)])


def _match_parts(tree: Tree, base: Node, patterns: Sequence[str]) -> list[Node]:
    """Return the nodes below a directory that a pattern matches, part by part."""
    matched = []
    waiting = [(base, 0)]
    links: list[tuple[Node, int]] = []
    # A directory is tried once with each part, so links that lead back into a tree do no harm.
    seen: set[tuple[str, int]] = set()
    while waiting or links:
        node, index = waiting.pop() if waiting else links.pop()
        if index == len(patterns):
            matched.append(node)
        elif node.kind is NodeKind.DIRECTORY and (node.real, index) not in seen:
            seen.add((node.real, index))
            for step in _steps(tree, node, index, patterns):
                (links if step[0].is_link else waiting).append(step)
    return matched


def _steps(tree: Tree, node: Node, index: int, patterns: Sequence[str]) -> list[tuple[Node, int]]:
    """Return where the next part of a pattern leads from a directory, and the part to go on with there."""
    part = patterns[index]
    if not part:  # A slash at the end, or two in a row: the directory itself.
        return [(node, index + 1)]
    if not _is_magic(part):
        child = tree.look(f"{node.path.rstrip('/')}/{part}" if node.path else part)
        return [] if child is None else [(child, index + 1)]
    children = tree.children(node)
    if part in children:
        return [(children[part], index + 1)]
    if part == "**":
        deeper = [
            (child, index) for child in children.values() if child.kind is NodeKind.DIRECTORY and not _is_hidden(child)
        ]
        return [*deeper, (node, index + 1)]
    return [
        (child, index + 1)
        for child in children.values()
        if fnmatch.fnmatchcase(child.name, part) and (part[0] == child.name[0] or not _is_hidden(child))
    ]


def _below(tree: Tree, directories: Sequence[Node]) -> list[Node]:
    """Return all that is in directories and their subdirectories, each directory listed once.

    Links are followed last: what a directory is called says more than what a link to it is called.
    """
    files: list[Node] = []
    for directory in directories:
        tree.load(directory)
    waiting = [directory for directory in directories if not directory.is_link]
    links = [directory for directory in directories if directory.is_link]
    seen: set[str] = set()
    while waiting or links:
        directory = waiting.pop() if waiting else links.pop()
        if directory.real in seen:
            continue
        seen.add(directory.real)
        for node in tree.children(directory).values():
            if _is_hidden(node):
                continue
            if node.kind is not NodeKind.DIRECTORY:
                files.append(node)
            else:
                (links if node.is_link else waiting).append(node)
    return files


def _distinct(nodes: Iterable[Node]) -> list[Node]:
    """Return the nodes sorted by path; of those that are the same file the first, rather one that is no link."""
    first: dict[str, Node] = {}
    for node in sorted(nodes, key=lambda node: (node.is_link, node.path)):
        first.setdefault(node.real, node)
    return sorted(first.values(), key=lambda node: node.path)


def _choose(nodes: Sequence[Node], kind: FileKind) -> tuple[Sequence[Node], Sequence[Node]]:
    """Return the nodes with one of the suffixes, and the others; or all, if none has a suffix."""
    chosen: list[Node] = []
    rest: list[Node] = []
    for node in nodes:
        (chosen if node.name.lower().endswith(kind.suffixes) else rest).append(node)
    return (chosen, rest) if chosen else (rest, [])


def _files(tree: Tree, base: Node | None, nodes: Iterable[Node]) -> Iterator[tuple[Node, FoundFile]]:
    """Yield what is known of each node that was chosen; without a base, directories say nothing."""
    partitions: dict[str, tuple[tuple[str, str | None], ...]] = {}
    for node in nodes:
        size, modified_ns = tree.measure(_readable(node))
        directory = node.path.rpartition("/")[0]
        if directory not in partitions:
            partitions[directory] = () if base is None else _partition(directory, base.path)
        yield node, FoundFile(tree.inner(node), tree.filesystem, size, modified_ns, partitions[directory])


@lru_cache(maxsize=256)
def _log_left_out(source: str, kind: FileKind, names: tuple[str, ...], count: int) -> None:
    """Warn of files that are left out, once per process: each epoch of a dataset finds its files again."""
    more = f" and {count - len(names)} more" if count > len(names) else ""
    _logger.warning(
        "%s: left out, for they do not end in %s: %s%s", source, " or ".join(kind.suffixes), ", ".join(names), more
    )


def _readable(node: Node) -> Node:
    """Return a node that was chosen.

    Raises:
        SourceError: Nothing can be read there.
    """
    reason = None
    if node.kind is NodeKind.BROKEN:
        reason = "is a link to what does not exist: remove it, or restore what it leads to"
    elif node.kind is NodeKind.SPECIAL:
        reason = "is neither a file nor a directory"
    elif not node.path.isascii() and printable(node.path) != node.path:
        reason = "its name is not UTF-8, and Arrow can open no such file: rename it"
    if reason is not None:
        raise SourceError(printable(node.path), reason)
    return node


def _is_magic(part: str) -> bool:
    return any(character in part for character in "*?[")


def _is_hidden(node: Node) -> bool:
    """Return whether a name is not about data; as in Spark, a directory `_key=value` is."""
    if node.name.startswith("_"):
        return node.kind is not NodeKind.DIRECTORY or "=" not in node.name
    return node.name.startswith(".")


def _partition(directory: str, base: str) -> tuple[tuple[str, str | None], ...]:
    """Return the keys and values in the names between a directory and one below it."""
    values: dict[str, str | None] = {}
    # Some file systems list with a slash before all, however they were asked.
    for name in directory.strip("/")[len(base.strip("/")) :].split("/"):
        key, is_pair, value = name.partition("=")
        if not is_pair or not key:
            continue
        try:
            key, value = unquote(key, errors="strict"), unquote(value, errors="strict")
        except UnicodeDecodeError as error:
            raise SourceError(printable(directory), f"{printable(name)!r} is not UTF-8 once it is decoded") from error
        if key in values:
            raise SourceError(printable(directory), f"two of its directories say what {key!r} is: rename one")
        values[key] = None if value == _NULL_PARTITION else value
    return tuple(values.items())


def _is_integer(value: str) -> bool:
    return _INTEGER.fullmatch(value) is not None and -(2**63) <= int(value) < 2**63
