"""Directories and what is in them, on a local disk and elsewhere, for those who look for files.

Locally each directory is listed on its own, links are told apart, and sizes are asked for only of the files that
count. Elsewhere one listing may bring all that is below a directory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import pyarrow.fs as pafs

from aiodata.errors import AiodataError, SourceError
from aiodata.sources.paths import printable

# A path that cannot exist, because of what it consists of or leads through, is one that does not.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


class NodeKind(Enum):
    """What a name in a directory stands for, links followed."""

    FILE = auto()
    DIRECTORY = auto()
    BROKEN = auto()  # A link to nothing, or to itself.
    SPECIAL = auto()  # A pipe, a socket, a device.


@dataclass(slots=True)
class Node:
    """A name in a directory.

    Attributes:
        path: As its tree knows it, without a slash at the end.
        name: The last part of it.
        real: What no other node has that stands for the same file or directory.
        kind: What it stands for.
        is_link: Whether it is a link to that.
        info: What a listing said; None: nothing was said.
    """

    path: str
    name: str
    real: str
    kind: NodeKind
    is_link: bool = False
    info: pafs.FileInfo | None = None


class Tree(Protocol):
    """What can be looked up in one file system; it keeps what it has listed, so it is for one search."""

    @property
    def filesystem(self) -> pafs.FileSystem:
        """Where the files are."""

    def locate(self, path: str) -> str:
        """Return a path in the file system as nodes have it."""

    def inner(self, node: Node) -> str:
        """Return the path by which the file system opens a node."""

    def look(self, path: str) -> Node | None:
        """Return what is at a path; None: nothing."""

    def children(self, directory: Node) -> Mapping[str, Node]:
        """Return what is in a directory, by name."""

    def load(self, directory: Node) -> None:
        """Prepare for all below a directory being asked for."""

    def measure(self, node: Node) -> tuple[int, int | None]:
        """Return a file's size in bytes, and when it was changed, in ns since 1970, if that is known."""


def tree_of(filesystem: pafs.FileSystem) -> Tree:
    """Return the tree of a file system."""
    inner, roots = filesystem, [""]
    while isinstance(inner, pafs.SubTreeFileSystem):
        roots.append(inner.base_path)
        inner = inner.base_fs
    if not isinstance(inner, pafs.LocalFileSystem):
        return ListedTree(filesystem)
    return LocalTree(filesystem, os.path.join(*reversed(roots)).rstrip("/"), len(roots) > 1)


class LocalTree:
    """The local file system, or a directory of it that is a file system of its own."""

    def __init__(self, filesystem: pafs.FileSystem, root: str, is_subtree: bool) -> None:
        self.filesystem = filesystem
        self._prefix = f"{root}/" if is_subtree else ""
        self._listed: dict[str, dict[str, Node]] = {}

    def locate(self, path: str) -> str:
        """Return the path in the local file system."""
        return self._prefix + path.lstrip("/") if self._prefix else path

    def inner(self, node: Node) -> str:
        """Return the path below the root."""
        return node.path[len(self._prefix) :]

    def look(self, path: str) -> Node | None:
        """Return what is at a path, links followed."""
        path = path.rstrip("/") or "/"
        kind = _kind_at(path)
        return None if kind is None else _follow(path, path.rpartition("/")[2], kind)

    def children(self, directory: Node) -> Mapping[str, Node]:
        """Return what is in a directory, sorted by name; only of links is more asked than the listing says."""
        if (known := self._listed.get(directory.path)) is not None:
            return known
        path, real = _with_slash(directory.path), _with_slash(directory.real)
        nodes = {}
        try:
            with os.scandir(path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    name = entry.name
                    if entry.is_file(follow_symlinks=False):
                        nodes[name] = Node(path + name, name, real + name, NodeKind.FILE)
                    elif entry.is_dir(follow_symlinks=False):
                        nodes[name] = Node(path + name, name, real + name, NodeKind.DIRECTORY)
                    elif (kind := _kind_at(path + name)) is not None:
                        nodes[name] = _follow(path + name, name, kind)
        except OSError as error:
            raise SourceError(printable(directory.path), f"cannot be listed: {error.strerror}") from error
        self._listed[directory.path] = nodes
        return nodes

    def load(self, directory: Node) -> None:
        """Do nothing: directories are listed one by one."""

    def measure(self, node: Node) -> tuple[int, int | None]:
        """Ask for a file's size and time."""
        try:
            status = os.stat(node.path)
        except OSError as error:
            raise SourceError(printable(node.path), f"cannot be read: {error.strerror}") from error
        return status.st_size, status.st_mtime_ns


class ListedTree:
    """Any other file system, known by what it lists; links, if it has any, cannot be told from what they lead to."""

    def __init__(self, filesystem: pafs.FileSystem) -> None:
        self.filesystem = filesystem
        self._listed: dict[str, dict[str, Node]] = {}
        self._complete: set[str] = set()

    def locate(self, path: str) -> str:
        """Return the path as it is."""
        return path

    def inner(self, node: Node) -> str:
        """Return the path as it was listed."""
        return node.path

    def look(self, path: str) -> Node | None:
        """Return what is at a path, from a listing if there was one."""
        path = _without_slash(path)
        parent, _, name = path.rpartition("/")
        if (siblings := self._listed.get(parent.strip("/"))) is not None:
            return siblings.get(name)
        if not path.strip("/"):  # Not all file systems say that their root is there.
            return Node(path, "", "", NodeKind.DIRECTORY)
        with _blamed(path):
            [info] = self.filesystem.get_file_info([path])
        return None if info.type == pafs.FileType.NotFound else _node(path, info)

    def children(self, directory: Node) -> Mapping[str, Node]:
        """Return what is in a directory, listed on its own unless a larger listing had it."""
        if directory.real not in self._listed:
            self._list(directory, recursive=False)
        return self._listed[directory.real]

    def load(self, directory: Node) -> None:
        """List all below a directory at once."""
        if directory.real not in self._complete:
            self._list(directory, recursive=True)

    def measure(self, node: Node) -> tuple[int, int | None]:
        """Return what the listing said of a file."""
        return (0, None) if node.info is None else (node.info.size or 0, node.info.mtime_ns)

    def _list(self, directory: Node, *, recursive: bool) -> None:
        with _blamed(directory.path):
            infos = self.filesystem.get_file_info(pafs.FileSelector(directory.path, recursive=recursive))
        self._listed[directory.real] = {}
        below = directory.real + "/" if directory.real else ""
        for info in sorted(infos, key=lambda info: str(info.path)):
            node = _node(_without_slash(info.path), info)
            if node.real.startswith(below) and node.name:
                self._add(node, directory.real)
            if recursive and node.kind is NodeKind.DIRECTORY:
                self._listed.setdefault(node.real, {})
        if recursive:
            self._complete.update(path for path in self._listed if path.startswith(below))
            self._complete.add(directory.real)

    def _add(self, node: Node, base: str) -> None:
        """Put a node into its directory; object stores need not list directories, so these are added, too."""
        while node.real != base:
            parent = node.real.rpartition("/")[0]
            is_known = parent in self._listed
            siblings = self._listed.setdefault(parent, {})
            siblings.setdefault(node.name, node)
            if is_known:
                return
            path = node.path.rpartition("/")[0]
            node = Node(path, parent.rpartition("/")[2], parent, NodeKind.DIRECTORY)


def _kind_at(path: str) -> NodeKind | None:
    """Return what a local path stands for; None: it does not exist."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno == errno.ELOOP or (error.errno in _ABSENT and os.path.islink(path)):
            return NodeKind.BROKEN
        if error.errno in _ABSENT:
            return None
        raise SourceError(printable(path), f"cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        return NodeKind.DIRECTORY
    return NodeKind.FILE if stat.S_ISREG(mode) else NodeKind.SPECIAL


def _follow(path: str, name: str, kind: NodeKind) -> Node:
    return Node(path, name, os.path.realpath(path), kind, os.path.islink(path))


def _node(path: str, info: pafs.FileInfo) -> Node:
    kinds = {pafs.FileType.File: NodeKind.FILE, pafs.FileType.Directory: NodeKind.DIRECTORY}
    return Node(path, path.rpartition("/")[2], path.strip("/"), kinds.get(info.type, NodeKind.SPECIAL), info=info)


def _with_slash(path: str) -> str:
    return path if path.endswith("/") else f"{path}/"


def _without_slash(path: str) -> str:
    """Drop slashes at the end, unless the path is nothing else."""
    return path.rstrip("/") or path[:1]


@contextmanager
def _blamed(path: str) -> Iterator[None]:
    """Turn whatever a file system raises into a `SourceError` that names the path."""
    try:
        yield
    except AiodataError:
        raise
    except Exception as error:  # File systems are of many libraries, each with errors of its own.
        raise SourceError(printable(path), f"cannot be listed: {error}") from error
