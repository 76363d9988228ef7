"""The running event loop, or an error that says where to get one."""

from __future__ import annotations

import asyncio
import sys


def running_loop(what: str) -> asyncio.AbstractEventLoop:
    """Return asyncio's running event loop.

    Args:
        what: Who needs it, for the error.

    Raises:
        RuntimeError: None is running in this thread.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pass
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        reason = "trio's event loop, which runs here, cannot do it"
        remedy = "run your program with aiodata.run(main), or with anyio.run(main, backend='asyncio')"
    else:
        reason, remedy = "none is running here", "call it in an async function, and run that with aiodata.run(main)"
    raise RuntimeError(f"{what} needs an event loop of asyncio, and {reason}: {remedy}")
