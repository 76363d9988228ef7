"""Fetching: an object that should be there is waited for, but neither in silence nor for ever.

What can keep an object from coming: this process has lost track of it, as Ray 2.60 does now and then (see
`_take_out_anew`), and its owner has to be asked anew; its node is gone, and Ray makes it again; the way to it is slow.
The first is mended at once, the others have their time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import ray
from ray.exceptions import RayError

from aiodata.concurrency import call_in_thread, run_in_thread
from aiodata.errors import AiodataError, RuntimeUnavailableError
from aiodata.options import MIB
from aiodata.runtime.ray import compat

_logger = logging.getLogger("aiodata")

# How long a call that asks an owner may take, in seconds; it takes milliseconds where nothing is wrong.
_RENEW_S = 5.0

_LOST_REMEDY = "Look whether its owner is alive and the cluster has room for the task that makes it (`ray status`)"
_FAR_REMEDY = "Look after the nodes and the network between them (`ray status`, the logs of their raylets)"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an object is waited for; all in seconds but `bytes_per_s`.

    Attributes:
        look_after_s: When it is looked after again, for the first time; then after twice as long, and so on.
        look_every_s: The longest time between two looks.
        warn_after_s: Looks after this time warn.
        give_up_s: When one that its owner says to be there is given up.
        bytes_per_s: A large one may take longer: so slow may be the way to it.
        make_s: When one that its owner does not say to be there is given up. It may be made again until then, by a
            function that takes its time.
    """

    look_after_s: float = 0.25
    look_every_s: float = 8.0
    warn_after_s: float = 5.0
    give_up_s: float = 60.0
    bytes_per_s: int = MIB
    make_s: float = 600.0


PATIENCE = Patience()


async def fetch(ref: ray.ObjectRef, what: str, patience: Patience | None = None) -> Any:
    """Return an object's value; cancelled, it can be asked for again.

    Args:
        ref: Its reference.
        what: What messages call it.
        patience: How long it is waited for; None: `PATIENCE`.

    Raises:
        RayError: Ray says that it cannot be had.
        AiodataError: It did not come, and Ray does not say why.
        RuntimeUnavailableError: Ray was shut down meanwhile.
    """
    patience = patience or PATIENCE
    waited_s, pause_s = 0.0, patience.look_after_s
    while True:
        if not ray.is_initialized():  # It would start anew.
            raise RuntimeUnavailableError("Ray was shut down before something was fetched; iterate again")
        if not (is_known := not compat.unsettled([ref])):
            await _renew(ref)
        # Cancelled, this takes nothing back: Ray goes on bringing the object here.
        with anyio.move_on_after(pause_s):
            return await _value(ref)
        # Not by the clock: the object may have come, and its reader hold the event loop meanwhile.
        waited_s += pause_s
        pause_s = min(2 * pause_s, patience.look_every_s)
        if waited_s < patience.warn_after_s:
            continue
        size, node = compat.size_of(ref), await _ask_node(ref) if is_known else None
        name, state = _name(what, ref, size), _state(ref, node)
        if waited_s >= (patience.make_s if node is None else patience.give_up_s + (size or 0) / patience.bytes_per_s):
            remedy = _LOST_REMEDY if node is None else _FAR_REMEDY
            raise AiodataError(f"{name} did not come within {waited_s:.0f} s: {state}. {remedy}, and run again.")
        _logger.warning("%s has not come for %.0f s: %s; it is asked for again", name, waited_s, state)


def look_after(refs: Sequence[Any]) -> None:
    """Have a task that is given objects not wait for ever for one that this process has lost track of.

    Those that a run has made are its own, and known. Others may have come here by two ways, as those of a materialized
    dataset do that is sent to this process twice.
    """
    known = list(dict.fromkeys(ref for ref in refs if isinstance(ref, ray.ObjectRef)))
    if ray.is_initialized() and (lost := compat.unsettled(known)):
        run_in_thread(partial(_take_out_anew, lost))


async def _value(ref: ray.ObjectRef) -> Any:
    return await ref


async def _renew(ref: ray.ObjectRef) -> None:
    """Have this process ask an object's owner where it is, once more."""
    with anyio.move_on_after(_RENEW_S):
        await call_in_thread(partial(_take_out_anew, [ref]), grace_s=_RENEW_S)


async def _ask_node(ref: ray.ObjectRef) -> str | None:
    """Return a node that holds an object, as its owner says: what is known here may be of a node that is gone."""
    return await call_in_thread(partial(compat.ask_node_of, ref, _RENEW_S), grace_s=_RENEW_S)


def _take_out_anew(refs: list[ray.ObjectRef]) -> None:
    """Have this process ask for the owners' answers; Ray does so when references come out of an object that is read.

    It forgets the answer when it lets go of the last reference, but in two steps; where another one arrives between
    them, the answer that it brought is forgotten with the old one.
    """
    with suppress(RayError, TimeoutError):
        if ray.is_initialized():
            ray.put(refs).future().result(_RENEW_S)


def _name(what: str, ref: ray.ObjectRef, size: int | None) -> str:
    return f"{what} {ref.hex()}" + (f" ({size / MIB:.1f} MiB)" if size else "")


def _state(ref: ray.ObjectRef, node: str | None) -> str:
    owner = compat.owner_of(ref)
    if node is not None:
        return f"its owner, {owner}, says that it is there, on node {node}"
    return f"its owner, {owner}, does not say that it is there: it is made again, or its owner does not answer"
