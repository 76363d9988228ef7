"""Paths as users give them: checked when they are given, without a look at any file system.

`file:` URIs and relative paths become absolute local paths. Other URIs stay as they are until files are looked for:
already to connect to some of their file systems asks the network.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import pyarrow.fs as pafs

from aiodata.errors import OptionError

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://(.*)", re.DOTALL)
_LOCAL_URI = re.compile(r"(?:file|local):/(?!/[^/])", re.IGNORECASE)
# What becomes of "s3://bucket" as a pathlib.Path.
_COLLAPSED_URI = re.compile(r"(s3|gs|gcs|hdfs|viewfs|abfss?|https?):/[^/]", re.IGNORECASE)
_ARROW_SCHEMES = frozenset({"s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss"})
_LOCAL_SCHEMES = frozenset({"file", "local"})
# The schemes of Arrow's file systems in whose URIs bucket and key simply follow.
_SCHEMES_OF_TYPE = {"s3": frozenset({"s3"}), "gcs": frozenset({"gs", "gcs"}), "local": _LOCAL_SCHEMES}
# Options of the file system behind a URI. A question mark that is no such thing is a wildcard, or part of a name.
_QUERY = re.compile(r"\?[A-Za-z_]\w*=[^?*\[\]&]*(?:&[A-Za-z_]\w*=[^?*\[\]&]*)*$")
_PASSWORD = re.compile(r"(?<=://)[^/@]*:[^/@]*@")

_REMEDY = "give a file, a directory, a glob or a URI, as str or pathlib.Path, or a list of these"


@dataclass(frozen=True, slots=True)
class Paths:
    """Where files are to be looked for, as far as that is known without looking.

    Attributes:
        entries: In the order they were given: paths in `filesystem`, or, where that is None, absolute local paths
            and URIs.
        filesystem: What the entries are in; None: local, or the URI's own.
    """

    entries: tuple[str, ...]
    filesystem: pafs.FileSystem | None = None

    @property
    def name(self) -> str:
        """The first entry, and how many more there are."""
        more = f" and {len(self.entries) - 1} more" if len(self.entries) > 1 else ""
        return f"{printable(self.entries[0])}{more}"


def check_paths(paths: Any, filesystem: Any) -> Paths:
    """Check paths, and the file system that they are in, without any I/O.

    Args:
        paths: A file, a directory, a glob or a URI, or several of these.
        filesystem: A `pyarrow.fs.FileSystem` or an fsspec file system; None: local, or the URI's.

    Returns:
        The paths, absolute where they are local.

    Raises:
        OptionError: They cannot work, whatever the file systems hold.
    """
    arrow_filesystem = _as_arrow(filesystem)
    if isinstance(paths, str | os.PathLike):
        return Paths((_entry(paths, f"paths={paths!r}", arrow_filesystem),), arrow_filesystem)
    if not isinstance(paths, Iterable) or isinstance(paths, bytes | bytearray | memoryview | Mapping | io.IOBase):
        raise OptionError(f"paths={paths!r} must be paths: {_REMEDY}")
    # A set has another order in each process.
    given = sorted(paths, key=str) if isinstance(paths, AbstractSet) else list(paths)
    if not given:
        raise OptionError("paths=[] must name at least one file, directory or glob")
    entries = (_entry(one, f"paths[{index}]={one!r}", arrow_filesystem) for index, one in enumerate(given))
    return Paths(tuple(entries), arrow_filesystem)


def is_uri(entry: str) -> bool:
    """Return whether an entry of `Paths` that have no file system is a URI."""
    return _URI.match(entry) is not None


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a URI, and the path in it; this may ask the network.

    Arrow's parser refuses and cuts off what globs are made of, so it is given the path escaped.
    """
    scheme = _scheme(uri)
    if scheme not in _ARROW_SCHEMES:
        filesystem, path = importlib.import_module("fsspec.core").url_to_fs(uri.removeprefix("fsspec+"))
        return _as_arrow(filesystem), str(path)
    _, _, rest = uri.partition("://")
    query = found[0] if (found := _QUERY.search(rest)) else ""
    authority, slash, path = rest.removesuffix(query).partition("/")
    escaped = quote(unquote(path), safe="/")
    filesystem, inner = pafs.FileSystem.from_uri(f"{scheme}://{authority}{slash}{escaped}{query}")
    # Arrow drops the slash at the end, by which a glob asks for directories alone.
    return filesystem, inner + "/" if path.endswith("/") and not inner.endswith("/") else inner


def printable(path: str) -> str:
    """Return the path as messages may show it: no password, and names that are not UTF-8 escaped."""
    return _PASSWORD.sub("...@", path).encode("utf-8", "backslashreplace").decode()


def _as_arrow(filesystem: Any) -> pafs.FileSystem | None:
    if filesystem is None or isinstance(filesystem, pafs.FileSystem):
        return filesystem
    is_fsspec = hasattr(filesystem, "protocol") and callable(getattr(filesystem, "open", None))
    if isinstance(filesystem, type) or not is_fsspec:
        raise OptionError(
            f"filesystem={filesystem!r} must be a pyarrow.fs.FileSystem or an fsspec file system; "
            "None: local, or the one that a URI names"
        )
    # As pyarrow does: fsspec's local file system knows less of links, and is slower.
    if type(filesystem).__name__ == "LocalFileSystem":
        return pafs.LocalFileSystem()
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem))


def _entry(given: Any, shown: str, filesystem: pafs.FileSystem | None) -> str:
    """Return one path as `Paths` keeps it; `shown` names it in messages."""
    path = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(path, str):
        raise OptionError(f"{shown} is not a path: {_REMEDY}")
    if not path and (filesystem is None or isinstance(filesystem, pafs.LocalFileSystem)):
        raise OptionError(f"{shown} is empty: {_REMEDY}; '.' is the working directory")
    if "\0" in path:
        raise OptionError(f"{shown} has a NUL character, which no path can have")
    if filesystem is None:
        entry = _local_or_uri(path, shown)
    elif isinstance(filesystem, pafs.LocalFileSystem):
        entry = _absolute(_local_path(path, shown) or _within(path, shown, filesystem))
    else:
        entry = _without_dot(_within(path, shown, filesystem))
    try:
        entry.encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"{shown} is not UTF-8, and Arrow can open no such file: rename it") from error
    return entry


def _local_or_uri(path: str, shown: str) -> str:
    if (local := _local_path(path, shown)) is not None:
        return _absolute(local)
    if is_uri(path):
        _check_scheme(_scheme(path), shown)
        return path
    if _COLLAPSED_URI.match(path):
        raise OptionError(f"{shown} looks like a URI that pathlib.Path took a slash from: give it as a str")
    return _absolute(path)


def _scheme(uri: str) -> str:
    return uri.partition("://")[0].lower()


def _local_path(path: str, shown: str) -> str | None:
    """Return the path of a `file:` URI, decoded; None: it is none."""
    if _LOCAL_URI.match(path):
        encoded = path.partition(":")[2]
    elif (found := _URI.match(path)) and found[1].lower() in _LOCAL_SCHEMES:
        host, slash, rest = found[2].partition("/")
        if host not in ("", "localhost"):
            raise OptionError(f"{shown} names the host {host!r}: give a local file as file:///directory/name")
        encoded = slash + rest
    else:
        return None
    try:
        return unquote(encoded, errors="strict") or "/"
    except UnicodeDecodeError as error:
        raise OptionError(f"{shown} is not UTF-8 once it is decoded, and Arrow can open no such file") from error


def _absolute(path: str) -> str:
    """Return a local path so that workers, whose working directory may be another, find it too.

    `..` stays, unless it is about the working directory: behind a link it leads elsewhere than the text says.
    """
    expanded = os.path.expanduser(path)
    parts = [part for part in expanded.split("/") if part not in ("", ".")]
    if not expanded.startswith("/"):
        try:
            base = [part for part in os.getcwd().split("/") if part]
        except FileNotFoundError as error:
            raise OptionError(f"{path!r} is relative to a working directory that is gone: give it absolute") from error
        while parts and parts[0] == "..":
            del parts[0], base[-1:]
        parts = base + parts
    return "/" + "/".join(parts) + ("/" if parts and expanded.endswith("/") else "")


def _within(path: str, shown: str, filesystem: pafs.FileSystem) -> str:
    """Return the path in a file system that was given: it, or what is left of a URI of the same file system."""
    if (found := _URI.match(path)) is None:
        return path
    handler: Any = filesystem.handler if isinstance(filesystem, pafs.PyFileSystem) else None
    fsspec: Any = handler.fs if isinstance(handler, pafs.FSSpecHandler) else None
    protocol = getattr(fsspec, "protocol", None)
    schemes = {protocol} if isinstance(protocol, str) else set(protocol or ())
    if found[1].lower() in schemes:
        return str(fsspec._strip_protocol(path))  # noqa: SLF001 - what fsspec has for this, and pyarrow lacks.
    if found[1].lower() in _SCHEMES_OF_TYPE.get(filesystem.type_name, ()):
        return unquote(found[2])
    raise OptionError(
        f"{shown} is a URI, and filesystem={filesystem!r} is another file system: "
        "give the path in it, or leave filesystem away"
    )


def _without_dot(path: str) -> str:
    """Drop `./`, which only local file systems know."""
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return "" if path == "." else path


def _check_scheme(scheme: str, shown: str) -> None:
    if scheme in _ARROW_SCHEMES:
        return
    known = ", ".join(sorted(_ARROW_SCHEMES | {"file"}))
    if importlib.util.find_spec("fsspec") is None:
        raise OptionError(f"{shown} has an unknown scheme: it must be one of {known}, or fsspec must be installed")
    try:
        importlib.import_module("fsspec").get_filesystem_class(scheme.removeprefix("fsspec+"))
    except ValueError as error:
        raise OptionError(f"{shown} has an unknown scheme: it must be one of {known}, or one of fsspec's") from error
    except ImportError as error:
        raise OptionError(f"{shown} needs a package that is not installed: {error}") from error
