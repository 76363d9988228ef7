"""Paths as they are given: what cannot work is refused at once, with its value and the remedy, and without any I/O."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pyarrow.fs as pafs
import pytest
from fsspec.registry import known_implementations  # type: ignore[import-untyped]

from aiodata.errors import OptionError
from aiodata.sources.files import FileKind, Paths, check_paths, find_files

PARQUET = FileKind("Parquet", (".parquet",))


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"a.parquet"


REFUSED: dict[str, tuple[Any, str]] = {
    "empty": ("", r"paths='' is empty: give a file"),
    "empty_in_list": (["a", ""], r"paths\[1\]='' is empty"),
    "none": (None, r"paths=None must be paths: give a file, a directory, a glob or a URI"),
    "number": (3, r"paths=3 must be paths"),
    "bytes": (b"a.parquet", r"paths=b'a.parquet' must be paths"),
    "bytearray": (bytearray(b"a"), r"must be paths"),
    "dict": ({"a": 1}, r"paths=\{'a': 1\} must be paths"),
    "open_file": (io.StringIO("a\nb"), r"must be paths"),
    "no_paths": ([], r"paths=\[\] must name at least one file"),
    "no_paths_in_tuple": ((), r"must name at least one file"),
    "none_in_list": (["a", None], r"paths\[1\]=None is not a path"),
    "number_in_list": ([3], r"paths\[0\]=3 is not a path"),
    "bytes_in_list": ([b"a"], r"paths\[0\]=b'a' is not a path"),
    "list_in_list": ([["a"]], r"paths\[0\]=\['a'\] is not a path"),
    "path_of_bytes": (BytesPath(), r"is not a path"),
    "nul": ("a\0b", r"NUL"),
    "not_utf_8": ("a\udcff", r"not UTF-8"),
    "not_utf_8_in_uri": ("file:///a%ff", r"not UTF-8"),
    "unknown_scheme": (
        "foo://bucket/a.parquet",
        r"paths='foo://bucket/a.parquet' has an unknown scheme.*gs.*or one of",
    ),
    "unknown_scheme_in_list": (["a", "foo://x"], r"paths\[1\]='foo://x' has an unknown scheme"),
    "unknown_scheme_for_fsspec": ("fsspec+foo://x", r"unknown scheme"),
    "host_of_file": ("file://host/a.parquet", r"names the host 'host'.*file:///directory/name"),
    "uri_as_pathlib": (Path("s3://bucket/a.parquet"), r"looks like a URI that pathlib.Path took a slash from"),
}


@pytest.mark.parametrize(("paths", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_a_path_is_refused_with_its_value(paths: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check_paths(paths, None)


def test_scheme_whose_package_is_missing_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"class": "no_such_package.FileSystem", "err": "Install no_such_package"}
    monkeypatch.setitem(known_implementations, "unheard", known)
    with pytest.raises(OptionError, match="needs a package that is not installed: Install no_such_package"):
        check_paths("unheard://a", None)


def test_schemes_of_object_stores_are_taken_without_connecting() -> None:
    uris = [
        "s3://b/a*.parquet",
        "gs://b/[a]",
        "gcs://b/a b#c?.parquet",
        "abfs://c@d.dfs.core.windows.net/x",
        "hdfs://h/x",
    ]
    assert check_paths(uris, None).entries == tuple(uris)
    assert check_paths("S3://b/a", None).entries == ("S3://b/a",)


def test_uri_reaches_its_file_system_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Store:
        @staticmethod
        def from_uri(uri: str) -> tuple[Any, str]:
            opened.append(uri)
            raise OSError("no network")

    monkeypatch.setattr(pafs, "FileSystem", Store)
    from aiodata.sources.paths import open_uri

    for uri, wanted in {
        "s3://b/a*.parquet": "s3://b/a%2A.parquet",
        "s3://b/a b/[c]?.parquet": "s3://b/a%20b/%5Bc%5D%3F.parquet",
        "s3://b/a%20b": "s3://b/a%20b",
        "s3://b/100%/x": "s3://b/100%25/x",
        "s3://b/x#y": "s3://b/x%23y",
        "s3://b/ä?": "s3://b/%C3%A4%3F",
        "s3://b/x?region=eu&endpoint_override=h%3A1": "s3://b/x?region=eu&endpoint_override=h%3A1",
        "s3://b?region=eu": "s3://b?region=eu",
        "s3://b/ye?r=2024/*.parquet": "s3://b/ye%3Fr%3D2024/%2A.parquet",
        "abfs://c@h.net/k=1/*": "abfs://c@h.net/k%3D1/%2A",
        "GS://b/x": "gs://b/x",
    }.items():
        with pytest.raises(OSError, match="no network"):
            open_uri(uri)
        assert opened.pop() == wanted


@pytest.mark.parametrize("path", ["a.parquet", "./a.parquet", ".//./a.parquet", "sub/../a.parquet", "../{}/a.parquet"])
def test_relative_path_becomes_absolute_when_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "a.parquet").touch()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    given = check_paths(path.format(tmp_path.name), None)
    monkeypatch.chdir("/")
    [file] = find_files(given, PARQUET)
    assert os.path.samefile(file.path, tmp_path / "a.parquet")
    assert given.entries[0] == f"{tmp_path}/sub/../a.parquet" if "sub" in path else f"{tmp_path}/a.parquet"


def test_dots_behind_a_link_lead_where_the_system_says(tmp_path: Path) -> None:
    (tmp_path / "far" / "dir").mkdir(parents=True)
    (tmp_path / "far" / "a.parquet").touch()
    (tmp_path / "link").symlink_to("far/dir")
    [file] = find_files(check_paths(tmp_path / "link" / ".." / "a.parquet", None), PARQUET)
    assert os.path.samefile(file.path, tmp_path / "far" / "a.parquet")


def test_working_directory_that_is_gone_is_refused_only_where_it_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert check_paths("/a", None).entries == ("/a",)
    with pytest.raises(OptionError, match="working directory that is gone"):
        check_paths("a", None)


def test_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert check_paths(["~", "~/a/*.parquet", Path("~/b/"), "./~"], pafs.LocalFileSystem()).entries == (
        "/home/me",
        "/home/me/a/*.parquet",
        "/home/me/b",
        f"{os.getcwd()}/~",
    )


@pytest.mark.parametrize("filesystem", [None, pafs.LocalFileSystem(), fsspec.filesystem("file")])
def test_uri_of_a_local_file_is_decoded(filesystem: Any) -> None:
    for uri, path in {
        "file:///a%20b/c%23.parquet": "/a b/c#.parquet",
        "file:/a/b": "/a/b",
        "file://localhost/a": "/a",
        "FILE:///a": "/a",
        "local:///a": "/a",
        "file:///a b/[c]?x=1#y": "/a b/[c]?x=1#y",
        "file:///100%": "/100%",
        "file:///": "/",
        "/s3://b": "/s3:/b",
    }.items():
        assert check_paths(uri, filesystem).entries == (path,)


def test_uri_in_a_file_system_that_was_given_must_be_of_it() -> None:
    memory = fsspec.filesystem("memory")
    assert check_paths(["memory://d/a", "/d/b", "d/c", "./d"], memory).entries == ("/d/a", "/d/b", "d/c", "d")
    for filesystem in (memory, pafs.LocalFileSystem(), pafs.SubTreeFileSystem("/", pafs.LocalFileSystem())):
        with pytest.raises(OptionError, match=r"paths='s3://b/a' is a URI, and filesystem=.* is another file system"):
            check_paths("s3://b/a", filesystem)


@pytest.mark.parametrize(
    "filesystem", ["s3://bucket", 3, object(), pafs.LocalFileSystem, type(fsspec.filesystem("memory"))]
)
def test_what_is_no_file_system_is_refused(filesystem: Any) -> None:
    with pytest.raises(OptionError, match=r"filesystem=.* must be a pyarrow.fs.FileSystem or an fsspec file system"):
        check_paths("a", filesystem)


def test_several_paths_may_be_given_by_anything_that_is_iterable() -> None:
    wanted = ("/a", "/b")
    for given in (["/a", "/b"], ("/a", Path("/b")), {"/b", "/a"}, iter(["/a", "/b"]), {"/a": 1, "/b": 2}.keys()):
        assert check_paths(given, None).entries == wanted


def test_paths_travel_and_have_a_name() -> None:
    for paths in (check_paths(["/a", "/b", "/c"], None), check_paths("/a", fsspec.filesystem("memory"))):
        assert pickle.loads(pickle.dumps(paths)) == paths
    assert check_paths(["/a", "/b", "/c"], None).name == "/a and 2 more"
    assert Paths(("s3://key:secret@b/a",)).name == "s3://...@b/a"
