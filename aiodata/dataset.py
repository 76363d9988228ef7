"""Dataset: an immutable recipe; each verb adds one step and returns a new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from aiodata.batching.feed import Feed, LocalFeed
from aiodata.block import concat_blocks
from aiodata.errors import OptionError
from aiodata.formats import get_format
from aiodata.iteration import IterationVerbs
from aiodata.mapping import map_step
from aiodata.options import ExecutionOptions, SplitOptions, at_least, shown
from aiodata.plan.control import blame
from aiodata.plan.nodes import Apply, Limit, Plan, Read, Union
from aiodata.plan.optimize import explain
from aiodata.plan.passes import BlockShuffle, Pass
from aiodata.plan.pieces import Origin
from aiodata.plan.selecting import given_columns
from aiodata.plan.transforms import FilterRows, SelectColumns
from aiodata.query import count_rows, find_schema
from aiodata.rows import python_rows
from aiodata.schemas import without_marks
from aiodata.sources.memory import StoredSource
from aiodata.split import SplitIterator, split_plan
from aiodata.stats import LatestRun, RunStats

# All blocks of a dataset that is materialized are kept, so a budget for them would only make tasks wait in vain.
_UNBOUNDED_BYTES = 1 << 62


class Dataset(IterationVerbs):
    """A recipe for a stream of rows: where they come from and what is done to them.

    Nothing is read before it is iterated. Every method returns a new Dataset; a Dataset can be iterated any number of
    times, also at the same time.

    Example:
        >>> import asyncio, aiodata
        >>> ds = aiodata.range(1000).map_batches(lambda batch: {"twice": batch["id"] * 2}).limit(3)
        >>> asyncio.run(ds.take())
        [{'twice': 0}, {'twice': 2}, {'twice': 4}]
    """

    __slots__ = ("_latest", "_options", "_plan")

    def __init__(self, plan: Plan, options: ExecutionOptions, latest: LatestRun | None = None) -> None:
        """Hold a plan; users get a Dataset from `aiodata.read_parquet` and the like."""
        self._plan = plan
        self._options = options
        self._latest = LatestRun() if latest is None else latest

    def map_batches(
        self,
        fn: Callable[..., Any],
        *,
        batch_size: int | None = None,
        batch_format: str = "numpy",
        concurrency: int | tuple[int, int] | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: int | None = None,
        resources: Mapping[str, float] | None = None,
        scheduling_strategy: Any = None,
        runtime_env: Mapping[str, Any] | None = None,
        schema: pa.Schema | None = None,
        on_error: str = "raise",
        fn_args: Sequence[Any] = (),
        fn_kwargs: Mapping[str, Any] | None = None,
        fn_constructor_args: Sequence[Any] = (),
        fn_constructor_kwargs: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Call a function with batches of rows, in workers.

        Args:
            fn: A function, a generator function (several outputs per batch), an `async def` or an async generator
                function; or a class whose instances are called like one of these, and are built once per actor. It is
                given a batch, and returns (or yields) a dict of arrays, a pyarrow.Table, or a pandas or polars
                DataFrame, of any number of rows.
            batch_size: Rows per call; the last one may get fewer, and where the same task reads large files or filters
                before it, the last one of each task. None: as the rows come, by row group or block.
            batch_format: The format that `fn` is given: `"numpy"` (a dict of arrays, read-only), `"pyarrow"`,
                `"pandas"` or `"polars"`.
            concurrency: For a class: the number of actors, or `(least, most)`, between which it follows the load;
                by default one to as many as there are CPUs. For an async function: calls at a time per task, by
                default 16. For a function: tasks at a time.
            num_cpus: CPUs that each task or actor takes; on the local runtime all share the same threads.
            num_gpus: GPUs that each task or actor takes. The local runtime ignores this and the next four.
            memory: Bytes of Ray's logical memory that each task or actor takes.
            resources: Custom resources of Ray's nodes that each task or actor takes, by name: `{"tpu": 1}`.
            scheduling_strategy: Where Ray runs them: `"DEFAULT"`, `"SPREAD"`, or one of
                `ray.util.scheduling_strategies`. None: as `ExecutionOptions.scheduling_strategy` says.
            runtime_env: Ray's runtime environment for them, over that of the run.
            schema: The schema of what `fn` returns: outputs are cast to it where that is exact, and columns that one
                lacks are null. None: the schema of the first output that has rows, in the order of the input.
            on_error: What becomes of rows that `fn` fails with. `"raise"`: the whole batch is a failure, which ends the
                run, or is one of those that `max_errored_blocks` allows. `"skip_row"`: a call that raises is repeated
                with halves of its batch, and so on; the rows that it fails with alone are dropped, and listed in the
                statistics. `"null"`: they stay, with null in each column of `schema` that the input does not have with
                the same name and type. These rows do not count for `max_errored_blocks`. Not for generator functions.
            fn_args: Further positional arguments for `fn`.
            fn_kwargs: Keyword arguments for `fn`.
            fn_constructor_args: Positional arguments for the class.
            fn_constructor_kwargs: Keyword arguments for the class.

        Raises:
            OptionError: An argument has a value that can not work.

        Example:
            >>> import asyncio, aiodata
            >>> ds = aiodata.range(4).map_batches(lambda batch: {"id": batch["id"] + 1}, batch_size=2)
            >>> asyncio.run(ds.count())
            4
        """
        return self._then(
            map_step(
                fn,
                batch_size=batch_size,
                batch_format=batch_format,
                concurrency=concurrency,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                memory=memory,
                resources=resources,
                scheduling_strategy=scheduling_strategy,
                runtime_env=runtime_env,
                schema=schema,
                on_error=on_error,
                fn_args=fn_args,
                fn_kwargs=fn_kwargs,
                fn_constructor_args=fn_constructor_args,
                fn_constructor_kwargs=fn_constructor_kwargs,
            )
        )

    def select_columns(self, names: str | Sequence[str]) -> Dataset:
        """Keep some columns, in the order given; a source reads no others.

        Raises:
            OptionError: There are no names, or one comes twice.

        Example:
            >>> import asyncio, aiodata
            >>> asyncio.run(aiodata.from_items([{"a": 1, "b": 2}]).select_columns("b").take())
            [{'b': 2}]
        """
        return self._then(Apply(SelectColumns(given_columns("names", names))))

    def filter(self, expression: pc.Expression) -> Dataset:
        """Keep the rows for which an expression is true; right after a source, it skips what it need not read.

        Args:
            expression: A `pyarrow.compute.Expression`; null counts as false.

        Raises:
            OptionError: It is not an expression.

        Example:
            >>> import asyncio, aiodata, pyarrow.compute as pc
            >>> asyncio.run(aiodata.range(5).filter(pc.field("id") > 2).take())
            [{'id': 3}, {'id': 4}]
        """
        if not isinstance(expression, pc.Expression):
            raise OptionError(
                f"expression={shown(expression)} must be a pyarrow.compute.Expression, for example pc.field('x') > 0; "
                "to filter by a function use map_batches"
            )
        return self._then(Apply(FilterRows(expression)))

    def limit(self, n: int) -> Dataset:
        """Let `n` rows through, then stop all work behind.

        Example:
            >>> import asyncio, aiodata
            >>> asyncio.run(aiodata.range(10**9).limit(7).count())
            7
        """
        return self._then(Limit(at_least("n", n, 0)))

    def shuffle_blocks(self, seed: int | None = None) -> Dataset:
        """Read the source's blocks in another order in each pass.

        The blocks of files are their row groups; of what is in memory, the blocks that it is divided into. It costs
        nothing; rows within a block keep their order, for which see `local_shuffle_buffer_size`. A union's sources are
        shuffled each by itself.

        Args:
            seed: The order follows from the seed and the number of the pass over one `Batches` (or of the epoch of
                splits) alone; with `preserve_order` so does that of the rows. None: another one each time.

        Raises:
            OptionError: The seed is no integer of at least 0; or a limit is before it, so that other rows would come.

        Example:
            >>> import asyncio, aiodata
            >>> async def main():
            ...     ds = aiodata.range(6, num_blocks=3).shuffle_blocks(seed=3).with_options(preserve_order=True)
            ...     batches = ds.aiter_batches(batch_size=6)
            ...     for _ in range(2):
            ...         async for batch in batches:
            ...             print(batch["id"])
            >>> asyncio.run(main())
            [2 3 4 5 0 1]
            [0 1 4 5 2 3]
        """
        shuffle = BlockShuffle(at_least("seed", seed, 0, optional=True))
        return Dataset(self._plan.shuffled(shuffle), self._options)

    def union(self, *others: Dataset) -> Dataset:
        """Let the rows of other datasets through, too: after this one's if order is preserved, else as they come.

        It runs with the options of this dataset.

        Raises:
            OptionError: One of them is no dataset.

        Example:
            >>> import asyncio, aiodata
            >>> ds = aiodata.range(2).union(aiodata.range(1)).with_options(preserve_order=True)
            >>> asyncio.run(ds.take())
            [{'id': 0}, {'id': 1}, {'id': 0}]
        """
        for index, other in enumerate(others):
            if not isinstance(other, Dataset):
                raise OptionError(
                    f"others[{index}]={shown(other)} must be a Dataset: write union(a, b), without a list"
                )
        plans = (self._plan, *(other._plan for other in others))  # noqa: SLF001 - of its own class.
        return Dataset(Plan(Union(plans)), self._options) if others else self

    def streaming_split(
        self,
        n: int,
        *,
        equal: bool = False,
        locality_hints: Sequence[str | None] | None = None,
        name: str | None = None,
        namespace: str | None = None,
        options: SplitOptions | None = None,
    ) -> list[SplitIterator]:
        """Return handles for `n` consumers in other processes, which share one execution of the dataset per epoch.

        A coordinator, which is a Ray actor, keeps the dataset and runs it; the handles are small, and go to tasks,
        actors and other drivers. Ray is started or joined if it is not there yet, which blocks for seconds.

        Args:
            n: The number of splits.
            equal: Whether all splits get the same number of rows, in each epoch; up to `n - 1` rows are left out then,
                and the statistics say how many. Else whoever asks first gets the next block.
            locality_hints: The id of the Ray node that each split's consumer is on, or None; a split gets blocks on
                its own node first.
            name: A name for the coordinator, for `aiodata.attach`; it then lives until it is closed, whatever becomes
                of this process.
            namespace: The Ray namespace of the name; by default one of aiodata's own.
            options: What happens where splits are late or lost.

        Raises:
            OptionError: An argument has a value that can not work, or the name is taken.
            RuntimeUnavailableError: Ray can not be reached or started.

        Example:
            ```python
            splits = ds.streaming_split(2, equal=True)
            # An epoch begins when all splits are consumed at the same time: each goes to a worker of its own.
            await asyncio.gather(*[worker.train.remote(split) for worker, split in zip(workers, splits)])
            ```
        """
        return split_plan(
            self._plan,
            self._options,
            n,
            equal=equal,
            locality_hints=locality_hints,
            name=name,
            namespace=namespace,
            options=SplitOptions() if options is None else options,
        )

    def with_options(self, **options: Any) -> Dataset:
        """Return the dataset with some `ExecutionOptions` changed.

        Raises:
            OptionError: An option is unknown, or its value can not work.

        Example:
            >>> import aiodata
            >>> ds = aiodata.range(4).with_options(runtime="local", preserve_order=True)
        """
        return Dataset(self._plan, self._options.override(**options))

    async def materialize(self) -> Dataset:
        """Run the dataset once, in source order, and return its blocks as a dataset, whose passes run no task for them.

        The blocks stay where the run made them, on Ray in the object store, as long as the returned dataset lives; they
        have to fit there. It runs where they are: on the same runtime.

        Example:
            >>> import asyncio, aiodata
            >>> async def main():
            ...     ds = await aiodata.range(4).map_batches(lambda batch: {"id": batch["id"] * 2}).materialize()
            ...     return await ds.count(), await ds.count()
            >>> asyncio.run(main())
            (4, 4)
        """
        unbounded = self._options.override(preserve_order=True, max_object_store_bytes=_UNBOUNDED_BYTES)
        made = LatestRun()
        try:
            async with Dataset(self._plan, unbounded, made).aiter_bundles() as iterator:
                bundles = [bundle async for bundle in iterator]
        finally:
            self._latest.note(made.stats)
        schema = bundles[0].schema if bundles else await find_schema(self._plan, self._options)
        source = StoredSource("materialized", tuple(bundles), schema)
        return Dataset(Plan(Read(source)), self._options.override(runtime=made.stats.runtime), made)

    async def schema(self) -> pa.Schema:
        """Return the schema that all batches have, in Arrow's types.

        It follows from the sources and the verbs; only where a function makes the rows, and `schema=` does not say
        what it returns, a short run finds out. Files that cannot be read say nothing where `max_errored_blocks` allows
        errors.

        Example:
            >>> import asyncio, aiodata
            >>> asyncio.run(aiodata.range(3).schema()).names
            ['id']
        """
        return without_marks(await find_schema(self._plan, self._options, self._latest))

    async def count(self) -> int:
        """Return the number of rows that an iteration gives, from metadata where that suffices, else by a run.

        The run fetches no block. Where `max_errored_blocks` allows errors, there always is one: what files say of
        themselves does not tell which rows can be read.

        Example:
            >>> import asyncio, aiodata
            >>> asyncio.run(aiodata.range(3).count())
            3
        """
        return await count_rows(self._plan, self._options, self._latest)

    async def take(self, n: int = 20) -> list[dict[str, Any]]:
        """Return up to `n` rows as dicts of Python values, the first ones in source order.

        Tensors are NumPy arrays of their shape. `aiodata.from_items` makes a dataset of such rows again.

        Raises:
            TaskError: The user's function failed, a read did, or Python has no such values.

        Example:
            >>> import asyncio, aiodata
            >>> asyncio.run(aiodata.range(3).take(1))
            [{'id': 0}]
        """
        return python_rows(await self._head(n), "take")

    async def take_batch(self, n: int = 20, *, batch_format: str = "numpy") -> Any:
        """Return up to `n` rows as one batch, the first ones in source order; it looks as in an iteration.

        Raises:
            TaskError: The user's function failed, a read did, or the format has no such values.

        Example:
            >>> import asyncio, aiodata
            >>> asyncio.run(aiodata.range(3).take_batch(2))
            {'id': array([0, 1])}
        """
        n = at_least("n", n, 0)
        fmt = get_format(batch_format, writable=True)
        ordered = self._first(n)
        async with ordered.aiter_batches(batch_size=max(1, n), batch_format=batch_format) as batches:
            async for batch in batches:
                return batch
        schema = await find_schema(self._plan, self._options)
        with blame("take_batch", Origin("no rows", None)):
            return fmt.convert(pa.RecordBatch.from_pylist([], schema=schema))

    def stats(self) -> RunStats:
        """Return what the latest run of this object has done that has ended: an iteration, or a verb like `count`.

        What was skipped is in `errors`. Of a dataset that `materialize` has returned, it is the run that made its
        blocks, until it is iterated itself. All is empty before the first run, and after a question that needed none.

        Example:
            >>> import asyncio, aiodata
            >>> ds = aiodata.range(3).map_batches(lambda batch: {"x": 1 / batch["no such column"]})
            >>> ds = ds.with_options(max_errored_blocks=-1, runtime="local")
            >>> asyncio.run(ds.count()), ds.stats().errored_blocks > 0
            (0, True)
        """
        return self._latest.stats

    def explain(self) -> str:
        """Show how the dataset is carried out: its stages, and what was pushed down and fused.

        Example:
            >>> import aiodata
            >>> print(aiodata.range(3).limit(2).explain())
            range(3) -> limit(2)    one task reads and transforms
            limit(2)                narrows row ranges, then ends what is before it
        """
        return explain(self._plan)

    def __repr__(self) -> str:
        """Show the stages."""
        return f"<Dataset {' | '.join(line.split('    ')[0].rstrip() for line in self.explain().splitlines())}>"

    def _first(self, n: int) -> Dataset:
        """Return the first rows, whose runs count as those of this dataset."""
        options = self._options.override(preserve_order=True)
        return Dataset(self._plan.then(Limit(n)), options, self._latest)

    async def _head(self, n: int) -> pa.Table:
        async with self._first(at_least("n", n, 0)).aiter_batches(batch_size=None, batch_format="pyarrow") as batches:
            blocks = [block async for block in batches]
        if not blocks:
            return without_marks(await find_schema(self._plan, self._options)).empty_table()
        with blame("take", Origin("the first blocks", None)):
            return concat_blocks(blocks)

    def _supply(self, *, in_order: bool) -> tuple[Callable[[Pass], Feed], ExecutionOptions]:
        options = self._options.override(preserve_order=True) if in_order else self._options
        return partial(LocalFeed, self._plan, options, latest=self._latest), options

    def _then(self, step: Apply | Limit) -> Dataset:
        return Dataset(self._plan.then(step), self._options)
