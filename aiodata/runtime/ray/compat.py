"""Ray's private API, each use with a public fallback. Seen on Ray 2.60.0; `tests/runtime/test_compat.py` tests both.

What is private here, and what the public fallback costs:

- `_num_objects_per_yield`: some blocks and what is said of them in one report. Fallback: one yield for each.
- `ObjectRefGenerator._generator_ref`, `CoreWorker.peek_object_ref_stream_n`, `._consume_next_ref_n`,
  `._stream_exhausted`: the references of the next outputs, before they exist, and whether they do.
  Fallback: `ray.wait` on the generator, then `next`.
- `_system_config` of `ray.init`: how a cluster that is started here behaves. Fallback: Ray's defaults.
- `ObjectRef._on_ready`: a callback when a reference is settled, without fetching it. Fallback: a timer that looks
  every few milliseconds.
- `CoreWorker.add_object_out_of_scope_callback`: a callback when the last reference to an object is gone everywhere.
  Fallback: a block counts as gone at once, since its Python reference takes no weak references; a token never does.
- `global_worker.function_actor_manager`: an object that `ray.shutdown` drops, so that a finalizer tells of it.
  Fallback: a timer that looks every second.
- `ray.experimental.get_local_object_locations` and `get_object_locations`, which may change: what this process knows of
  where objects are and how large, and what their owners do. Fallback: neither is known; sizes are then counted when the
  metadata is there, and no block counts as near.
- How Ray calls the resources of a placement group's bundles (`CPU_group_0_<id>`) where it lists those of the cluster.
  Fallback: a group counts as having nothing left, so runs leave it unless they are told to stay.
- `GlobalStateAccessor.get_actor_table`: which actors there are, and what they hold. The public state API needs the
  dashboard. Fallback: none is known, so nobody is named.
- `internal_kv_get` of the autoscaler's report: whether nodes may be added by themselves. Fallback: they may.
- `ray._raylet.GcsClient`, which asks an address until a cluster answers there. Fallback: it is
  not asked, and `ray.init` tries for a minute before it ends the process.
- `RAY_WARN_BLOCKING_GET_INSIDE_ASYNC`, a variable of the environment. Fallback: one warning in the log of each async
  actor that hosts a service.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from inspect import isgeneratorfunction
from typing import Any, Protocol

import ray
from ray._private.worker import global_worker
from ray.exceptions import GetTimeoutError, ObjectLostError, ObjectRefStreamEndOfStreamError, RayError
from ray.util.placement_group import PlacementGroup

from aiodata.concurrency import without_frames
from aiodata.runtime.ray.packed import Report

# How often the public fallback looks whether something is ready, in seconds.
_FALLBACK_INTERVAL_S = 0.005

# How often it looks whether Ray was shut down, in seconds.
_SHUTDOWN_INTERVAL_S = 1.0

# How long a look into the cluster's store of keys may take, in seconds.
_KV_TIMEOUT_S = 5.0

Callback = Callable[[], object]


def init_ray(address: str | None) -> None:
    """Join the cluster at `address`, or start one on this machine, quietly.

    One that is started here gives the memory of dropped blocks back after 100 ms, not after a second. The memory is
    then used again while it is still mapped, and a page that is used for the first time costs more than to fill it.
    """
    quietly = {"address": address, "include_dashboard": False, "logging_level": logging.ERROR}
    try:
        ray.init(**quietly, _system_config=None if address else {"free_objects_period_milliseconds": 100})
    except (TypeError, ValueError):  # A cluster was running after all, or this Ray does not know the setting.
        ray.init(**quietly)


def wait_for_answer(address: str) -> None:
    """Block until a Ray cluster answers at HOST:PORT, for 40 s where something else is there.

    What goes wrong otherwise is for `ray.init` to say.
    """
    with suppress(AttributeError, TypeError, RayError):
        ray._raylet.GcsClient(address=address)


@dataclass(frozen=True, slots=True)
class LiveActor:
    """An actor that is alive.

    Attributes:
        class_name: The name of its class.
        holds: What it holds of the cluster's resources.
        placement_group_id: The placement group that it is in, or "".
    """

    class_name: str
    holds: dict[str, float]
    placement_group_id: str


def live_actors() -> list[LiveActor]:
    """Return all actors of the cluster that are alive, of whatever program; blocks."""
    with suppress(Exception):  # Whatever is different in this Ray: who holds what is only said, nothing depends on it.
        from ray._private.state import state
        from ray.core.generated.gcs_pb2 import ActorTableData

        table = [
            ActorTableData.FromString(row) for row in state._connect_and_get_accessor().get_actor_table(None, None)
        ]
        return [
            # Of one that is defined in a function, Ray has the qualified name.
            LiveActor(row.class_name.rpartition(".")[2], dict(row.required_resources), row.placement_group_id.hex())
            for row in table
            if row.state == ActorTableData.ActorState.ALIVE
        ]
    return []


def has_autoscaler() -> bool | None:
    """Return whether something may add nodes to the cluster when they are needed; None: not known yet. Blocks.

    Ray's monitor runs on each head node, and reports from some seconds after the start on. Without an autoscaler each
    node has a type of its own, after its id.
    """
    try:
        client = global_worker.gcs_client
        if client.internal_kv_get(b"__autoscaler_v2_enabled", b"__autoscaler", timeout=_KV_TIMEOUT_S) == b"1":
            return True
        status = client.internal_kv_get(b"__autoscaling_status", None, timeout=_KV_TIMEOUT_S)
        report = json.loads(status).get("autoscaler_report") if status else None
        return None if report is None else any(not name.startswith("node_") for name in report["active_nodes"] or {})
    except Exception:  # noqa: BLE001 - whatever is different in this Ray: what is not known may be.
        return True


class ReportStream(Protocol):
    """The reports of a streaming task as references, read without waiting and without fetching."""

    def arm(self, on_ready: Callback) -> None:
        """Call `on_ready` once, from any thread, when the next report, or the end, can be taken."""

    def take(self) -> list[ray.ObjectRef] | None:
        """Return the references of the next report, blocks first; None: not there yet.

        Raises:
            EOFError: The task has ended and all its reports were taken.
            ray.exceptions.RayError: The task failed.
        """


def streaming_function(function: Callable[..., Iterator[Report]], size: int, *, use_private: bool = True) -> Any:
    """Return `function`, a generator of reports, as a Ray remote function; each report arrives at once if possible.

    Args:
        function: The generator.
        size: How many objects each of its reports has.
        use_private: Whether to use the private API if it is there.
    """
    if use_private:
        try:
            return ray.remote(num_returns="streaming", _num_objects_per_yield=size)(function)
        except ValueError:  # This Ray does not know the option.
            pass
    return ray.remote(num_returns="streaming")(_one_by_one(function))


def actor_class(cls: type, streaming: Mapping[str, int], *, use_private: bool = True) -> Any:
    """Return a class as a Ray actor class with methods, generators of reports of these sizes, that stream likewise."""
    methods: dict[str, Any] = {}
    for name, size in streaming.items():
        function = getattr(cls, name)
        if not isgeneratorfunction(function):
            raise TypeError(f"{cls.__name__}.{name} is no generator function, so Ray can not stream it")
        try:
            if not use_private:
                raise ValueError("not to be used")
            methods[name] = ray.method(num_returns="streaming", _num_objects_per_yield=size)(function)
        except (AssertionError, ValueError):  # This Ray does not know the option.
            methods[name] = ray.method(num_returns="streaming")(_one_by_one(function))
    return ray.remote(type(cls.__name__, (cls,), methods))


def _one_by_one(function: Callable[..., Iterator[Report]]) -> Callable[..., Iterator[Any]]:
    # Of a method, Ray takes the first parameter away, which must not be `*args`.
    def yield_each(first: Any, /, *args: Any) -> Iterator[Any]:
        # Ray sends into what it iterates over.
        yield from (one for report in function(first, *args) for one in report)

    return yield_each


def report_stream(generator: Any, size: int, *, use_private: bool = True) -> ReportStream:
    """Return the reports of a streaming task's generator, each of so many objects."""
    private = ("_generator_ref", "_consume_next_ref_n", "_stream_exhausted")
    if (
        use_private
        and all(hasattr(generator, name) for name in private)
        and hasattr(global_worker.core_worker, "peek_object_ref_stream_n")
        and hasattr(ray.ObjectRef, "_on_ready")
    ):
        return _PeekedReports(generator, size)
    return _WaitedReports(generator, size)


def when_settled(ref: ray.ObjectRef, on_settled: Callback) -> None:
    """Call `on_settled` once, from any thread, when `ref` has a value or an error."""
    if hasattr(ref, "_on_ready"):
        ref._on_ready(lambda *_: on_settled())
    else:
        ref.future().add_done_callback(lambda _: on_settled())


def read_now(ref: Any) -> tuple[Any, RayError | None]:
    """Return the value of a reference (or of a list of them) without waiting, or the error of reading it.

    The error has no frames any more: Ray's refer to the error, and so would keep all that the callers' refer to.
    """
    try:
        return ray.get(ref, timeout=0), None
    except RayError as error:
        without_frames(error)
        return None, error


def quiet_reads() -> None:
    """Have Ray not warn of `read_now` in an async actor, which never blocks; of this process only."""
    os.environ.setdefault("RAY_WARN_BLOCKING_GET_INSIDE_ASYNC", "0")


def size_of(ref: ray.ObjectRef) -> int | None:
    """Return an object's bytes if this process knows them; asks nobody (2 µs)."""
    size: int | None = _location(ref).get("object_size")
    return size


def node_of(ref: ray.ObjectRef) -> str | None:
    """Return the id of a node that holds an object, if this process knows one; asks nobody."""
    nodes: list[str] = _location(ref).get("node_ids") or []
    return nodes[0] if nodes else None


def ask_node_of(ref: ray.ObjectRef, within_s: float) -> str | None:
    """Return the id of a node that holds an object, as its owner says within that time; blocks, for any thread."""
    try:
        locations = ray.experimental.get_object_locations([ref], int(1000 * within_s))
    except AttributeError:
        return node_of(ref)
    except (RayError, RuntimeError):  # It does not answer, or Ray was shut down.
        return None
    nodes: list[str] = locations.get(ref, {}).get("node_ids") or []
    return nodes[0] if nodes else None


def owner_of(ref: ray.ObjectRef) -> str:
    """Name the process that owns an object, as Ray's logs do; asks nobody."""
    try:
        address = import_module("ray.core.generated.common_pb2").Address.FromString(ref.owner_address())
    except (AttributeError, ImportError):
        return "the process that made it"
    place = f"worker {address.worker_id.hex()} at {address.ip_address}:{address.port} on node {address.node_id.hex()}"
    is_own = address.worker_id.hex() == ray.get_runtime_context().get_worker_id()
    return f"this process ({place})" if is_own else place


def unsettled(refs: Sequence[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """Return those of which this process knows neither that they are there nor why not; asks nobody (3 µs).

    Args:
        refs: References, each but once.
    """
    left: list[ray.ObjectRef] = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[1] if refs else []
    return left


def _location(ref: ray.ObjectRef) -> dict[str, Any]:
    try:
        location: dict[str, Any] = ray.experimental.get_local_object_locations([ref]).get(ref, {})
    except AttributeError:
        return {}
    return location


def bundles(amounts: Mapping[str, float], group: PlacementGroup) -> list[dict[str, float]]:
    """Return what each bundle of a placement group has of amounts that Ray lists for the cluster."""
    name = re.compile(rf"(.+)_group_(\d+)_{group.id.hex()}")
    found: dict[str, dict[str, float]] = {}
    for key, amount in amounts.items():
        if (match := name.fullmatch(key)) is not None:
            found.setdefault(match[2], {})[match[1]] = amount
    return list(found.values())


def when_released(ref: ray.ObjectRef, on_released: Callback) -> None:
    """Call `on_released` once, from any thread, when nobody refers to an object any more; only its owner is told.

    Where this Ray can not tell, or another process owns the object, it is called at once.
    """
    if not tell_of_release(ref, on_released):
        on_released()


def tell_of_release(ref: ray.ObjectRef, on_released: Callback) -> bool:
    """Do the same, but call nothing where Ray can not tell; return whether it can."""
    try:
        return bool(global_worker.core_worker.add_object_out_of_scope_callback(ref, lambda _: on_released()))
    except (AttributeError, ValueError):
        return False


def when_shut_down(on_shutdown: Callback) -> Callback:
    """Call `on_shutdown`, from any thread, when Ray is shut down in this process; return what stops the watch.

    Called in an event loop.
    """
    try:
        watch = weakref.finalize(global_worker.function_actor_manager, on_shutdown)
    except (AttributeError, TypeError):
        return _look_for_shutdown(on_shutdown)
    watch.atexit = False
    return watch.detach


def _look_for_shutdown(on_shutdown: Callback) -> Callback:
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def look() -> None:
        if ray.is_initialized():
            timers[:] = [loop.call_later(_SHUTDOWN_INTERVAL_S, look)]
        else:
            on_shutdown()

    timers.append(loop.call_later(_SHUTDOWN_INTERVAL_S, look))
    return lambda: timers[0].cancel()


class _PeekedReports:
    """Reads reports by peeking at their references (private API)."""

    def __init__(self, generator: Any, size: int) -> None:
        self._generator = generator
        self._size = size
        self._peek()

    def arm(self, on_ready: Callback) -> None:
        self._refs[-1]._on_ready(lambda *_: on_ready())

    def take(self) -> list[ray.ObjectRef] | None:
        if not self._is_ready:
            self._peek()
            if not self._is_ready:
                return None
        if self._generator._stream_exhausted():
            self._raise_end()
        refs = self._refs
        self._generator._consume_next_ref_n(self._size)
        self._peek()
        return refs

    def _peek(self) -> None:
        core_worker = self._generator.worker.core_worker
        peeked = core_worker.peek_object_ref_stream_n(self._generator._generator_ref, self._size)
        self._refs = [ref for ref, _ in peeked]
        self._is_ready = peeked[-1][1]

    def _raise_end(self) -> None:
        """Raise what the task ended with, unless there are still reports: a task may fail before all are taken."""
        _, error = read_now(self._refs[-1])
        match error:
            case None | GetTimeoutError() | ObjectLostError():
                return
            case ObjectRefStreamEndOfStreamError():
                raise EOFError
        # Ray logs errors that nobody has looked at.
        for ref in (*self._refs, self._generator.completed()):
            read_now(ref)
        raise error


class _WaitedReports:
    """Reads reports with public API only: looks by a timer."""

    def __init__(self, generator: Any, size: int) -> None:
        self._generator = generator
        self._size = size
        self._partial: list[ray.ObjectRef] = []
        self._loop = asyncio.get_running_loop()

    def arm(self, on_ready: Callback) -> None:
        # Asked anything after its shutdown, Ray would start anew.
        if not ray.is_initialized() or self._is_ready():
            on_ready()
        else:
            self._loop.call_later(_FALLBACK_INTERVAL_S, self.arm, on_ready)

    def take(self) -> list[ray.ObjectRef] | None:
        while len(self._partial) < self._size:
            if not self._is_ready():
                return None
            try:
                self._partial.append(next(self._generator))
            except StopIteration:
                if self._partial:  # The last one holds the task's error.
                    ray.get(self._partial[-1])
                raise EOFError from None
        refs, self._partial = self._partial, []
        return refs

    def _is_ready(self) -> bool:
        return bool(ray.wait([self._generator], timeout=0, fetch_local=False)[0])
