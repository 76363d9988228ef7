"""Options: frozen values, validated once, passed explicitly."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeGuard, TypeVar, get_args, overload

import numpy as np

from aiodata.errors import OptionError

T = TypeVar("T")

RuntimeName = Literal["auto", "local", "ray"]

# What becomes of a split whose consumer is lost.
OnSplitLost = Literal["wait", "raise", "redistribute"]

MIB = 1 << 20

# Ray counts resources in parts of so much.
_LEAST_AMOUNT = 0.0001

# Those that have arguments of their own.
_STANDARD_RESOURCES = frozenset({"CPU", "GPU", "memory", "object_store_memory"})

# Ray's scheduling strategies that are words.
_STRATEGIES = ("DEFAULT", "SPREAD")
# Characters of a value that an error shows.
_MAX_SHOWN_CHARS = 120


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
        scheduling_strategy: Where Ray runs what a run starts: its tasks, its actors, and the coordinator of splits;
            `"DEFAULT"`, `"SPREAD"`, or one of `ray.util.scheduling_strategies`. None: anywhere. In a process whose
            placement group captures child tasks, that is outside of the group where there is room, else inside. The
            local runtime ignores this and the next three.
        runtime_env: Ray's runtime environment of all of these, over that of the process.
        read_memory: Bytes of Ray's logical memory that each task takes that reads.
        read_resources: Custom resources that each task takes that reads, by name.

    Raises:
        OptionError: A value that can not work.

    Example:
        >>> ExecutionOptions(runtime="local").preserve_order
        False
        >>> ExecutionOptions(scheduling_strategy="SPREAD", read_resources={"disk": 0.5}).read_resources
        {'disk': 0.5}
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
    scheduling_strategy: Any = None
    runtime_env: Mapping[str, Any] | None = None
    read_memory: int | None = None
    read_resources: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Validate every field once, so that nothing else has to."""
        settle(
            self,
            runtime=one_of("runtime", self.runtime, get_args(RuntimeName)),
            num_cpus=at_least("num_cpus", self.num_cpus, 1, optional=True),
            max_object_store_bytes=at_least("max_object_store_bytes", self.max_object_store_bytes, 1, optional=True),
            target_block_bytes=at_least("target_block_bytes", self.target_block_bytes, 1),
            max_errored_blocks=at_least("max_errored_blocks", self.max_errored_blocks, -1),
            task_max_retries=at_least("task_max_retries", self.task_max_retries, 0),
            metadata_prefetch=true_or_false("metadata_prefetch", self.metadata_prefetch),
            preserve_order=true_or_false("preserve_order", self.preserve_order),
            measure_loop_lag=true_or_false("measure_loop_lag", self.measure_loop_lag),
            close_timeout_s=positive_seconds("close_timeout_s", self.close_timeout_s),
            scheduling_strategy=a_strategy("scheduling_strategy", self.scheduling_strategy),
            runtime_env=an_environment("runtime_env", self.runtime_env),
            read_memory=at_least("read_memory", self.read_memory, 1, optional=True),
            read_resources=amounts("read_resources", self.read_resources),
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
            on_split_lost=one_of("on_split_lost", self.on_split_lost, get_args(OnSplitLost)),
        )


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


def shown(value: object) -> str:
    """Return a value as an error shows it: in one line that is not too long, and with its type where that is not clear.

    Example:
        >>> shown("3"), shown(np.array(3))
        ("'3'", 'array(3) (ndarray)')
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - the error is about the value, not about how it looks.
        text = "<a value that cannot be shown>"
    if len(text) > _MAX_SHOWN_CHARS:
        text = f"{text[: _MAX_SHOWN_CHARS - 1]}…"
    kind = type(value)
    is_clear = kind.__module__ == "builtins" or kind.__name__ in text or text.startswith("np.")
    return text if is_clear else f"{text} ({kind.__name__})"


def one_of(name: str, value: object, choices: Sequence[str], *, unless: str = "") -> str:
    """Return `value`, which is one of a few names; `unless` says, for the error, what else it may be.

    Raises:
        OptionError: It is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        known = f"one of {tuple(choices)}" if len(choices) > 1 else repr(choices[0])
        raise OptionError(f"{name}={shown(value)} is unknown; use {known}{f', or {unless}' if unless else ''}")
    return value


def given_list(name: str, value: object) -> tuple[Any, ...]:
    """Return what is in `value`, a list or anything else to go through; text is one value, and no list of letters.

    Raises:
        OptionError: It is none.
    """
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        with suppress(TypeError):  # As of what only `async for` goes through.
            return tuple(value)
    raise OptionError(f"{name}={shown(value)} must be a list: for one value write {name}=[value]")


def given_mapping(name: str, value: object) -> dict[str, Any]:
    """Return what is in `value`, a dict of names to values or None for an empty one.

    Raises:
        OptionError: It is none.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise OptionError(f"{name}={shown(value)} must be a dict of names to values, or None")
    return dict(value)


def true_or_false(name: str, value: object) -> bool:
    """Return `value` as a plain bool; NumPy's are taken, too.

    Raises:
        OptionError: It is neither True nor False.
    """
    if not isinstance(value, bool | np.bool_):
        raise OptionError(f"{name}={shown(value)} must be True or False")
    return bool(value)


def positive_seconds(name: str, value: object) -> float:
    """Return `value`, a number above 0, as a plain one; NumPy's are taken, too.

    Raises:
        OptionError: It is none, or not above 0.
    """
    if not is_number(value) or not value > 0:
        raise OptionError(f"{name}={shown(value)} must be above 0 seconds")
    return value if isinstance(value, int) else float(value)


def amount(name: str, value: object, what: str = "number", *, optional: bool = False) -> float | None:
    """Return `value`, a finite number of at least 0 (or None, if `optional`), as a plain one; NumPy's are taken, too.

    Raises:
        OptionError: It is none, or below 0.
    """
    if optional and value is None:
        return None
    if not is_number(value) or not 0 <= value < float("inf"):
        raise OptionError(f"{name}={shown(value)} must be a {what} of at least 0{' or None' if optional else ''}")
    return value if isinstance(value, int) else float(value)


def instance_of(name: str, value: object, kind: type[T]) -> T:
    """Return `value`, which is of the class `kind`.

    Raises:
        OptionError: It is not.
    """
    if not isinstance(value, kind):
        raise OptionError(f"{name}={shown(value)} must be a {kind.__name__}")
    return value


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
        raise OptionError(f"{name}={shown(value)} must be an integer of at least {minimum}{unless}")
    return int(value)


def resource_amount(name: str, value: object) -> float | None:
    """Return `value`, an amount of a resource (or None), as a plain number; NumPy's are taken, too.

    Raises:
        OptionError: It is none, or less than Ray can count.
    """
    if value is None:
        return None
    if is_number(value) and (value == 0 or _LEAST_AMOUNT <= value < float("inf")):
        return float(value)
    raise OptionError(f"{name}={shown(value)} must be 0 or a number of at least {_LEAST_AMOUNT}, or None")


def amounts(name: str, value: object) -> dict[str, float] | None:
    """Return a copy of `value`, the amounts of custom resources by name (or None).

    Raises:
        OptionError: It is none, or names what is no custom resource.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(key, str) and key for key in value):
        raise OptionError(
            f"{name}={value!r} ({type(value).__name__}) must be a dict from names to amounts, for example {{'tpu': 1}}"
        )
    if standard := _STANDARD_RESOURCES.intersection(value):
        raise OptionError(
            f"{name}={shown(value)} must not name {' and '.join(sorted(standard))}, which have arguments of their own: "
            "num_cpus, num_gpus and memory of map_batches"
        )
    checked = {key: resource_amount(f"{name}[{key!r}]", one) for key, one in value.items()}
    if missing := [key for key, one in checked.items() if one is None]:
        raise OptionError(f"{name}[{missing[0]!r}]=None must be a number; leave it out, or give it an amount")
    return {key: one for key, one in checked.items() if one}


def a_strategy(name: str, value: object) -> Any:
    """Return `value`, if it is a scheduling strategy of Ray's, or None.

    Raises:
        OptionError: It is none.
    """
    # Only the Ray runtime may import Ray, whose strategies have no name here.
    is_of_ray = any(cls.__module__.partition(".")[0] == "ray" for cls in type(value).__mro__)
    if value is None or (value in _STRATEGIES if isinstance(value, str) else is_of_ray):
        return value
    raise OptionError(
        f"{name}={value!r} ({type(value).__name__}) must be one of {_STRATEGIES}, or one of "
        "ray.util.scheduling_strategies, for example NodeAffinitySchedulingStrategy(node_id, soft=True), or None"
    )


def an_environment(name: str, value: object) -> dict[str, Any] | None:
    """Return a copy of `value`, a runtime environment for Ray, or None; Ray checks what is in it.

    Raises:
        OptionError: It is none.
    """
    if value is None:
        return None
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return deepcopy(dict(value))
    raise OptionError(
        f"{name}={value!r} ({type(value).__name__}) must be a dict, for example {{'env_vars': {{'KEY': 'value'}}}}, "
        "or None"
    )
