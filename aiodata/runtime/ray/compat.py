"""Ray's private API, each use with a public fallback. Seen on Ray 2.60.0; `tests/runtime/test_compat.py` tests both.

What is private here, and what the public fallback costs:

- `_num_objects_per_yield=2`: a block and its metadata in one report. Fallback: two yields.
- `ObjectRefGenerator._get_next_ref_n` / `_consume_next_ref_n`: the references of the next outputs, before they exist.
  Fallback: `ray.wait` on the generator, then `next`.
- `_system_config` of `ray.init`: how a cluster that is started here behaves. Fallback: Ray's defaults.
- `ObjectRef._on_ready`: a callback when a reference is settled, without fetching it. Fallback: a timer that looks
  every few milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, ObjectRefStreamEndOfStreamError

# How often the public fallback looks whether something is ready, in seconds.
_FALLBACK_INTERVAL_S = 0.005

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


class PairStream(Protocol):
    """The `(block, metadata)` pairs of a streaming task, read without waiting and without fetching a block."""

    def arm(self, on_ready: Callback) -> None:
        """Call `on_ready` once, from any thread, when the next pair, or the end, can be taken."""

    def take(self) -> tuple[ray.ObjectRef, Any] | None:
        """Return the next block's reference and metadata; None: not ready.

        Raises:
            EOFError: The task has ended and all its pairs were taken.
            ray.exceptions.RayError: The task failed.
        """


def streaming_function(function: Callable[..., Iterator[tuple[Any, Any]]], *, use_private: bool = True) -> Any:
    """Return `function`, a generator of pairs, as a Ray remote function whose pairs arrive together if possible."""
    if use_private:
        try:
            return ray.remote(num_returns="streaming", _num_objects_per_yield=2)(function)
        except ValueError:  # This Ray does not know the option.
            pass

    def one_by_one(*args: Any) -> Iterator[Any]:
        for block, metadata in function(*args):
            yield block
            yield metadata

    return ray.remote(num_returns="streaming")(one_by_one)


def pair_stream(generator: Any, *, use_private: bool = True) -> PairStream:
    """Return the pairs of a streaming task's generator."""
    private = ("_get_next_ref_n", "_consume_next_ref_n")
    if use_private and all(hasattr(generator, name) for name in private) and hasattr(ray.ObjectRef, "_on_ready"):
        return _PeekedPairs(generator)
    return _WaitedPairs(generator)


def when_settled(ref: ray.ObjectRef, on_settled: Callback) -> None:
    """Call `on_settled` once, from any thread, when `ref` has a value or an error."""
    if hasattr(ref, "_on_ready"):
        ref._on_ready(lambda *_: on_settled())
    else:
        ref.future().add_done_callback(lambda _: on_settled())


class _PeekedPairs:
    """Reads pairs by peeking at their references (private API)."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._block, self._metadata = generator._get_next_ref_n(2)

    def arm(self, on_ready: Callback) -> None:
        self._metadata._on_ready(lambda *_: on_ready())

    def take(self) -> tuple[ray.ObjectRef, Any] | None:
        if not ray.wait([self._metadata], timeout=0, fetch_local=False)[0]:
            return None
        try:
            metadata = ray.get(self._metadata, timeout=0)
        except GetTimeoutError:
            return None
        except ObjectRefStreamEndOfStreamError:
            self._raise_end()
        block = self._block
        self._generator._consume_next_ref_n(2)
        self._block, self._metadata = self._generator._get_next_ref_n(2)
        return block, metadata

    def _raise_end(self) -> None:
        """Raise the task's error, which sits where its next block would be, or EOFError."""
        try:
            ray.get(self._block, timeout=0)
        except ObjectRefStreamEndOfStreamError:
            raise EOFError from None
        raise EOFError


class _WaitedPairs:
    """Reads pairs with public API only: looks by a timer."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._loop = asyncio.get_running_loop()

    def arm(self, on_ready: Callback) -> None:
        if self._is_ready():
            on_ready()
        else:
            self._loop.call_later(_FALLBACK_INTERVAL_S, self.arm, on_ready)

    def take(self) -> tuple[ray.ObjectRef, Any] | None:
        if not self._is_ready():
            return None
        try:
            block = next(self._generator)
        except StopIteration:
            raise EOFError from None
        try:
            metadata = next(self._generator)
        except StopIteration:  # A lone reference holds the task's error.
            ray.get(block)
            raise EOFError from None
        return block, ray.get(metadata)

    def _is_ready(self) -> bool:
        return bool(ray.wait([self._generator], timeout=0, fetch_local=False)[0])
