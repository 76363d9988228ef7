"""Where work runs: a seam (`base`), and the runtimes behind it."""

from __future__ import annotations

import sys
from functools import partial

from aiodata.options import ExecutionOptions, read_environment
from aiodata.runtime.base import OpenRuntime


def choose_runtime(options: ExecutionOptions) -> OpenRuntime:
    """Return what opens the runtime that `options` ask for.

    `"auto"` is `AIODATA_RUNTIME` if that is set, else Ray if it is initialised in this process or `RAY_ADDRESS` is
    set, else local.
    """
    environment = read_environment()
    if options.runtime == "auto" and environment.runtime is not None:
        options = options.override(runtime=environment.runtime)
    name = options.runtime
    if name == "auto":
        name = "ray" if environment.ray_address is not None or _ray_is_initialized() else "local"
    if name == "local":
        from aiodata.runtime.local import LocalRuntime

        return partial(LocalRuntime, options)
    from aiodata.runtime.ray.runtime import open_ray

    return partial(open_ray, options)


def _ray_is_initialized() -> bool:
    """Look without importing ray, which takes half a second."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(getattr(ray, "is_initialized", bool)())
