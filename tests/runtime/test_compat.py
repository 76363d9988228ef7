"""Ray's private API and its public fallbacks give the same; seen on the Ray version that the first test names."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pytest
import ray
from ray import cloudpickle
from ray.exceptions import ObjectRefStreamEndOfStreamError, RayError
from ray.util.placement_group import placement_group, remove_placement_group

from aiodata.concurrency import Wakeup, call_in_thread
from aiodata.plan.pieces import Origin, TablePiece
from aiodata.plan.transforms import MapBatches
from aiodata.plan.work import Cuts, Work
from aiodata.runtime.ray import compat
from aiodata.runtime.ray.compat import ReportStream
from aiodata.runtime.ray.gate import Ticket
from aiodata.runtime.ray.packed import unpack_report
from aiodata.runtime.ray.worker import StageActor
from tests.conftest import until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PATHS = pytest.mark.parametrize("use_private", [True, False], ids=["private", "public"])
SIZES = pytest.mark.parametrize("size", [2, 17])


def report(index: int, size: int) -> tuple[Any, ...]:
    """A report of blocks, and a number."""
    return (*(pa.table({"x": [index] * 1000}) for _ in range(size - 1)), index)


def reports(count: int, size: int) -> Iterator[tuple[Any, ...]]:
    for index in range(count):
        yield report(index, size)


def fails_after(count: int, size: int) -> Iterator[tuple[Any, ...]]:
    yield from reports(count, size)
    raise ZeroDivisionError("as planned")


async def read(stream: ReportStream) -> list[list[ray.ObjectRef]]:
    """Read a stream to its end, waiting by callback alone."""
    wakeup = Wakeup()
    loop_says = asyncio.get_running_loop().call_soon_threadsafe
    taken: list[list[ray.ObjectRef]] = []
    while True:
        try:
            refs = stream.take()
        except EOFError:
            return taken
        if refs is None:
            stream.arm(lambda: loop_says(wakeup.set))
            await wakeup.wait()
        else:
            with suppress(ObjectRefStreamEndOfStreamError):
                ray.get(refs)
            taken.append(refs)


def test_the_private_api_is_that_of_the_ray_it_was_seen_on() -> None:
    assert ray.__version__.startswith("2.60."), "look through compat.py, then move this on"
    generator = compat.streaming_function(reports, 2).remote(0, 2)
    assert type(compat.report_stream(generator, 2)).__name__ == "_PeekedReports"


@PATHS
@SIZES
async def test_reports_come_in_order_with_their_blocks(use_private: bool, size: int) -> None:
    function = compat.streaming_function(reports, size, use_private=use_private)
    taken = await read(compat.report_stream(function.remote(5, size), size, use_private=use_private))
    assert all(isinstance(ref, ray.ObjectRef) for refs in taken for ref in refs)
    assert [tuple(ray.get(refs)) for refs in taken] == [report(index, size) for index in range(5)]


@PATHS
@SIZES
@pytest.mark.parametrize("count", [0, 1, 3])
async def test_error_of_a_task_is_raised_after_its_reports(use_private: bool, size: int, count: int) -> None:
    function = compat.streaming_function(fails_after, size, use_private=use_private)
    with pytest.raises(RayError, match="as planned"):
        await read(compat.report_stream(function.remote(count, size), size, use_private=use_private))


@PATHS
@SIZES
async def test_method_of_an_actor_streams_reports_too(use_private: bool, size: int) -> None:
    actor = compat.actor_class(Streams, {"run": size}, use_private=use_private).options(num_cpus=0).remote()
    stream = compat.report_stream(actor.run.remote(3, size), size, use_private=use_private)
    assert [ray.get(refs[-1]) for refs in await read(stream)] == [0, 1, 2]
    ray.kill(actor)


@PATHS
async def test_actors_of_stages_report_blocks_alone_and_in_groups(use_private: bool) -> None:
    sizes = {"run": 2, "run_in_groups": 17}
    chain = cloudpickle.dumps((MapBatches(lambda batch: batch, 1, "numpy"),))
    actor = compat.actor_class(StageActor, sizes, use_private=use_private).options(num_cpus=0).remote(chain)
    for name, size in sizes.items():
        cuts = Cuts(1 << 20, 1 << 20, 1, 1, 1, 1 << 40, 1 << 40, in_groups=size > 2)
        work = Work([TablePiece(pa.table({"id": range(20)}), Origin("numbers", None))], cuts)
        taken = await read(
            compat.report_stream(getattr(actor, name).remote(work, Ticket("none", 1)), size, use_private=use_private)
        )
        assert len(taken) == (21 if size == 2 else 2)
        blocks = [block for refs in taken for block in ray.get(refs[:-1])]
        assert pa.concat_tables(filter(None, blocks))["id"].to_pylist() == list(range(20))
        assert sum(len(unpack_report(ray.get(refs[-1]))[0]) for refs in taken) == 20
    ray.kill(actor)


def test_method_that_is_no_generator_can_not_stream() -> None:
    with pytest.raises(TypeError, match=r"Streams\.make is no generator function"):
        compat.actor_class(Streams, {"make": 2})


def stops_in_a_report(path: str) -> Iterator[tuple[Any, ...]]:
    yield 1, 2
    while not os.path.exists(path):
        time.sleep(0.01)
    yield 3, 4


async def test_part_of_a_report_is_not_waited_for(tmp_path: Path) -> None:
    function = compat.streaming_function(stops_in_a_report, 4, use_private=False)
    stream = compat.report_stream(function.remote(str(tmp_path / "go")), 4, use_private=False)
    armed = asyncio.Event()
    stream.arm(armed.set)
    await armed.wait()
    with anyio.move_on_after(0.1):
        while True:
            assert stream.take() is None
            await asyncio.sleep(0.01)
    (tmp_path / "go").touch()
    assert [ray.get(refs) for refs in await read(stream)] == [[1, 2, 3, 4]]


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


async def test_size_is_known_without_a_fetch_or_none() -> None:
    assert compat.size_of(ray.put(b"x" * 1_000_000)) == pytest.approx(1_000_000, rel=0.01)
    pending = ray.remote(num_cpus=0)(wait).remote(30)
    assert compat.size_of(pending) is None
    ray.cancel(pending)


async def test_node_is_known_without_a_fetch_or_none() -> None:
    here = ray.get_runtime_context().get_node_id()
    assert compat.node_of(ray.put(b"x" * 1_000_000)) == here
    made = ray.remote(num_cpus=0)(zeros).remote(1_000_000)
    ray.wait([made], fetch_local=False)
    assert compat.node_of(made) == here
    pending = ray.remote(num_cpus=0)(wait).remote(30)
    assert compat.node_of(pending) is None
    ray.cancel(pending)


async def test_size_and_node_are_unknown_where_ray_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ray.experimental, "get_local_object_locations")
    ref = ray.put(b"x" * 1_000_000)
    assert (compat.size_of(ref), compat.node_of(ref)) == (None, None)


@pytest.mark.parametrize("quiet", [True, False])
def test_reads_in_an_async_actor_warn_unless_they_are_quiet(quiet: bool) -> None:
    reader = ray.remote(num_cpus=0)(Reads).remote(quiet)
    value, warnings = ray.get(reader.read.remote([ray.put("x")]))
    assert value == "x"
    assert [warning for warning in warnings if "blocking ray.get" in warning] == warnings
    assert len(warnings) == (0 if quiet else 1)
    ray.kill(reader)


async def test_release_is_told_once_where_this_ray_can_tell() -> None:
    loop_says = asyncio.get_running_loop().call_soon_threadsafe
    released: list[str] = []
    wakeup = Wakeup()
    ref = ray.put(b"x")

    def on_released() -> None:
        released.append("x")
        loop_says(wakeup.set)

    compat.when_released(ref, on_released)
    assert released == []
    del ref
    await wakeup.wait()
    assert released == ["x"]


async def test_block_counts_as_released_at_once_where_ray_can_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "global_worker", object())
    released: list[str] = []
    compat.when_released(ray.put(b"x"), lambda: released.append("x"))
    assert released == ["x"]


async def test_token_never_counts_as_released_where_ray_can_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "global_worker", object())
    released: list[str] = []
    assert not compat.tell_of_release(ray.put(b"x"), lambda: released.append("x"))
    assert released == []


def zeros(count: int) -> bytes:
    return bytes(count)


def wait(seconds: float) -> None:
    time.sleep(seconds)


class Reads:
    """An async actor that reads what is there, and returns what Ray has logged of it."""

    def __init__(self, quiet: bool) -> None:
        if quiet:
            compat.quiet_reads()

    async def read(self, refs: list[ray.ObjectRef]) -> tuple[Any, list[str]]:
        handler = BufferingHandler(100)
        logger = logging.getLogger("ray._private.worker")
        logger.addHandler(handler)
        ray.wait(refs)
        value, _ = compat.read_now(refs[0])
        return value, [record.getMessage() for record in handler.buffer]


class Streams:
    def make(self) -> Iterator[tuple[Any, ...]]:
        return reports(1, 2)

    def run(self, count: int, size: int) -> Iterator[tuple[Any, ...]]:
        yield from reports(count, size)


async def test_bundles_of_a_group_are_told_from_those_of_others_or_the_group_has_none() -> None:
    first, second = placement_group([{"CPU": 0.5}, {"CPU": 0.25, "memory": 100}]), placement_group([{"CPU": 0.5}])
    await asyncio.gather(first.ready(), second.ready())

    def found(total: dict[str, float]) -> list[dict[str, float]]:
        bundles = compat.bundles(total, first)
        return sorted(({name: one for name, one in bundle.items() if name != "bundle"} for bundle in bundles), key=len)

    # A node tells what its groups have reserved a moment after they are ready.
    await until(
        lambda: found(ray.cluster_resources()) == [{"CPU": 0.5}, {"CPU": 0.25, "memory": 100}], "bundles are not known"
    )
    assert found({name.replace("_group_", "_of_"): one for name, one in ray.cluster_resources().items()}) == []
    for group in (first, second):
        remove_placement_group(group)


async def test_owner_of_an_object_is_named_as_ray_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own, node = ray.put(1), ray.get_runtime_context().get_node_id()
    assert compat.owner_of(own).startswith(f"this process (worker {ray.get_runtime_context().get_worker_id()} at ")
    assert compat.owner_of(own).endswith(f" on node {node})")
    [other] = await ray.remote(lambda: [ray.put(2)]).remote()
    assert compat.owner_of(other).startswith("worker ")
    monkeypatch.setitem(sys.modules, "ray.core.generated.common_pb2", None)
    assert compat.owner_of(own) == "the process that made it"


async def test_objects_that_are_not_there_are_unsettled_and_failed_ones_are_settled() -> None:
    pending = ray.remote(lambda: time.sleep(100)).remote()
    failed = ray.remote(max_retries=0)(lambda: 1 // 0).remote()
    with pytest.raises(ZeroDivisionError):
        await failed
    assert compat.unsettled([failed, pending, ray.put(1)]) == [pending]
    assert compat.unsettled([]) == []
    ray.cancel(pending, force=True)


def test_actors_that_are_alive_are_known_with_what_they_hold() -> None:
    class Holding:
        def wait(self) -> None: ...

    class Holds(Holding): ...

    handles: list[Any] = [ray.remote(num_cpus=1)(Holding).remote(), ray.remote(Holds).remote()]
    ray.get([handle.wait.remote() for handle in handles])
    held = {actor.class_name: actor.holds for actor in compat.live_actors() if actor.class_name.startswith("Hold")}
    assert held == {"Holding": {"CPU": 1.0}, "Holds": {}}


def test_no_actor_is_known_where_ray_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("ray._private.state.state")
    assert compat.live_actors() == []


class FakeStore:
    """The keys of a cluster."""

    def __init__(self, keys: dict[bytes, bytes]) -> None:
        self._keys = keys

    def internal_kv_get(self, key: bytes, _: object, *, timeout: float) -> bytes | None:
        assert timeout > 0
        return self._keys.get(key)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({b"__autoscaling_status": b'{"monitor_pid": 1}'}, None),
        ({b"__autoscaling_status": b'{"autoscaler_report": {"active_nodes": {"node_0ab1": 1, "node_77": 1}}}'}, False),
        ({b"__autoscaling_status": b'{"autoscaler_report": {"active_nodes": null}}'}, False),
        ({b"__autoscaling_status": b'{"autoscaler_report": {"active_nodes": {"ray.head.default": 1}}}'}, True),
        ({b"__autoscaler_v2_enabled": b"1"}, True),
        ({b"__autoscaling_status": b"of another kind"}, True),
    ],
)
def test_autoscaler_is_known_by_the_types_of_its_nodes(
    keys: dict[bytes, bytes], expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat, "global_worker", type("Worker", (), {"gcs_client": FakeStore(keys)}))
    assert compat.has_autoscaler() is expected


async def test_cluster_has_no_autoscaler_and_one_may_be_where_ray_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It is known some seconds after the start.
    await until(lambda: compat.has_autoscaler() is False, "there is an autoscaler", within_s=60)
    monkeypatch.setattr(compat, "global_worker", object())
    assert compat.has_autoscaler()


def test_cluster_answers_and_is_not_asked_where_this_ray_can_not(monkeypatch: pytest.MonkeyPatch) -> None:
    compat.wait_for_answer(ray.get_runtime_context().gcs_address)
    monkeypatch.delattr("ray._raylet.GcsClient")
    compat.wait_for_answer("127.0.0.1:1")


async def test_owner_says_on_which_node_an_object_is() -> None:
    node = ray.get_runtime_context().get_node_id()
    [other] = await ray.remote(lambda: [ray.put(b"x" * 1_000_000)]).remote()
    pending = ray.remote(lambda: time.sleep(100)).remote()
    asked = [await call_in_thread(partial(compat.ask_node_of, ref, 30), grace_s=0) for ref in (ray.put(1), other)]
    assert asked == [node, node]
    assert await call_in_thread(partial(compat.ask_node_of, pending, 0.1), grace_s=0) is None
    ray.cancel(pending, force=True)
