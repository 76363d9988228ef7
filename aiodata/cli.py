"""The `aiodata` command: stream a dataset, look into it, check the installation."""

import asyncio
import contextlib
import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

import aiodata

_REDRAW_S = 0.1
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it.
_MAX_CELL_CHARS = 32
_COLUMN_GAP = 3  # What rich puts between two columns of this box.
_PIPE_WIDTH = 10_000

app = typer.Typer(
    name="aiodata",
    help="Stream data, look into it, and see where the time goes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


class BatchFormat(enum.StrEnum):
    """What `--format` takes: the form of the batches."""

    NUMPY = "numpy"
    PYARROW = "pyarrow"
    PANDAS = "pandas"
    POLARS = "polars"
    TORCH = "torch"


class RuntimeName(enum.StrEnum):
    """What `--runtime` takes: where the work runs."""

    AUTO = "auto"
    LOCAL = "local"
    RAY = "ray"


PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="A Parquet file, directory, glob or URI.")]
RuntimeOption = Annotated[RuntimeName, typer.Option("--runtime", help="Where the work runs.")]


def main() -> None:
    """Run the command line; the entry point of the `aiodata` script."""
    app()


@app.command()
def scan(
    path: PathArgument,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per batch.")] = 256,
    batch_format: Annotated[BatchFormat, typer.Option("--format", help="Form of the batches.")] = BatchFormat.NUMPY,
    runtime: RuntimeOption = RuntimeName.AUTO,
    limit: Annotated[int | None, typer.Option(min=0, help="Stop after this many rows.")] = None,
) -> None:
    """Stream a dataset batch by batch, then say how fast it went and where the time was spent."""

    async def stream() -> aiodata.IterationStats:
        dataset = _dataset(path, runtime)
        if limit is not None:
            dataset = dataset.limit(limit)
        async with dataset.aiter_batches(batch_size=batch_size, batch_format=batch_format.value) as batches:
            with _live_progress(batches.stats):
                async for _ in batches:
                    pass
        return batches.stats()

    with _clean_exit():
        _console().print(_summary(aiodata.run(stream)))


@app.command()
def head(
    path: PathArgument,
    num_rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows.")] = 10,
    runtime: RuntimeOption = RuntimeName.AUTO,
) -> None:
    """Show the first rows as a table."""

    async def take() -> list[dict[str, Any]]:
        return await _dataset(path, runtime).take(num_rows)

    with _clean_exit():
        console = _console()
        for part in _rows_table(aiodata.run(take), console.width):
            console.print(part)


@app.command()
def schema(path: PathArgument, runtime: RuntimeOption = RuntimeName.AUTO) -> None:
    """Show the columns and their types."""

    async def learn() -> Any:
        return await _dataset(path, runtime).schema()

    with _clean_exit():
        fields = aiodata.run(learn)
        table = _plain_table("column", "type")
        for field in fields:
            table.add_row(Text(field.name), Text(str(field.type) + ("" if field.nullable else " not null")))
        _console().print(table)


@app.command()
def explain(path: PathArgument, runtime: RuntimeOption = RuntimeName.AUTO) -> None:
    """Show how the dataset would be run, without running it."""
    with _clean_exit():
        typer.echo(_dataset(path, runtime).explain())


@app.command()
def doctor() -> None:
    """Check the installation and this machine; each fault comes with its remedy."""
    from aiodata.doctor import Verdict, checks

    found = list(checks())
    table = _plain_table("", "what", "found", "remedy")
    for check in found:
        cells = (check.what, check.found, check.remedy)
        table.add_row(Text(check.verdict.value, check.verdict.style), *map(Text, cells))
    _console().print(table)
    if any(check.verdict is Verdict.FAULT for check in found):
        raise typer.Exit(1)


def _dataset(path: str, runtime: RuntimeName) -> "aiodata.Dataset":
    return aiodata.read_parquet(path).with_options(runtime=runtime.value, measure_loop_lag=True)


def _console() -> Console:
    """Return a console for stdout: as wide as the terminal, and without an edge where there is none (a pipe)."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)


@contextlib.contextmanager
def _clean_exit() -> Iterator[None]:
    """Turn our own errors into one red line and exit code 1, Ctrl-C into 130 without a word.

    Raises:
        typer.Exit: In place of the errors named above. All others are bugs and keep their traceback.
    """
    try:
        yield
    except aiodata.AiodataError as error:
        message = " ".join(str(error).split())
        Console(stderr=True).print(Text(f"error: {message}", style="red"), soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(_EXIT_INTERRUPTED) from None


@contextlib.contextmanager
def _live_progress(snapshot: "Callable[[], aiodata.IterationStats]") -> Iterator[None]:
    """Keep a line of figures on stderr up to date while the block runs; silent without a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    line = _LiveLine(console, snapshot)
    try:
        with line.progress:
            yield
    finally:
        line.stop()


class _LiveLine:
    """A line of figures that a timer of the running loop redraws.

    So a batch costs nothing extra, and the line moves while no batch comes. (Left to itself, rich would
    draw from a thread of its own.)
    """

    def __init__(self, console: Console, snapshot: "Callable[[], aiodata.IterationStats]") -> None:
        from rich.progress import Progress, SpinnerColumn, TextColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
        self.progress = Progress(*columns, console=console, auto_refresh=False, transient=True)
        self._snapshot = snapshot
        self._task = self.progress.add_task("")
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle = self._loop.call_soon(self._redraw)

    def stop(self) -> None:
        """Redraw no more."""
        self._timer.cancel()

    def _redraw(self) -> None:
        self.progress.update(self._task, description=_progress_line(self._snapshot()), refresh=True)
        self._timer = self._loop.call_later(_REDRAW_S, self._redraw)


def _progress_line(stats: "aiodata.IterationStats") -> str:
    rate = _per_second(stats.rows, stats.elapsed_s)
    return f"{stats.rows:,} rows · {rate} · {stats.batches:,} batches · {stats.elapsed_s:.1f} s"


def _summary(stats: "aiodata.IterationStats") -> RenderableType:
    """Render what a finished scan did: the totals, where the time went, and each operator's share."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("rows", f"{stats.rows:,}")
    facts.add_row("batches", f"{stats.batches:,}")
    facts.add_row("data", f"{_size(stats.bytes)} in {stats.blocks:,} blocks")
    facts.add_row("runtime", stats.runtime)
    facts.add_row("speed", _per_second(stats.rows, stats.elapsed_s))
    facts.add_row("first batch", "none came" if stats.first_batch_s is None else f"after {_time(stats.first_batch_s)}")
    facts.add_row("time", _time(stats.elapsed_s))
    facts.add_row("held ahead", f"{_size(stats.peak_prefetched_bytes)} at most")
    if stats.loop_lag is not None:
        facts.add_row(
            "event loop", f"late by {_time(stats.loop_lag.p99_s)} (p99), {_time(stats.loop_lag.max_s)} at most"
        )
    parts: list[RenderableType] = [facts, _where_the_time_went(stats)]
    if stats.operators:
        parts.append(_operators_table(stats))
    parts += [Text(f"skipped: {error}", style="yellow") for error in stats.errors]
    return Group(*parts)


def _where_the_time_went(stats: "aiodata.IterationStats") -> Table:
    accounted_s = stats.wait_s + stats.format_s + stats.user_s
    table = _plain_table("where the time went", "time", "share")
    for name, spent_s in (
        ("waiting for data", stats.wait_s),
        ("cutting and converting batches", stats.format_s),
        ("in the consumer's code", stats.user_s),
        ("everything else", max(0.0, stats.elapsed_s - accounted_s)),
    ):
        share = spent_s / stats.elapsed_s if stats.elapsed_s > 0 else 0.0
        table.add_row(name, _time(spent_s), f"{share:.0%}")
    table.add_row("closing, after the last batch", _time(stats.closing_s), "")
    return table


def _operators_table(stats: "aiodata.IterationStats") -> Table:
    table = _plain_table("operator", "tasks", "blocks", "rows", "data", "time in workers")
    for operator in stats.operators:
        counts = (f"{count:,}" for count in (operator.tasks, operator.blocks, operator.rows))
        table.add_row(Text(operator.name), *counts, _size(operator.bytes), _time(operator.task_s))
    return table


def _plain_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _rows_table(rows: Sequence[Mapping[str, Any]], width: int) -> Iterable[RenderableType]:
    """Yield a table of the rows with the columns that fit into `width` characters, then a word on the rest."""
    if not rows:
        yield Text("no rows")
        return
    names = list(rows[0])
    cells = {name: [_cell(row[name]) for row in rows] for name in names}
    shown: list[str] = []
    used = 0
    for name in names:
        used += max(len(name), *map(len, cells[name])) + _COLUMN_GAP
        if shown and used > width:
            break
        shown.append(name)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in shown:
        table.add_column(Text(name), no_wrap=True)
    for row in zip(*(cells[name] for name in shown), strict=True):
        table.add_row(*map(Text, row))
    yield table
    if len(shown) < len(names):
        yield Text(f"Not shown, for want of room: {', '.join(names[len(shown) :])}", style="dim")


def _cell(value: Any) -> str:
    text = "null" if value is None else " ".join(str(value).split())
    return text if len(text) <= _MAX_CELL_CHARS else f"{text[: _MAX_CELL_CHARS - 1]}…"


def _per_second(rows: int, elapsed_s: float) -> str:
    return f"{rows / elapsed_s:,.0f} rows/s" if elapsed_s > 0 else "– rows/s"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.1f} {unit}" if unit != "B" else f"{num_bytes} B"
        size /= 1024
    return f"{size:,.1f} GiB"


if __name__ == "__main__":
    main()
