"""Whoever holds what a run needs: it says so with the remedy, and its rows come when that is free.

Each cluster is a program of its own. In these, `warning` is set by aiodata's first warning that tells what Ray waits
for, or what a coordinator says of that; `rows_after` iterates over a dataset, and lets the holders go at the warning.
"""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.runtime.test_start import run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

PREAMBLE = """
import asyncio, json, logging
import aiodata, ray
from aiodata.errors import AiodataError


def start_ray(num_cpus):
    # On a machine that has much to do, Ray gives up after 30 s.
    while True:
        try:
            return ray.init(
                "local", num_cpus=num_cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False
            )
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()


class Warnings(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.text, self.warning, self.loop = "", asyncio.Event(), asyncio.get_running_loop()
        logging.getLogger("aiodata").addHandler(self)

    def emit(self, record):
        if "to start for" in record.getMessage() and not self.text:
            self.text = record.getMessage()
            self.loop.call_soon_threadsafe(self.warning.set)


async def count(ds):
    return sum([len(batch["id"]) async for batch in ds.aiter_batches()])


async def first_warning(ds):
    # Return the first warning of a run that goes nowhere, and leave it.
    warnings = Warnings()
    counting = asyncio.create_task(count(ds))
    await warnings.warning.wait()
    counting.cancel()
    await asyncio.wait([counting])
    return warnings.text


async def rows_after(ds, let_go):
    # Return the first warning of a run, and its rows once the holders have let go.
    warnings = Warnings()
    counting = asyncio.create_task(count(ds))
    await warnings.warning.wait()
    let_go()
    return warnings.text, await counting


@ray.remote(num_cpus=1)
class Holder:
    async def hold(self):
        pass

    async def first_warning(self, split):
        return await first_warning(split)
"""

HELD = """
@ray.remote(num_cpus=2)
def in_a_task():
    return asyncio.run(first_warning(aiodata.range(1000)))


@ray.remote(num_cpus=1)
def with_a_cpu_to_spare():
    return asyncio.run(count(aiodata.range(1000)))


async def main():
    said = {"task": await in_a_task.remote(), "spare": await with_a_cpu_to_spare.remote()}
    holders = [Holder.remote() for _ in range(2)]
    await asyncio.gather(*[holder.hold.remote() for holder in holders])
    said["actors"] = await rows_after(aiodata.range(1000), holders.clear)
    consumers = [Holder.remote() for _ in range(2)]
    splits = aiodata.range(1000).streaming_split(2)
    said["consumers"] = await asyncio.gather(
        *[consumer.first_warning.remote(split) for consumer, split in zip(consumers, splits)]
    )
    print(json.dumps(said), flush=True)


start_ray(num_cpus=2)
asyncio.run(main())
"""

NOTHING_TO_HOLD = """
def same(batch):
    return batch


async def error_of(ds):
    try:
        await count(ds)
    except AiodataError as error:
        return [type(error).__name__, str(error)]


async def main():
    table = aiodata.from_items([{"id": index} for index in range(10)])
    print(json.dumps({
        "zero-CPU head": await error_of(aiodata.range(1000)),
        "no GPU": await error_of(table.map_batches(same, num_cpus=0, num_gpus=1)),
        "function without CPUs": await count(table.map_batches(same, num_cpus=0)),
    }), flush=True)


start_ray(num_cpus=0)
asyncio.run(main())
"""

TRAINER = """
import tempfile
from aiodata.integrations.ray_train import SplitConfig, get_dataset_shard
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


class Said:
    def __init__(self):
        self.all = []

    def note(self, text):
        self.all.append(text)

    def get(self):
        return self.all


def train(config):
    ray.get(config["said"].note.remote(asyncio.run(first_warning(get_dataset_shard("train")))))


start_ray(num_cpus=2)
with tempfile.TemporaryDirectory() as folder:
    said = ray.remote(num_cpus=0)(Said).remote()
    TorchTrainer(
        train,
        train_loop_config={"said": said},
        datasets={"train": aiodata.range(1000)},
        dataset_config=SplitConfig(),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=folder),
    ).fit()
    print(json.dumps({"trainer": ray.get(said.get.remote())}), flush=True)
ray.shutdown()
"""


def said_by(program: str, tmp_path: Path) -> dict[str, Any]:
    """Return what a program prints as JSON; Ray may print, too."""
    result = run(PREAMBLE + dedent(program), tmp_path, timeout_s=500)
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1, result.stderr
    said: dict[str, Any] = json.loads(lines[0])
    return said


def test_run_names_who_holds_all_cpus_and_gives_its_rows_when_these_are_free(tmp_path: Path) -> None:
    said = said_by(HELD, tmp_path)
    assert "0 of the cluster's 2 CPUs are free; held: 2 by the task that consumes the run)" in said["task"]
    assert "consumers with @ray.remote(num_cpus=0)" in said["task"]
    assert said["spare"] == 1000
    warning, rows = said["actors"]
    assert "each takes 1 CPU (0 of the cluster's 2 CPUs are free; held: 2 by 2 actors Holder)" in warning
    assert "They come free when those end" in warning
    assert rows == 1000
    assert len(said["consumers"]) == 2
    for index, warning in enumerate(said["consumers"]):
        assert warning.startswith(f"split {index} has waited 9 s for rows; its coordinator says: no task of this run")
        assert "held: 2 by 2 actors Holder)" in warning


def test_what_the_cluster_has_not_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    said = said_by(NOTHING_TO_HOLD, tmp_path)
    kind, message = said["zero-CPU head"]
    assert kind == "RuntimeUnavailableError"
    assert "asks for 1 CPU per task, and the largest node has 0 CPUs; start Ray with CPUs" in message
    kind, message = said["no GPU"]
    assert kind == "OptionError"
    assert "map_batches(same) asks for 1 GPU per task, and the largest node has 0 GPUs; lower num_gpus" in message
    assert said["function without CPUs"] == 10


def test_workers_of_a_trainer_that_hold_all_cpus_are_named_to_each_of_them(tmp_path: Path) -> None:
    pytest.importorskip("ray.train.torch", exc_type=ImportError)
    said = said_by(TRAINER, tmp_path)
    assert len(said["trainer"]) == 2
    for warning in said["trainer"]:
        assert "its coordinator says: no task of this run" in warning
        assert "held: 2 by placement group" in warning
        assert "RayTrainWorker" in warning
        assert "resources_per_worker={'CPU': 0.5}" in warning
