"""A store that has room for three blocks: datasets larger than it get through; each test needs a Ray of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.test_start import run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MIB = 1 << 20

PROGRAM = """
    import asyncio, json, re
    import numpy as np
    import ray
    from ray._private.worker import global_worker
    import aiodata

    MIB = 1 << 20
    NUM_PIECES, PIECE_ROWS = 12, 24 * MIB // 4096
    # The smallest store that Ray allows.
    config = {"debug_dump_period_milliseconds": 100}
    ray.init(
        "local",
        num_cpus=2,
        object_store_memory=80 * MIB,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        _system_config=config,
    )

    async def num_spilled():
        await asyncio.sleep(0.5)
        while True:
            with open(f"{global_worker.node.get_logs_dir_path()}/debug_state.txt") as file:
                found = re.search(r"cumulative spill requests: (\\d+)", file.read())
            # Ray may be writing it.
            if found:
                return int(found[1])
            await asyncio.sleep(0.01)

    def make(batch):
        ids = batch["id"]
        return {"id": ids, "pad": np.zeros((len(ids), 511)) + ids[:, None]}

    def double(batch):
        return {"id": batch["id"] * 2, "pad": batch["pad"]}

    async def one_pass(call_rows):
        ds = aiodata.range(NUM_PIECES * PIECE_ROWS, num_blocks=NUM_PIECES).with_options(runtime="ray")
        ds = ds.map_batches(make, batch_size=call_rows).map_batches(double, batch_size=call_rows, concurrency=2)
        rows = []
        async with ds.aiter_batches(batch_size=1000) as batches:
            async for batch in batches:
                assert (batch["pad"] == batch["id"][:, None] // 2).all()
                rows += batch["id"].tolist()
            budget = batches.stats().budget
        is_right = sorted(rows) == list(range(0, 2 * NUM_PIECES * PIECE_ROWS, 2))
        return {"is_right": is_right, "limit": budget.limit_bytes, "peak": budget.peak_live_bytes}

    async def main():
        for call_rows, num_passes in ((64, 1), (64, 2), (PIECE_ROWS, 1)):
            before = await num_spilled()
            async with asyncio.TaskGroup() as group:
                passes = [group.create_task(one_pass(call_rows)) for _ in range(num_passes)]
            told = {"passes": [one.result() for one in passes], "num_spilled": await num_spilled() - before}
            print(json.dumps(told), flush=True)

    asyncio.run(main())
"""


def test_datasets_larger_than_the_store_get_through_within_their_budgets(tmp_path: Path) -> None:
    result = run(PROGRAM, tmp_path)
    told: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(told) == 3, result.stderr
    assert all(one["is_right"] for runs in told for one in runs["passes"])
    assert all(one["limit"] == 20 * MIB for runs in told for one in runs["passes"])
    small_calls, two_at_once, _ = told
    # Calls that make 256 KiB each; a single one may come on top, where a task did not know better.
    for runs in (small_calls, two_at_once):
        assert all(one["peak"] <= 1.25 * one["limit"] for one in runs["passes"]), told
    assert small_calls["num_spilled"] == 0, told
    # A call that makes more than the budget is not known beforehand: what does not fit is on disk for a while.
