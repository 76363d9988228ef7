"""Batches of torch tensors, on the device that a trainer wants them on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from aiodata.batching.options import BatchOptions
from aiodata.errors import OptionError
from aiodata.options import shown, true_or_false


def torch_options(
    *, dtypes: Any, device: Any, pin_memory: bool, collate_fn: Callable[[Any], Any] | None, **options: Any
) -> BatchOptions:
    """Return the options that make batches of tensors on a device; see `Dataset.aiter_torch_batches`.

    Raises:
        OptionError: A value that can not work, or torch is not installed.
    """
    torch = _require_torch()
    pin_memory = true_or_false("pin_memory", pin_memory)
    if collate_fn is not None and dtypes is not None:
        raise OptionError("give dtypes or collate_fn, not both: a collate_fn decides on the types of its tensors")
    target = _find_device(torch, device)
    collate = collate_fn
    if pin_memory and torch.cuda.is_available():
        collate = _pinned(collate_fn, partial(map_tensors, lambda tensor: tensor.pin_memory()))
    if collate is None:
        options["collate_workers"] = None
    finalize = None
    if target.type != "cpu":
        finalize = partial(map_tensors, lambda tensor: tensor.to(target, non_blocking=True))
    return BatchOptions(
        batch_format="torch" if collate_fn is None else "numpy",
        dtypes=dtypes,
        collate_fn=collate,
        finalize_fn=finalize,
        **options,
    )


def map_tensors(change: Callable[[Any], Any], value: Any) -> Any:
    """Return `value` with every tensor in it changed; dicts, lists and tuples are looked into, all else is kept."""
    if isinstance(value, _require_torch().Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(change, one) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(change, one) for one in value))
    if type(value) in {list, tuple}:
        return type(value)(map_tensors(change, one) for one in value)
    return value


def _pinned(collate_fn: Callable[[Any], Any] | None, pin: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a collate function that pins what `collate_fn` returns, and is async if that is."""
    if collate_fn is None:
        return pin
    collate = collate_fn

    async def pin_awaited(made: Any) -> Any:
        return pin(await made)

    def collate_and_pin(batch: Any) -> Any:
        made = collate(batch)
        return pin_awaited(made) if inspect.iscoroutine(made) else pin(made)

    async def collate_on_loop_and_pin(batch: Any) -> Any:
        return pin(await collate(batch))

    return collate_on_loop_and_pin if inspect.iscoroutinefunction(collate) else collate_and_pin


def _find_device(torch: Any, device: Any) -> Any:
    if isinstance(device, str) and device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise _no_device(torch, f"device={shown(device)} is no device of torch", error) from error
    try:
        if found.type == "cuda" and found.index is None:
            # The current device is a matter of each thread, and batches are moved in others than this one.
            found = torch.device("cuda", torch.cuda.current_device())
        if found.type != "cpu":
            torch.empty(0, device=found)  # A name says nothing of whether the device is there.
    except (RuntimeError, AssertionError) as error:  # The latter: torch was built without it.
        raise _no_device(torch, f"device={shown(device)} is not on this machine", error) from error
    return found


def _no_device(torch: Any, fault: str, error: Exception) -> OptionError:
    has_cuda = torch.cuda.is_available()
    remedy = "use 'auto', 'cpu', 'cuda', 'cuda:1', ..." if has_cuda else "use 'auto' or 'cpu': torch finds no CUDA here"
    return OptionError(f"{fault}; {remedy} ({str(error).splitlines()[0]})")


def _require_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise OptionError("batches of tensors need the package torch: pip install torch") from error
    return torch
