"""IterationVerbs: the ways to iterate, which are the same for whatever has rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn

from aiodata.batching.consumer import Consumer
from aiodata.batching.feed import Feed
from aiodata.batching.options import BatchOptions
from aiodata.batching.pipeline import BundlePipeline, make_pipeline
from aiodata.batching.torch_batches import torch_options
from aiodata.iterator import Batches
from aiodata.options import ExecutionOptions
from aiodata.plan.passes import Pass, draw_seed
from aiodata.rows import Rows


class IterationVerbs(ABC):
    """The verbs that iterate over rows: in batches, one by one, or in bundles; a subclass says where they come from."""

    __slots__ = ()

    def __aiter__(self) -> NoReturn:
        """Say what to write: this is no iterable, but has several ways to be iterated.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            f"a {type(self).__name__} is a recipe: write `async for batch in ds.aiter_batches()` in an async function, "
            "or `async for row in ds.aiter_rows()`"
        )

    __iter__ = __aiter__

    def aiter_batches(
        self,
        *,
        batch_size: int | None = 256,
        batch_format: str = "numpy",
        nulls: str | None = None,
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
        """Return the batches, for `async for`; rows come as they are ready, unless `preserve_order` is set.

        Args:
            batch_size: Rows per batch: exactly that many, the last batch excepted. None: whole blocks.
            batch_format: `"numpy"` (a dict of arrays), `"pyarrow"` (a Table, zero-copy), `"pandas"` or `"polars"` (a
                DataFrame), `"torch"` (a dict of CPU tensors). What is written into a batch changes nothing else; a
                Table cannot be written to. docs/types.md says how each type looks in each format.
            nulls: For `"numpy"`: how integers and bools look that may be null. `"mask"`, the default: as masked arrays
                of their own type. `"nan"`: as float64, NaN where null.
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
            nulls=nulls,
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
            collate_fn: What makes tensors of a batch in the `"numpy"` format; it may keep its arrays and write to them.
                Every tensor in the dicts, lists and tuples it returns is pinned and moved.
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
        """Return the rows as dicts of Python values, for `async for`; tensors are NumPy arrays of their shape.

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
        open_feed, options = self._supply(in_order=False)
        seed = draw_seed()

        def open_pass(epoch: int) -> Consumer:
            return Consumer(open_feed(Pass(epoch, seed)), BundlePipeline(), options, epoch)

        return Batches(open_pass, "bundles")

    @abstractmethod
    def _supply(self, *, in_order: bool) -> tuple[Callable[[Pass], Feed], ExecutionOptions]:
        """Return what opens the feed of a pass, and the options that the pass runs with.

        Args:
            in_order: Whether rows have to come in source order, whatever the options say.
        """

    def _batches(self, batching: BatchOptions) -> Batches:
        open_feed, options = self._supply(in_order=batching.is_order_asked_for)
        # Drawn once, so that the passes of one `Batches` differ by their number alone.
        batching, seed = batching.with_seed(), draw_seed()

        def open_pass(epoch: int) -> Consumer:
            pipeline = make_pipeline(
                batching, epoch=epoch, is_ordered=options.preserve_order, grace_s=options.close_timeout_s
            )
            return Consumer(open_feed(Pass(epoch, seed)), pipeline, options, epoch)

        return Batches(open_pass, f"{batching}")
