"""Consumers of splits in processes of their own, and the record that they keep, which outlives them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import ray
from ray import cloudpickle

from aiodata.split import SplitIterator

BATCH_ROWS = 10

_NEVER = (sys.maxsize, 0)

# Joins the cluster as a driver of its own and consumes a split: what, and as whom, is in a file.
DRIVER = """
import sys
import ray
from ray import cloudpickle
from tests.split_consumers import run_driver

ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
with open(sys.argv[2], "rb") as file:
    run_driver(*cloudpickle.load(file))
"""


@dataclass(frozen=True, slots=True)
class Note:
    """A batch that a consumer is done with; the time is the machine's monotonic one, in seconds."""

    epoch: int
    ids: list[int]
    at_s: float


class _Record:
    """What each consumer is done with; it has a gate for each, where it waits with a batch that it is done with."""

    def __init__(self) -> None:
        self.notes: dict[str, list[Note]] = {}
        self.pids: dict[str, int] = {}
        self.gates: dict[str, tuple[int, int]] = {}
        self.changed = asyncio.Condition()

    async def enter(self, who: str, pid: int) -> None:
        async with self.changed:
            self.pids[who] = pid
            self.notes.setdefault(who, [])
            self.changed.notify_all()

    async def note(self, who: str, note: Note) -> None:
        async with self.changed:
            notes = self.notes[who]
            notes.append(note)
            self.changed.notify_all()
            now = self.progress(who)
            await self.changed.wait_for(lambda: now < self.gates.get(who, _NEVER))

    async def gate(self, who: str, at: tuple[int, int]) -> None:
        async with self.changed:
            self.gates[who] = at
            self.changed.notify_all()

    async def reached(self, who: str, at: tuple[int, int]) -> int:
        async with self.changed:
            await self.changed.wait_for(lambda: who in self.pids and self.progress(who) >= at)
            return self.pids[who]

    def progress(self, who: str) -> tuple[int, int]:
        """Return the latest epoch, and how many of its batches one is done with."""
        epochs = [note.epoch for note in self.notes[who]]
        return (epochs[-1], epochs.count(epochs[-1])) if epochs else (0, 0)

    async def noted(self, who: str) -> list[Note]:
        return self.notes[who]


Record: Any = ray.remote(num_cpus=0)(_Record)


@dataclass(frozen=True, slots=True)
class Run:
    """One test's part of a record.

    Attributes:
        record: The `Record`.
        key: What tells it from other tests'.
    """

    record: Any
    key: str

    async def enter(self, who: str) -> None:
        """Say that one is about to iterate, in this process."""
        await self.record.enter.remote(self.key + who, os.getpid())

    async def note(self, who: str, epoch: int, ids: list[int]) -> None:
        """Say that one is done with a batch, and wait at the gate."""
        await self.record.note.remote(self.key + who, Note(epoch, ids, time.monotonic()))

    async def gate(self, *whos: str, epoch: int = 0, at: int = sys.maxsize) -> None:
        """Set with how many batches of an epoch consumers wait, and then with each batch."""
        for who in whos:
            await self.record.gate.remote(self.key + who, (epoch, at))

    async def open(self, *whos: str) -> None:
        """Have consumers wait no more."""
        await self.gate(*whos, epoch=sys.maxsize)

    async def reached(self, who: str, num_batches: int, epoch: int = 0) -> int:
        """Wait until one is done with so many batches of an epoch, or about to iterate; return its process."""
        pid: int = await self.record.reached.remote(self.key + who, (epoch, num_batches))
        return pid

    async def notes(self, who: str) -> list[Note]:
        """Return what one is done with."""
        notes: list[Note] = await self.record.noted.remote(self.key + who)
        return notes

    async def rows(self, *whos: str, epoch: int = 0) -> list[int]:
        """Return the rows that some are done with in an epoch, in the order of each."""
        return [row for who in whos for note in await self.notes(who) if note.epoch == epoch for row in note.ids]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a consumer has ended: by which error, if by one, and when."""

    error: str
    message: str
    at_s: float


async def consume(split: SplitIterator, run: Run, who: str, epochs: Sequence[int] = (0,), work_s: float = 0.0) -> Ended:
    """Iterate once for each epoch, noting each batch before the next one is asked for.

    Args:
        split: The split.
        run: Where to note it.
        who: As whom.
        epochs: What the passes are called there.
        work_s: Seconds in which the event loop is held for each batch.
    """
    try:
        batches = split.aiter_batches(batch_size=BATCH_ROWS)
        await run.enter(who)
        for epoch in epochs:
            async for batch in batches:
                until_s = time.monotonic() + work_s
                while time.monotonic() < until_s:
                    pass
                await run.note(who, epoch, batch["id"].tolist())
    except Exception as error:  # noqa: BLE001 - the test looks at it.
        return Ended(type(error).__name__, str(error), time.monotonic())
    return Ended("", "", time.monotonic())


class _Consumer:
    """A process that consumes, once it is asked to."""

    async def consume(self, *args: Any) -> Ended:
        return await consume(*args)


Consumer: Any = ray.remote(num_cpus=0, max_restarts=0)(_Consumer)


@ray.remote(num_cpus=0, max_retries=0)
def consume_in_task(*args: Any) -> Ended:
    return anyio.run(lambda: consume(*args))


async def start_driver(folder: Path, *args: Any) -> asyncio.subprocess.Process:
    """Consume in another driver of the cluster."""
    path = folder / f"driver-{time.monotonic_ns()}"
    path.write_bytes(cloudpickle.dumps(args))
    address = ray.get_runtime_context().gcs_address
    return await asyncio.create_subprocess_exec(sys.executable, "-c", DRIVER, address, str(path))


def run_driver(*args: Any) -> None:
    """Consume in this process, until the end."""
    ended = anyio.run(lambda: consume(*args))
    assert not ended.error, ended


def coordinator_of(split: SplitIterator) -> Any:
    """Return Ray's handle of the coordinator's actor."""
    service: Any = split._service
    return service.handle
