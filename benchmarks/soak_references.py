"""Have Ray lose track of objects that are there, without aiodata; `python -m benchmarks.soak_references --help`.

It takes a process that lets go of its last reference to an object that another process owns, in one thread, while a
reply brings the next one, in Ray's. Ray takes the reference out of its books, and then, in a second step, what it knows
of the object out of another; if the reply comes between, what it says of the object is thrown away with the old. A
busy machine has threads stop between the steps, and `ray.wait` for many references holds the lock of the second book.
With `RAY_BACKEND_LOG_LEVEL=debug`, grep for the object in the `python-core-driver` log of the session.
"""

from __future__ import annotations

import sys
import threading
import time
from functools import partial
from typing import Annotated, Any

import ray
import typer

_NUM_OBJECTS = 2000
_FOUND_WITHIN_S = 3.0


class _Owner:
    def __init__(self) -> None:
        self.refs = [ray.put(index) for index in range(_NUM_OBJECTS)]

    def all(self) -> list[ray.ObjectRef]:
        return self.refs

    def one(self, index: int) -> list[ray.ObjectRef]:
        return [self.refs[index]]


def lose(owner: Any, lead: int) -> list[ray.ObjectRef]:
    """Have a reference to each object come while the one before is let go of; return those that are not found.

    Args:
        owner: The actor that owns the objects.
        lead: How many replies before its own a reference is let go of.
    """
    held: list[ray.ObjectRef | None] = list(ray.get(owner.all.remote()))
    ray.wait(held, num_returns=len(held), timeout=_FOUND_WITHIN_S, fetch_local=False)
    came: list[ray.ObjectRef | None] = [None] * _NUM_OBJECTS
    indices: list[int] = []

    def take(index: int, reply: Any) -> None:
        [came[index]] = reply.result()
        indices.append(index)

    for index in range(_NUM_OBJECTS):
        owner.one.remote(index).future().add_done_callback(partial(take, index))
    while len(indices) < _NUM_OBJECTS:
        held[min(len(indices) + lead, _NUM_OBJECTS - 1)] = None
    del held
    lost: list[ray.ObjectRef] = ray.wait(came, num_returns=len(came), timeout=_FOUND_WITHIN_S, fetch_local=False)[1]
    return lost


def main(minutes: Annotated[float, typer.Option(help="For how long.")] = 5.0) -> None:
    """Count objects that are lost track of, and of these those that are found again by a new reference."""
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    owner = ray.remote(num_cpus=0)(_Owner).remote()
    many = [ray.put(None) for _ in range(_NUM_OBJECTS)]
    stopped = threading.Event()

    def keep_busy() -> None:
        while not stopped.is_set():
            ray.wait(many, num_returns=len(many), timeout=0, fetch_local=False)

    busy = threading.Thread(target=keep_busy)
    busy.start()
    sys.setswitchinterval(1e-5)
    until_s = time.monotonic() + 60 * minutes
    num_rounds = num_lost = num_found = 0
    while time.monotonic() < until_s:
        lost = lose(owner, num_rounds % 3)
        num_rounds += 1
        num_lost += len(lost)
        for ref in lost:
            # It comes out of an object that is read: so Ray asks the owner.
            ray.get(ray.put([ref]))
            num_found += len(ray.wait([ref], timeout=_FOUND_WITHIN_S, fetch_local=False)[0])
            typer.echo(f"lost track of {ref.hex()}")
        del lost
    stopped.set()
    busy.join()
    typer.echo(f"of {num_rounds * _NUM_OBJECTS} objects {num_lost} were lost track of; {num_found} were found again")


if __name__ == "__main__":
    typer.run(main)
