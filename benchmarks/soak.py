"""Iterate over pairs of splits for as long as it takes to see what is rare; `python -m benchmarks.soak --help`.

Each pair has a coordinator of its own. One of its two consumers pauses after the first batch, so that the other one
waits for its part and halves of blocks come late. Every epoch has to end, with the rows that it should have.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import ray
import typer
from ray.cluster_utils import Cluster

import aiodata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyio.abc import TaskStatus

NUM_ROWS = 2000
NUM_BLOCKS = 20
BATCH_ROWS = 10
PAUSES_S = (0.0, 1.0, 4.0, 10.0)

# Far beyond the longest pause, and beyond the time after which a fetch of what is there gives up, in seconds.
STUCK_AFTER_S = 240.0
_REPORT_EVERY_S = 30.0

# Warnings that a report shows, the latest ones.
_MAX_LINES = 20


@dataclass(frozen=True, slots=True)
class Kind:
    """What tells pairs apart.

    Attributes:
        pause_s: How long the first consumer pauses after its first batch, in seconds.
        is_equal: Whether both get the same number of rows.
        is_apart: Whether the second consumer is in a process of its own.
    """

    pause_s: float
    is_equal: bool
    is_apart: bool


# Those of one process come first.
KINDS = tuple(Kind(*one, is_apart) for is_apart in (False, True) for one in itertools.product(PAUSES_S, (True, False)))


@dataclass
class Tally:
    """What was seen so far.

    Attributes:
        epochs: Epochs that ended with the right rows, by kind.
        faults: What went wrong, one line each.
        warnings: What aiodata warned of in this process.
    """

    epochs: Counter[Kind] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


async def read(split: aiodata.SplitIterator, pause_s: float) -> list[int]:
    """Return the ids of an epoch, pausing after the first batch."""
    ids: list[int] = []
    async for batch in split.aiter_batches(batch_size=BATCH_ROWS):
        if not ids:
            await anyio.sleep(pause_s)
        ids += batch["id"].tolist()
    return ids


class _Reader:
    async def start(self) -> None:
        """Be there."""

    async def read(self, split: aiodata.SplitIterator, pause_s: float) -> list[int]:
        return await read(split, pause_s)


async def run_pair(
    kind: Kind,
    tally: Tally,
    num_epochs: int,
    until_s: float,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Run so many epochs of one pair, as far as time allows; it counts as started when its processes are there."""
    splits = aiodata.range(NUM_ROWS, num_blocks=NUM_BLOCKS).streaming_split(2, equal=kind.is_equal)
    reader: Any = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(_Reader).remote() if kind.is_apart else None
    await splits[0].stats()
    if reader:
        await reader.start.remote()
    task_status.started()
    for epoch in range(num_epochs):
        if time.monotonic() > until_s:
            return
        try:
            with anyio.fail_after(STUCK_AFTER_S):
                fault = _fault_in(await _read_both(splits, kind, reader), kind)
        except Exception as error:  # noqa: BLE001 - it is counted, and the others go on.
            fault = repr(error)
        if fault is not None:
            tally.faults.append(f"{kind}, epoch {epoch}: {fault}")
            return
        tally.epochs[kind] += 1


async def _read_both(splits: list[aiodata.SplitIterator], kind: Kind, reader: Any) -> list[list[int]]:
    """Return what each split has in an epoch."""
    parts: list[list[int]] = [[], []]

    async def fill(index: int, reading: Any) -> None:
        parts[index] = await reading

    async with anyio.create_task_group() as group:
        group.start_soon(fill, 0, read(splits[0], kind.pause_s))
        group.start_soon(fill, 1, reader.read.remote(splits[1], 0.0) if reader else read(splits[1], 0.0))
    return parts


async def run_kinds(
    kinds: tuple[Kind, ...], num_epochs: int, *, num_pairs: int | None = None, within_s: float = float("inf")
) -> Tally:
    """Run pairs side by side.

    Args:
        kinds: What pairs there are.
        num_epochs: Epochs of all pairs together, at least.
        num_pairs: How many pairs; as many as kinds unless given.
        within_s: No epoch begins later than this, in seconds.
    """
    tally = Tally()
    num_pairs = num_pairs or len(kinds)
    until_s = time.monotonic() + within_s
    with _noted_warnings(tally):
        async with anyio.create_task_group() as group:
            group.start_soon(_report, tally)
            async with anyio.create_task_group() as pairs:
                for kind in itertools.islice(itertools.cycle(kinds), num_pairs):
                    # One after the other: many processes that start at once take minutes.
                    await pairs.start(run_pair, kind, tally, -(-num_epochs // num_pairs), until_s)
            group.cancel_scope.cancel()
    return tally


def _fault_in(parts: list[list[int]], kind: Kind) -> str | None:
    ids = sorted(itertools.chain(*parts))
    if ids != list(range(NUM_ROWS)):
        return f"{len(ids)} rows, of which {len(set(ids))} differ, in place of {NUM_ROWS}"
    sizes = [len(part) for part in parts]
    return f"parts of {sizes} rows" if kind.is_equal and sizes[0] != sizes[1] else None


@contextmanager
def _noted_warnings(tally: Tally) -> Iterator[None]:
    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tally.warnings.append(f"{time.strftime('%X')} {record.getMessage()}")

    handler = Note(logging.WARNING)
    logging.getLogger("aiodata").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("aiodata").removeHandler(handler)


async def _report(tally: Tally) -> None:
    while True:
        await anyio.sleep(_REPORT_EVERY_S)
        show(tally)


def show(tally: Tally) -> None:
    """Print where things stand."""
    by_pause = Counter[float]()
    for kind, number in tally.epochs.items():
        by_pause[kind.pause_s] += number
    by = ", ".join(f"{number} with {pause_s:g} s" for pause_s, number in sorted(by_pause.items()))
    typer.echo(f"{time.strftime('%X')} {tally.epochs.total()} epochs ({by}); {len(tally.faults)} faults")
    for line in (*tally.faults, *tally.warnings[-_MAX_LINES:]):
        typer.echo(f"    {line}")


@contextmanager
def cluster_of(num_nodes: int) -> Iterator[None]:
    """Start Ray with so many nodes on this machine."""
    if num_nodes == 1:
        ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        yield
        ray.shutdown()
        return
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(num_nodes - 1):
            cluster.add_node(num_cpus=1)
        ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
        yield
        ray.shutdown()
    finally:
        cluster.shutdown()


def main(
    epochs: Annotated[int, typer.Option(help="Epochs of all pairs together.")] = 5000,
    pairs: Annotated[int, typer.Option(help="Pairs side by side.")] = len(KINDS),
    nodes: Annotated[int, typer.Option(help="Nodes of the cluster that is started.")] = 1,
    minutes: Annotated[float, typer.Option(help="No epoch begins later.")] = 600.0,
    pause: Annotated[float | None, typer.Option(help="Only pairs that pause for so many seconds.")] = None,
) -> None:
    """Run pairs of splits, and fail if an epoch does not end or has other rows."""
    kinds = tuple(kind for kind in KINDS if pause is None or kind.pause_s == pause)
    with cluster_of(nodes):
        tally = asyncio.run(run_kinds(kinds, epochs, num_pairs=pairs, within_s=60 * minutes))
    show(tally)
    raise typer.Exit(code=bool(tally.faults))


if __name__ == "__main__":
    typer.run(main)
