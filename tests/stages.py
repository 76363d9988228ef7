"""Every kind of stage behind the consumer, with functions that know of their calls and batches."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import aiodata

local_only = pytest.mark.parametrize("runtime", ["local"])

Batch = dict[str, Any]

NUM_ROWS = 60
BATCH_ROWS = 7


class Made:
    """What a function makes of a batch."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids


class Functions:
    """Functions for every part of the pipeline, and what is known of their calls and of the batches they saw.

    Args:
        turns: Turns of the loop that a coroutine function takes, at most.
        fail_at: The row whose batch they fail with, if any.

    Attributes:
        running: Calls in progress.
    """

    def __init__(self, *, turns: int = 3, fail_at: int | None = None) -> None:
        self.running: list[object] = []
        self._turns = turns
        self._fail_at = fail_at
        self._batches: list[weakref.ref[Any]] = []

    @property
    def num_alive(self) -> int:
        """Batches that were given or made, and are still referred to."""
        return sum(batch() is not None for batch in self._batches)

    def make(self, batch: Any) -> Made:
        """Make a batch of a batch; in a thread, or wherever."""
        with self._entered():
            made = Made(ids_of(batch))
            # A dict takes no weak references, its arrays do.
            self._batches += [weakref.ref(batch["id"] if isinstance(batch, dict) else batch), weakref.ref(made)]
            if self._fail_at in made.ids:
                raise ValueError("bad value")
            return made

    async def amake(self, batch: Any) -> Made:
        """Make a batch of a batch, in more turns of the loop the less its first row is."""
        with self._entered():
            for _ in range((NUM_ROWS - ids_of(batch)[0]) % (self._turns + 1)):
                await anyio.lowlevel.checkpoint()
            return self.make(batch)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        token = object()
        self.running.append(token)
        try:
            yield
        finally:
            self.running.remove(token)


# The stages behind the consumer, as options made of functions, and whether batches come in order.
Stages = Callable[[Functions], dict[str, Any]]
STAGES: dict[str, tuple[Stages, bool]] = {
    "plain": (lambda _: {}, True),
    "plain_bounded": (lambda _: {"max_prefetch_bytes": 1}, True),
    "blocks": (lambda _: {"batch_size": None}, True),
    "shuffle": (lambda _: {"local_shuffle_buffer_size": 15}, False),
    "collate": (lambda made: {"collate_fn": made.make}, False),
    "collate_in_order": (lambda made: {"collate_fn": made.make, "collate_workers": 3}, True),
    "acollate": (lambda made: {"collate_fn": made.amake, "collate_workers": 3}, False),
    "acollate_in_order": (lambda made: {"collate_fn": made.amake, "collate_workers": 3}, True),
    "finalize": (lambda made: {"finalize_fn": made.make, "prefetch_to_device": 0}, True),
    "afinalize": (lambda made: {"finalize_fn": made.amake, "prefetch_to_device": 2}, True),
    "collate_and_afinalize": (lambda made: {"collate_fn": made.make, "finalize_fn": made.amake}, False),
    "acollate_and_finalize_in_order": (lambda made: {"collate_fn": made.amake, "finalize_fn": made.make}, True),
    "all": (
        lambda made: {
            "local_shuffle_buffer_size": 15,
            "max_prefetch_bytes": 100,
            "collate_fn": made.amake,
            "finalize_fn": made.amake,
        },
        False,
    ),
}


FUNCTION_STAGES = [name for name, (stages, _) in STAGES.items() if "_fn" in str(stages(Functions()).keys())]


def ids_of(batch: Any) -> list[int]:
    ids: list[int] = batch.ids if isinstance(batch, Made) else batch["id"].tolist()
    return ids


async def dataset(runtime: str) -> aiodata.Dataset:
    """Blocks of ten rows: on Ray they are in the store, so each is fetched; locally tasks make them."""
    ds = aiodata.range(NUM_ROWS, num_blocks=6).with_options(runtime=runtime)
    ds = ds.map_batches(lambda batch: {"id": batch["id"] + 0}, batch_size=10)
    return await ds.materialize() if runtime == "ray" else ds


def batches_of(ds: aiodata.Dataset, name: str, functions: Functions) -> aiodata.Batches:
    stages, in_order = STAGES[name]
    return ds.with_options(preserve_order=in_order).aiter_batches(**{"batch_size": BATCH_ROWS, **stages(functions)})


async def give_turns(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def next_ids(batches: aiodata.BatchIterator) -> list[int] | None:
    """The ids of the next batch, None at the end: a task can not raise StopAsyncIteration."""
    batch = await anext(batches, None)
    return None if batch is None else ids_of(batch)
