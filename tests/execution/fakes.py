"""A runtime with handles: its tasks do what a test tells them, a step at a time."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import pyarrow as pa

from aiodata.bundle import BlockMetadata, BlockRef, RefBundle
from aiodata.errors import AiodataError
from aiodata.options import ExecutionOptions
from aiodata.plan.nodes import Resources
from aiodata.plan.pieces import BlockPiece, Chunk, Piece
from aiodata.plan.source import Skip, Source
from aiodata.plan.transforms import Transform
from aiodata.plan.work import OutputMetadata, Position, TaskEnd, Work
from aiodata.runtime.base import OnReady, Outcome, Pair

SCHEMA = pa.schema([("id", pa.int64())])
OPTIONS = ExecutionOptions(runtime="local", close_timeout_s=1.0)
ROW_BYTES = 8


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class FakeBlock:
    """A block: its rows' ids, and how many bytes it stands for; its own reference."""

    ids: tuple[int, ...]
    num_bytes: int
    is_size_known: bool = True

    @property
    def metadata(self) -> BlockMetadata:
        return BlockMetadata(len(self.ids), self.num_bytes, SCHEMA, "fake")


class FakeMetadata:
    """What stands for a pair's metadata: under way until it is settled."""

    def __init__(self, outcome: Outcome, *, is_pending: bool = False) -> None:
        self._outcome = outcome
        self._settled = anyio.Event()
        if not is_pending:
            self._settled.set()

    @property
    def outcome(self) -> Outcome:
        return self._outcome if self._settled.is_set() else None

    def settle(self, error: Exception | None = None) -> None:
        """Let it come, or fail."""
        if error is not None:
            self._outcome = error
        self._settled.set()

    async def wait(self) -> OutputMetadata | TaskEnd:
        await self._settled.wait()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome


def output_of(block: FakeBlock) -> OutputMetadata:
    return OutputMetadata(block.metadata, 1, 0.0)


def pair_of(*ids: int, is_pending: bool = False, error: Exception | None = None, num_bytes: int | None = None) -> Pair:
    """A pair of a block of these ids."""
    block = FakeBlock(ids, ROW_BYTES * len(ids) if num_bytes is None else num_bytes)
    return Pair(block, FakeMetadata(error or output_of(block), is_pending=is_pending))


def end_pair(end: TaskEnd | None = None, *, is_pending: bool = False, num_bytes: int = 0) -> Pair:
    """A pair that is a task's end."""
    return Pair(FakeBlock((), num_bytes), FakeMetadata(end or TaskEnd(), is_pending=is_pending))


class FakeTask:
    """A task that produces what it is told to.

    Attributes:
        work: What it is to do.
        refs: The blocks that it was given, until it ends.
        is_running: Whether it has neither ended nor was cancelled.
        has_ended: Whether it has said goodbye.
        room: How many blocks it may make beyond the room that it had.
    """

    def __init__(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> None:
        self.work = work
        self.refs = list(refs)
        self.is_running = True
        self.was_cancelled = False
        self.has_ended = False
        self.num_pulls = 0
        self.room = 0
        self._on_ready = on_ready
        self._pairs: list[Pair] = []

    @property
    def ids(self) -> list[int]:
        """The rows that it is to read, from where it starts."""
        ids: list[int] = []
        for piece in self.work.pieces:
            if isinstance(piece, BlockPiece):
                ids += self.refs[piece.index].ids[piece.start : piece.stop]
            else:
                ids += cast("IdsPiece", piece).ids
        return ids[self.work.start.row :]

    def pull(self) -> list[Pair]:
        self.num_pulls += 1
        pairs, self._pairs = self._pairs, []
        return pairs

    def give_room(self, num_blocks: int) -> None:
        self.room = num_blocks

    def cancel(self) -> None:
        self.was_cancelled = True
        self._stop()
        self._pairs.clear()

    async def wait_stopped(self) -> None:
        assert self.was_cancelled

    def give(self, *pairs: Pair) -> None:
        """Let pairs surface."""
        self._pairs += pairs
        self._on_ready(self)

    def produce(self, *ids: int, num_bytes: int | None = None) -> None:
        """Yield a block whose metadata is there."""
        self.give(pair_of(*ids, num_bytes=num_bytes))

    def end(
        self,
        rest: Position | None = None,
        error: AiodataError | None = None,
        errors: tuple[AiodataError, ...] = (),
        *,
        is_worker_lost: bool = False,
    ) -> None:
        """Say goodbye."""
        self.has_ended = True
        self._stop()
        self.give(end_pair(TaskEnd(rest, error, errors, is_worker_lost)))

    def work_on(self, max_rows: int | None = None, *, num_bytes: int | None = None) -> None:
        """Produce a block of the next rows, and end with it; where rows are left, they are the rest."""
        ids = self.ids[:max_rows]
        rest = self._rest_after(len(ids))
        self.produce(*ids, num_bytes=num_bytes)
        self.end(rest)

    def _rest_after(self, num_rows: int) -> Position | None:
        row = self.work.start.row + num_rows
        for index, piece in enumerate(self.work.pieces):
            size = piece.stop - piece.start if isinstance(piece, BlockPiece) else len(cast("IdsPiece", piece).ids)
            if row < size:
                return Position(index, 0, row)
            row -= size
        return None

    def _stop(self) -> None:
        self.is_running = False
        self.refs.clear()


class FakeActor:
    """An actor that becomes ready, or fails, when it is told to."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.tasks: list[FakeTask] = []
        self.is_stopped = False
        self._runtime = runtime
        self.begun = anyio.Event()
        self._ready = anyio.Event()
        self._error: Exception | None = None

    async def wait_begun(self) -> None:
        await self.begun.wait()

    async def wait_ready(self) -> None:
        await self._ready.wait()
        if self._error is not None:
            raise self._error

    def become_ready(self, error: Exception | None = None) -> None:
        self._error = error
        self.begun.set()
        self._ready.set()

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> FakeTask:
        assert self._ready.is_set()
        assert not self.is_stopped
        self.tasks.append(self._runtime.start(work, refs, on_ready))
        return self.tasks[-1]

    @property
    def load(self) -> int:
        return sum(task.is_running for task in self.tasks)

    def stop(self) -> None:
        self.is_stopped = True

    async def wait_stopped(self) -> None:
        assert self.is_stopped


class FakeStage:
    """A stage, with what was started for it."""

    def __init__(self, runtime: FakeRuntime, name: str) -> None:
        self.name = name
        self.tasks: list[FakeTask] = []
        self.actors: list[FakeActor] = []
        self._runtime = runtime

    def submit(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> FakeTask:
        self.tasks.append(self._runtime.start(work, refs, on_ready))
        return self.tasks[-1]

    def start_actor(self) -> FakeActor:
        self.actors.append(FakeActor(self._runtime))
        if self._runtime.actors_are_ready:
            self.actors[-1].become_ready()
        return self.actors[-1]

    @property
    def running(self) -> list[FakeTask]:
        return [task for task in self.tasks if task.is_running]


@dataclass
class FakeRuntime:
    """Where tasks do what they are told.

    Attributes:
        num_cpus: CPUs.
        store_bytes: Bytes of blocks that it says it can keep.
        actors_are_ready: Whether actors are ready as soon as they are started.
        stages: The stages, by name.
        tasks: All tasks that were started.
        fetched: How many pairs each call of `fetch_ready` was about.
        room_for: How many tasks or actors that take so much it says can run at a time.
    """

    num_cpus: int = 2
    store_bytes: int = 1 << 40
    actors_are_ready: bool = True
    stages: dict[str, FakeStage] = field(default_factory=dict)
    tasks: list[FakeTask] = field(default_factory=list)
    fetched: list[int] = field(default_factory=list)
    name: str = "fake"
    room_for: Callable[[Resources], int | None] = lambda resources: None

    def max_at_once(self, resources: Resources) -> int | None:
        return self.room_for(resources)

    async def stage(self, name: str, chain: Sequence[Transform], resources: Resources) -> FakeStage:
        return self.stages.setdefault(name, FakeStage(self, name))

    def start(self, work: Work, refs: Sequence[BlockRef], on_ready: OnReady) -> FakeTask:
        self.tasks.append(FakeTask(work, refs, on_ready))
        return self.tasks[-1]

    @property
    def running(self) -> list[FakeTask]:
        return [task for task in self.tasks if task.is_running]

    async def put(self, block: pa.Table) -> BlockRef:
        return FakeBlock(tuple(block["id"].to_pylist()), block.nbytes)

    async def get(self, ref: BlockRef) -> pa.Table:
        return pa.table({"id": pa.array(ref.ids, pa.int64())})

    def fetch_ready(self, pairs: Sequence[Pair]) -> list[Outcome]:
        self.fetched.append(len(pairs))
        return [pair.metadata.outcome for pair in pairs]

    async def fetch(self, pair: Pair) -> OutputMetadata | TaskEnd:
        metadata: FakeMetadata = pair.metadata
        return await metadata.wait()

    def size_of(self, ref: BlockRef) -> int | None:
        return ref.num_bytes if ref.is_size_known else None

    def node_of(self, ref: BlockRef) -> str | None:
        return None

    def on_release(self, ref: BlockRef, callback: Callable[[], None]) -> None:
        weakref.finalize(ref, _call_in_loop, asyncio.get_running_loop(), callback)


def _call_in_loop(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon(callback)


@dataclass(frozen=True, slots=True)
class IdsPiece:
    """A piece that stands for rows with these ids."""

    ids: tuple[int, ...]

    @property
    def weight(self) -> int:
        """Bytes of the rows."""
        return ROW_BYTES * len(self.ids)

    @property
    def num_rows(self) -> int | None:
        """Unknown: a fake task has no batches."""
        return None

    def bind(self, blocks: Sequence[pa.Table]) -> Piece:
        """Return itself."""
        return self

    def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Never called: a fake task reads nothing."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class IdsSource(Source):
    """A source of so many rows, `rows_per_piece` of them in a piece."""

    num_rows: int
    rows_per_piece: int = 1
    first: int = 0
    name: str = "ids"

    def with_columns(self, columns: tuple[str, ...]) -> Source | None:
        return None

    def with_filter(self, expression: Any) -> Source | None:
        return None

    def pieces(self, num_tasks: int, skip: Skip) -> Sequence[Piece]:
        ids = range(self.first, self.first + self.num_rows)
        return [IdsPiece(tuple(ids[at : at + self.rows_per_piece])) for at in range(0, len(ids), self.rows_per_piece)]

    def bundles(self) -> Iterable[RefBundle] | None:
        return None

    def schema(self, skip: Skip) -> pa.Schema:
        return SCHEMA

    def count_rows(self, skip: Skip) -> int | None:
        return None


async def settle(turns: int = 40) -> None:
    """Let the loop turn until what is under way has been seen to."""
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()


def ids_in(bundle: RefBundle) -> list[int]:
    """The ids in a bundle's range of rows."""
    ids: tuple[int, ...] = bundle.ref.ids
    return list(ids[bundle.start : bundle.stop])
