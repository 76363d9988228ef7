"""What a worker says of a block, packed and unpacked again."""

from __future__ import annotations

import pyarrow as pa

from aiodata.bundle import BlockMetadata
from aiodata.plan.work import OutputMetadata
from aiodata.runtime.ray.packed import ReportPacker, unpack_report


def metadata_of(table: pa.Table, source: str = "a file") -> OutputMetadata:
    return OutputMetadata(BlockMetadata(table.num_rows, table.nbytes, table.schema, source), 3, 0.25)


def sent(packer: ReportPacker, *outputs: OutputMetadata) -> tuple[OutputMetadata, ...]:
    """What the driver is told of a report's blocks."""
    for one in outputs:
        packer.add(pa.table({}), one)
    *_, packed = packer.report()
    said, end = unpack_report(packed)
    assert end is None
    return said


def test_metadata_comes_back_as_it_was() -> None:
    table = pa.table({"id": [1, 2], "word": pa.array(["a", "b"]).dictionary_encode()})
    one = metadata_of(table.replace_schema_metadata({"made": "here"}))
    [again] = sent(ReportPacker(1), one)
    assert again == one
    assert again.block.schema.metadata == {b"made": b"here"}


def test_schema_that_changes_from_block_to_block_comes_back_with_its_block() -> None:
    tables = [pa.table({name: [1]}) for name in ("a", "b", "a")]
    tables += [table.replace_schema_metadata({"made": "here"}) for table in tables]
    packer = ReportPacker(2)
    again = [one for first in (0, 2, 4) for one in sent(packer, *map(metadata_of, tables[first : first + 2]))]
    schemas = [one.block.schema for one in again]
    assert all(ours.equals(table.schema, check_metadata=True) for ours, table in zip(schemas, tables, strict=True))


def test_schemas_that_are_the_same_are_one_object_whatever_task_they_come_from() -> None:
    outputs = [sent(ReportPacker(1), metadata_of(pa.table({"a": [row]})))[0] for row in range(3)]
    assert len({id(one.block.schema) for one in outputs}) == 1


def test_metadata_of_a_block_without_columns_comes_back() -> None:
    one = metadata_of(pa.table({}), "")
    assert sent(ReportPacker(1), one) == (one,)


def test_reports_are_of_one_length_and_the_last_one_tells_the_end() -> None:
    packer = ReportPacker(3)
    tables = [pa.table({"row": [row]}) for row in range(4)]
    reports = []
    for table in tables:
        packer.add(table, metadata_of(table))
        if packer.is_full:
            reports.append(packer.report())
    reports.append(packer.report("the end"))
    assert [report[:-1] for report in reports] == [tuple(tables[:3]), (tables[3], None, None)]
    assert [unpack_report(report[-1]) for report in reports] == [
        (tuple(metadata_of(table) for table in tables[:3]), None),
        ((metadata_of(tables[3]),), "the end"),
    ]
