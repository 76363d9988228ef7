"""Options: frozen values, validated once, passed explicitly."""

from __future__ import annotations

import numbers
import os
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeGuard, get_args, overload

import numpy as np

from aiodata.errors import OptionError

RuntimeName = Literal["auto", "local", "ray"]

# What becomes of a split whose consumer is lost.
OnSplitLost = Literal["wait", "raise", "redistribute"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionOptions:
    """How a run is executed; every field has a default that suits one machine.

    Attributes:
        runtime: Where tasks run: `"local"` (this process), `"ray"`, or `"auto"`: Ray if it is initialised
            in this process or `RAY_ADDRESS` is set, else local. `AIODATA_RUNTIME` overrides `"auto"`.
        preserve_order: Rows, and so batches, come in source order.
        num_cpus: CPUs that the run may use at a time; by default all of the runtime's.
        target_block_bytes: Size that blocks grow to, in bytes; the first ones of a task are smaller.
        max_object_store_bytes: Bytes of blocks that the run may keep, wherever they are: made by tasks, on the way, or
            held by the consumer. Tasks start only while there is room for what they will produce, blocks are at most an
            eighth of it, and a call of a function that yields more waits for room between two blocks. None: a quarter
            of Ray's object store, or of this machine's memory.
        metadata_prefetch: Whether the metadata of blocks is fetched for many at once, ahead of need; else for one at
            a time. The results are the same.
        max_errored_blocks: How many failures may be skipped; each is listed in the statistics. A function that fails
            costs the rows of its batch; a read, the rest of what its task was to read of that file; a worker that
            dies too often, what its task had left. -1: any number.
        task_max_retries: How often a task whose worker died is run again (Ray).
        close_timeout_s: Bound on closing a run, in seconds.
        measure_loop_lag: Whether a pass measures how late the event loop serves a timer; see `LoopLagMonitor`.

    Raises:
        OptionError: A value that can not work.

    Example:
        >>> ExecutionOptions(runtime="local").preserve_order
        False
    """

    runtime: RuntimeName = "auto"
    preserve_order: bool = False
    num_cpus: int | None = None
    max_object_store_bytes: int | None = None
    target_block_bytes: int = 16 * MIB
    metadata_prefetch: bool = True
    max_errored_blocks: int = 0
    task_max_retries: int = 3
    close_timeout_s: float = 5.0
    measure_loop_lag: bool = False

    def __post_init__(self) -> None:
        """Validate every field once, so that nothing else has to."""
        if self.runtime not in get_args(RuntimeName):
            raise OptionError(f"runtime={self.runtime!r} is unknown; use one of {get_args(RuntimeName)}")
        settle(
            self,
            num_cpus=at_least("num_cpus", self.num_cpus, 1, optional=True),
            max_object_store_bytes=at_least("max_object_store_bytes", self.max_object_store_bytes, 1, optional=True),
            target_block_bytes=at_least("target_block_bytes", self.target_block_bytes, 1),
            max_errored_blocks=at_least("max_errored_blocks", self.max_errored_blocks, -1),
            task_max_retries=at_least("task_max_retries", self.task_max_retries, 0),
            metadata_prefetch=true_or_false("metadata_prefetch", self.metadata_prefetch),
            preserve_order=true_or_false("preserve_order", self.preserve_order),
            measure_loop_lag=true_or_false("measure_loop_lag", self.measure_loop_lag),
            close_timeout_s=positive_seconds("close_timeout_s", self.close_timeout_s),
        )

    def override(self, **changes: Any) -> ExecutionOptions:
        """Return a copy with `changes`; an unknown name is an `OptionError` that lists the known ones."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise OptionError(f"unknown option {name!r}; the options are {', '.join(known)}")
        return replace(self, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitOptions:
    """How the consumers of a dataset's splits wait for one another, and what happens if one of them is lost.

    Attributes:
        barrier_timeout_s: How long a split waits for the others at the beginning of an epoch before it raises
            `BarrierTimeoutError`, in seconds; None: for as long as it takes.
        barrier_warn_s: After how many seconds of waiting, and again after as many, a warning names the absent splits.
        on_split_lost: What happens in an epoch when a consumer's process is gone without a word. `"wait"`: another
            consumer may take the split over, and begins with what the lost one had not acknowledged. `"redistribute"`:
            the other splits get that, and go on without it. `"raise"`: all get `SplitLostError`.

    Raises:
        OptionError: A value that can not work.

    Example:
        >>> SplitOptions(on_split_lost="raise").barrier_warn_s
        30.0
    """

    barrier_timeout_s: float | None = None
    barrier_warn_s: float = 30.0
    on_split_lost: OnSplitLost = "wait"

    def __post_init__(self) -> None:
        """Validate every field."""
        timeout_s = self.barrier_timeout_s
        settle(
            self,
            barrier_timeout_s=None if timeout_s is None else positive_seconds("barrier_timeout_s", timeout_s),
            barrier_warn_s=positive_seconds("barrier_warn_s", self.barrier_warn_s),
        )
        if self.on_split_lost not in get_args(OnSplitLost):
            raise OptionError(f"on_split_lost={self.on_split_lost!r} is unknown; use one of {get_args(OnSplitLost)}")


@dataclass(frozen=True, slots=True)
class Environment:
    """What aiodata reads from the process environment."""

    runtime: str | None
    ray_address: str | None


def read_environment() -> Environment:
    """Read the environment variables that matter; the one place that does."""
    return Environment(os.environ.get("AIODATA_RUNTIME") or None, os.environ.get("RAY_ADDRESS") or None)


def settle(options: Any, **values: Any) -> None:
    """Give fields of a frozen dataclass that is being made the values that were validated."""
    for name, value in values.items():
        object.__setattr__(options, name, value)


def true_or_false(name: str, value: object) -> bool:
    """Return `value` as a plain bool; NumPy's are taken, too.

    Raises:
        OptionError: It is neither True nor False.
    """
    if not isinstance(value, bool | np.bool_):
        raise OptionError(f"{name}={value!r} must be True or False")
    return bool(value)


def positive_seconds(name: str, value: object) -> float:
    """Return `value`, a number above 0, as a plain one; NumPy's are taken, too.

    Raises:
        OptionError: It is none, or not above 0.
    """
    if not is_number(value) or not value > 0:
        raise OptionError(f"{name}={value!r} must be above 0 seconds")
    return value if isinstance(value, int) else float(value)


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a real number of any kind, which a bool is not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@overload
def at_least(name: str, value: object, minimum: int) -> int: ...


@overload
def at_least(name: str, value: object, minimum: int, *, optional: bool) -> int | None: ...


def at_least(name: str, value: object, minimum: int, *, optional: bool = False) -> int | None:
    """Return `value`, an integer of at least `minimum` (or None, if `optional`), as a plain one; NumPy's are taken.

    Raises:
        OptionError: It is none, or below the minimum.
    """
    if optional and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        unless = " or None" if optional else ""
        raise OptionError(f"{name}={value!r} must be an integer of at least {minimum}{unless}")
    return int(value)
