"""What a worker says of a block, packed and unpacked again."""

from __future__ import annotations

import pyarrow as pa

from aiodata.bundle import BlockMetadata
from aiodata.plan.work import OutputMetadata
from aiodata.runtime.ray.packed import MetadataPacker, unpack_metadata


def metadata_of(table: pa.Table, source: str = "a file") -> OutputMetadata:
    return OutputMetadata(BlockMetadata(table.num_rows, table.nbytes, table.schema, source), 3, 0.25)


def test_metadata_comes_back_as_it_was() -> None:
    table = pa.table({"id": [1, 2], "word": pa.array(["a", "b"]).dictionary_encode()})
    one = metadata_of(table.replace_schema_metadata({"made": "here"}))
    again = unpack_metadata(MetadataPacker().pack(one))
    assert again == one
    assert again.block.schema.metadata == {b"made": b"here"}


def test_schema_that_changes_from_block_to_block_comes_back_with_its_block() -> None:
    tables = [pa.table({name: [1]}) for name in ("a", "b", "a")]
    tables += [table.replace_schema_metadata({"made": "here"}) for table in tables]
    packer = MetadataPacker()
    again = [unpack_metadata(packer.pack(metadata_of(table))).block.schema for table in tables]
    assert all(ours.equals(table.schema, check_metadata=True) for ours, table in zip(again, tables, strict=True))


def test_schemas_that_are_the_same_are_one_object_whatever_task_they_come_from() -> None:
    packed = [MetadataPacker().pack(metadata_of(pa.table({"a": [row]}))) for row in range(3)]
    assert len({id(unpack_metadata(one).block.schema) for one in packed}) == 1


def test_metadata_of_a_block_without_columns_comes_back() -> None:
    one = metadata_of(pa.table({}), "")
    assert unpack_metadata(MetadataPacker().pack(one)) == one
