"""Dataset: an immutable recipe; each verb adds one step and returns a new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from aiodata.batching.consumer import Consumer
from aiodata.batching.feed import LocalFeed
from aiodata.batching.options import BatchOptions
from aiodata.batching.pipeline import BundlePipeline, make_pipeline
from aiodata.batching.torch_batches import torch_options
from aiodata.block import concat_blocks
from aiodata.errors import OptionError
from aiodata.formats import get_format
from aiodata.iterator import Batches
from aiodata.mapping import map_step
from aiodata.options import ExecutionOptions, at_least
from aiodata.plan.nodes import Apply, Limit, Plan, Read, Union
from aiodata.plan.optimize import explain
from aiodata.plan.transforms import FilterRows, SelectColumns
from aiodata.query import count_rows, find_schema
from aiodata.rows import Rows
from aiodata.sources.memory import StoredSource


# All blocks of a dataset that is materialized are kept, so a budget for them would only make tasks wait in vain.
_UNBOUNDED_BYTES = 1 << 62


class Dataset:
    """A recipe for a stream of rows: where they come from and what is done to them.

    Nothing is read before it is iterated. Every method returns a new Dataset; a Dataset can be iterated any number of
    times, also at the same time.

    Example:
        >>> import asyncio, aiodata
        >>> ds = aiodata.range(1000).map_batches(lambda batch: {"twice": batch["id"] * 2}).limit(3)
        >>> asyncio.run(ds.take())
        [{'twice': 0}, {'twice': 2}, {'twice': 4}]
    """

    __slots__ = ("_options", "_plan")

    def __init__(self, plan: Plan, options: ExecutionOptions) -> None:
        """Hold a plan; users get a Dataset from `aiodata.read_parquet` and the like."""
        self._plan = plan
        self._options = options

    def map_batches(
        self,
        fn: Callable[..., Any],
        *,
        batch_size: int | None = None,
        batch_format: str = "numpy",
        concurrency: int | tuple[int, int] | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        fn_args: Sequence[Any] = (),
        fn_kwargs: Mapping[str, Any] | None = None,
        fn_constructor_args: Sequence[Any] = (),
        fn_constructor_kwargs: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Call a function with batches of rows, in workers.

        Args:
            fn: A function, a generator function (several outputs per batch), an `async def` or an async generator
                function; or a class whose instances are called like one of these, and are built once per actor. It is
                given a batch, and returns (or yields) a dict of arrays, a pyarrow.Table, or a pandas or polars
                DataFrame, of any number of rows.
            batch_size: Rows per call; the last call of a task, and of a file's row group, may get fewer. None: as the
                rows come, by row group or block.
            batch_format: The format that `fn` is given: `"numpy"` (a dict of arrays, read-only), `"pyarrow"`,
                `"pandas"` or `"polars"`.
            concurrency: For a class: the number of actors, or `(least, most)`, between which it follows the load;
                by default one to as many as there are CPUs. For an async function: calls at a time per task, by
                default 16. For a function: tasks at a time.
            num_cpus: CPUs that each task or actor takes; on the local runtime all share the same threads.
            num_gpus: GPUs that each task or actor takes (Ray).
            fn_args: Further positional arguments for `fn`.
            fn_kwargs: Keyword arguments for `fn`.
            fn_constructor_args: Positional arguments for the class.
            fn_constructor_kwargs: Keyword arguments for the class.

        Raises:
            OptionError: An argument has a value that can not work.

        Example:
            >>> import asyncio, aiodata
            >>> ds = aiodata.range(4).map_batches(lambda batch: {"id": batch["id"] + 1}, batch_size=2)
            >>> asyncio.run(ds.count())
            4
        """
        return self._then(
            map_step(
                fn,
                batch_size=batch_size,
                batch_format=batch_format,
                concurrency=concurrency,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                fn_args=fn_args,
                fn_kwargs=fn_kwargs,
                fn_constructor_args=fn_constructor_args,
                fn_constructor_kwargs=fn_constructor_kwargs,
            )
        )

    def select_columns(self, names: str | Sequence[str]) -> Dataset:
        """Keep some columns, in the order given; a source reads no others.

        Example:
            >>> import asyncio, aiodata
            >>> asyncio.run(aiodata.from_items([{"a": 1, "b": 2}]).select_columns("b").take())
            [{'b': 2}]
        """
        columns = (names,) if isinstance(names, str) else tuple(names)
        if not columns:
            raise OptionError("names=[] must name at least one column")
        return self._then(Apply(SelectColumns(columns)))

    def filter(self, expression: pc.Expression) -> Dataset:
        """Keep the rows for which an expression is true; right after a source, it skips what it need not read.

        Args:
            expression: A `pyarrow.compute.Expression`; null counts as false.

        Raises:
            OptionError: It is not an expression.

        Example:
            >>> import asyncio, aiodata, pyarrow.compute as pc
            >>> asyncio.run(aiodata.range(5).filter(pc.field("id") > 2).take())
            [{'id': 3}, {'id': 4}]
        """
        if not isinstance(expression, pc.Expression):
            raise OptionError(
                f"expression={expression!r} must be a pyarrow.compute.Expression, for example pc.field('x') > 0; "
                "to filter by a function use map_batches"
            )
        return self._then(Apply(FilterRows(expression)))

    def limit(self, n: int) -> Dataset:
        """Let `n` rows through, then stop all work behind.

        Example:
            >>> import asyncio, aiodata
            >>> asyncio.run(aiodata.range(10**9).limit(7).count())
            7
        """
        at_least("n", n, 0)
        return self._then(Limit(n))

    def union(self, *others: Dataset) -> Dataset:
        """Let the rows of other datasets through, too: after this one's if order is preserved, else as they come.

        It runs with the options of this dataset.

        Raises:
            OptionError: One of them is no dataset.

        Example:
            >>> import asyncio, aiodata
            >>> ds = aiodata.range(2).union(aiodata.range(1)).with_options(preserve_order=True)
            >>> asyncio.run(ds.take())
            [{'id': 0}, {'id': 1}, {'id': 0}]
        """
        for other in others:
            if not isinstance(other, Dataset):
                raise OptionError(f"{other!r} must be a Dataset")
        plans = (self._plan, *(other._plan for other in others))
        return Dataset(Plan(Union(plans)), self._options) if others else self

    def with_options(self, **options: Any) -> Dataset:
        """Return the dataset with some `ExecutionOptions` changed.

        Raises:
            OptionError: An option is unknown, or its value can not work.

        Example:
            >>> import aiodata
            >>> ds = aiodata.range(4).with_options(runtime="local", preserve_order=True)
        """
        return Dataset(self._plan, self._options.override(**options))

    def aiter_batches(
        self,
        *,
        batch_size: int | None = 256,
        batch_format: str = "numpy",
        prefetch_batches: int = 2,
        max_prefetch_bytes: int | None = None,
        drop_last: bool = False,
        local_shuffle_buffer_size: int | None = None,
        local_shuffle_seed: int | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
        collate_workers: int | None = None,
        finalize_fn: Callable[[Any], Any] | None = None,
        prefetch_to_device: int = 1,
    ) -> Batches:
        """Return the batches, for `async for`.

        Args:
            batch_size: Rows per batch: exactly that many, the last batch excepted. None: whole blocks.
            batch_format: `"numpy"` (a dict of arrays, zero-copy and read-only where the layout allows), `"pyarrow"`
                (a Table), `"pandas"` or `"polars"` (a DataFrame), `"torch"` (a dict of CPU tensors, copied, writable).
            prefetch_batches: Batches whose rows are fetched ahead of the one in use; one block is ahead in any case.
            max_prefetch_bytes: Bytes of blocks that are held beside the block in use, at most; a slice of a block
                counts as all of it. A shuffle buffer, which has a size of its own, comes on top. None: no limit.
            drop_last: Whether to drop a last batch that is not full.
            local_shuffle_buffer_size: Rows that each batch is drawn from at random, at least; up to twice as many
                are held. None: no shuffling.
            local_shuffle_seed: The same seed gives the same order, and another one in each pass over the returned
                `Batches`. It implies `preserve_order`. None: a random order.
            collate_fn: What makes a batch of a batch; it may return anything. A function runs in worker threads, an
                `async def` on the event loop. Without `preserve_order` a batch that is finished passes slower ones.
            collate_workers: Calls of `collate_fn` at a time; twice as many batches are in flight at most. None:
                `prefetch_batches`, but 4 at most and 1 at least.
            finalize_fn: What makes the final batch, for example on a device, called for one batch at a time, as late
                as `prefetch_to_device` allows; a function runs in a worker thread, an `async def` on the event loop.
            prefetch_to_device: Finalized batches that wait beside the one in use, at most; 0: a batch is finalized when
                it is asked for.

        Returns:
            Batches: each `async for` over it is one full pass.

        Raises:
            OptionError: An argument has a value that can not work.

        Example:
            >>> import asyncio, aiodata
            >>> async def main():
            ...     async for batch in aiodata.range(5, num_blocks=1).aiter_batches(batch_size=2, drop_last=True):
            ...         print(batch["id"])
            >>> asyncio.run(main())
            [0 1]
            [2 3]
        """
        batching = BatchOptions(
            batch_size=batch_size,
            batch_format=batch_format,
            prefetch_batches=prefetch_batches,
            max_prefetch_bytes=max_prefetch_bytes,
            drop_last=drop_last,
            local_shuffle_buffer_size=local_shuffle_buffer_size,
            local_shuffle_seed=local_shuffle_seed,
            collate_fn=collate_fn,
            collate_workers=collate_workers,
            finalize_fn=finalize_fn,
            prefetch_to_device=prefetch_to_device,
        )
        return self._batches(batching)

    def aiter_torch_batches(
        self,
        *,
        batch_size: int | None = 256,
        dtypes: Any = None,
        device: Any = "auto",
        pin_memory: bool = False,
        prefetch_batches: int = 2,
        max_prefetch_bytes: int | None = None,
        drop_last: bool = False,
        local_shuffle_buffer_size: int | None = None,
        local_shuffle_seed: int | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
        collate_workers: int | None = None,
        prefetch_to_device: int = 1,
    ) -> Batches:
        """Return batches of torch tensors on a device, for `async for`: dicts of tensors of shape `(rows, ...)`.

        The tensors are copies of the data: they are writable, and writing to them changes nothing else.

        Args:
            batch_size: Rows per batch, as in `aiter_batches`.
            dtypes: A `torch.dtype` for all columns, or a dict of them by column; None: as the data is.
            device: Where the tensors go: `"auto"` (the current CUDA device if there is one, else the CPU), or anything
                that `torch.device` takes. The copy to a device is non-blocking, and made ahead of need.
            pin_memory: Whether tensors go through page-locked memory, from which copies to a CUDA device overlap with
                computing; without CUDA it changes nothing.
            prefetch_batches: As in `aiter_batches`.
            max_prefetch_bytes: As in `aiter_batches`; it does not count what is on a device.
            drop_last: As in `aiter_batches`.
            local_shuffle_buffer_size: As in `aiter_batches`.
            local_shuffle_seed: As in `aiter_batches`.
            collate_fn: What makes tensors of a batch in the `"numpy"` format; its arrays are read-only: copy them, as
                `torch.tensor` does. Every tensor in the dicts, lists and tuples it returns is pinned and moved.
            collate_workers: As in `aiter_batches`.
            prefetch_to_device: Batches on the device beside the one in use, at most.

        Raises:
            OptionError: An argument has a value that can not work, or torch is not installed.

        Example:
            ```python
            async for batch in ds.aiter_torch_batches(batch_size=1024, dtypes=torch.float32, device="cuda"):
                loss = model(batch["x"])
            ```
        """
        return self._batches(
            torch_options(
                batch_size=batch_size,
                dtypes=dtypes,
                device=device,
                pin_memory=pin_memory,
                prefetch_batches=prefetch_batches,
                max_prefetch_bytes=max_prefetch_bytes,
                drop_last=drop_last,
                local_shuffle_buffer_size=local_shuffle_buffer_size,
                local_shuffle_seed=local_shuffle_seed,
                collate_fn=collate_fn,
                collate_workers=collate_workers,
                prefetch_to_device=prefetch_to_device,
            )
        )

    def aiter_rows(self) -> Rows:
        """Return the rows as dicts of Python values, for `async for`.

        Example:
            >>> import asyncio, aiodata
            >>> async def main():
            ...     return [row["id"] async for row in aiodata.range(3, num_blocks=1).aiter_rows()]
            >>> asyncio.run(main())
            [0, 1, 2]
        """
        return Rows(self.aiter_batches(batch_format="pyarrow"))

    def aiter_bundles(self) -> Batches:
        """Return references to the blocks, for `async for`: each a `RefBundle`; nothing is fetched.

        Example:
            >>> import asyncio, aiodata
            >>> async def main():
            ...     return [bundle.num_rows async for bundle in aiodata.range(6, num_blocks=2).aiter_bundles()]
            >>> asyncio.run(main())
            [3, 3]
        """

        def open_pass(epoch: int) -> Consumer:
            return Consumer(LocalFeed(self._plan, self._options), BundlePipeline(), self._options, epoch)

        return Batches(open_pass, "bundles")

    async def materialize(self) -> Dataset:
        """Run the dataset once, in source order, and return its blocks as a dataset, whose passes run no task for them.

        The blocks stay where the run made them, on Ray in the object store, as long as the returned dataset lives; they
        have to fit there. It runs where they are: on the same runtime.

        Example:
            >>> import asyncio, aiodata
            >>> async def main():
            ...     ds = await aiodata.range(4).map_batches(lambda batch: {"id": batch["id"] * 2}).materialize()
            ...     return await ds.count(), await ds.count()
            >>> asyncio.run(main())
            (4, 4)
        """
        unbounded = {"preserve_order": True, "max_object_store_bytes": _UNBOUNDED_BYTES}
        async with self.with_options(**unbounded).aiter_bundles() as iterator:
            bundles = [bundle async for bundle in iterator]
        schema = bundles[0].metadata.schema if bundles else await self.schema()
        source = StoredSource("materialized", tuple(bundles), schema)
        return Dataset(Plan(Read(source)), self._options.override(runtime=iterator.stats().runtime))

    async def schema(self) -> pa.Schema:
        """Return the schema; it is read from a file's footer, or else from the first block of a short run.

        Example:
            >>> import asyncio, aiodata
            >>> asyncio.run(aiodata.range(3).schema()).names
            ['id']
        """
        return await find_schema(self._plan, self._options)

    async def count(self) -> int:
        """Return the number of rows, from metadata where that suffices, else by a run that fetches no block.

        Example:
            >>> import asyncio, aiodata
            >>> asyncio.run(aiodata.range(3).count())
            3
        """
        return await count_rows(self._plan, self._options)

    async def take(self, n: int = 20) -> list[dict[str, Any]]:
        """Return up to `n` rows as dicts of Python values, the first ones in source order.

        Example:
            >>> import asyncio, aiodata
            >>> asyncio.run(aiodata.range(3).take(1))
            [{'id': 0}]
        """
        table = await self._head(n)
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    async def take_batch(self, n: int = 20, *, batch_format: str = "numpy") -> Any:
        """Return up to `n` rows as one batch, the first ones in source order.

        Example:
            >>> import asyncio, aiodata
            >>> asyncio.run(aiodata.range(3).take_batch(2))
            {'id': array([0, 1])}
        """
        fmt = get_format(batch_format)
        table = (await self._head(n)).combine_chunks()
        segments = table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
        return fmt.join([fmt.convert(segment) for segment in segments])

    def explain(self) -> str:
        """Show how the dataset is carried out: its stages, and what was pushed down and fused.

        Example:
            >>> import aiodata
            >>> print(aiodata.range(3).limit(2).explain())
            range(3) -> limit(2)    one task reads and transforms
            limit(2)                narrows row ranges, then ends what is before it
        """
        return explain(self._plan)

    def __repr__(self) -> str:
        """Show the stages."""
        return f"<Dataset {' | '.join(line.split('    ')[0].rstrip() for line in self.explain().splitlines())}>"

    async def _head(self, n: int) -> pa.Table:
        at_least("n", n, 0)
        ordered = self.limit(n).with_options(preserve_order=True)
        async with ordered.aiter_batches(batch_size=None, batch_format="pyarrow") as batches:
            blocks = [block async for block in batches]
        return concat_blocks(blocks) if blocks else (await self.schema()).empty_table()

    def _batches(self, batching: BatchOptions) -> Batches:
        options = self._options
        if batching.is_order_asked_for:
            options = options.override(preserve_order=True)
        # Drawn once, so that the passes of one `Batches` differ by their number alone.
        batching = batching.with_seed()

        def open_pass(epoch: int) -> Consumer:
            pipeline = make_pipeline(
                batching, epoch=epoch, is_ordered=options.preserve_order, grace_s=options.close_timeout_s
            )
            return Consumer(LocalFeed(self._plan, options), pipeline, options, epoch)

        return Batches(open_pass, f"{batching}")

    def _then(self, step: Apply | Limit) -> Dataset:
        return Dataset(self._plan.then(step), self._options)
