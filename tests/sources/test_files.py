"""Finding files: every name that is found is read or named, once, on each kind of file system."""

from __future__ import annotations

import fnmatch
import glob
import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata.errors import OptionError, SourceError
from aiodata.sources.files import FileKind, check_paths, find_files

PARQUET = FileKind("Parquet", (".parquet", ".parq", ".pq"))
# No file has it, so that all are read.
ANYTHING = FileKind("any", (".none",))


def touch(base: Path, *names: str) -> None:
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).touch()


def names(base: Path, paths: Any, kind: FileKind = PARQUET) -> list[str]:
    """Return what is found, from the base on."""
    found = find_files(check_paths(paths, None), kind)
    return [file.path.removeprefix(f"{base}/") for file in found]


# Directories


def test_directory_is_read_with_all_below_it_sorted_by_path(tmp_path: Path) -> None:
    touch(tmp_path, "b/p.parquet", "a/deep/p.parquet", "a/p.parquet", "c.parquet")
    wanted = ["a/deep/p.parquet", "a/p.parquet", "b/p.parquet", "c.parquet"]
    for path in (tmp_path, str(tmp_path), f"{tmp_path}/", f"{tmp_path}//.", f"{tmp_path}/a/.."):
        assert [name.removeprefix("a/../") for name in names(tmp_path, path)] == wanted


def test_suffix_is_one_of_several_in_any_case(tmp_path: Path) -> None:
    touch(tmp_path, "B.PARQUET", "a.parquet", "c.parq", "d.Pq", "e.parquet.bak")
    assert names(tmp_path, tmp_path) == ["B.PARQUET", "a.parquet", "c.parq", "d.Pq"]


def test_hidden_names_do_not_count(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet", "_b.parquet", ".c.parquet", "_d/e.parquet", ".f/g.parquet", "_SUCCESS", ".a.crc")
    assert names(tmp_path, tmp_path) == ["a.parquet"]
    assert names(tmp_path, f"{tmp_path}/*") == ["a.parquet"]
    assert names(tmp_path, f"{tmp_path}/**/*.parquet") == ["a.parquet"]


def test_hidden_name_that_is_written_out_counts(tmp_path: Path) -> None:
    touch(tmp_path, "_b.parquet", ".c/d.parquet", "x/_e/f.parquet")
    assert names(tmp_path, tmp_path / "_b.parquet") == ["_b.parquet"]
    assert names(tmp_path, f"{tmp_path}/_*.parquet") == ["_b.parquet"]
    assert names(tmp_path, f"{tmp_path}/.*") == [".c/d.parquet"]
    assert names(tmp_path, f"{tmp_path}/*/_e/*") == ["x/_e/f.parquet"]


def test_directory_of_a_key_that_begins_with_an_underscore_counts(tmp_path: Path) -> None:
    touch(tmp_path, "_key=1/a.parquet", ".key=1/a.parquet", "_key=1.parquet")
    assert names(tmp_path, tmp_path) == ["_key=1/a.parquet"]


def test_other_files_are_left_out_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.parquet", "notes.txt", "sub/000000_0", "1", "2", "_SUCCESS")
    with caplog.at_level(logging.WARNING, "aiodata"):
        assert names(tmp_path, tmp_path) == ["a.parquet"]
        assert names(tmp_path, tmp_path) == ["a.parquet"]
    [record] = caplog.records
    message = record.getMessage()
    assert message == (
        f"{tmp_path}: left out, for they do not end in .parquet or .parq or .pq: "
        f"{tmp_path}/1, {tmp_path}/2, {tmp_path}/notes.txt and 1 more"
    )


def test_file_that_another_path_names_is_not_called_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.parquet", "other")
    assert names(tmp_path, [tmp_path, tmp_path / "other"]) == ["a.parquet", "other"]
    assert not caplog.records


def test_without_the_suffix_all_files_are_read(tmp_path: Path) -> None:
    touch(tmp_path, "000000_0", "sub/000001_0", "_SUCCESS")
    assert names(tmp_path, tmp_path) == ["000000_0", "sub/000001_0"]
    assert names(tmp_path, f"{tmp_path}/*") == ["000000_0", "sub/000001_0"]


def test_file_that_is_given_is_read_whatever_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "data", "_x.txt")
    assert names(tmp_path, [tmp_path / "data", tmp_path / "_x.txt"]) == ["data", "_x.txt"]


def test_size_and_time_are_known(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"12345")
    os.utime(tmp_path / "a.parquet", ns=(0, 1_234_567_890_123_456_789))
    [file] = find_files(check_paths(tmp_path, None), PARQUET)
    assert (file.size, file.modified_ns) == (5, 1_234_567_890_123_456_789)
    assert pickle.loads(pickle.dumps(file)) == file


def test_entries_keep_their_order_and_files_count_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.parquet", "b/1.parquet", "b/2.parquet")
    wanted = ["b/2.parquet", "a/1.parquet", "b/1.parquet"]
    assert names(tmp_path, [f"{tmp_path}/b/2*", tmp_path, f"{tmp_path}/a/../b", (tmp_path / "b").as_uri()]) == wanted


# What cannot be read


def test_missing_path_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    (tmp_path / "v[1]").mkdir()
    for name in ("gone", "gone/a.parquet", "file/a.parquet", "v[1]/a.parquet", "n" * 300):
        path = tmp_path / name
        with pytest.raises(SourceError, match="no such file or directory") as caught:
            names(tmp_path, [tmp_path / "file", path])
        assert caught.value.path == str(path)


@pytest.mark.parametrize("path", ["", "*", "*.parquet", "gone/*.parquet", "_x.parquet/*", "**", "**/*.pq", "[", "[a]"])
def test_path_without_files_is_named(tmp_path: Path, path: str) -> None:
    touch(tmp_path, "_x.parquet", "_y/z.parquet")
    with pytest.raises(SourceError, match="no Parquet file is there") as caught:
        names(tmp_path, f"{tmp_path}/{path}".rstrip("/"))
    assert caught.value.path == f"{tmp_path}/{path}".rstrip("/")


def test_path_without_files_is_named_among_others(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty: no Parquet file"):
        names(tmp_path, [tmp_path, tmp_path / "empty"])


@pytest.mark.parametrize("pattern", ["", "/sub", "/*", "/**", "/sub/*.parquet", "/*/*.parquet"])
def test_directory_that_may_not_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    # Root may list everything, so the refusal is made here.
    touch(tmp_path, "sub/a.parquet", "b/a.parquet", "a.parquet")
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if path.rstrip("/") == f"{tmp_path}/sub":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match="Permission denied") as caught:
        names(tmp_path, f"{tmp_path}{pattern}")
    assert caught.value.path == f"{tmp_path}/sub"


def test_pipe_and_socket_are_named_and_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # The name of a socket may not be long.
    os.mkfifo(tmp_path / "a.parquet")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("b.parquet")
    for path in ("a.parquet", "b.parquet", "*.parquet", "."):
        with pytest.raises(SourceError, match="neither a file nor a directory"):
            names(tmp_path, path)


# Names


@pytest.mark.parametrize(
    "name", ["100%", "a%20b", "a b", "a#b", "a?b", "a*b", "ä", "日本", "a\nb", "a:b", "s3:", "[", "'"]
)
def test_any_name_is_found_as_it_is_written(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"{name}/{name}.parquet", "other/other.parquet")
    wanted = [f"{name}/{name}.parquet"]
    base = tmp_path / name
    uri = base.as_uri()
    for path in (base, base / f"{name}.parquet", f"{base}/*.parquet", f"{base}/**", uri, f"{uri}/*.parquet"):
        assert names(tmp_path, path) == wanted


def test_part_that_exists_as_written_is_no_pattern(tmp_path: Path) -> None:
    touch(
        tmp_path, "v[1]/a.parquet", "v1/b.parquet", "a[1].parquet", "a1.parquet", "x/v[1]/c.parquet", "y/v1/d.parquet"
    )
    assert names(tmp_path, f"{tmp_path}/v[1]") == ["v[1]/a.parquet"]
    assert names(tmp_path, f"{tmp_path}/v[1]/*.parquet") == ["v[1]/a.parquet"]
    assert names(tmp_path, f"{tmp_path}/a[1].parquet") == ["a[1].parquet"]
    assert names(tmp_path, f"{tmp_path}/*/v[1]/*.parquet") == ["x/v[1]/c.parquet", "y/v1/d.parquet"]
    assert names(tmp_path, f"{tmp_path}/v[12]/*.parquet") == ["v1/b.parquet"]


def test_name_that_is_not_utf_8_breaks_nothing_unless_it_is_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.parquet")
    other = os.fsencode(tmp_path) + b"/\xff.txt"
    os.close(os.open(other, os.O_CREAT))
    os.mkdir(os.fsencode(tmp_path) + b"/\xfe")
    assert names(tmp_path, tmp_path) == ["a.parquet"]
    assert names(tmp_path, f"{tmp_path}/*") == ["a.parquet"]
    assert "\\udcff.txt" in caplog.text
    os.rename(other, os.fsencode(tmp_path) + b"/\xfe/b.parquet")
    with pytest.raises(SourceError, match="not UTF-8") as caught:
        names(tmp_path, tmp_path)
    assert caught.value.path == f"{tmp_path}/\\udcfe/b.parquet"
    assert names(tmp_path, f"{tmp_path}/*.parquet") == ["a.parquet"]


# Links


def test_links_to_files_and_directories_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.dat", "elsewhere/dir/b.parquet", "base/c.parquet")
    (tmp_path / "base" / "a.parquet").symlink_to(tmp_path / "elsewhere" / "a.dat")
    (tmp_path / "base" / "more").symlink_to("../elsewhere/dir")
    (tmp_path / "link").symlink_to("base")
    for path in ("base", "link", "link/"):
        here = path.rstrip("/")
        wanted = [f"{here}/a.parquet", f"{here}/c.parquet", f"{here}/more/b.parquet"]
        assert names(tmp_path, f"{tmp_path}/{path}") == wanted
        assert names(tmp_path, f"{tmp_path}/{here}/*") == wanted
        assert names(tmp_path, f"{tmp_path}/{here}/**/*.parquet") == wanted


@pytest.mark.parametrize("pattern", ["", "/**", "/**/*.parquet", "/**/**/*", "/*"])
def test_each_row_counts_once_whatever_links_lead_to_it(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "d/a.parquet", "d/x/b.parquet", "d/y/c.parquet")
    (tmp_path / "d" / "z.parquet").symlink_to("a.parquet")
    (tmp_path / "d" / "x" / "up").symlink_to("..")
    (tmp_path / "d" / "x" / "y").symlink_to("../y")
    (tmp_path / "d" / "y" / "x").symlink_to("../x")
    (tmp_path / "d" / "self").symlink_to(".")
    found = names(tmp_path, f"{tmp_path}/d{pattern}")
    assert sorted(os.path.basename(path) for path in found) == ["a.parquet", "b.parquet", "c.parquet"]


def test_many_directories_that_link_to_each_other_are_each_listed_once(tmp_path: Path) -> None:
    # Each way through them is another path: 12! of them.
    for one in range(12):
        touch(tmp_path, f"{one}/{one}.parquet")
        for other in range(12):
            (tmp_path / f"{one}" / f"to-{other}").symlink_to(f"../{other}")
    for pattern in ("", "/**", "/**/**/*.parquet"):
        assert len(names(tmp_path, f"{tmp_path}{pattern}")) == 12


def test_hard_links_are_files_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, "day=1/a.parquet")
    (tmp_path / "day=2").mkdir()
    (tmp_path / "day=2" / "a.parquet").hardlink_to(tmp_path / "day=1" / "a.parquet")
    assert names(tmp_path, tmp_path) == ["day=1/a.parquet", "day=2/a.parquet"]


@pytest.mark.parametrize("target", ["nowhere", "b.parquet", "a.parquet/x"])
def test_link_to_nothing_is_named_if_data_was_there(tmp_path: Path, target: str) -> None:
    touch(tmp_path, "a.parquet", "c/d.parquet")
    (tmp_path / "b.parquet").symlink_to(target)
    for path in ("", "/b.parquet", "/*.parquet", "/*", "/**", "/[b].parquet"):
        with pytest.raises(SourceError, match="is a link to what does not exist") as caught:
            names(tmp_path, f"{tmp_path}{path}")
        assert caught.value.path == f"{tmp_path}/b.parquet"
    with pytest.raises(SourceError, match="is a link to what does not exist"):
        names(tmp_path, f"{tmp_path}/b.parquet/*.parquet")
    assert names(tmp_path, f"{tmp_path}/[ac]*") == ["a.parquet", "c/d.parquet"]


def test_link_to_nothing_without_the_suffix_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.parquet")
    (tmp_path / "latest").symlink_to("gone")
    assert names(tmp_path, tmp_path) == ["a.parquet"]
    assert f"{tmp_path}/latest" in caplog.text


# Patterns


def test_directories_that_a_pattern_matches_are_read_beside_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet/part-0.parquet", "a.parquet/_SUCCESS", "b.parquet", "c/d.parquet", "c.txt")
    assert names(tmp_path, f"{tmp_path}/*.parquet") == ["a.parquet/part-0.parquet", "b.parquet"]
    assert names(tmp_path, f"{tmp_path}/*") == ["a.parquet/part-0.parquet", "b.parquet", "c/d.parquet"]
    assert names(tmp_path, f"{tmp_path}/**/*.parquet") == ["a.parquet/part-0.parquet", "b.parquet", "c/d.parquet"]
    assert names(tmp_path, f"{tmp_path}/*/") == ["a.parquet/part-0.parquet", "c/d.parquet"]


def test_files_that_a_pattern_names_are_read_whatever_directories_it_matches(tmp_path: Path) -> None:
    touch(tmp_path, "a.dat", "b.dat/part-0.parquet")
    assert names(tmp_path, f"{tmp_path}/*.dat") == ["a.dat", "b.dat/part-0.parquet"]


def test_two_stars_cross_directories_and_one_does_not(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet", "x/a.parquet", "x/y/a.parquet", "x/y/b.parquet")
    assert names(tmp_path, f"{tmp_path}/*.parquet") == ["a.parquet"]
    assert names(tmp_path, f"{tmp_path}/*/a.parquet") == ["x/a.parquet"]
    assert names(tmp_path, f"{tmp_path}/**/a.parquet") == ["a.parquet", "x/a.parquet", "x/y/a.parquet"]
    assert names(tmp_path, f"{tmp_path}/**/y/*") == ["x/y/a.parquet", "x/y/b.parquet"]
    assert names(tmp_path, f"{tmp_path}/x/**") == ["x/a.parquet", "x/y/a.parquet", "x/y/b.parquet"]


NAME = st.text(st.sampled_from("ab1"), min_size=1, max_size=2)
TREE = st.sets(st.lists(NAME, min_size=1, max_size=3).map("/".join), min_size=1, max_size=8)
PART = st.sampled_from(["*", "?", "**", "a*", "*b", "[ab]", "[!a]?", "[a-b]*", "a", "b", "1", "??"])
PATTERN = st.lists(PART, min_size=1, max_size=4).map("/".join)


def make_tree(base: str, tree: set[str]) -> None:
    for path in sorted(tree, key=len, reverse=True):
        if not os.path.exists(f"{base}/{path}"):
            try:
                touch(Path(base), path)
            except (FileExistsError, NotADirectoryError):  # One part of the path is a file already.
                continue


@settings(deadline=None, max_examples=60)
@given(tree=TREE, pattern=PATTERN)
def test_patterns_match_what_pythons_glob_matches(tree: set[str], pattern: str) -> None:
    with TemporaryDirectory() as base:
        make_tree(base, tree)
        wanted = set()
        for path in glob.glob(f"{glob.escape(base)}/{pattern}", recursive=True):
            if path.endswith("/") and not os.path.isdir(path):
                continue  # Python takes a file for a directory here, of which there is nothing below.
            wanted.add(path.rstrip("/"))
            wanted |= {os.path.join(at, name) for at, _, files in os.walk(path) for name in files}
        wanted = {path for path in wanted if os.path.isfile(path)}
        try:
            found = [file.path for file in find_files(check_paths(f"{base}/{pattern}", None), ANYTHING)]
        except SourceError:
            found = []
        assert found == sorted(wanted)


@settings(deadline=None, max_examples=60)
@given(
    files=st.sets(st.text(st.sampled_from("ab[]!-*?^"), min_size=1, max_size=4), min_size=1, max_size=6),
    pattern=st.text(st.sampled_from("ab[]!-*?^"), min_size=1, max_size=5),
)
def test_name_matches_as_in_fnmatch_unless_the_pattern_is_a_name(files: set[str], pattern: str) -> None:
    with TemporaryDirectory() as base:
        touch(Path(base), *files)
        # Two stars alone mean all there is.
        matched = files if pattern == "**" else {name for name in files if fnmatch.fnmatchcase(name, pattern)}
        wanted = {pattern} if pattern in files else matched
        try:
            found = [file.path for file in find_files(check_paths(f"{base}/{pattern}", None), ANYTHING)]
        except SourceError:
            found = []
        assert found == [f"{base}/{name}" for name in sorted(wanted)]


# File systems

Make = Callable[[Path], Any]
FILES = ["top.parquet", "d/a.parquet", "d/B.PARQUET", "d/sub/c.pq", "d/k=1/d.parquet", "d/_x/e.parquet", "d/notes.txt"]


def fill(filesystem: pafs.FileSystem, base: str = "") -> pafs.FileSystem:
    for name in FILES:
        filesystem.create_dir(os.path.dirname(base + name) or ".")
        with filesystem.open_output_stream(base + name) as stream:
            stream.write(b"123")
    return filesystem


def make_mock(_: Path) -> Any:
    return fill(pafs._MockFileSystem())


def make_subtree_of_mock(_: Path) -> Any:
    return pafs.SubTreeFileSystem("up/here", fill(pafs._MockFileSystem(), "up/here/"))


def make_subtree_of_disk(base: Path) -> Any:
    return fill(pafs.SubTreeFileSystem(str(base), pafs.LocalFileSystem()))


def make_nested_subtree(base: Path) -> Any:
    (base / "x").mkdir()
    return fill(pafs.SubTreeFileSystem("x", pafs.SubTreeFileSystem(f"{base}/", pafs.LocalFileSystem())))


def make_memory(base: Path) -> Any:
    directory = fsspec.filesystem("dir", path=f"/{base.name}", fs=fsspec.filesystem("memory"))
    fill(pafs.PyFileSystem(pafs.FSSpecHandler(directory)))
    return directory


def make_wrapped_memory(base: Path) -> Any:
    return pafs.PyFileSystem(pafs.FSSpecHandler(make_memory(base)))


MAKES: list[Make] = [
    make_mock,
    make_subtree_of_mock,
    make_subtree_of_disk,
    make_nested_subtree,
    make_memory,
    make_wrapped_memory,
]

IN_D = ["d/B.PARQUET", "d/a.parquet", "d/k=1/d.parquet", "d/sub/c.pq"]
ON_ANY: dict[str, list[str]] = {
    "": [*IN_D, "top.parquet"],
    ".": [*IN_D, "top.parquet"],
    "d": IN_D,
    "d/": IN_D,
    "./d": IN_D,
    "**": [*IN_D, "top.parquet"],
    "*": [*IN_D, "top.parquet"],
    "d/*": IN_D,
    "d/*.parquet": ["d/a.parquet"],
    "d/**/*.p*q*": ["d/a.parquet", "d/k=1/d.parquet", "d/sub/c.pq"],
    "*/sub/c.??": ["d/sub/c.pq"],
    "*/k=[0-9]": ["d/k=1/d.parquet"],
    "*/*/": ["d/k=1/d.parquet", "d/sub/c.pq"],
    "d/_x": ["d/_x/e.parquet"],
    "d/notes.txt": ["d/notes.txt"],
    "*.parquet": ["top.parquet"],
}


@pytest.mark.parametrize("make", MAKES)
def test_paths_mean_the_same_on_every_file_system(tmp_path: Path, make: Make) -> None:
    filesystem = make(tmp_path)
    for path, wanted in ON_ANY.items():
        found = find_files(check_paths(path, filesystem), PARQUET)
        assert [file.path.strip("/") for file in found] == wanted, path
        for file in found:
            assert file.size == 3
            info = file.filesystem.get_file_info(file.path)
            assert (info.type, info.size) == (pafs.FileType.File, 3)


@pytest.mark.parametrize("make", MAKES)
def test_what_is_missing_is_named_on_every_file_system(tmp_path: Path, make: Make) -> None:
    filesystem = make(tmp_path)
    for path, reason in {"gone": "no such file", "gone/*": "no Parquet", "d/*.csv": "no Parquet"}.items():
        with pytest.raises(SourceError, match=reason) as caught:
            find_files(check_paths(["d", path], filesystem), PARQUET)
        assert caught.value.path == path


@pytest.mark.parametrize("make", MAKES)
def test_files_count_once_on_every_file_system(tmp_path: Path, make: Make) -> None:
    paths = check_paths(["d/sub", "d/*/*.pq", "**", "d/sub/c.pq", "./d"], make(tmp_path))
    assert [file.path.strip("/") for file in find_files(paths, PARQUET)] == ["d/sub/c.pq", *IN_D[:3], "top.parquet"]


@settings(deadline=None, max_examples=60)
@given(tree=TREE, pattern=PATTERN)
def test_patterns_mean_the_same_on_a_disk_and_elsewhere(tree: set[str], pattern: str) -> None:
    with TemporaryDirectory() as base:
        make_tree(base, tree)
        mock = pafs._MockFileSystem()
        pafs.copy_files(base, "", pafs.LocalFileSystem(), mock)
        outcomes = []
        for filesystem in (pafs.SubTreeFileSystem(base, pafs.LocalFileSystem()), mock):
            try:
                outcomes.append([file.path for file in find_files(check_paths(pattern, filesystem), ANYTHING)])
            except SourceError as error:
                outcomes.append([str(error)])
        assert outcomes[0] == outcomes[1]


def test_uri_of_fsspec_is_read_with_its_pattern(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("a b.parquet", "a#b.parquet", "c[1].parquet", "%20.parquet", "no.txt"):
        memory.pipe(f"/{tmp_path.name}/{name}", b"12")
    wanted = [f"/{tmp_path.name}/{name}.parquet" for name in ("%20", "a b", "a#b", "c[1]")]
    for uri in (
        f"memory://{tmp_path.name}",
        f"memory:///{tmp_path.name}/*.parquet",
        f"fsspec+memory://{tmp_path.name}/",
    ):
        assert [file.path for file in find_files(check_paths(uri, None), PARQUET)] == wanted
    paths = check_paths([f"memory://{tmp_path.name}/{name}*" for name in ("a", "a#", "c[[]1]")], memory)
    assert [file.path for file in find_files(paths, PARQUET)] == [wanted[1], wanted[2], wanted[3]]


class BrokenHandler(pafs.FSSpecHandler):  # type: ignore[misc]
    """A file system whose library has errors of its own."""

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [pafs.FileInfo(path, pafs.FileType.Directory) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        raise ZeroDivisionError("out of order")


def test_error_of_a_file_system_names_the_path() -> None:
    filesystem = pafs.PyFileSystem(BrokenHandler(fsspec.filesystem("memory")))
    with pytest.raises(SourceError, match="bucket: cannot be listed: out of order"):
        find_files(check_paths("bucket", filesystem), PARQUET)


def test_file_system_that_cannot_be_connected_to_is_named_without_its_password() -> None:
    # Refused before anything is sent: Arrow knows no such option.
    paths = check_paths("s3://key:secret@bucket/a*.parquet?nonsense=1", None)
    assert "secret" not in paths.name
    with pytest.raises(SourceError, match="cannot be connected to") as caught:
        find_files(paths, PARQUET)
    assert caught.value.path == "s3://...@bucket/a*.parquet?nonsense=1"


def test_unknown_partitioning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="partitioning='directory' must be 'hive', or None"):
        find_files(check_paths(tmp_path, None), PARQUET, partitioning="directory")
