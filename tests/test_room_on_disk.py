"""Calls that yield far more than Ray's store has room for: nothing of it is written to disk; it needs its own Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runtime.test_start import run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MIB = 1 << 20
BUDGET = 25 * MIB

PROGRAM = """
    import asyncio, json, os
    import numpy as np
    import ray
    import aiodata

    folder = os.environ["SPILL_FOLDER"]
    spilling = {"type": "filesystem", "params": {"directory_path": folder}}
    ray.init(
        "local",
        num_cpus=2,
        object_store_memory=100 * 10**6,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        _system_config={"object_spilling_config": json.dumps(spilling)},
    )

    def generator(batch):
        for number in range(10):
            yield {"id": batch["id"] * 10 + number, "pad": np.zeros((1, 5 << 20), np.uint8)}

    async def main():
        ds = aiodata.range(10, num_blocks=10).map_batches(generator, batch_size=1)
        ids = []
        async with ds.with_options(max_object_store_bytes=25 << 20).aiter_batches(batch_size=1) as batches:
            async for batch in batches:
                ids += batch["id"].tolist()
                await asyncio.sleep(0.02)
            peak = batches.stats().budget.peak_live_bytes
        spilled = [name for _, _, names in os.walk(folder) for name in names]
        print(json.dumps({"ids": sorted(ids), "peak": peak, "spilled": spilled}))

    asyncio.run(main())
"""


def test_calls_that_yield_five_times_the_store_have_nothing_written_to_disk(tmp_path: Path) -> None:
    folder = tmp_path / "spilled"
    folder.mkdir()
    result = run(PROGRAM, tmp_path, timeout_s=280, SPILL_FOLDER=str(folder), AIODATA_RUNTIME="ray")
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    assert said["ids"] == list(range(100))
    assert said["spilled"] == []
    # Four tasks are in flight; and one goes on whatever the budget says.
    assert said["peak"] <= BUDGET + 5 * 5.1 * MIB
