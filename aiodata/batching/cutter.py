"""Cutter: turns the blocks that a fetch window brings into batches, and keeps account of what they pin."""

from __future__ import annotations

import enum
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from time import perf_counter
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pyarrow as pa

from aiodata.batcher import Batcher, Want
from aiodata.batching.options import BatchOptions
from aiodata.batching.shuffle import ShuffleBuffer
from aiodata.batching.window import FetchWindow, Held
from aiodata.block import copy_rows
from aiodata.concurrency import call_in_thread
from aiodata.errors import TaskError, is_failure

T = TypeVar("T")

# Copying so many bytes takes about a millisecond, and goes to a thread.
_COPY_IN_THREAD_BYTES = 4 << 20

# Gathering so many rows takes about a millisecond, however small they are.
_SHUFFLE_IN_THREAD_ROWS = 20_000

# A remainder of at most so many bytes is copied rather than that it pins its block.
_SMALL_BYTES = 1 << 20

# So many sources of a batch are all named in an error message; of more, the first and the last.
_MAX_NAMED_SOURCES = 3

# More rows than there are anywhere.
_ALL_ROWS = 1 << 60


class Signal(enum.Enum):
    """What a stage answers where it has no batch: `PENDING`, not yet; `END`, never again."""

    PENDING = enum.auto()
    END = enum.auto()


@dataclass(frozen=True, slots=True)
class Item:
    """A batch on its way.

    Attributes:
        number: Its number in the pass.
        start: The first of the pass's rows that it consists of.
        stop: The row after the last.
        num_bytes: What it holds beside the blocks that are still counted themselves.
        value: The batch.
    """

    number: int
    start: int
    stop: int
    num_bytes: int
    value: Any


@dataclass(slots=True)
class _Span:
    """Rows of the pass that came from one block, as a half-open range; those from `copied_from` on do not pin it."""

    start: int
    stop: int
    copied_from: int
    # None once nothing pins the block.
    held: Held | None
    row_bytes: float
    source: str
    # Rows that were not handed over: those that pin the block, and all.
    pinning: int
    left: int


class Cutter:
    """Cuts batches when asked; one task at a time may ask.

    A block is held until nobody needs its rows any more. So that the end of one block does not stay until the next one
    has come, its remainder, which waits for the next block's rows, is copied if it is small. With `max_prefetch_bytes`
    it is copied whatever its size, and so is the block's last whole batch, which is in the consumer's hands meanwhile.

    Args:
        options: How to cut.
        window: Brings the blocks.
        epoch: The pass's number; the same seed shuffles each differently.
        grace_s: Seconds that a cancelled conversion in a thread is waited for.
        is_direct: Whether a batch is in the consumer's hands as soon as it is cut, until it asks for the next one; else
            `hand_over` says when a batch is.

    Attributes:
        cutting_s: Seconds that `next` has spent on the loop, cutting and converting.
    """

    def __init__(
        self, options: BatchOptions, window: FetchWindow, *, epoch: int, grace_s: float, is_direct: bool
    ) -> None:
        """Start with nothing."""
        self._options = options
        self._window = window
        self._epoch = epoch
        self._grace_s = grace_s
        self._batcher = self._new_batcher()
        self._shuffle = self._new_shuffle()
        # A block that was taken from the window, and those of its rows that are still to be used.
        self._held: Held | None = None
        self._block: pa.Table | None = None
        self._is_untouched = True
        # A block that is used up, whose last rows are in the shuffle buffer, but not copied yet.
        self._shuffled: Held | None = None
        self._spans: deque[_Span] = deque()
        self._rows_pushed = 0
        self._num_items = 0
        self._is_closed = False
        self.cutting_s = 0.0
        # In the direct case: how many rows the consumer is done with, and from how many on the spans need a look.
        self._rows_done = 0
        self._look_at = 0 if is_direct else sys.maxsize

    @property
    def rows(self) -> int:
        """Rows handed out."""
        return self._batcher.rows

    async def prepare(self) -> None:
        """Import what converting needs, in a thread; nothing is cut before."""
        library = self._options.make_format().library
        if library is not None and library not in sys.modules:
            await call_in_thread(partial(import_module, library), grace_s=self._grace_s)

    def take(self) -> Any:
        """Return the next batch if it takes only about a millisecond, else `PENDING`.

        Raises:
            TaskError: A batch can not be cut.
        """
        rows_done = self._batcher.rows
        try:
            batch = self._batcher.next()
        except BaseException as error:
            if not is_failure(error):
                raise
            raise TaskError("aiter_batches", "the blocks of a batch", None, str(error)) from error
        if batch is None:
            return Signal.PENDING
        if rows_done >= self._look_at:
            self._note_done(rows_done)
        return batch

    async def next(self, *, in_thread: bool = False) -> Any:
        """Return the next batch, or `END`; cancelled, it takes nothing, but one cut in a thread may be lost.

        `END` also comes when the supply has failed: whoever gets it looks at the run's outcome.

        Raises:
            TaskError: A batch can not be cut.
        """
        while not self._is_closed:
            batch = await self._in_thread(self._take_at_once) if in_thread else self._take_timed()
            if batch is not Signal.PENDING:
                return batch
            match self._batcher.want:
                case Want.TURN:
                    await anyio.lowlevel.checkpoint()
                case Want.JOIN:
                    self._batcher.accept(await self._in_thread(self._batcher.join_job()))
                case Want.BLOCK:
                    await anyio.lowlevel.checkpoint()
                    if not await self._refill():
                        break
        return Signal.END

    async def next_item(self, *, in_thread: bool = False) -> Item | Signal:
        """Return the next batch as an `Item`, or `END`; see `next`."""
        start = self.rows
        value = await self.next(in_thread=in_thread)
        if value is Signal.END:
            return Signal.END
        self._num_items += 1
        num_bytes = self._copied_bytes(start, self.rows)
        self._window.add(num_bytes)
        return Item(self._num_items - 1, start, self.rows, num_bytes, value)

    def leave_direct(self) -> None:
        """Note that from now on `hand_over` says when a batch is in the consumer's hands."""
        self._note_done(self._batcher.rows)
        self._look_at = sys.maxsize

    def hand_over(self, item: Item) -> None:
        """Note that a batch is in the consumer's hands; they may come in any order."""
        self._window.add(-item.num_bytes)
        self._let_go(item.start, item.stop)

    def _let_go(self, start: int, stop: int) -> None:
        """Note that rows of the pass pin nothing any more."""
        for span in self._spans:
            if span.start >= stop:
                break
            span.left -= max(0, min(stop, span.stop) - max(start, span.start))
            span.pinning -= max(0, min(stop, span.copied_from) - max(start, span.start))
            if not span.pinning:
                self._release(span)
        while self._spans and not self._spans[0].left:
            self._spans.popleft()

    def source(self, start: int, stop: int) -> str:
        """Say where rows of the pass that were not handed over yet came from."""
        spans = (span for span in self._spans if span.start < stop and start < span.stop)
        names = list(dict.fromkeys(span.source for span in spans if span.source))
        if len(names) > _MAX_NAMED_SOURCES:
            return f"{len(names)} sources, from {names[0]} to {names[-1]}"
        return ", ".join(names)

    def rows_supplied(self, rows: int) -> int:
        """Return how many rows of the supply, from its first on, are all among the first `rows` that were cut."""
        return rows if self._shuffle is None else self._shuffle.rows_before(rows)

    def close(self) -> None:
        """Let go of everything; `rows` stays."""
        self._is_closed = True
        rows = self._batcher.rows
        self._batcher, self._shuffle = self._new_batcher(), self._new_shuffle()
        self._batcher.rows = rows
        self._held = self._block = self._shuffled = None
        self._spans.clear()
        self._window.close()

    def _new_batcher(self) -> Batcher:
        return Batcher(self._options.make_format(), self._options.batch_size, drop_last=self._options.drop_last)

    def _new_shuffle(self) -> ShuffleBuffer | None:
        options = self._options
        if options.local_shuffle_buffer_size is None or options.batch_size is None:
            return None
        seed = (options.local_shuffle_seed or 0, self._epoch)
        # They are counted with 64 bits.
        buffer_rows = min(options.local_shuffle_buffer_size, _ALL_ROWS)
        return ShuffleBuffer(buffer_rows, min(options.batch_size, _ALL_ROWS), seed)

    def _take_timed(self) -> Any:
        started = perf_counter()
        batch = self.take()
        self.cutting_s += perf_counter() - started
        return batch

    def _take_at_once(self) -> Any:
        batch = self._batcher.next_at_once()
        return Signal.PENDING if batch is None else batch

    def _note_done(self, rows: int) -> None:
        self._let_go(self._rows_done, rows)
        self._rows_done = rows
        first = self._spans[0] if self._spans else None
        self._look_at = rows + 1 if first is None else first.copied_from if first.pinning else first.stop

    async def _refill(self) -> bool:
        """Give the batcher more rows; return False at the end."""
        if self._look_at <= self._batcher.rows:
            self._note_done(self._batcher.rows)
        if self._shuffle is not None:
            return await self._refill_shuffled(self._shuffle)
        if not await self._take_block():
            # A run that failed must not pass its last rows off as the last batch.
            return self._window.is_complete and self._batcher.finish()
        held, block = self._held, self._block
        assert held is not None and block is not None  # noqa: PT018 - `_take_block` says so.
        copied_from, pieces = await self._without_pins(held, block)
        if self._is_closed:
            return False
        self._push(held, block.num_rows, copied_from, pieces)
        return True

    async def _refill_shuffled(self, shuffle: ShuffleBuffer) -> bool:
        while not shuffle.is_due and not self._is_closed:
            if not await self._take_block():
                if not self._window.is_complete:
                    return False
                shuffle.finish()
                if not shuffle.is_due:
                    return self._batcher.finish()
                break
            await self._fill(shuffle)
        if self._is_closed:
            return False
        job = _checked(shuffle.job, "the blocks of a batch")
        if shuffle.num_rows >= _SHUFFLE_IN_THREAD_ROWS or shuffle.num_bytes >= _COPY_IN_THREAD_BYTES:
            shuffled = await self._in_thread(job)
        else:
            shuffled = _checked(job, "the blocks of a batch")
        if self._is_closed:
            return False
        drawn = shuffle.accept(shuffled)
        self._add_span(None, "", drawn.num_rows, 0, drawn.nbytes / drawn.num_rows)
        self._batcher.push(drawn)
        if self._shuffled is not None:
            self._window.release(self._shuffled)
            self._shuffled = None
        return True

    async def _fill(self, shuffle: ShuffleBuffer) -> None:
        """Move rows of the block into the shuffle buffer, which copies them when it is shuffled."""
        held, block = self._held, self._block
        assert held is not None and block is not None  # noqa: PT018 - there is a block.
        head, rest = block.slice(0, shuffle.rows_wanted), block.slice(shuffle.rows_wanted)
        is_used_up, is_due = not rest.num_rows, head.num_rows == shuffle.rows_wanted
        # The end of a block that has to wait for the next one must not keep all of it, unless it is all of it.
        if is_used_up and not is_due and not (held.is_whole and self._is_untouched):
            copy = partial(copy_rows, head)
            head = await self._in_thread(copy) if head.nbytes >= _COPY_IN_THREAD_BYTES else copy()
        if self._is_closed:
            return
        self._block = rest
        _checked(partial(shuffle.push, head), held.source or "a block")
        self._is_untouched = False
        if is_used_up:
            self._held = self._block = None
            if is_due:
                self._shuffled = held
            else:
                self._window.release(held)

    async def _take_block(self) -> bool:
        """Take the next block into use, unless there is one; return False where there is none, nor will be."""
        try:
            while self._held is None:
                if (fetched := self._window.take()) is None:
                    await self._window.wait()
                elif fetched.rows.num_rows:
                    self._held, self._block, self._is_untouched = fetched.held, fetched.rows, True
                else:
                    self._window.release(fetched.held)
        except anyio.EndOfStream:
            return False
        return True

    async def _without_pins(self, held: Held, block: pa.Table) -> tuple[int, list[pa.Table]]:
        """Copy the end of a block, where it would outlast the block's use; see the class.

        Returns:
            The row from which on nothing pins the block, and the block in parts.
        """
        rows, size = block.num_rows, self._options.batch_size
        is_strict = self._options.max_prefetch_bytes is not None
        # As a batch of its own, or as a part of one that takes more, a whole block pins nothing else.
        short = self._batcher.rows_short
        if held.is_whole and (size is None or rows <= short):
            return 0, [block]
        row_bytes = (held.num_bytes if held.is_whole else block.nbytes) / rows
        remainder = (rows - short) % (size or rows) if rows > short else rows
        if not is_strict:
            if not remainder or remainder * row_bytes > _SMALL_BYTES:
                return rows, [block]
            return rows - remainder, [block.slice(0, rows - remainder), copy_rows(block.slice(rows - remainder))]
        start = max(0, rows - remainder - (size or 0))

        def copies() -> list[pa.Table]:
            return [copy_rows(block.slice(start, rows - remainder - start)), copy_rows(block.slice(rows - remainder))]

        is_large = (rows - start) * row_bytes >= _COPY_IN_THREAD_BYTES
        return start, [block.slice(0, start), *(await self._in_thread(copies) if is_large else copies())]

    def _push(self, held: Held, rows: int, copied_from: int, pieces: list[pa.Table]) -> None:
        self._held = self._block = None
        row_bytes = held.num_bytes / rows if held.is_whole else sum(piece.nbytes for piece in pieces) / rows
        self._add_span(held, held.source, rows, copied_from, row_bytes)
        if not copied_from:
            self._release(self._spans[-1])
        for piece in pieces:
            _checked(partial(self._batcher.push, piece), held.source or "a block")

    def _add_span(self, held: Held | None, source: str, rows: int, copied_from: int, row_bytes: float) -> None:
        start = self._rows_pushed
        self._rows_pushed += rows
        self._spans.append(_Span(start, start + rows, start + copied_from, held, row_bytes, source, copied_from, rows))

    def _copied_bytes(self, start: int, stop: int) -> int:
        """Bytes of those rows that no block which is held counts for."""
        copied = ((span, min(stop, span.stop) - max(start, span.copied_from)) for span in self._spans)
        return int(sum(rows * span.row_bytes for span, rows in copied if rows > 0))

    def _release(self, span: _Span) -> None:
        if span.held is not None:
            self._window.release(span.held)
            span.held = None

    async def _in_thread(self, job: Callable[[], T]) -> T:
        return await call_in_thread(partial(_checked, job, "the blocks of a batch"), grace_s=self._grace_s)


def _checked(step: Callable[[], T], source: str) -> T:
    """Take a step of cutting; where it fails, that is the fault of the data, or of what is asked of it."""
    try:
        return step()
    except BaseException as error:
        if not is_failure(error):
            raise
        raise TaskError("aiter_batches", source, None, str(error)) from error
