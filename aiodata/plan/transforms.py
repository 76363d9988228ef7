"""Transforms: what a worker does to rows on their way from a piece to an output block.

A chain of transforms is a chain of generators over `(table, origin)` pairs, so one block is on its way at a time and
an error can name the rows that it is about.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa

from aiodata.block import as_block
from aiodata.errors import AiodataError, OptionError, TaskError
from aiodata.origin import split_by_source
from aiodata.plan.async_calls import AsyncCalls
from aiodata.plan.bisection import Bisection, OnError, Outcome
from aiodata.plan.call_loop import CallLoop
from aiodata.plan.control import Control as Control
from aiodata.plan.control import Stopped as Stopped
from aiodata.plan.control import blame as blame
from aiodata.plan.control import describe as describe
from aiodata.plan.filtering import check_expression, explain_failure, filter_table, show_expression
from aiodata.plan.input_batches import InputBatch, InputBatches
from aiodata.plan.naming import short_name
from aiodata.plan.output_schema import OutputSchema
from aiodata.plan.pieces import Origin
from aiodata.plan.pieces import Rows as Rows
from aiodata.plan.selecting import check_columns
from aiodata.plan.source import Source

_END = object()

NO_ROWS_OF_GENERATORS = (
    "is a generator function, and what it has yielded of a batch cannot be taken back when it fails: it needs "
    "on_error='raise'"
)


class Transform(ABC):
    """One step of a chain; it is sent to workers."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The name that `explain()`, statistics and errors show."""
        return type(self).__name__

    @property
    def batch_size(self) -> int | None:
        """Rows that a user function is given at a time; None where it takes what comes, or there is none."""
        return None

    @property
    def calls_user_code(self) -> bool:
        """Whether it runs a function of the user's."""
        return False

    @property
    def needs_actor(self) -> bool:
        """Whether it has state to be built first, by `build`, which an actor then keeps."""
        return False

    @property
    def is_async(self) -> bool:
        """Whether its calls need an event loop, which an actor makes for `build` and keeps."""
        return False

    @property
    def calls_in_flight(self) -> int:
        """Calls of a user function that one task has under way at a time."""
        return 1

    @property
    def fuses(self) -> bool:
        """Whether it may be done by the same task as what comes before and after it."""
        return True

    @property
    def keeps_num_rows(self) -> bool:
        """Whether as many rows come out as go in."""
        return False

    @abstractmethod
    def output_schema(self, schema: pa.Schema | None) -> pa.Schema | None:
        """Return the schema of what comes out, where `schema` goes in; None: only a run can tell.

        Raises:
            OptionError: It cannot be applied to rows of that schema.
        """

    def push_into(self, source: Source) -> Source | None:
        """Return a source that does this itself, for whoever it comes right after; None: it cannot."""
        return None

    def build(self, loop: CallLoop | None) -> Transform:
        """Return it with its state, for the actor whose loop this is; None: no transform of the actor is async.

        Raises:
            TaskError: The state cannot be built.
        """
        return self

    def close(self) -> None:  # noqa: B027 - most have nothing to let go of.
        """Let go of what `build` has made, when the actor ends."""

    @abstractmethod
    def apply(self, rows: Iterable[Rows], control: Control, outputs: OutputSchema) -> Generator[Rows, None, None]:
        """Transform rows as they come; tables without rows say nothing, and may be dropped.

        Args:
            rows: The rows.
            control: What stops it, and is told of errors.
            outputs: What makes the outputs of a user's function conform to one schema.
        """


@dataclass(frozen=True, slots=True)
class MapBatches(Transform):
    """Call a function with batches of rows.

    Attributes:
        fn: A function, generator function, async function or async generator function; or a class whose instances
            are called like one of these, and of which each actor has one.
        batch_size: Rows per batch; None: what comes.
        batch_format: The format of the batches.
        args: More positional arguments for each call.
        kwargs: Keyword arguments for each call.
        constructor_args: Positional arguments for the class.
        constructor_kwargs: Keyword arguments for the class.
        concurrency: Calls of an async function in flight, per task.
        schema: What its outputs are made to conform to; None: the schema of the first that has rows.
        fuses: Whether it may be done by the same task as what comes before and after it.
        on_error: What becomes of rows that it fails with.
        kept_loop: The loop that an actor keeps for async calls: clients of a class's making are bound to it.
    """

    fn: Callable[..., Any]
    batch_size: int | None = None
    batch_format: str = "numpy"
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    constructor_args: tuple[Any, ...] = ()
    constructor_kwargs: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 16
    schema: pa.Schema | None = None
    fuses: bool = True
    on_error: OnError = OnError.RAISE
    kept_loop: CallLoop | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """`map_batches(<function or class>)`."""
        return short_name(f"map_batches({getattr(self.fn, '__name__', type(self.fn).__name__)})")

    @property
    def calls_user_code(self) -> bool:
        """True."""
        return True

    @property
    def needs_actor(self) -> bool:
        """Whether the function is a class; one whose instances can not be called is a function like `dict`."""
        return isinstance(self.fn, type) and any("__call__" in vars(base) for base in self.fn.__mro__)

    @property
    def is_async(self) -> bool:
        """Whether calls are to be awaited, or iterated over with `async for`."""
        return inspect.iscoroutinefunction(self._callee) or self._is_async_generator

    @property
    def calls_in_flight(self) -> int:
        """`concurrency`, if the function is async."""
        return self.concurrency if self.is_async else 1

    def build(self, loop: CallLoop | None) -> MapBatches:
        """Return it with an instance in the place of the class, for the actor whose loop this is.

        Raises:
            TaskError: The constructor failed.
        """
        kept_loop = loop if self.is_async else None
        if not self.needs_actor:
            return replace(self, kept_loop=kept_loop)
        construct = partial(self.fn, *self.constructor_args, **self.constructor_kwargs)
        with blame(self.name, Origin("its constructor", None)):
            # Async clients look for the loop they are made in.
            instance = construct() if kept_loop is None else kept_loop.call(construct)
        return replace(self, fn=instance, kept_loop=kept_loop)

    def close(self) -> None:
        """Cancel what an instance has left running in the actor's loop."""
        if self.kept_loop is not None:
            self.kept_loop.close()

    def output_schema(self, schema: pa.Schema | None) -> pa.Schema | None:
        """Return the schema that was asked for, if one was."""
        return self.schema

    def apply(self, rows: Iterable[Rows], control: Control, outputs: OutputSchema) -> Generator[Rows, None, None]:
        """Cut the rows into batches, call the function with each, and yield what it returns or yields."""
        assert not self.needs_actor, "a class is replaced by an instance first, by build()"
        batches = InputBatches(self.name, self.batch_format, self.batch_size, control).cut(rows)
        if self.is_async:
            yield from self._apply_async(batches, control, outputs)
        elif self.on_error is OnError.RAISE:
            for batch in batches:
                yield from self._call(batch, control, outputs)
        else:
            by_halves = self._bisection(lambda part: self._call_once(part, control), control, outputs)
            for batch in batches:
                yield from by_halves.rows(batch)

    def _apply_async(
        self, batches: Iterator[InputBatch], control: Control, outputs: OutputSchema
    ) -> Generator[Rows, None, None]:
        with control.call_loop(self.kept_loop) as loop:
            calls = AsyncCalls(
                self.name,
                lambda batch: self.fn(batch, *self.args, **self.kwargs),
                yields_many=self._is_async_generator,
                bisects=self.on_error is not OnError.RAISE,
                max_calls=self.concurrency,
                loop=loop,
                control=control,
            )
            by_halves = self._bisection(calls.repeat, control, outputs)
            for outcome, origin, batch in calls.outputs(batches):
                if batch is not None:
                    yield from by_halves.rows(batch, outcome)
                    continue
                assert not isinstance(outcome, AiodataError), "those are raised"
                try:
                    conformed = outputs.conform(outcome, origin)
                except AiodataError as error:
                    control.skip(error)
                else:
                    yield conformed, origin

    def _bisection(self, call: Callable[[InputBatch], Outcome], control: Control, outputs: OutputSchema) -> Bisection:
        return Bisection(call, control, outputs, fills_nulls=self.on_error is OnError.NULL)

    def _call_once(self, batch: InputBatch, control: Control) -> Outcome:
        """Return what the function returns for a batch, or its error."""
        control.call()
        try:
            with blame(self.name, batch.origin):
                result = _not_awaitable(self.fn(batch.rows, *self.args, **self.kwargs))
                if inspect.isgenerator(result):
                    raise OptionError(f"{self.name} {NO_ROWS_OF_GENERATORS}")
                return as_block(result, given=batch.given)
        except AiodataError as error:
            return error

    @property
    def _callee(self) -> Any:
        """The function that a call ends up in."""
        fn: Any = self.fn
        while isinstance(fn, partial):
            fn = fn.func
        if self.needs_actor:
            return fn.__call__
        return fn if inspect.isroutine(fn) or isinstance(fn, type) else type(fn).__call__

    @property
    def yields_many(self) -> bool:
        """Whether it is a generator function, plain or async; of what returns one all the same only a call can tell."""
        return self._is_async_generator or inspect.isgeneratorfunction(self._callee)

    @property
    def _is_async_generator(self) -> bool:
        return inspect.isasyncgenfunction(self._callee)

    def _call(self, batch: InputBatch, control: Control, outputs: OutputSchema) -> Iterator[Rows]:
        origin = batch.origin
        control.call()
        yields_many = False
        try:
            with blame(self.name, origin):
                result = _not_awaitable(self.fn(batch.rows, *self.args, **self.kwargs))
                yields_many = inspect.isgenerator(result)
                control.open_calls += yields_many
                results = result if yields_many else iter([result])
            while True:
                control.checkpoint()
                with blame(self.name, origin):
                    output = next(results, _END)
                    if output is _END:
                        break
                    table = as_block(output, given=batch.given)
                table = outputs.conform(table, origin)
                yield table, origin.without_rows() if yields_many else batch.origin_of(table)
        except AiodataError as error:
            control.skip(error)
        finally:
            control.open_calls -= yields_many


@dataclass(frozen=True, slots=True)
class SelectColumns(Transform):
    """Keep some columns, in the order given."""

    columns: tuple[str, ...]

    @property
    def name(self) -> str:
        """`select_columns([...])`."""
        return short_name(f"select_columns({list(self.columns)})")

    @property
    def keeps_num_rows(self) -> bool:
        """True."""
        return True

    def output_schema(self, schema: pa.Schema | None) -> pa.Schema | None:
        """Return the fields of these columns.

        Raises:
            UnknownColumnError: One is not there.
        """
        if schema is None:
            return None
        check_columns(self.name, self.columns, schema.names)
        return pa.schema([schema.field(name) for name in self.columns])

    def push_into(self, source: Source) -> Source | None:
        """Have the source read nothing else."""
        return source.with_columns(self.columns)

    def apply(self, rows: Iterable[Rows], control: Control, outputs: OutputSchema) -> Generator[Rows, None, None]:
        """Select without copying."""
        for table, origin in rows:
            if not table.num_rows:
                continue
            try:
                check_columns(self.name, self.columns, table.column_names)
                selected = table.select(list(self.columns))
            except AiodataError as error:
                control.skip(error)
            else:
                yield selected, origin


@dataclass(frozen=True, slots=True)
class FilterRows(Transform):
    """Keep the rows for which a `pyarrow.compute.Expression` is true."""

    expression: Any

    @property
    def name(self) -> str:
        """`filter(<expression>)`."""
        return short_name(f"filter({show_expression(self.expression)})")

    def output_schema(self, schema: pa.Schema | None) -> pa.Schema | None:
        """Return the same schema.

        Raises:
            OptionError: The expression cannot be evaluated on rows of that schema.
        """
        if schema is not None:
            check_expression(self.name, self.expression, schema)
        return schema

    def push_into(self, source: Source) -> Source | None:
        """Have the source leave out what it need not read."""
        return source.with_filter(self.expression)

    def apply(self, rows: Iterable[Rows], control: Control, outputs: OutputSchema) -> Generator[Rows, None, None]:
        """Filter each table; null counts as false.

        Raises:
            OptionError: The expression cannot be evaluated on such columns, whatever their values.
        """
        for whole, where in rows:
            if not whole.num_rows:
                continue
            for table, origin in split_by_source(whole, where):
                try:
                    kept = self._filter(table, origin)
                except AiodataError as error:
                    control.skip(error)
                else:
                    yield kept, origin if kept.num_rows == table.num_rows else origin.without_rows()

    def _filter(self, table: pa.Table, origin: Origin) -> pa.Table:
        try:
            return filter_table(table, self.expression)
        except (pa.ArrowException, TypeError, ValueError) as error:
            # What a function's columns are is not known before; else a plan with this filter is refused as a whole.
            check_expression(self.name, self.expression, table.schema)
            reason = explain_failure(error, table.schema)
            raise TaskError(self.name, origin.source, origin.rows, reason) from error


@dataclass(frozen=True, slots=True)
class LimitRows(Transform):
    """Stop a task after `num_rows` rows: no single task has to produce more than a limit asks for."""

    num_rows: int

    @property
    def name(self) -> str:
        """`limit(<rows>)`."""
        return f"limit({self.num_rows})"

    def output_schema(self, schema: pa.Schema | None) -> pa.Schema | None:
        """Return the same schema."""
        return schema

    def apply(self, rows: Iterable[Rows], control: Control, outputs: OutputSchema) -> Generator[Rows, None, None]:
        """Pass rows on until there are enough."""
        left = self.num_rows
        for table, origin in rows:
            head = table.slice(0, min(left, table.num_rows))
            left -= head.num_rows
            yield head, origin.slice(0, head.num_rows)
            if left <= 0:
                return


def build(chain: Sequence[Transform]) -> tuple[Transform, ...]:
    """Return a chain whose transforms have their state, for an actor to keep until it calls `close`.

    The async functions of a chain with state share a loop, which lasts as long as the instances.

    Raises:
        TaskError: A constructor failed.
    """
    if not any(transform.needs_actor for transform in chain):
        return tuple(chain)
    loop = CallLoop() if any(transform.is_async for transform in chain) else None
    try:
        return tuple(transform.build(loop) for transform in chain)
    except BaseException:
        if loop is not None:
            loop.close()
        raise


def close(chain: Sequence[Transform]) -> None:
    """Close what `build` has opened, when an actor ends: what its instances have left running is cancelled."""
    for transform in chain:
        transform.close()


def _not_awaitable(result: Any) -> Any:
    """Refuse what a plain function got from an async one: nobody knew that there is something to await."""
    if inspect.iscoroutine(result):
        result.close()
    elif not inspect.isasyncgen(result):
        return result
    raise TypeError("the function is not async, but returns what an async one does; give the async function itself")
