"""Starting or joining Ray, quietly and off the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

import anyio
import ray
from anyio.from_thread import start_blocking_portal

from aiodata.concurrency import FIRST_S, ask_in_thread, reminding
from aiodata.errors import RuntimeUnavailableError
from aiodata.options import read_environment
from aiodata.runtime.forked import check_not_forked
from aiodata.runtime.ray.compat import init_ray, wait_for_answer

# How long an address may take to accept a connection, and then to answer as a cluster does, in seconds.
_CONNECT_TIMEOUT_S = 3.0
_ANSWER_TIMEOUT_S = 6.0

# Ray takes three seconds to start on a machine with nothing else to do; one that has may take ten times as long.
_USUAL_S = 3.0

_logger = logging.getLogger("aiodata")

# The latest start, while it is under way: two passes that need Ray at once share it.
_starting: list[Future[None]] = []


async def ensure_ray() -> None:
    """Make sure that Ray is initialised in this process: join `RAY_ADDRESS`, or start a local cluster.

    Raises:
        RuntimeUnavailableError: Neither worked, or this process was forked from one that has Ray.
    """
    check_not_forked()
    if ray.is_initialized():
        return
    address = read_environment().ray_address
    if address is not None:
        await _check_address(address)
    if not _starting or _starting[-1].done():
        _starting[:] = [_init_in_thread(address)]
    started = _starting[-1]
    done = anyio.Event()
    loop = asyncio.get_running_loop()

    def tell(_: object) -> None:
        with suppress(RuntimeError):  # The loop is closed: nobody is waiting any more.
            loop.call_soon_threadsafe(done.set)

    started.add_done_callback(tell)
    with reminding(partial(_note_slow_start, address), first_s=_USUAL_S):
        await done.wait()
    if ray.is_initialized():
        return
    if (error := started.exception()) is not None:
        raise RuntimeUnavailableError(
            f"Ray could not be {'reached at ' + address if address else 'started'}: {error}. "
            "Start it with `ray start --head`, set RAY_ADDRESS, or use runtime='local'."
        ) from error


def _note_slow_start(address: str | None, waited_s: float) -> None:
    """Say that Ray is not there yet; it is no warning before it takes long."""
    _logger.log(
        logging.WARNING if waited_s >= FIRST_S else logging.INFO,
        "%s has taken %.0f s so far; %s",
        f"joining Ray at {address}" if address else "starting Ray",
        waited_s,
        "see whether it answers with `ray status`"
        if address
        else "it takes as long as half a minute on a busy machine. A server starts it beforehand, with ray.init in its "
        "lifespan",
    )


def ensure_ray_blocking() -> None:
    """Do the same where nothing can be awaited; blocks, also a running event loop, for seconds if Ray is not there."""
    check_not_forked()
    if not ray.is_initialized():
        with start_blocking_portal() as portal:
            portal.call(ensure_ray)


def _init_in_thread(address: str | None) -> Future[None]:
    """Run `ray.init` in a daemon thread that then stays parked.

    Ray's processes ask the kernel to end them when the thread that started them ends (PR_SET_PDEATHSIG is per
    thread), so a worker thread of a pool, which ends with its event loop, would take the cluster down with it.
    """
    started: Future[None] = Future()

    def run() -> None:
        try:
            init_ray(address)
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it.
            started.set_exception(error)
            return
        started.set_result(None)
        threading.Event().wait()

    threading.Thread(target=run, name="aiodata-ray-init", daemon=True).start()
    return started


async def _check_address(address: str) -> None:
    """Fail in seconds where Ray itself would try for minutes and then end the process."""
    if address in {"auto", "local"}:
        return
    parts = urlsplit(address if "//" in address else f"//{address}")
    remedy = "Check RAY_ADDRESS and that the cluster runs (`ray status`), or unset it to start Ray on this machine."
    if parts.scheme == "ray":
        raise RuntimeUnavailableError(
            f"RAY_ADDRESS={address} is a Ray Client address, which can not stream; run on a node of the cluster "
            "and set RAY_ADDRESS=auto."
        )
    try:
        port = parts.port
        if parts.hostname is None or port is None:
            raise ValueError("it is not HOST:PORT")
        with anyio.fail_after(_CONNECT_TIMEOUT_S):
            stream = await anyio.connect_tcp(parts.hostname, port)
            await stream.aclose()
        with anyio.fail_after(_ANSWER_TIMEOUT_S):
            # In a thread that is left behind: Ray itself tries for long.
            await ask_in_thread(partial(wait_for_answer, f"{parts.hostname}:{port}"))
    except (OSError, TimeoutError, ValueError) as error:
        reason = str(error) or "no Ray cluster answers there"
        raise RuntimeUnavailableError(f"Ray can not be reached at RAY_ADDRESS={address}: {reason}. {remedy}") from error
