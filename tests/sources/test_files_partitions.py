"""Hive directories: which of them give columns, of which types, and which value each file has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pytest

from aiodata.errors import SourceError
from aiodata.schemas import has_nulls
from aiodata.sources.files import FileKind, FoundFile, check_paths, find_files, partition_fields, partition_value
from tests.sources.test_files import touch

PARQUET = FileKind("Parquet", (".parquet",))


def find(path: Any, **arguments: Any) -> list[FoundFile]:
    return find_files(check_paths(path, None), PARQUET, **arguments)


def make(*partitions: dict[str, str | None]) -> list[FoundFile]:
    local = pafs.LocalFileSystem()
    return [FoundFile(f"/{i}", local, 0, None, tuple(one.items())) for i, one in enumerate(partitions)]


def values(files: list[FoundFile]) -> dict[str, list[Any]]:
    return {field.name: [partition_value(field, file).as_py() for file in files] for field in partition_fields(files)}


def test_directories_below_the_one_given_are_columns(tmp_path: Path) -> None:
    touch(tmp_path, "up=1/year=2023/month=01/a=b.parquet", "up=1/year=2024/month=12/x/c.parquet", "up=1/d.parquet")
    files = find(tmp_path / "up=1")
    assert [file.partition for file in files] == [
        (),
        (("year", "2023"), ("month", "01")),
        (("year", "2024"), ("month", "12")),
    ]
    assert values(files) == {"year": [None, 2023, 2024], "month": [None, "01", "12"]}
    assert all(file.partition == () for file in find(tmp_path / "up=1", partitioning=None))


def test_directories_that_are_written_out_are_no_columns(tmp_path: Path) -> None:
    touch(tmp_path, "year=2023/month=1/a.parquet", "year=2024/month=2/a.parquet")
    both = [(("year", "2023"), ("month", "1")), (("year", "2024"), ("month", "2"))]
    months = [(("month", "1"),), (("month", "2"),)]
    for path, wanted in {
        "": both,
        "/": both,
        "/**": both,
        "/year=*": both,
        "/year=*/month=*/*.parquet": both,
        "/*/*/a.parquet": both,
        "/**/month=[12]/": both,
        "/year=2023": months[:1],
        "/year=2023/*": months[:1],
        "/year=2023/month=?/a.parquet": months[:1],
        "/year=2023/month=1": [()],
        "/year=2023/month=1/*.parquet": [()],
        "/year=2023/month=1/a.parquet": [()],
    }.items():
        assert [file.partition for file in find(f"{tmp_path}{path}")] == wanted, path


def test_directory_that_exists_with_its_brackets_is_no_column(tmp_path: Path) -> None:
    touch(tmp_path, "k=[1]/j=2/a.parquet")
    [file] = find(f"{tmp_path}/k=[1]/*/a.parquet")
    assert file.partition == (("j", "2"),)


def test_names_are_decoded(tmp_path: Path) -> None:
    touch(tmp_path, "a%20key=x%2Fy%3D%25/b=1=2/c=/d=%/%=ä/e.parquet")
    [file] = find(tmp_path)
    assert dict(file.partition) == {"a key": "x/y=%", "b": "1=2", "c": "", "d": "%", "%": "ä"}


def test_name_without_a_key_is_a_name(tmp_path: Path) -> None:
    touch(tmp_path, "=1/a.parquet")
    assert find(tmp_path)[0].partition == ()


def test_name_that_decodes_to_no_utf_8_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a=%ff/b.parquet")
    with pytest.raises(SourceError, match="'a=%ff' is not UTF-8") as caught:
        find(tmp_path)
    assert caught.value.path == f"{tmp_path}/a=%ff"
    assert find(tmp_path, partitioning=None)[0].partition == ()


def test_key_that_is_said_twice_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a=1/b=2/a=3/c.parquet")
    with pytest.raises(SourceError, match="two of its directories say what 'a' is") as caught:
        find(tmp_path)
    assert caught.value.path == f"{tmp_path}/a=1/b=2/a=3"
    assert len(find(tmp_path, partitioning=None)) == 1


def test_directory_of_nulls_is_null(tmp_path: Path) -> None:
    touch(tmp_path, "a=__HIVE_DEFAULT_PARTITION__/b.parquet", "a=1/b.parquet")
    assert values(find(tmp_path)) == {"a": [1, None]}


def test_a_directory_says_more_than_a_link_to_it(tmp_path: Path) -> None:
    touch(tmp_path, "v=3/a.parquet", "v=3/sub/b.parquet")
    (tmp_path / "latest").symlink_to("v=3")
    (tmp_path / "first.parquet").symlink_to("v=3/a.parquet")
    for pattern in ("", "/**/*.parquet", "/*"):
        files = find(f"{tmp_path}{pattern}")
        assert [file.path.removeprefix(f"{tmp_path}/") for file in files] == ["v=3/a.parquet", "v=3/sub/b.parquet"]
        assert values(files) == {"v": [3, 3]}


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["0", "10", "-3"], pa.int64()),
        (["9223372036854775807", "-9223372036854775808"], pa.int64()),
        (["9223372036854775808"], pa.string()),
        (["-9223372036854775809"], pa.string()),
        (["1", "01"], pa.string()),
        (["1", "-0"], pa.string()),
        (["1", "+1"], pa.string()),
        (["1", "1.0"], pa.string()),
        (["1", ""], pa.string()),
        (["1", " 1"], pa.string()),
        (["1", "1_0"], pa.string()),
        (["1", "٣"], pa.string()),
        (["1", "1\n"], pa.string()),
        (["9" * 5000], pa.string()),
        (["2024-01-01"], pa.string()),
        (["1", None], pa.int64()),
        (["a", None], pa.string()),
        ([None], pa.string()),
    ],
)
def test_column_is_of_integers_if_all_are_written_as_such(texts: list[str | None], wanted: pa.DataType) -> None:
    files = make(*({"k": text} for text in texts))
    [field] = partition_fields(files)
    assert field == pa.field("k", wanted)
    assert has_nulls(field) is (None in texts)
    found = [partition_value(field, file) for file in files]
    assert [value.type for value in found] == [wanted] * len(texts)
    assert [None if value.as_py() is None else str(value.as_py()) for value in found] == texts


def test_file_that_lacks_the_key_is_null() -> None:
    files = make({"k": "1"}, {}, {"j": "x", "k": "2"})
    assert values(files) == {"k": [1, None, 2], "j": [None, None, "x"]}
    assert [has_nulls(field) for field in partition_fields(files)] == [True, True]


def test_no_partitions_are_no_columns() -> None:
    assert partition_fields([]) == []
    assert partition_fields(make({}, {})) == []


def test_value_fits_the_type_that_is_asked_for() -> None:
    [file] = make({"k": "2024", "day": "2024-02-29", "text": "ä"})
    for field, wanted in {
        pa.field("k", pa.int32()): 2024,
        pa.field("k", pa.float64()): 2024.0,
        pa.field("k", pa.string()): "2024",
        pa.field("text", pa.large_string()): "ä",
        pa.field("text", pa.dictionary(pa.int32(), pa.string())): "ä",
        pa.field("gone", pa.int8()): None,
    }.items():
        value = partition_value(field, file)
        assert (value.type, value.as_py()) == (field.type, wanted)
    assert str(partition_value(pa.field("day", pa.date32()), file)) == "2024-02-29"


@pytest.mark.parametrize("column_type", [pa.int8(), pa.bool_(), pa.date32(), pa.list_(pa.int8())])
def test_value_that_does_not_fit_is_named_with_the_file(column_type: pa.DataType) -> None:
    [file] = make({"k": "2024"})
    with pytest.raises(SourceError, match=r"/0: its directory says k='2024', which is no"):
        partition_value(pa.field("k", column_type), file)


def test_what_arrow_writes_is_read_back(tmp_path: Path) -> None:
    keys = ["a b", "x/y", "=", "%25", "ä", None, "__", "a+b", "#?"]
    table = pa.table({"key": keys, "year": [2023 + i for i in range(len(keys))], "x": list(range(len(keys)))})
    pads.write_dataset(
        table,
        tmp_path,
        format="parquet",
        partitioning=["key", "year"],
        partitioning_flavor="hive",
        existing_data_behavior="error",
    )
    found = values(find(tmp_path))
    assert set(zip(found["key"], found["year"], strict=True)) == set(zip(keys, table["year"].to_pylist(), strict=True))
