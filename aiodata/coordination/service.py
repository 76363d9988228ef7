"""CoordinatorService: a dataset's definition, its execution and its coordinator, for consumers in other processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import anyio
import pyarrow as pa

from aiodata.bundle import BlockRef
from aiodata.coordination.coordinator import Coordinator
from aiodata.coordination.epoch import EpochPhase
from aiodata.coordination.latest_warning import LatestWarning
from aiodata.coordination.lease import Delivery, Lease
from aiodata.errors import EpochError
from aiodata.execution.run import Run
from aiodata.options import ExecutionOptions, SplitOptions
from aiodata.plan.nodes import Plan
from aiodata.plan.passes import Pass, draw_seed
from aiodata.query import find_schema
from aiodata.runtime.hosting import NewToken
from aiodata.schemas import without_marks
from aiodata.stats import CoordinatorStats, RunStats

# Deliveries that a consumer may ask for at once: one is on its way while another is made.
MAX_CALLS = 2


@dataclass(frozen=True, slots=True)
class Splitting:
    """How a dataset is split.

    Attributes:
        num_splits: The number of splits.
        execution: How each epoch is run.
        options: What happens where splits are late or lost.
    """

    num_splits: int
    execution: ExecutionOptions
    options: SplitOptions

    def for_handles(self) -> Splitting:
        """Return it without what only the coordinator needs, which may be large."""
        return replace(
            self, execution=self.execution.override(scheduling_strategy=None, runtime_env=None, read_resources=None)
        )


class CoordinatorService:
    """What the consumers of splits call; one execution runs at a time.

    Args:
        plan: What to run in each epoch.
        splitting: How the rows are shared.
        dataset_id: What tells the dataset from others.
        new_token: Makes what consumers keep for as long as they are there.
        equal: Whether all splits get the same number of rows.
        nodes: The node that each split's consumer is on, if that is known.
    """

    def __init__(
        self,
        plan: Plan,
        splitting: Splitting,
        dataset_id: str,
        new_token: NewToken,
        *,
        equal: bool,
        nodes: tuple[str | None, ...],
    ) -> None:
        """Prepare epoch 0."""
        self._plan = plan
        self._splitting = splitting
        self._dataset_id = dataset_id
        self._seed = draw_seed()
        # Where order counts, a bundle that is near must not overtake another.
        prefers_near = bool(nodes) and not splitting.execution.preserve_order
        self._coordinator = Coordinator(
            self._open_run,
            splitting.num_splits,
            options=splitting.options,
            equal=equal,
            nodes=nodes if prefers_near else (),
            node_of=self._node_of,
            max_calls=MAX_CALLS,
            new_token=new_token,
        )
        self._prefers_near = prefers_near
        self._latest_warning = LatestWarning()
        # Of the latest epoch that has begun.
        self._run: Run | None = None
        # Consumers that were told that something was skipped.
        self._warned: set[Lease] = set()
        self._schema: pa.Schema | None = None
        # Set when the short run that learns the schema has ended, while there is one.
        self._learning: anyio.Event | None = None
        # By consumer: what ends its wait for a split. By split: who has had it last.
        self._joining: dict[str, anyio.CancelScope] = {}
        self._joined: dict[int, tuple[str, Lease]] = {}
        self.start_epoch = self._coordinator.start_epoch
        self.acknowledge = self._coordinator.acknowledge
        self.conclude = self._coordinator.conclude

    async def serve(self) -> None:
        """Run epochs, one after the other, until cancelled."""
        with self._latest_warning.listening():
            await self._coordinator.serve()

    async def join(self, split_index: int, consumer: str) -> tuple[Lease, Any]:
        """Take a split, under a name by which the consumer can leave before it has the answer. See the coordinator's.

        Raises:
            EpochError: It has left meanwhile.
        """
        with anyio.CancelScope() as scope:
            self._joining[consumer] = scope
            try:
                lease, token = await self._coordinator.join(split_index)
                if not scope.cancel_called:
                    self._joined[split_index] = consumer, lease
                    return lease, token
                # The split and the word that nobody wants it came in the same turn of the loop.
                self._coordinator.notify_split_finished(lease)
            finally:
                # Where the service could not be reached for a moment, the call is made again.
                self._joining.pop(consumer, None)
        raise EpochError(f"this consumer of split {split_index} has left before it had the split")

    def leave(self, split_index: int, consumer: str) -> None:
        """Say that a consumer wants no more, or does not want the split that it waits for; repeats are harmless."""
        if (scope := self._joining.get(consumer)) is not None:
            scope.cancel()
        name, lease = self._joined.get(split_index, (None, None))
        if name == consumer and lease is not None:
            self._coordinator.notify_split_finished(lease)

    async def next_bundles(
        self, lease: Lease, sequence: int, max_bundles: int, acked_rows: int, prefetched_bytes: int
    ) -> tuple[Delivery, RunStats | None]:
        """Return a split's next bundles. See the coordinator's.

        With them comes what the run has done: at the end of the epoch, and once before, if something was skipped.
        """
        delivery = await self._coordinator.next_bundles(
            lease, sequence, max_bundles=max_bundles, acked_rows=acked_rows, prefetched_bytes=prefetched_bytes
        )
        has_news = lease not in self._warned and self._run is not None and self._run.has_skipped
        if has_news:
            self._warned.add(lease)
        return delivery, self._run_stats() if delivery.is_end or has_news else None

    async def schema(self) -> pa.Schema:
        """Return the schema of the rows: of the epoch that is running, or from the source, or from a short run.

        Raises:
            EpochError: An epoch is running, and has not shown it yet.
        """
        while (schema := self._known_schema()) is None:
            match self._coordinator.phase:
                case EpochPhase.RUNNING:
                    raise EpochError(
                        "the schema is not known yet, and an epoch is running, beside which no second execution is "
                        "started; ask after the first batch, or before the epoch begins"
                    )
                case EpochPhase.ENDED:
                    await self._coordinator.left.wait()
                    continue
                case EpochPhase.GATHERING if self._learning is not None:
                    await self._learning.wait()
                    continue
            self._learning = anyio.Event()
            try:
                self._schema = await find_schema(self._plan, self._splitting.execution)
            finally:
                self._learning.set()
                self._learning = None
        return without_marks(schema)

    def splitting(self) -> Splitting:
        """Return how the dataset is split."""
        return self._splitting.for_handles()

    def options(self) -> ExecutionOptions:
        """Return how each epoch is run."""
        return self._splitting.execution

    def dataset_tag(self, split_index: int) -> dict[str, str]:
        """Return what tells a split of this dataset from others."""
        return {"dataset": self._dataset_id, "split_index": str(split_index)}

    def latest_warning(self, within_s: float) -> str:
        """Return the latest warning in this process, if it is not older than so many seconds; else nothing."""
        return self._latest_warning.within(within_s)

    def stats(self) -> CoordinatorStats:
        """Return what the latest epoch has done so far."""
        return self._coordinator.stats(self._run_stats())

    def _known_schema(self) -> pa.Schema | None:
        if self._schema is None and self._run is not None:
            self._schema = self._run.schema
        return self._schema

    def _run_stats(self) -> RunStats:
        return self._run.stats() if self._run is not None else RunStats()

    def _node_of(self, ref: BlockRef) -> str | None:
        return self._run.runtime.node_of(ref) if self._prefers_near and self._run is not None else None

    async def _open_run(self) -> Run:
        """Prepare the execution of an epoch."""
        self._warned.clear()
        while self._learning is not None:
            await self._learning.wait()
        self._run = Run(self._plan, self._splitting.execution, Pass(self._coordinator.epoch, self._seed))
        return self._run
