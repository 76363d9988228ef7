"""What happens to the rows when a worker dies under a run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

import aiodata
from aiodata.plan.work import Work
from aiodata.runtime.ray.runtime import RayStage
from tests.conftest import PATIENCE_S

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.loops("asyncio")]

Batch = dict[str, Any]


async def test_worker_killed_in_mid_stream_loses_and_doubles_no_row(tmp_path: Path) -> None:
    killed = str(tmp_path / "killed")

    def die_once(batch: Batch) -> Batch:
        if batch["id"][0] == 350 and not os.path.exists(killed):
            with open(killed, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    ds = aiodata.range(1000, num_blocks=4).with_options(runtime="ray").map_batches(die_once, batch_size=10)
    rows: list[int] = []
    with anyio.fail_after(PATIENCE_S):
        async for batch in ds.aiter_batches(batch_size=10):
            rows += batch["id"].tolist()
    assert await anyio.Path(killed).exists()
    assert sorted(rows) == list(range(1000))


async def test_worker_killed_between_blocks_in_groups_loses_and_doubles_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = str(tmp_path / "killed")
    submitted: list[Work] = []
    submit = RayStage.submit

    def watched(stage: RayStage, work: Work, *others: Any) -> Any:
        submitted.append(work)
        return submit(stage, work, *others)

    def die_once(batch: Batch) -> Batch:
        if batch["id"][0] == 7_350 and not os.path.exists(killed):
            with open(killed, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    monkeypatch.setattr(RayStage, "submit", watched)
    ds = aiodata.range(10_000, num_blocks=1).with_options(runtime="ray", target_block_bytes=80)
    rows: list[int] = []
    with anyio.fail_after(PATIENCE_S):
        async for batch in ds.map_batches(die_once, batch_size=10).aiter_batches(batch_size=10):
            rows += batch["id"].tolist()
    assert await anyio.Path(killed).exists()
    assert any(work.cuts.in_groups for work in submitted)
    assert sorted(rows) == list(range(10_000))


async def test_worker_that_keeps_dying_is_an_error_that_says_so(tmp_path: Path) -> None:
    def die(batch: Batch) -> Batch:
        os.kill(os.getpid(), signal.SIGKILL)
        return batch

    ds = aiodata.range(10).with_options(runtime="ray", task_max_retries=1).map_batches(die)
    with anyio.fail_after(PATIENCE_S), pytest.raises(aiodata.TaskError, match="WorkerCrashedError"):
        await ds.take()


async def test_function_that_exits_the_worker_is_an_error_that_names_it() -> None:
    def leave(batch: Batch) -> Batch:
        raise SystemExit(3)

    ds = aiodata.range(10).with_options(runtime="ray").map_batches(leave)
    with pytest.raises(aiodata.TaskError, match=r"map_batches\(leave\).*SystemExit: 3"):
        await ds.take()
