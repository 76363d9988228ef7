"""Fetching: what does not come is asked for by another way, is told of, and is an error in the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import anyio
import pyarrow as pa
import pytest
import ray

import aiodata
from aiodata import AiodataError
from aiodata.concurrency import call_in_thread
from aiodata.options import MIB
from aiodata.runtime.ray import compat, fetching, runtime
from aiodata.runtime.ray.fetching import Patience, fetch
from tests.batching.services import splits_of
from tests.conftest import collect
from tests.coordination.consumers import virtual
from tests.splits import read_all

# So short that a test can wait for it, where Ray runs and time is real.
SHORT = Patience(look_after_s=0.01, look_every_s=0.05, warn_after_s=0.02, give_up_s=0.3, make_s=0.3)


@dataclass
class Stuck:
    """An object as Ray knows it, which does not come before its owner has been asked so many times.

    Attributes:
        is_there: Whether its owner has said that it is there.
        is_gone: Whether that is not so any more.
        size: Its bytes, as far as known.
        comes_after: How often its owner has to be asked.
        asked: How often it was.
    """

    is_there: bool = False
    is_gone: bool = False
    size: int | None = None
    comes_after: float = float("inf")
    asked: int = 0

    def hex(self) -> str:
        return "0123"

    async def value(self) -> str:
        if self.asked < self.comes_after:
            await anyio.sleep_forever()
        return "value"

    async def node(self) -> str | None:
        return None if self.is_gone else "7"

    async def renew(self) -> None:
        self.asked += 1


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Stuck:
    """An object that is looked at in place of all of Ray's."""
    one = Stuck()
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(compat, "unsettled", lambda refs: [ref for ref in refs if not ref.is_there])
    monkeypatch.setattr(compat, "size_of", lambda ref: ref.size)
    monkeypatch.setattr(fetching, "_ask_node", Stuck.node)
    monkeypatch.setattr(compat, "owner_of", lambda _: "worker 5")
    monkeypatch.setattr(fetching, "_value", Stuck.value)
    monkeypatch.setattr(fetching, "_renew", Stuck.renew)
    return one


async def seconds_until_error(stuck: Stuck, *words: str) -> float:
    started_s = anyio.current_time()
    with pytest.raises(AiodataError) as caught:
        await fetch(stuck, "block")
    for word in words:
        assert word in str(caught.value)
    return anyio.current_time() - started_s


@pytest.mark.parametrize("times", [1, 2, 6])
def test_object_that_its_process_has_lost_track_of_comes_when_its_owner_was_asked(stuck: Stuck, times: int) -> None:
    @virtual
    async def run() -> None:
        stuck.comes_after = times
        assert await fetch(stuck, "block") == "value"
        assert stuck.asked == times
        # The first time it takes no wait at all.
        assert anyio.current_time() == pytest.approx(0.25 * (2 ** (times - 1) - 1))

    run()


def test_object_that_is_there_and_does_not_come_is_told_within_ten_seconds_and_is_an_error_after_sixty(
    stuck: Stuck, caplog: pytest.LogCaptureFixture
) -> None:
    @virtual
    async def run() -> None:
        stuck.is_there = True
        async with anyio.create_task_group() as group:
            group.start_soon(seconds_until_error, stuck, "block 0123 did not come within 6", "worker 5", "node 7")
            await anyio.sleep(10)
            assert "block 0123 has not come for 8 s: its owner, worker 5, says that it is there" in caplog.text
        assert 60 <= anyio.current_time() < 70
        assert stuck.asked == 0

    with caplog.at_level(logging.WARNING, "aiodata"):
        run()


async def test_time_in_which_the_event_loop_is_held_does_not_count(stuck: Stuck) -> None:
    stuck.is_there, stuck.comes_after = True, 1
    patience = replace(SHORT, look_after_s=0.1)
    async with anyio.create_task_group() as group:
        group.start_soon(fetch, stuck, "block", patience)
        await anyio.wait_all_tasks_blocked()
        until_s = perf_counter() + patience.give_up_s
        while perf_counter() < until_s:
            pass
        stuck.asked = 1


def test_large_object_may_take_the_longer(stuck: Stuck) -> None:
    @virtual
    async def run() -> None:
        stuck.is_there, stuck.size = True, 1000 * MIB
        assert 1060 <= await seconds_until_error(stuck, "block 0123 (1000.0 MiB) did not come") < 1070

    run()


@pytest.mark.parametrize("is_there", [True, False], ids=["gone", "never there"])
def test_object_that_is_made_again_has_ten_minutes(
    stuck: Stuck, caplog: pytest.LogCaptureFixture, is_there: bool
) -> None:
    @virtual
    async def run() -> None:
        stuck.size, stuck.is_there, stuck.is_gone = 16 * MIB, is_there, True
        assert 600 <= await seconds_until_error(stuck, "worker 5", "does not say that it is there") < 610
        assert is_there or stuck.asked > 70

    with caplog.at_level(logging.WARNING, "aiodata"):
        run()
    assert "block 0123 (16.0 MiB) has not come for 8 s: its owner, worker 5, does not say" in caplog.text


class _Owner:
    """Owns an object that comes when it is told so, and one that is there."""

    def __init__(self) -> None:
        self.opened = anyio.Event()

    async def wait(self) -> int:
        await self.opened.wait()
        return 7

    async def refs(self, me: Any) -> list[ray.ObjectRef]:
        return [me.wait.remote(), ray.put(8)]

    async def open(self) -> None:
        self.opened.set()


@pytest.fixture
def owner(ray_cluster: None) -> Iterator[Any]:
    actor = ray.remote(num_cpus=0)(_Owner).remote()
    yield actor
    ray.kill(actor)


@pytest.mark.ray
async def test_object_that_is_never_made_is_told_and_is_an_error_that_name_it_and_its_owner(
    owner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    late, there = await owner.refs.remote(owner)
    assert await fetch(there, "block", SHORT) == 8
    with caplog.at_level(logging.WARNING, "aiodata"), pytest.raises(AiodataError, match=late.hex()) as caught:
        await fetch(late, "block", SHORT)
    owner_name = compat.owner_of(late)
    assert owner_name.startswith("worker ")
    for text in (str(caught.value), caplog.text):
        assert f"block {late.hex()}" in text
        assert f"its owner, {owner_name}, does not say that it is there" in text
    async with anyio.create_task_group() as group:
        group.start_soon(late_value, late)
        await owner.open.remote()


async def late_value(ref: ray.ObjectRef) -> None:
    assert await fetch(ref, "block") == 7


@pytest.mark.ray
async def test_task_that_is_given_a_lost_object_gets_it(owner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[ray.ObjectRef] = []
    take, done = fetching._take_out_anew, threading.Event()

    def noted_take(refs: list[ray.ObjectRef]) -> None:
        taken.extend(refs)
        take(refs)
        done.set()

    monkeypatch.setattr(fetching, "_take_out_anew", noted_take)
    late, there = await owner.refs.remote(owner)
    fetching.look_after([there, late, there, "no reference"])
    assert await call_in_thread(lambda: done.wait(60), grace_s=0)
    assert taken[-1] == late


@pytest.mark.ray
async def test_reference_that_is_renewed_has_its_owner_asked(owner: Any) -> None:
    _, there = await owner.refs.remote(owner)
    with anyio.fail_after(30):
        await fetching._renew(there)
        assert await fetching._value(there) == 8


@dataclass
class Injected:
    """Has the first fetch of each object never end, until its owner is asked anew.

    Attributes:
        stuck: Objects that were fetched once.
        renewed: Objects whose owner was asked.
    """

    stuck: set[bytes] = field(default_factory=set)
    renewed: set[bytes] = field(default_factory=set)


@pytest.fixture
def injected(monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> Injected:
    seen = Injected()
    value, renew, unsettled = fetching._value, fetching._renew, compat.unsettled

    async def stuck_value(ref: ray.ObjectRef) -> Any:
        if ref.binary() not in seen.renewed:
            seen.stuck.add(ref.binary())
            await anyio.sleep_forever()
        return await value(ref)

    async def noted_renew(ref: ray.ObjectRef) -> None:
        await renew(ref)
        if ref.binary() in seen.stuck:
            seen.renewed.add(ref.binary())

    monkeypatch.setattr(fetching, "PATIENCE", SHORT)
    monkeypatch.setattr(fetching, "_value", stuck_value)
    monkeypatch.setattr(fetching, "_renew", noted_renew)

    def unsettled_or_stuck(refs: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
        stuck = seen.stuck - seen.renewed
        return [ref for ref in refs if ref.binary() in stuck or unsettled([ref])]

    monkeypatch.setattr(compat, "unsettled", unsettled_or_stuck)
    return seen


def hide_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all metadata be waited for, as if none was there at first."""
    monkeypatch.setattr(runtime, "ready_outcomes", lambda pairs: [None] * len(pairs))


def double(batch: dict[str, Any]) -> dict[str, Any]:
    return {"id": batch["id"] * 2}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "mapped", "union", "materialized"])
async def test_rows_whose_fetches_hang_come_by_the_second_way(
    monkeypatch: pytest.MonkeyPatch, injected: Injected, kind: str
) -> None:
    hide_metadata(monkeypatch)
    ds = aiodata.range(100, num_blocks=5).with_options(runtime="ray")
    if kind == "materialized":
        ds = await ds.materialize()
    ds = {"mapped": ds.map_batches(double), "union": ds.union(ds)}.get(kind, ds)
    ids = {"mapped": [*range(0, 200, 2)], "union": sorted([*range(100)] * 2)}.get(kind, [*range(100)])
    with anyio.fail_after(60):
        assert sorted(await collect(ds)) == ids
    assert injected.stuck == injected.renewed
    assert len(injected.stuck) >= 5


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("is_equal", [True, False])
async def test_rows_of_splits_come_by_the_second_way_on_both_sides(
    monkeypatch: pytest.MonkeyPatch, injected: Injected, is_equal: bool
) -> None:
    hide_metadata(monkeypatch)
    ids: list[list[int]] = []

    async def read(split: aiodata.SplitIterator) -> None:
        ids.append(await read_all(split))

    ds = aiodata.range(100, num_blocks=5)
    with anyio.fail_after(60):
        async with (
            splits_of(ds, 2, equal=is_equal, runtime="ray") as (_, splits),
            anyio.create_task_group() as group,
        ):
            for split in splits:
                group.start_soon(read, split)
    assert sorted(ids[0] + ids[1]) == list(range(100))
    assert not is_equal or len(ids[0]) == len(ids[1])
    assert injected.stuck == injected.renewed
    assert len(injected.stuck) >= 10, "metadata and blocks"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("is_block", [True, False], ids=["block", "metadata"])
async def test_fetch_that_never_ends_is_an_error_of_the_run(
    monkeypatch: pytest.MonkeyPatch, ray_cluster: None, is_block: bool
) -> None:
    hide_metadata(monkeypatch)
    value = fetching._value

    async def never_value(ref: ray.ObjectRef) -> Any:
        found = await value(ref)
        if isinstance(found, pa.Table) is is_block:
            await anyio.sleep_forever()
        return found

    monkeypatch.setattr(fetching, "PATIENCE", SHORT)
    monkeypatch.setattr(fetching, "_value", never_value)
    what = "block" if is_block else "metadata"
    with anyio.fail_after(60), pytest.raises(AiodataError, match=rf"{what} [0-9a-f]+ .*did not come within"):
        await collect(aiodata.range(100, num_blocks=5).with_options(runtime="ray"))
