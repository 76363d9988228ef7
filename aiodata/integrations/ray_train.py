"""Ray Train: `get_dataset_shard(name)` gives each worker its split.

Workers are given the small handles of their own splits, never a dataset. Needs `pip install "ray[train]"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray.train
from ray.train import DataConfig

from aiodata.dataset import Dataset
from aiodata.errors import OptionError
from aiodata.options import SplitOptions, instance_of, true_or_false
from aiodata.split import SplitIterator

# What a trainer is given by name.
Source = Dataset | Sequence[SplitIterator]


class SplitConfig(DataConfig):  # type: ignore[misc]  # Ray has no types.
    """Has a Ray Train trainer take aiodata's datasets, or splits of them, and give each worker its own split.

    A dataset is split when a group of workers asks for it, among as many as there are. Where a worker is lost, Ray
    Train starts the whole group anew, perhaps with more or fewer, and that gets splits of its own: a new epoch begins.
    Splits that you have made yourself outlive a group. The next one goes on in the running epoch, with what the lost
    workers had not acknowledged, and a worker whose split had finished it begins the next: the group is in step again
    only if none had.

    Args:
        equal: Whether all workers get the same number of rows of a dataset, in each epoch.
        options: What happens where workers are late or lost; of a dataset. See `SplitOptions`.
        use_locality: Whether a worker gets a dataset's blocks on its own node first.

    Raises:
        OptionError: An argument has a value that can not work.

    Example:
        ```python
        def train(config):
            split = get_dataset_shard("train")

            async def main():
                async for batch in split.aiter_torch_batches(batch_size=1024):
                    ...

            aiodata.run(main)

        trainer = TorchTrainer(
            train, datasets={"train": ds}, dataset_config=SplitConfig(), scaling_config=ScalingConfig(num_workers=2)
        )
        ```
    """

    def __init__(self, *, equal: bool = True, options: SplitOptions | None = None, use_locality: bool = True) -> None:
        """Validate the arguments."""
        equal, use_locality = true_or_false("equal", equal), true_or_false("use_locality", use_locality)
        if options is not None:
            instance_of("options", options, SplitOptions)
        super().__init__(enable_shard_locality=use_locality)
        self._equal = equal
        self._options = options
        self._use_locality = use_locality

    def configure(
        self,
        datasets: Mapping[str, Source],
        world_size: int,
        worker_handles: Sequence[Any] | None = None,
        worker_node_ids: Sequence[str] | None = None,
        **_: Any,
    ) -> list[dict[str, SplitIterator]]:
        """Return each worker's splits by name; Ray Train calls this.

        Args:
            datasets: What the trainer was given.
            world_size: The number of workers.
            worker_handles: The workers' actors.
            worker_node_ids: The nodes that they are on.
            **_: What later versions of Ray Train may add.

        Raises:
            OptionError: There are not as many splits as workers, or something is neither a dataset nor splits.
        """
        nodes = worker_node_ids if self._use_locality else None
        splits = {name: self._splits(name, source, world_size, nodes) for name, source in datasets.items()}
        return [{name: per_rank[rank] for name, per_rank in splits.items()} for rank in range(world_size)]

    def _splits(self, name: str, source: Any, world_size: int, nodes: Sequence[str] | None) -> Sequence[SplitIterator]:
        if isinstance(source, Dataset):
            return source.streaming_split(world_size, equal=self._equal, locality_hints=nodes, options=self._options)
        if not isinstance(source, Sequence) or not source or not all(isinstance(one, SplitIterator) for one in source):
            raise OptionError(
                f"datasets[{name!r}]={source!r} must be an aiodata.Dataset, or the list of all its splits that "
                "streaming_split returns"
            )
        if [(split.split_index, split.num_splits) for split in source] != [(i, world_size) for i in range(world_size)]:
            indices = ", ".join(str(split.split_index) for split in source)
            raise OptionError(
                f"datasets[{name!r}] has splits {indices} of {source[0].num_splits}, and there are {world_size} "
                "workers: give as many splits as workers, all and in order; or the dataset itself, which is split "
                "among however many workers there are"
            )
        return source


def get_dataset_shard(name: str = "train") -> SplitIterator:
    """Return this worker's split, by its rank, of what the trainer was given under a name; called in a worker.

    It is Ray's own `ray.train.get_dataset_shard`, with a look at what that returns.

    Raises:
        OptionError: The trainer was given nothing under that name, or no `SplitConfig`.
        RuntimeError: This is no worker of Ray Train.

    Example:
        ```python
        split = get_dataset_shard("val")
        ```
    """
    try:
        shard = ray.train.get_dataset_shard(name)
    except KeyError as error:
        raise OptionError(f"name={name!r} is none of the names in the trainer's datasets=...: {error}") from error
    if not isinstance(shard, SplitIterator):
        raise OptionError(f"name={name!r} is {shard!r}, not a split; give the trainer dataset_config=SplitConfig()")
    return shard
