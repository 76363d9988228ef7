"""SplitIterator: the handle of one split, for a consumer in any process."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from aiodata.batching.feed import Feed
from aiodata.batching.split_feed import SplitFeed
from aiodata.concurrency import running_loop
from aiodata.coordination.service import CoordinatorService, Splitting
from aiodata.errors import OptionError
from aiodata.iteration import IterationVerbs
from aiodata.options import ExecutionOptions, SplitOptions, at_least, instance_of, shown, true_or_false
from aiodata.plan.nodes import Plan
from aiodata.plan.passes import Pass
from aiodata.runtime.hosting import RemoteService, start_service
from aiodata.stats import CoordinatorStats


class SplitIterator(IterationVerbs):
    """One of the splits of a dataset: a small handle that pickles, for one consumer at a time, in any process.

    It holds no dataset: the execution is the coordinator's, and all splits share it. Each `async for` over its batches
    is one epoch, in step with the other splits: it begins when all have arrived.

    Attributes:
        split_index: Which split it is, from 0.
        num_splits: How many there are.

    Example:
        ```python
        @ray.remote(num_cpus=0)
        class Worker:
            async def train(self, split):
                for epoch in range(2):
                    async for batch in split.aiter_batches(batch_size=1024):
                        ...

        splits = ds.streaming_split(2)
        await asyncio.gather(*[Worker.remote().train.remote(split) for split in splits])
        ```
    """

    __slots__ = ("_service", "_splitting", "split_index")

    def __init__(self, service: RemoteService, split_index: int, splitting: Splitting) -> None:
        """Hold where the coordinator is; users get splits from `Dataset.streaming_split` and `aiodata.attach`."""
        self.split_index = split_index
        self._service = service
        self._splitting = splitting

    @property
    def num_splits(self) -> int:
        """How many splits there are."""
        return self._splitting.num_splits

    async def schema(self) -> pa.Schema:
        """Return the schema of the rows, as the coordinator knows it; it starts no work while an epoch is running.

        Raises:
            EpochError: An epoch is running, and has not shown it yet. It is a `RuntimeError`.
            CoordinatorLostError: The coordinator is gone.
        """
        schema: pa.Schema = await self._ask("schema")
        return schema

    async def options(self) -> ExecutionOptions:
        """Return the options that each epoch is run with."""
        options: ExecutionOptions = await self._ask("options")
        return options

    async def dataset_tag(self) -> dict[str, str]:
        """Return what tells this split of its dataset from others: `{"dataset": "<id>", "split_index": "0"}`."""
        tag: dict[str, str] = await self._ask("dataset_tag", self.split_index)
        return tag

    async def stats(self) -> CoordinatorStats:
        """Return what the coordinator has done in its latest epoch: for each split, and for the run behind them."""
        stats: CoordinatorStats = await self._ask("stats")
        return stats

    def __repr__(self) -> str:
        """Show which one it is."""
        return f"<SplitIterator {self.split_index} of {self.num_splits}>"

    async def _ask(self, method: str, *args: Any) -> Any:
        running_loop(f"SplitIterator.{method}()")
        return await self._service.call(method, *args)

    def _supply(self, *, in_order: bool) -> tuple[Callable[[Pass], Feed], ExecutionOptions]:
        execution = self._splitting.execution
        options = execution.override(preserve_order=True) if in_order else execution

        service, split_index, splitting = self._service, self.split_index, self._splitting
        # Which pass it is the coordinator knows, since the splits have their epochs in common.
        return lambda _: SplitFeed(service, split_index, splitting), options


def split_plan(
    plan: Plan,
    execution: ExecutionOptions,
    num_splits: int,
    *,
    equal: bool,
    locality_hints: Sequence[str | None] | None,
    name: str | None,
    namespace: str | None,
    options: SplitOptions,
) -> list[SplitIterator]:
    """Host a coordinator of a plan's splits, and return their handles; see `Dataset.streaming_split`."""
    num_splits, equal = at_least("n", num_splits, 1), true_or_false("equal", equal)
    check_name("name", name)
    check_name("namespace", namespace)
    instance_of("options", options, SplitOptions)
    if execution.runtime == "local":
        raise OptionError("runtime='local' has no splits, whose consumers are in other processes; use runtime='ray'")
    nodes = _nodes(locality_hints, num_splits)
    splitting = Splitting(num_splits, execution.override(runtime="ray"), options)
    make = partial(CoordinatorService, plan, splitting, uuid.uuid4().hex, equal=equal, nodes=nodes)
    service = start_service(
        make,
        name=name,
        namespace=namespace,
        label="streaming_split",
        scheduling_strategy=execution.scheduling_strategy,
        runtime_env=execution.runtime_env,
    )
    return [SplitIterator(service, split, splitting.for_handles()) for split in range(num_splits)]


def check_name(argument: str, name: object, *, optional: bool = True) -> None:
    """Check the name of a service, or of a namespace, before anything is started.

    Raises:
        OptionError: It is neither a string that can be looked for nor, if `optional`, None.
    """
    if not (isinstance(name, str) and name.strip()) and not (optional and name is None):
        unless = ", or None" if optional else ": the name that streaming_split(n, name=...) was given"
        raise OptionError(f"{argument}={shown(name)} must be a string that is not empty{unless}")


def _nodes(hints: object, num_splits: int) -> tuple[str | None, ...]:
    if hints is None:
        return ()
    nodes = None if isinstance(hints, str | bytes) or not isinstance(hints, Iterable) else tuple(hints)
    if nodes is None or not all(node is None or isinstance(node, str) for node in nodes):
        raise OptionError(f"locality_hints={shown(hints)} must be a list of node ids: strings, or None for any node")
    if nodes and len(nodes) != num_splits:
        raise OptionError(f"locality_hints={list(nodes)} must name one node for each of the {num_splits} splits")
    return nodes
