"""Behaviour: what is closed wrongly says what to write, and the program's own error is the one that is raised."""

from __future__ import annotations

import contextlib
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
