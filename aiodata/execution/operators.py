"""Operators: coroutines that take bundles from streams, and send bundles on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import anyio
import pyarrow as pa
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from aiodata.bundle import RefBundle
from aiodata.concurrency import ask_in_thread, cleared_frames, receive, send, start
from aiodata.execution.counters import OperatorCounters
from aiodata.plan.planning import unify_branches

Output = MemoryObjectSendStream[RefBundle]


class Inputs:
    """What one operator is sent by another: a stream, and how many bundles were taken from it.

    A bundle that is handed to a receiver that waits is neither in the stream's buffer nor with the receiver for a turn
    of the loop; so what is under way is counted by those who send and take.

    Args:
        stream: The stream.

    Attributes:
        num_taken: Bundles that the receiver has taken note of.
    """

    def __init__(self, stream: MemoryObjectReceiveStream[RefBundle]) -> None:
        """Nothing was taken."""
        self.stream = stream
        self.num_taken = 0


class Operator(Protocol):
    """One stage of a run.

    Attributes:
        counters: What it has done.
        num_sent: Bundles that it has sent, or is sending.
    """

    counters: OperatorCounters
    num_sent: int

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing that it works on, or that its receiver has not taken."""

    async def run(self, inputs: Sequence[Inputs], output: Output) -> None:
        """Take all inputs, send all outputs; returns at the end of the data.

        Raises:
            anyio.BrokenResourceError: Nobody takes the outputs any more.
        """


class _PassingOperator:
    """Sends on what it is given, as it is or narrowed.

    Args:
        name: The stage's name.
        on_sent: Called when its receiver has taken a bundle.
    """

    def __init__(self, name: str, on_sent: Callable[[], None]) -> None:
        """Prepare."""
        self.counters = OperatorCounters(name)
        self.num_sent = 0
        self._on_sent = on_sent
        self._num_sending = 0

    @property
    def is_idle(self) -> bool:
        """Whether its receiver has taken all that it was given."""
        return not self._num_sending

    async def _send(self, bundle: RefBundle, output: Output) -> None:
        self.counters.add_block(bundle.num_rows, bundle.metadata.num_bytes, bundle.schema)
        if not bundle.num_rows:
            return
        self._num_sending += 1
        self.num_sent += 1
        await send(output, bundle)
        self._num_sending -= 1
        self._on_sent()


class InputOperator(_PassingOperator):
    """Sends on blocks that are stored already.

    Args:
        name: The stage's name.
        bundles: The blocks.
        reorder: Returns them in the order to send them in. None: as they are.
        on_sent: Called when its receiver has taken a bundle.
    """

    def __init__(
        self,
        name: str,
        bundles: Iterable[RefBundle],
        reorder: Callable[[Sequence[RefBundle]], Sequence[RefBundle]] | None,
        on_sent: Callable[[], None],
    ) -> None:
        """Prepare."""
        super().__init__(name, on_sent)
        self._bundles = bundles
        self._reorder = reorder

    async def run(self, inputs: Sequence[Inputs], output: Output) -> None:
        """Send every bundle that has rows."""
        # A cancellation's traceback may keep the operator, which must not keep the blocks.
        bundles, self._bundles = self._bundles, ()
        if self._reorder is not None:
            bundles = await ask_in_thread(partial(_reordered, bundles, self._reorder))
        for bundle in bundles:
            await self._send(bundle, output)


def _reordered(
    bundles: Iterable[RefBundle], reorder: Callable[[Sequence[RefBundle]], Sequence[RefBundle]]
) -> Sequence[RefBundle]:
    # To list them takes a while, as their bytes are counted.
    return reorder(tuple(bundles))


class LimitOperator(_PassingOperator):
    """Sends on the first rows that come, narrowing the last bundle's range."""

    def __init__(self, name: str, num_rows: int, on_sent: Callable[[], None]) -> None:
        """Prepare."""
        super().__init__(name, on_sent)
        self._num_rows = num_rows

    async def run(self, inputs: Sequence[Inputs], output: Output) -> None:
        """Send rows until there are enough; returning ends what comes before."""
        left = self._num_rows
        if left <= 0:
            return
        [only] = inputs
        async for bundle in only.stream:
            only.num_taken += 1
            bundle = bundle.head(left)
            left -= bundle.num_rows
            await self._send(bundle, output)
            del bundle  # While this waits for the next one, it must not keep its block alive.
            if left <= 0:
                return


class UnionOperator(_PassingOperator):
    """Sends on what comes from several operators: as it comes, or, if order is preserved, one after the other.

    All of it has one schema. Where that is not known beforehand, because functions make the rows of a branch, nothing
    is sent on before each branch has its first rows, or has none.

    Args:
        name: The stage's name.
        on_sent: Called when its receiver has taken a bundle.
        preserve_order: Whether to send what comes from one after the other.
        is_learnt_from: Whether an operator after it finds out its schema by what it is sent, so that this is to come
            in order.

    Attributes:
        schema: The schema of what it sends, as soon as it is known.
    """

    def __init__(
        self, name: str, on_sent: Callable[[], None], is_learnt_from: Callable[[], bool], *, preserve_order: bool
    ) -> None:
        """Prepare."""
        super().__init__(name, on_sent)
        self.schema: pa.Schema | None = None
        self._preserve_order = preserve_order
        self._is_learnt_from = is_learnt_from
        # The first bundle of each branch; None: it has none.
        self._first: dict[int, RefBundle | None] = {}
        self._all_known = anyio.Event()

    async def run(self, inputs: Sequence[Inputs], output: Output) -> None:
        """Send everything."""
        if self.schema is not None:
            self._all_known.set()
        # Each branch may begin when the one before it has been sent, or when order is not needed any more.
        turns = [anyio.Event() for _ in range(len(inputs) + 1)]
        turns[0].set()
        try:
            async with anyio.create_task_group() as group:
                for index, one in enumerate(inputs):
                    start(group, self._pass_on, index, one, output, turns)
        finally:
            self._first.clear()

    async def _pass_on(self, index: int, inputs: Inputs, output: Output, turns: Sequence[anyio.Event]) -> None:
        with cleared_frames():
            if not self._all_known.is_set():
                await self._take_first(index, inputs, len(turns) - 1)
            if self._must_be_in_order:
                await turns[index].wait()
            else:
                turns[index + 1].set()
            if (first := self._first.pop(index, None)) is not None:
                await self._send_conformed(first, output)
                del first
            async for bundle in inputs.stream:
                if not self._must_be_in_order:
                    turns[index + 1].set()
                inputs.num_taken += 1
                await self._send_conformed(bundle, output)
                del bundle  # While this waits for the next one, it must not keep its block alive.
        turns[index + 1].set()

    @property
    def _must_be_in_order(self) -> bool:
        return self._preserve_order or self._is_learnt_from()

    async def _take_first(self, index: int, inputs: Inputs, num_branches: int) -> None:
        """Wait for the first bundle of a branch, and then for those of the others."""
        try:
            self._first[index] = await receive(inputs.stream)
            # It does not count as being sent: a branch that has none yet must not wait for room until it is.
            inputs.num_taken += 1
        except anyio.EndOfStream:
            self._first[index] = None
        if len(self._first) == num_branches:
            schemas = [bundle.schema for _, bundle in sorted(self._first.items()) if bundle is not None]
            if self.schema is None and schemas:
                self.schema = unify_branches(schemas)
            self._all_known.set()
        await self._all_known.wait()

    async def _send_conformed(self, bundle: RefBundle, output: Output) -> None:
        await self._send(bundle if self.schema is None else bundle.conformed(self.schema), output)
