"""A node is lost under a pass over a dataset; a cluster of several nodes needs a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.runtime.test_start import run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PROGRAM = """
    import asyncio, json, os, tempfile, time
    import numpy as np
    import ray
    from ray.cluster_utils import Cluster
    import aiodata

    NUM_ROWS, BATCH_ROWS = 1000, 10
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 100, "health_check_failure_threshold": 3}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 200 << 20, "_system_config": quick},
    )

    def add_node():
        node = cluster.add_node(num_cpus=2, object_store_memory=200 << 20)
        cluster.wait_for_nodes()
        return node

    def pad(batch, calls):
        open(f"{calls}/{batch['id'][0]}-{time.time_ns()}", "w").close()
        time.sleep(0.01)
        # 400 KB per batch: blocks are in the object store of the node that they were made on.
        return {
            "id": batch["id"],
            "pad": np.zeros((len(batch["id"]), 40_000), np.uint8) + (batch["id"] % 100).astype(np.uint8)[:, None],
        }

    def check(batch):
        assert (batch["pad"] == (batch["id"] % 100)[:, None]).all()
        return batch

    class Check:
        def __call__(self, batch):
            return check(batch)

    async def one_pass(add, kill):
        calls = tempfile.mkdtemp()
        node = add_node()
        # Little is made ahead, so the actors are still needed when the node is lost: Ray makes no block again whose
        # actor was let go.
        little = {"max_object_store_bytes": 8 << 20, "target_block_bytes": 1 << 20}
        ds = aiodata.range(NUM_ROWS, num_blocks=8).with_options(runtime="ray", preserve_order=True, **little)
        ds = ds.map_batches(pad, batch_size=BATCH_ROWS, num_cpus=1, fn_args=(calls,))
        rows, started = [], time.perf_counter()
        async with add(ds).aiter_batches(batch_size=BATCH_ROWS) as batches:
            async for batch in batches:
                assert (batch["pad"] == (batch["id"] % 100)[:, None]).all()
                rows += batch["id"].tolist()
                if kill and len(rows) == 200:
                    # What can be made ahead is there by now.
                    await asyncio.sleep(1)
                    before = time.perf_counter()
                    await asyncio.to_thread(cluster.remove_node, node, False)
                    node = add_node()
                    started += time.perf_counter() - before + 1
        elapsed = time.perf_counter() - started
        await asyncio.to_thread(cluster.remove_node, node, False)
        firsts = [name.partition("-")[0] for name in os.listdir(calls)]
        repeated = len(firsts) - len(set(firsts))
        return {"is_right": rows == list(range(NUM_ROWS)), "repeated": repeated, "elapsed_s": elapsed}

    async def main():
        stages = {
            "tasks": lambda ds: ds.map_batches(check, batch_size=BATCH_ROWS, num_cpus=1),
            "actors": lambda ds: ds.map_batches(Check, batch_size=BATCH_ROWS, concurrency=2),
        }
        for name, add in stages.items():
            for kill in (False, True):
                print(json.dumps({"stages": name, "kill": kill, **await one_pass(add, kill)}), flush=True)

    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    asyncio.run(main())
    ray.shutdown()
    cluster.shutdown()
"""


def test_blocks_of_a_lost_node_are_made_again_and_no_row_is_lost_or_doubled(tmp_path: Path) -> None:
    # Or Ray would let every other program on this machine join the cluster; its sockets need short paths.
    with TemporaryDirectory(prefix="ray-") as folder:
        result = run(PROGRAM, tmp_path, timeout_s=500, RAY_TMPDIR=folder)
    # Ray prints, too, and maybe on the same line.
    decode = json.JSONDecoder().raw_decode
    passes = [decode(line)[0] for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(passes) == 4, result.stderr
    assert all(one["is_right"] for one in passes), passes
    assert [one["repeated"] > 0 for one in passes] == [one["kill"] for one in passes], passes
