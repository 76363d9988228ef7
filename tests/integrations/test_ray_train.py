"""Ray Train's workers get their splits, and go on where lost ones stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

import aiodata
from aiodata import OptionError, SplitIterator, SplitOptions
from aiodata.coordination.service import CoordinatorService
from tests.batching.services import new_token
from tests.runtime.test_start import run

ray_train = pytest.importorskip("aiodata.integrations.ray_train", exc_type=ImportError)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.loops("asyncio")]


# Ray Train leaves a handler of Ctrl-C behind, which holds its controller, and so what that was given, for as
# long as the process lives: it has one of its own, with a cluster of its own.
PROGRAM = """
    import json, os, pathlib, tempfile
    import ray
    import aiodata
    from aiodata import OptionError
    from aiodata.integrations.ray_train import SplitConfig, get_dataset_shard
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    class Seen:
        def __init__(self):
            self.seen = {}

        def note(self, name, attempt, rank, rows):
            self.seen.setdefault(f"{name} {attempt} {rank}", []).extend(rows)

        def all(self):
            return self.seen

    def die(marker):
        marker.touch()
        os._exit(1)

    def train(config):
        # Take an epoch of each dataset; in the first attempt, one of the workers dies in the first of them.
        seen, marker = config["seen"], pathlib.Path(config["marker"])
        rank, attempt = ray.train.get_context().get_world_rank(), int(marker.exists())
        try:
            get_dataset_shard("tset")
        except OptionError as error:
            assert "name='tset' is none of the names" in str(error)
        else:
            raise AssertionError("a name that was not given has a shard")

        async def main():
            for name in ("train", "val"):
                async for batch in get_dataset_shard(name).aiter_batches(batch_size=5):
                    await seen.note.remote(name, attempt, rank, batch["id"].tolist())
                    if rank == 1 and not attempt:
                        die(marker)

        aiodata.run(main)

    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        seen = ray.remote(num_cpus=0)(Seen).remote()
        trainer = TorchTrainer(
            train,
            train_loop_config={"seen": seen, "marker": f"{folder}/died"},
            datasets={"train": aiodata.range(101, num_blocks=9), "val": aiodata.range(50).streaming_split(2)},
            dataset_config=SplitConfig(),
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=1)),
        )
        trainer.fit()
        print(json.dumps(ray.get(seen.all.remote())), flush=True)
    ray.shutdown()
"""


def test_workers_get_their_splits_and_a_new_group_of_workers_gets_new_ones(tmp_path: Path) -> None:
    result = run(PROGRAM, tmp_path, timeout_s=500)
    # Ray prints, too.
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1, result.stderr
    rows = json.loads(lines[0])
    assert rows["train 0 1"]
    first, second = rows["train 1 0"], rows["train 1 1"]
    assert (len(first), len(second)) == (50, 50)
    assert len({*first, *second} & set(range(101))) == 100
    assert sorted(rows.get("val 1 0", []) + rows.get("val 1 1", [])) == list(range(50))


async def num_rows(splits: list[SplitIterator]) -> list[int]:
    """Return how many rows each split has in one epoch, consumed in this process."""
    found = [0] * len(splits)

    async def count(index: int) -> None:
        async for batch in splits[index].aiter_batches():
            found[index] += len(batch["id"])

    async with anyio.create_task_group() as group:
        for index in range(len(splits)):
            group.start_soon(count, index)
    return found


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> list[CoordinatorService]:
    """Have services made in this process; return the list of them."""
    services: list[CoordinatorService] = []

    def start_here(make: Any, **_: Any) -> None:
        services.append(make(new_token))

    monkeypatch.setattr("aiodata.split.start_service", start_here)
    return services


def test_shard_is_for_workers() -> None:
    with pytest.raises(RuntimeError, match="training function"):
        ray_train.get_dataset_shard("train")


def test_shard_that_is_no_split_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.train.get_dataset_shard", lambda name: name)
    with pytest.raises(OptionError, match=r"give the trainer dataset_config=SplitConfig\(\)"):
        ray_train.get_dataset_shard("train")


def test_splits_are_given_by_rank_and_name() -> None:
    datasets = {"train": aiodata.range(10).streaming_split(3), "val": aiodata.range(10).streaming_split(3)}
    per_worker = ray_train.SplitConfig().configure(datasets, 3)
    assert per_worker == [{name: splits[rank] for name, splits in datasets.items()} for rank in range(3)]


async def test_dataset_is_split_among_as_many_workers_as_there_are() -> None:
    options = SplitOptions(on_split_lost="raise")
    config = ray_train.SplitConfig(options=options)
    one, two = (shard["train"] for shard in config.configure({"train": aiodata.range(10)}, 2, worker_handles=None))
    assert isinstance(one, SplitIterator)
    assert (one.split_index, two.split_index, two.num_splits) == (0, 1, 2)
    assert two._splitting.options == options
    assert len(config.configure({"train": aiodata.range(10)}, 3)) == 3
    tags = [await split.dataset_tag() for split in (one, two)]
    assert tags[0]["dataset"] == tags[1]["dataset"]


@pytest.mark.parametrize("equal", [True, False])
async def test_workers_get_equally_many_rows_unless_told_otherwise(equal: bool) -> None:
    config = ray_train.SplitConfig(equal=equal)
    shards = config.configure({"train": aiodata.range(11, num_blocks=3)}, 2)
    found = await num_rows([shard["train"] for shard in shards])
    assert sum(found) == (10 if equal else 11)
    assert not equal or found == [5, 5]


@pytest.mark.parametrize("use_locality", [True, False])
async def test_workers_get_the_blocks_of_their_own_node_first_unless_told_otherwise(
    services: list[CoordinatorService], use_locality: bool
) -> None:
    config = ray_train.SplitConfig(use_locality=use_locality)
    config.configure({"train": aiodata.range(10)}, 2, worker_node_ids=["a", "b"])
    [service] = services
    assert service._coordinator._nodes == (("a", "b") if use_locality else ())


def test_wrong_number_of_splits_is_refused_with_the_remedy() -> None:
    splits = aiodata.range(10).streaming_split(3)
    for given in (splits[:2], splits[::-1], [*splits, *splits]):
        message = r"datasets\['train'\] has splits .* of 3, and there are \d workers: .*or the dataset itself"
        with pytest.raises(OptionError, match=message):
            ray_train.SplitConfig().configure({"train": given}, 3)
    with pytest.raises(OptionError, match=message):
        ray_train.SplitConfig().configure({"train": splits}, 2)


@pytest.mark.parametrize("given", [None, 3, "train", [1, 2]])
def test_what_is_no_dataset_and_no_splits_is_refused(given: Any) -> None:
    with pytest.raises(OptionError, match=r"datasets\['train'\]=.* must be an aiodata.Dataset, or the list"):
        ray_train.SplitConfig().configure({"train": given}, 2)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(OptionError, match="equal='yes' must be True or False"):
        ray_train.SplitConfig(equal="yes")
    with pytest.raises(OptionError, match="use_locality=1 must be True or False"):
        ray_train.SplitConfig(use_locality=1)
    with pytest.raises(OptionError, match="options=3 must be a SplitOptions"):
        ray_train.SplitConfig(options=3)
