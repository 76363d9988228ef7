"""Ray's private API and its public fallbacks give the same; seen on the Ray version that the first test names."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.exceptions import RayError

from aiodata.concurrency import Wakeup
from aiodata.runtime.ray import compat
from aiodata.runtime.ray.compat import PairStream

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PATHS = pytest.mark.parametrize("use_private", [True, False], ids=["private", "public"])


def pairs(count: int) -> Iterator[tuple[pa.Table, int]]:
    for index in range(count):
        yield pa.table({"x": [index] * 1000}), index


def fails_after_one() -> Iterator[tuple[pa.Table, int]]:
    yield from pairs(1)
    raise ZeroDivisionError("as planned")


async def read(stream: PairStream) -> list[tuple[ray.ObjectRef, Any]]:
    """Read a stream to its end, waiting by callback alone."""
    wakeup = Wakeup()
    loop_says = asyncio.get_running_loop().call_soon_threadsafe
    taken: list[tuple[ray.ObjectRef, Any]] = []
    while True:
        try:
            pair = stream.take()
        except EOFError:
            return taken
        if pair is None:
            stream.arm(lambda: loop_says(wakeup.set))
            await wakeup.wait()
        else:
            taken.append(pair)


def test_the_private_api_is_that_of_the_ray_it_was_seen_on() -> None:
    assert ray.__version__.startswith("2.60."), "look through compat.py, then move this on"
    generator = compat.streaming_function(pairs).remote(0)
    assert type(compat.pair_stream(generator)).__name__ == "_PeekedPairs"


@PATHS
async def test_pairs_come_in_order_with_their_blocks(use_private: bool) -> None:
    function = compat.streaming_function(pairs, use_private=use_private)
    taken = await read(compat.pair_stream(function.remote(5), use_private=use_private))
    assert [metadata for _, metadata in taken] == [0, 1, 2, 3, 4]
    blocks = ray.get([block for block, _ in taken])
    assert [block["x"][0].as_py() for block in blocks] == [0, 1, 2, 3, 4]


@PATHS
async def test_error_of_a_task_is_raised_after_its_pairs(use_private: bool) -> None:
    function = compat.streaming_function(fails_after_one, use_private=use_private)
    with pytest.raises(RayError, match="as planned"):
        await read(compat.pair_stream(function.remote(), use_private=use_private))


@PATHS
async def test_nothing_is_fetched_to_learn_that_it_is_ready(use_private: bool) -> None:
    function = compat.streaming_function(pairs, use_private=use_private)
    [(block, _)] = await read(compat.pair_stream(function.remote(1), use_private=use_private))
    # A reference whose value is deserialised here would be this very table twice.
    assert isinstance(block, ray.ObjectRef)


@pytest.mark.parametrize("private", [True, False], ids=["private", "public"])
async def test_settling_is_told_for_values_and_errors(private: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not private:
        monkeypatch.setattr(compat, "hasattr", lambda *_: False, raising=False)
    loop_says = asyncio.get_running_loop().call_soon_threadsafe
    settled = Wakeup()
    for argument in ("abc", None):
        ref = ray.remote(length).remote(argument)
        compat.when_settled(ref, lambda: loop_says(settled.set))
        await settled.wait()
        assert ray.wait([ref], timeout=0)[0] == [ref]


def length(value: str) -> int:
    return len(value)
