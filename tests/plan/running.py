"""Running work in tests, to its end."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from aiodata.plan.pieces import Origin, TablePiece
from aiodata.plan.transforms import Control, Transform
from aiodata.plan.work import Cuts, OutputMetadata, TaskEnd, Work, run_work

HUGE = 1 << 40
UNLIMITED = Cuts(HUGE, HUGE, 4, HUGE, 1 << 20, HUGE, HUGE)

# A block per table that leaves the chain.
EAGER = Cuts(1, 1 << 20, 1, 1, 1, HUGE, HUGE)

Batch = dict[str, Any]
Output = tuple[pa.Table, OutputMetadata]


def ids(first: int, count: int) -> pa.Table:
    """A table whose ids count up."""
    return pa.table({"id": pa.array(range(first, first + count), pa.int64())})


def counted(count: int) -> TablePiece:
    """A piece whose ids count up from 0."""
    return TablePiece(ids(0, count), Origin("t", (0, count)))


def run(
    work: Work, chain: Sequence[Transform], blocks: Sequence[pa.Table] = (), control: Control | None = None
) -> tuple[list[Output], TaskEnd]:
    """What a work yields, and how it ends; what it tells with its blocks is told with the end, too."""
    outputs: list[Output] = []
    steps = run_work(work, chain, blocks, control or Control())
    while not isinstance(output := step(steps), TaskEnd):
        outputs.append(output)
    errors = [error for _, metadata in outputs for error in metadata.errors]
    return outputs, replace(output, errors=(*errors, *output.errors))


def step(steps: Generator[Output, None, TaskEnd]) -> Output | TaskEnd:
    """The next output, or the end."""
    try:
        return next(steps)
    except StopIteration as end:
        result: TaskEnd = end.value
        return result


def outputs_of(work: Work, chain: Sequence[Transform], blocks: Sequence[pa.Table] = ()) -> list[Output]:
    """What a work yields; raise the error that ends it."""
    outputs, end = run(work, chain, blocks)
    if end.error is not None:
        raise end.error
    return outputs


def rows_of(outputs: Sequence[Output]) -> list[dict[str, Any]]:
    """The rows of all outputs."""
    return [row for table, _ in outputs for row in table.to_pylist()]


def ids_of(outputs: Sequence[Output]) -> list[int]:
    """The ids of all outputs."""
    return [row["id"] for row in rows_of(outputs)]
