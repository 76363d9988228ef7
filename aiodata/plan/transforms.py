"""Transforms: what a worker does to rows on their way from a piece to an output block.

A chain of transforms is a chain of generators over `(table, origin)` pairs, so one block is on its way at a time and
an error can name the rows that it is about.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from inspect import isgenerator
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import acero

from aiodata.batcher import Batcher
from aiodata.block import as_block
from aiodata.errors import AiodataError, TaskError
from aiodata.formats import get_format
from aiodata.plan.pieces import Origin

Rows = tuple[pa.Table, Origin]

_END = object()


class Stopped(BaseException):
    """Raised in a task, between two calls of user functions, to stop it."""


class Control:
    """What a task and whoever runs it know of one another: calls that were made, and whether to stop.

    Attributes:
        calls: Calls of user functions so far.
    """

    def __init__(self) -> None:
        """Go on until `stop`."""
        self.calls = 0
        self._is_stopped = False

    def checkpoint(self) -> None:
        """Raise `Stopped` if the task is to stop."""
        if self._is_stopped:
            raise Stopped

    def call(self) -> None:
        """Note that a user function is about to be called."""
        self.checkpoint()
        self.calls += 1

    def stop(self) -> None:
        """Have the task stop before its next call; from any thread."""
        self._is_stopped = True

    def settle(self) -> None:
        """Wait for calls that are in flight; called where the task is not stepped, before it stands still a while."""


class Transform(Protocol):
    """One step of a chain; it is sent to workers."""

    @property
    def name(self) -> str:
        """The name that `explain()`, statistics and errors show."""

    @property
    def batch_size(self) -> int | None:
        """Rows that a user function is given at a time; None where it takes what comes, or there is none."""

    @property
    def calls_user_code(self) -> bool:
        """Whether it runs a function of the user's."""

    def apply(self, rows: Iterable[Rows], control: Control) -> Iterator[Rows]:
        """Transform rows as they come."""


@dataclass(frozen=True, slots=True)
class MapBatches:
    """Call a function, or generator function, with batches of rows."""

    fn: Callable[..., Any]
    batch_size: int | None
    batch_format: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    calls_user_code: bool = True

    @property
    def name(self) -> str:
        """`map_batches(<function>)`."""
        return f"map_batches({getattr(self.fn, '__name__', type(self.fn).__name__)})"

    def apply(self, rows: Iterable[Rows], control: Control) -> Iterator[Rows]:
        """Cut the rows into batches, call the function with each, and yield what it returns or yields."""
        for batch, num_rows, origin in self._batches(rows):
            control.call()
            with blame(self.name, origin):
                result = self.fn(batch, *self.args, **self.kwargs)
                yields_many = isgenerator(result)
                outputs = result if yields_many else iter([result])
            while True:
                control.checkpoint()
                with blame(self.name, origin):
                    output = next(outputs, _END)
                    if output is _END:
                        break
                    table = as_block(output)
                is_row_by_row = not yields_many and table.num_rows == num_rows
                yield table, origin if is_row_by_row else origin.without_rows()

    def _batches(self, rows: Iterable[Rows]) -> Iterator[tuple[Any, int, Origin]]:
        batcher = Batcher(get_format(self.batch_format), self.batch_size)
        origins: deque[tuple[int, Origin]] = deque()
        for table, origin in rows:
            if not table.num_rows:
                continue
            origins.append((table.num_rows, origin))
            with blame(self.name, origin):
                batcher.push(table)
            yield from self._ready(batcher, origins)
        batcher.finish()
        yield from self._ready(batcher, origins)

    def _ready(self, batcher: Batcher, origins: deque[tuple[int, Origin]]) -> Iterator[tuple[Any, int, Origin]]:
        while origins:
            before = batcher.rows
            with blame(self.name, origins[0][1]):
                batch = batcher.next_at_once()
            if batch is None:
                return
            num_rows = batcher.rows - before
            yield batch, num_rows, _take_origin(origins, num_rows)


@dataclass(frozen=True, slots=True)
class SelectColumns:
    """Keep some columns, in the order given."""

    columns: tuple[str, ...]
    batch_size: int | None = None
    calls_user_code: bool = False

    @property
    def name(self) -> str:
        """`select_columns([...])`."""
        return f"select_columns({list(self.columns)})"

    def apply(self, rows: Iterable[Rows], control: Control) -> Iterator[Rows]:
        """Select without copying."""
        for table, origin in rows:
            with blame(self.name, origin):
                selected = table.select(list(self.columns))
            yield selected, origin


@dataclass(frozen=True, slots=True)
class FilterRows:
    """Keep the rows for which a `pyarrow.compute.Expression` is true."""

    expression: Any
    batch_size: int | None = None
    calls_user_code: bool = False

    @property
    def name(self) -> str:
        """`filter(<expression>)`."""
        return f"filter({self.expression})"

    def apply(self, rows: Iterable[Rows], control: Control) -> Iterator[Rows]:
        """Filter each table; null counts as false."""
        for table, origin in rows:
            with blame(self.name, origin):
                kept = _filter(table, self.expression)
            yield kept, origin if kept.num_rows == table.num_rows else origin.without_rows()


@dataclass(frozen=True, slots=True)
class LimitRows:
    """Stop a task after `num_rows` rows: no single task has to produce more than a limit asks for."""

    num_rows: int
    batch_size: int | None = None
    calls_user_code: bool = False

    @property
    def name(self) -> str:
        """`limit(<rows>)`."""
        return f"limit({self.num_rows})"

    def apply(self, rows: Iterable[Rows], control: Control) -> Iterator[Rows]:
        """Pass rows on until there are enough."""
        left = self.num_rows
        for table, origin in rows:
            head = table.slice(0, left)
            left -= head.num_rows
            yield head, origin
            if left <= 0:
                return


def _filter(table: pa.Table, expression: Any) -> pa.Table:
    """Filter in this thread alone, which `Table.filter` would not."""
    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
    kept = acero.Declaration("filter", acero.FilterNodeOptions(expression), inputs=[source])
    return kept.to_table(use_threads=False)


@contextmanager
def blame(operator: str, origin: Origin) -> Iterator[None]:
    """Turn an exception of the body into a `TaskError` that names the operator and the rows."""
    try:
        yield
    except AiodataError:
        raise
    # From a user's function these are errors like any other: they must not pass for the end of the data.
    except (Exception, asyncio.CancelledError, GeneratorExit, SystemExit) as error:
        raise TaskError(operator, origin.source, origin.rows, describe(error)) from error


def describe(error: BaseException) -> str:
    """Return an exception's type and text, even where it has no text to give."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a __str__ of the user's may do anything.
        return type(error).__name__


def _take_origin(origins: deque[tuple[int, Origin]], num_rows: int) -> Origin:
    """Take the origins of the next `num_rows` rows off the queue and return their span."""
    first: Origin | None = None
    while num_rows and origins:
        available, origin = origins.popleft()
        taken = min(available, num_rows)
        num_rows -= taken
        part = origin.slice(0, taken)
        first = part if first is None else first.to(part)
        if taken < available:
            origins.appendleft((available - taken, origin.slice(taken, available - taken)))
    assert first is not None, "a batch has rows, so it has an origin"
    return first


def build(chain: Sequence[Transform]) -> tuple[Transform, ...]:
    """Return a chain with each class replaced by an instance, for an actor to keep until it calls `close`.

    Raises:
        TaskError: A constructor failed.
    """
    return tuple(_build(transform) for transform in chain)


def close(chain: Sequence[Transform]) -> None:
    """Close what `build` has opened, when an actor ends."""


def _build(transform: Transform) -> Transform:
    if not isinstance(transform, MapBatches) or not isinstance(transform.fn, type):
        return transform
    with blame(transform.name, Origin("its constructor", None)):
        return replace(transform, fn=transform.fn())
