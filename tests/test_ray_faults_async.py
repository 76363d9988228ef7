"""Calls of async functions: many in flight, never too many, and a failure ends them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import aiodata
from tests.conftest import collect

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean")]

Batch = dict[str, Any]

NUM_CALLS = 1000
MAX_CALLS = 100


class Running:
    """Calls that run, in the process that they run in; each call notes how many there are."""

    num = 0

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def note(self, step: int) -> None:
        Running.num += step
        if step > 0:
            with open(self.path, "a") as file:
                file.write(f"{Running.num} {time.time()}\n")

    def peaks(self) -> list[int]:
        return [int(line.split()[0]) for line in Path(self.path).read_text().splitlines()]

    def times(self) -> list[float]:
        return [float(line.split()[1]) for line in Path(self.path).read_text().splitlines()]


def asking(running: Running, fail_at: int | None = None) -> Any:
    async def ask(batch: Batch) -> Batch:
        running.note(1)
        try:
            await asyncio.sleep(0.01)
            if fail_at in batch["id"]:
                raise ValueError(f"failed at {time.time()}")
            return {"id": batch["id"] + 1}
        finally:
            running.note(-1)

    return ask


@pytest.mark.parametrize("preserve_order", [False, True])
async def test_as_many_calls_are_in_flight_as_there_may_be_and_no_more(
    runtime: str, tmp_path: Path, preserve_order: bool
) -> None:
    running = Running(tmp_path / "calls")
    ds = aiodata.range(NUM_CALLS, num_blocks=1).with_options(runtime=runtime, preserve_order=preserve_order)
    rows = await collect(ds.map_batches(asking(running), batch_size=1, concurrency=MAX_CALLS))
    assert rows == list(range(1, NUM_CALLS + 1))
    assert len(running.peaks()) == NUM_CALLS
    assert max(running.peaks()) == MAX_CALLS


async def test_failed_call_reaches_the_consumer_and_no_call_starts_after_it(runtime: str, tmp_path: Path) -> None:
    running = Running(tmp_path / "calls")
    ds = aiodata.range(NUM_CALLS, num_blocks=1).with_options(runtime=runtime)
    ds = ds.map_batches(asking(running, fail_at=300), batch_size=1, concurrency=MAX_CALLS)
    with pytest.raises(aiodata.TaskError, match=r"map_batches\(ask\).*ValueError: failed at") as caught:
        await collect(ds)
    failed_at = float(str(caught.value.__cause__).split()[-1])
    assert time.time() - failed_at < 1
    num_calls = len(running.times())
    await anyio.sleep(0.1)  # Calls that went on would take a tenth of it.
    assert len(running.times()) == num_calls
    # The ones that were let in before the failure was seen, in the same turn of the loop.
    assert max(running.times()) - failed_at < 0.05
    assert 300 < num_calls <= 300 + 2 * MAX_CALLS
