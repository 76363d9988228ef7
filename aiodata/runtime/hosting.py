"""Hosting: an async object that lives in a process of its own, for many processes to call.

The object, a service, is made there by a function that is sent. What comes back is a small handle that pickles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, Protocol

from aiodata.concurrency import ask_in_thread

# Returns something to send to a consumer inside a reply. The function is called once, in the event loop, when nobody
# in any process holds that any more: within some 10 ms if its holder drops it, about 2 s if the holder is killed.
NewToken = Callable[[Callable[[], None]], Any]

_RAY_HOST = "aiodata.runtime.ray.host"


class Service(Protocol):
    """What is hosted; any of its methods, sync or async, can be called."""

    async def serve(self) -> None:
        """Run beside the calls until cancelled; what this raises, each later call raises, and each pending one."""


MakeService = Callable[[NewToken], Service]


class RemoteService(Protocol):
    """A small handle of a service, which pickles."""

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the service and return what it returns.

        Cancelled, this takes nothing back on the other side: the call there goes on. Where the service can not be
        reached for a moment, the call is made again, so it may run twice.

        Raises:
            CoordinatorLostError: The service is gone.
            Exception: What the method raised, or what the service's `serve` did.
        """

    def tell(self, method: str, *args: Any) -> None:
        """Have the method called without waiting for it, nor for its errors; needs no event loop."""

    async def aclose(self) -> None:
        """End the service, with the time that its cleanup takes, and its process; idempotent."""


def start_service(
    make: MakeService,
    *,
    name: str | None = None,
    namespace: str | None = None,
    label: str,
    scheduling_strategy: Any = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> RemoteService:
    """Host a service in a Ray actor; blocks for seconds if Ray is not there yet.

    One without a name ends when no process holds a handle of it any more; one with a name lives until `aclose`. An
    error of `make` is raised by the calls.

    Args:
        make: Makes the service, in the actor's event loop.
        name: By which `find_service` finds it, also from other drivers.
        namespace: Where the name is unique; None: one of aiodata's own.
        label: What errors call it; short, since it travels with the handle.
        scheduling_strategy: Where it runs; None: anywhere, and in no placement group.
        runtime_env: Ray's runtime environment of it.

    Raises:
        OptionError: `make` can not be sent, the name is taken, or Ray refuses an argument.
        RuntimeUnavailableError: Ray can not be started or reached.
    """
    service: RemoteService = import_module(_RAY_HOST).start_service(
        make,
        name=name,
        namespace=namespace,
        label=label,
        scheduling_strategy=scheduling_strategy,
        runtime_env=runtime_env,
    )
    return service


async def find_service(name: str, *, namespace: str | None = None) -> RemoteService:
    """Return the service of a name.

    Raises:
        CoordinatorLostError: There is none.
        RuntimeUnavailableError: Ray can not be started or reached.
    """
    # Off the loop, since ray takes half a second.
    module = await ask_in_thread(partial(import_module, _RAY_HOST))
    service: RemoteService = await module.find_service(name, namespace=namespace)
    return service
