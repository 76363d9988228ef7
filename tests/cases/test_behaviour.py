"""Behaviour: what is closed wrongly says what to write, and the program's own error is the one that is raised."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import aiodata


@pytest.mark.parametrize("verb", ["aiter_batches", "aiter_rows", "aiter_bundles", "aiter_torch_batches"])
async def test_error_in_a_loop_that_is_closed_is_the_one_that_is_raised(runtime: str, verb: str) -> None:
    ds = aiodata.range(100).with_options(runtime=runtime)

    async def fail() -> None:
        async with contextlib.aclosing(getattr(ds, verb)()) as batches:
            async for _ in batches:
                raise KeyError("the real error")

    with pytest.raises(KeyError, match="the real error"):
        await fail()


@pytest.mark.parametrize("verb", ["aiter_batches", "aiter_rows", "aiter_bundles", "aiter_torch_batches"])
async def test_what_is_iterated_over_anew_each_time_may_be_closed_and_says_how_to_take_one(verb: str) -> None:
    ds = aiodata.range(10).with_options(runtime="local")
    batches = getattr(ds, verb)()
    await batches.aclose()
    with pytest.raises(TypeError, match=r"aiter\(batches\)|aiter\(rows\)|aiter\(bundles\)"):
        await anext(batches)
    assert [one async for one in batches]


NINE: Any = np.int64(9)
TRUE: Any = np.bool_(True)


@pytest.mark.parametrize("size", [np.int64(3), np.uint8(3), np.int32(3)])
async def test_sizes_may_be_numpy_integers(runtime: str, size: Any) -> None:
    ds = aiodata.range(NINE, num_blocks=size).with_options(runtime=runtime, num_cpus=size)
    mapped = ds.map_batches(lambda batch: batch, batch_size=size).limit(size)
    batches = mapped.aiter_batches(batch_size=size, local_shuffle_buffer_size=size, drop_last=TRUE)
    assert [len(batch["id"]) async for batch in batches] == [3]
    assert len(await ds.take(size)) == 3


@pytest.mark.parametrize("verb", ["aiter_batches", "aiter_rows", "aiter_bundles", "aiter_torch_batches"])
async def test_plain_for_says_that_it_is_async_for(verb: str) -> None:
    ds = aiodata.range(10).with_options(runtime="local")
    batches: Any = getattr(ds, verb)()
    for one in (batches, aiter(batches)):
        with pytest.raises(TypeError, match=r"needs `async for`"):
            list(one)


async def test_loop_over_a_dataset_says_which_verb_to_call() -> None:
    ds: Any = aiodata.range(10)
    with pytest.raises(TypeError, match=r"a Dataset is a recipe: write `async for batch in ds\.aiter_batches\(\)`"):
        list(ds)
    with pytest.raises(TypeError, match=r"a Dataset is a recipe"):
        [one async for one in ds]


def step(awaitable: Coroutine[Any, Any, Any]) -> None:
    """Take the first step of a coroutine, as an event loop does that is none of asyncio's."""
    try:
        awaitable.send(None)
    finally:
        awaitable.close()


CALLS: dict[str, Callable[[], Any]] = {
    "aiter_batches": lambda: aiter(aiodata.range(3).aiter_batches()),
    "aiter_rows": lambda: aiter(aiodata.range(3).aiter_rows()),
    "take": lambda: step(aiodata.range(3).take()),
    "take_batch": lambda: step(aiodata.range(3).take_batch()),
    "materialize": lambda: step(aiodata.range(3).materialize()),
    "LoopLagMonitor": lambda: aiodata.LoopLagMonitor().start(),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_needs_an_event_loop_says_how_to_get_one(call: str) -> None:
    with pytest.raises(RuntimeError, match=r"needs an event loop of asyncio.*aiodata\.run\(main\)"):
        CALLS[call]()


@pytest.mark.parametrize("call", CALLS)
def test_in_an_event_loop_of_trio_the_remedy_is_asyncio(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_trio = SimpleNamespace(lowlevel=SimpleNamespace(in_trio_run=lambda: True))
    monkeypatch.setitem(sys.modules, "trio", in_trio)
    with pytest.raises(RuntimeError, match=r"trio.* cannot do it: .*anyio\.run\(main, backend='asyncio'\)"):
        CALLS[call]()
