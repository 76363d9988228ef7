"""Calls of async functions: many in flight, never too many, and a failure ends them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest

import aiodata
from tests.conftest import PATIENCE_S, collect

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean")]

Batch = dict[str, Any]

NUM_CALLS = 1000
MAX_CALLS = 100


class Log:
    """Calls as seen from outside: each notes how many run when it begins, in a file, from any process."""

    # Of the process that calls run in, by the path of their log.
    running: ClassVar[dict[str, int]] = defaultdict(int)

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    @contextmanager
    def noted(self) -> Iterator[int]:
        """Note a call that runs; return how many do."""
        self.running[self.path] += 1
        num = self.running[self.path]
        self.write(str(num))
        try:
            yield num
        finally:
            self.running[self.path] -= 1

    def write(self, line: str) -> None:
        with open(self.path, "a") as file:
            file.write(f"{line}\n")

    def lines(self) -> list[str]:
        return Path(self.path).read_text().splitlines()


@pytest.mark.parametrize("preserve_order", [False, True])
async def test_as_many_calls_are_in_flight_as_there_may_be_and_no_more(
    runtime: str, tmp_path: Path, preserve_order: bool
) -> None:
    log, all_run = Log(tmp_path / "calls"), tmp_path / "all_run"

    async def ask(batch: Batch) -> Batch:
        # None ends before as many run as may: were it fewer, all would wait in vain. A file, as the calls of a later
        # task may be in another process, and fewer.
        with log.noted() as num:
            if num == MAX_CALLS:
                all_run.touch()
            async with asyncio.timeout(PATIENCE_S):
                while not all_run.exists():  # noqa: ASYNC110 - an event is of one process.
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.001)
        return {"id": batch["id"] + 1}

    ds = aiodata.range(NUM_CALLS, num_blocks=1).with_options(runtime=runtime, preserve_order=preserve_order)
    rows = await collect(ds.map_batches(ask, batch_size=1, concurrency=MAX_CALLS))
    assert rows == list(range(1, NUM_CALLS + 1))
    peaks = list(map(int, log.lines()))
    assert len(peaks) == NUM_CALLS
    assert max(peaks) == MAX_CALLS


async def test_failed_call_reaches_the_consumer_and_no_call_starts_after_it(runtime: str, tmp_path: Path) -> None:
    log = Log(tmp_path / "calls")

    async def ask(batch: Batch) -> Batch:
        with log.noted():
            await asyncio.sleep(0.01)
            if 300 in batch["id"]:
                log.write("failed")
                raise ValueError("as planned")
        return {"id": batch["id"] + 1}

    ds = aiodata.range(NUM_CALLS, num_blocks=1).with_options(runtime=runtime)
    with pytest.raises(aiodata.TaskError, match=r"map_batches\(ask\).*ValueError: as planned"):
        await collect(ds.map_batches(ask, batch_size=1, concurrency=MAX_CALLS))
    lines = log.lines()
    await anyio.sleep(0.1)  # Calls that went on would take a tenth of it.
    assert log.lines() == lines
    # The ones that were let in before the failure was seen, in the same turn of the loop.
    num_before = lines.index("failed")
    assert num_before > 300
    assert len(lines) - 1 - num_before <= MAX_CALLS
    assert len(lines) - 1 <= 300 + 2 * MAX_CALLS
