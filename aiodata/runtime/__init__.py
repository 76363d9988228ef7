"""Where work runs: a seam (`base`), and the runtimes behind it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from typing import get_args

from aiodata.concurrency import ask_in_thread
from aiodata.errors import OptionError
from aiodata.options import ExecutionOptions, RuntimeName, read_environment
from aiodata.runtime import forked  # noqa: F401 - imported before a fork, to notice it.
from aiodata.runtime.base import OpenRuntime, Runtime
from aiodata.runtime.local import LocalRuntime


def choose_runtime(options: ExecutionOptions) -> OpenRuntime:
    """Return what opens the runtime that `options` ask for.

    `"auto"` is `AIODATA_RUNTIME` if that is set, else Ray if it is initialised in this process or `RAY_ADDRESS` is
    set, else local.
    """
    environment = read_environment()
    if options.runtime == "auto" and environment.runtime is not None:
        if environment.runtime not in get_args(RuntimeName):
            raise OptionError(f"AIODATA_RUNTIME={environment.runtime!r} is unknown; use one of {get_args(RuntimeName)}")
        options = options.override(runtime=environment.runtime)
    name = options.runtime
    if name == "auto":
        name = "ray" if environment.ray_address is not None or _ray_is_initialized() else "local"
    return partial(LocalRuntime if name == "local" else _open_ray, options)


@asynccontextmanager
async def _open_ray(options: ExecutionOptions) -> AsyncIterator[Runtime]:
    """Import the Ray runtime off the loop, since ray takes half a second, and open it."""
    module = await ask_in_thread(partial(import_module, "aiodata.runtime.ray.runtime"))
    async with module.open_ray(options) as runtime:
        yield runtime


def _ray_is_initialized() -> bool:
    """Look without importing ray."""
    ray = sys.modules.get("ray")
    return ray is not None and hasattr(ray, "is_initialized") and bool(ray.is_initialized())
