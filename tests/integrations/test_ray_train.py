"""Ray Train's workers get their splits, and go on where lost ones stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import ray

import aiodata
from aiodata import OptionError, SplitIterator, SplitOptions

ray_train = pytest.importorskip("aiodata.integrations.ray_train", exc_type=ImportError)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


class Seen:
    """What the workers have seen."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, int, int], list[int]] = {}

    def note(self, name: str, attempt: int, rank: int, rows: list[int]) -> None:
        self.seen.setdefault((name, attempt, rank), []).extend(rows)

    def all(self) -> dict[tuple[str, int, int], list[int]]:
        return self.seen


def die(marker: Path) -> None:
    marker.touch()
    os._exit(1)


def train(config: dict[str, Any]) -> None:
    """Take an epoch of each dataset; in the first attempt, one of the workers dies in the first of them."""
    import ray.train

    from aiodata.integrations.ray_train import get_dataset_shard

    seen, marker = config["seen"], Path(config["marker"])
    rank, attempt = ray.train.get_context().get_world_rank(), int(marker.exists())
    with pytest.raises(OptionError, match=r"name='tset' is none of the names"):
        get_dataset_shard("tset")

    async def main() -> None:
        for name in ("train", "val"):
            async for batch in get_dataset_shard(name).aiter_batches(batch_size=5):
                await seen.note.remote(name, attempt, rank, batch["id"].tolist())
                if rank == 1 and not attempt:
                    die(marker)

    aiodata.run(main)


# Making a trainer has Ray Data warn of itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray")
@pytest.mark.timeout(400)
def test_workers_get_their_splits_and_a_new_group_of_workers_gets_new_ones(tmp_path: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    seen = ray.remote(num_cpus=0)(Seen).remote()
    trainer = TorchTrainer(
        train,
        train_loop_config={"seen": seen, "marker": str(tmp_path / "died")},
        datasets={"train": aiodata.range(101, num_blocks=9), "val": aiodata.range(50).streaming_split(2)},
        dataset_config=ray_train.SplitConfig(),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=1)),
    )
    trainer.fit()
    rows = ray.get(seen.all.remote())
    assert rows["train", 0, 1]
    first, second = rows["train", 1, 0], rows["train", 1, 1]
    assert (len(first), len(second)) == (50, 50)
    assert len({*first, *second} & set(range(101))) == 100
    assert sorted(rows.get(("val", 1, 0), []) + rows.get(("val", 1, 1), [])) == list(range(50))


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
    config = ray_train.SplitConfig(equal=False, options=options)
    nodes = [ray.get_runtime_context().get_node_id(), "another"]
    one, two = config.configure({"train": aiodata.range(10)}, 2, worker_handles=None, worker_node_ids=nodes)
    assert isinstance(one["train"], SplitIterator)
    assert (one["train"].split_index, two["train"].split_index, two["train"].num_splits) == (0, 1, 2)
    splitting = two["train"]._splitting
    assert (splitting.equal, splitting.options, splitting.nodes) == (False, options, tuple(nodes))
    assert len(config.configure({"train": aiodata.range(10)}, 3)) == 3
    tags = [await shard["train"].dataset_tag() for shard in (one, two)]
    assert tags[0]["dataset"] == tags[1]["dataset"]


def test_locality_can_be_left_out() -> None:
    [shard] = ray_train.SplitConfig(use_locality=False).configure({"x": aiodata.range(1)}, 1, worker_node_ids=["n"])
    assert shard["x"]._splitting.nodes == ()


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
