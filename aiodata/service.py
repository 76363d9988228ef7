"""SplitService: a named coordinator of splits, which outlives the process that made it."""

from __future__ import annotations

from typing import Self

from aiodata.coordination.service import Splitting
from aiodata.runtime.hosting import RemoteService, find_service
from aiodata.split import SplitIterator, check_name


async def attach(name: str, *, namespace: str | None = None) -> SplitService:
    """Return the service that `Dataset.streaming_split(n, name=...)` has made, from any driver of the Ray cluster.

    Args:
        name: The service's name.
        namespace: The Ray namespace that it was made in, if one was given.

    Raises:
        OptionError: The name can not be one.
        CoordinatorLostError: There is no such service, or no more.
        RuntimeUnavailableError: Ray can not be reached.

    Example:
        ```python
        service = await aiodata.attach("flights")
        async for batch in service.splits[0].aiter_batches():
            ...
        await service.aclose()
        ```
    """
    check_name("name", name, optional=False)
    check_name("namespace", namespace)
    remote = await find_service(name, namespace=namespace)
    return SplitService(name, remote, await remote.call("splitting"))


class SplitService:
    """A named coordinator and its splits. The dataset's definition and its execution live there; consumers come and go.

    Attributes:
        name: The service's name.
        splits: The handles of its splits.
    """

    def __init__(self, name: str, remote: RemoteService, splitting: Splitting) -> None:
        """Hold the handles; users get a service from `aiodata.attach`."""
        self.name = name
        self.splits = [SplitIterator(remote, split, splitting) for split in range(splitting.num_splits)]
        self._remote = remote

    async def aclose(self) -> None:
        """End the service: its execution stops, and its consumers get `CoordinatorLostError`; idempotent."""
        await self._remote.aclose()

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End the service."""
        await self.aclose()

    def __repr__(self) -> str:
        """Show the name."""
        return f"<SplitService {self.name!r} splits={len(self.splits)}>"
