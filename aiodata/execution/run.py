"""Run: one execution of a plan, from the opening of its runtime to the end of its last task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Self

import anyio
import pyarrow as pa
from anyio.streams.memory import MemoryObjectReceiveStream

from aiodata.bundle import RefBundle
from aiodata.concurrency import close_and_drop, receive, start
from aiodata.execution.executor import StreamingExecutor, max_held_bytes
from aiodata.options import MIB, ExecutionOptions
from aiodata.plan.nodes import Plan
from aiodata.plan.passes import FIRST_PASS, Pass
from aiodata.runtime import choose_runtime
from aiodata.runtime.base import OpenRuntime, Runtime
from aiodata.stats import LatestRun, RunStats

# Bundles that may wait for whoever takes them, at most.
_MAX_WAITING = 16

# Blocks of about so many bytes may wait, and of about this part of what consumers may hold, one of so many: of large
# blocks, few had better be made before somebody asks for them.
_WAITING_BYTES = 8 * MIB
_HELD_PARTS = 8

_NOT_BEGUN = "the run has not begun: its bundles are there while `execute` goes on"


class Run:
    """Executes a plan once, for as long as somebody takes what it makes.

    Iterated over it gives the bundles; nobody else may take them meanwhile. The tasks go on as far as the byte budget
    and the bundles that wait allow.

    Args:
        plan: What to execute.
        options: How to execute it.
        this_pass: Which pass over the dataset it is.
        open_runtime: Opens the runtime; None: the one that the options ask for.
        latest: Where to note what the run has done, when it has ended; None: nowhere.
        is_quiet: Whether what is skipped is not logged, as where another run has told of it.

    Example:
        ```python
        async def consume(run):
            async for bundle in run:
                print(bundle.num_rows)

        await Run(plan, options).execute(consume)
        ```
    """

    def __init__(
        self,
        plan: Plan,
        options: ExecutionOptions,
        this_pass: Pass = FIRST_PASS,
        *,
        open_runtime: OpenRuntime | None = None,
        latest: LatestRun | None = None,
        is_quiet: bool = False,
    ) -> None:
        """Prepare; nothing runs."""
        self._this_pass = this_pass
        # Until the run begins: a plan may hold blocks, which a traceback that keeps the run must not keep.
        self._plan: Plan | None = plan
        self._options = options
        self._open_runtime = open_runtime
        self._latest = LatestRun() if latest is None else latest
        self._is_quiet = is_quiet
        self._runtime: Runtime | None = None
        self._executor: StreamingExecutor | None = None
        self._bundles: MemoryObjectReceiveStream[RefBundle] | None = None

    @property
    def runtime(self) -> Runtime:
        """Where the tasks run, while it is executed."""
        if self._runtime is None:
            raise RuntimeError(_NOT_BEGUN)
        return self._runtime

    @property
    def max_held_bytes(self) -> int:
        """Bytes of blocks that whoever takes the bundles may hold, while it is executed."""
        return max_held_bytes(self._options, self.runtime)

    @property
    def schema(self) -> pa.Schema | None:
        """The schema of the blocks, as soon as it is known."""
        return self._executor.schema if self._executor is not None else None

    @property
    def has_skipped(self) -> bool:
        """Whether something failed and was skipped."""
        return self._executor is not None and self._executor.has_skipped

    def stats(self) -> RunStats:
        """Return a snapshot, at any time."""
        return self._executor.stats() if self._executor is not None else RunStats()

    async def execute(self, consume: Callable[[Self], Awaitable[None]]) -> None:
        """Execute the plan as long as its bundles are consumed; then stop what goes on, and wait for that.

        Args:
            consume: Takes bundles, for as long as it wants some; it is given this run.

        Raises:
            RuntimeUnavailableError: The runtime cannot be opened.
            OptionError: The plan's actors need more CPUs than there are.
            ExceptionGroup: The run failed, which cancels `consume`; or `consume` did.
        """
        plan, self._plan = self._plan, None
        if plan is None:
            raise RuntimeError("a run is executed once; make another one")
        open_runtime = self._open_runtime or choose_runtime(self._options)
        async with open_runtime() as self._runtime:
            self._executor = StreamingExecutor(
                plan, self._runtime, self._options, self._this_pass, is_quiet=self._is_quiet
            )
            del plan
            send, self._bundles = anyio.create_memory_object_stream[RefBundle](self._max_waiting())
            try:
                with send:
                    async with anyio.create_task_group() as group:
                        start(group, self._executor.run, send)
                        try:
                            await consume(self)
                        finally:
                            close_and_drop(self._bundles)
                        group.cancel_scope.cancel()
            finally:
                self._latest.note(self.stats())

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> RefBundle:
        """Return the next bundle; cancelled, it may lose one, since the run is over then."""
        if (executor := self._executor) is None or (bundles := self._bundles) is None:
            raise RuntimeError(_NOT_BEGUN)
        try:
            bundle = await receive(bundles)
        except anyio.EndOfStream:
            raise StopAsyncIteration from None
        executor.note_taken()
        return bundle

    def next_nowait(self) -> RefBundle:
        """Return the next bundle, if it is there.

        Raises:
            anyio.WouldBlock: It is not.
            StopAsyncIteration: There is none, nor will there be.
        """
        if (executor := self._executor) is None or (bundles := self._bundles) is None:
            raise RuntimeError(_NOT_BEGUN)
        try:
            bundle = bundles.receive_nowait()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None
        executor.note_taken()
        return bundle

    def _max_waiting(self) -> int:
        waiting_bytes = min(_WAITING_BYTES, self.max_held_bytes // _HELD_PARTS)
        return max(1, min(_MAX_WAITING, waiting_bytes // self._options.target_block_bytes))
