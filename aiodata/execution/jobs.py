"""Jobs: what waits for a task, and in which order it may start; no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from aiodata.bundle import BlockRef, RefBundle
from aiodata.execution.ordering import OutputOrder
from aiodata.plan.pieces import BlockPieces, PartPiece, Piece
from aiodata.plan.work import Position

# Bytes of files that one task is given to read, at most; a single piece may have more.
_MAX_JOB_BYTES = 64 << 20

# Bytes of a piece that two tasks may read, so that the first one's last batch is full.
_MAX_CUT_BYTES = 1 << 20

# Blocks that one task is given, at most; each is an argument, which has to be resolved before the task starts.
_MAX_JOB_BLOCKS = 128


@dataclass(frozen=True, slots=True)
class Job:
    """Pieces that wait for a task.

    Attributes:
        number: Its place in the order of the input.
        pieces: What to read.
        refs: The blocks that pieces stand for: one for each of them, or none.
        start: Where in the pieces to start.
    """

    number: int
    pieces: Sequence[Piece]
    refs: tuple[BlockRef, ...] = ()
    start: Position = Position()

    def rest(self, position: Position) -> Job:
        """Return what is left from `position` on."""
        done = position.piece
        return Job(self.number, self.pieces[done:], self.refs[done:], replace(position, piece=0))


class JobQueue:
    """Hands out the jobs of an operator: parts of its source, or of what it is sent, and the rests of earlier jobs.

    Args:
        order: Which jobs may start.
        max_job_bytes: Bytes of blocks that one job takes together, at most; a single block may have more.
        batch_rows: Rows that a job has a multiple of, so that no call of a user's function gets fewer: the last job
            excepted, and those that end in a large piece of a source. None: as they come.

    Attributes:
        is_complete: Whether nothing is added any more.
    """

    def __init__(self, order: OutputOrder, max_job_bytes: int, batch_rows: int | None = None) -> None:
        """Nothing waits."""
        self._order = order
        self._max_job_bytes = max_job_bytes
        self._batch_rows = batch_rows or 1
        self._bundle_rows = 0
        self.is_complete = False
        self._jobs: deque[Job] = deque()
        self._rests: dict[int, Job] = {}
        self._bundles: deque[RefBundle] = deque()
        self._num_numbered = 0
        self.num_bundle_bytes = 0

    def __len__(self) -> int:
        """Jobs, and blocks that are not part of a job yet."""
        return len(self._jobs) + len(self._rests) + len(self._bundles)

    @property
    def num_bundles(self) -> int:
        """Blocks that are not part of a job yet."""
        return len(self._bundles)

    def add_pieces(self, pieces: Sequence[Piece], num_tasks: int) -> None:
        """Divide a source's pieces into jobs."""
        for part in align(divide(pieces, num_tasks), self._batch_rows):
            self._jobs.append(Job(self._next_number(), part))

    def add_bundle(self, bundle: RefBundle) -> None:
        """Add a block."""
        self._bundles.append(bundle)
        self._bundle_rows += bundle.num_rows
        self.num_bundle_bytes += bundle.metadata.num_bytes

    def add_rest(self, job: Job) -> None:
        """Add what an earlier task has left; it comes before what has not begun."""
        self._rests[job.number] = job

    @property
    def is_short_of_rows(self) -> bool:
        """Whether all that waits is a few rows, fewer than a call gets, which others will come to."""
        return not (self._jobs or self._rests or self.is_complete) and 0 < self._bundle_rows < self._batch_rows

    @property
    def is_head_waiting(self) -> bool:
        """Whether the rest of the job that all others have to wait for is here; not so where none has to wait."""
        return self._order.preserves and self._order.head in self._rests

    def may_take(self) -> bool:
        """Whether there is a job that may start."""
        if self._startable_rest() is not None:
            return True
        has_blocks = bool(self._bundles) and (self.is_complete or self._bundle_rows >= self._batch_rows)
        return bool(self._jobs or has_blocks) and self._order.may_start(self._first_new_number(), is_rest=False)

    def is_worth_a_task(self, num_blocks: int) -> bool:
        """Whether what may start is more than a few small blocks: fewer than `num_blocks`, which may still be."""
        if self._jobs or self._startable_rest() is not None:
            return True
        return len(self._bundles) >= min(num_blocks, _MAX_JOB_BLOCKS) or self.num_bundle_bytes >= self._max_job_bytes

    def take(self, num_free: int, min_blocks: int, max_blocks: int) -> Job:
        """Return the next job, after `may_take`.

        Args:
            num_free: Among how many tasks the blocks that wait are shared out evenly.
            min_blocks: How many blocks the job gets at least, if there are as many.
            max_blocks: How many blocks it gets at most.
        """
        if (number := self._startable_rest()) is not None:
            return self._rests.pop(number)
        if self._jobs:
            return self._jobs.popleft()
        share = max(-(-len(self._bundles) // num_free), min_blocks)
        return self._gather(min(share, max_blocks, _MAX_JOB_BLOCKS))

    def clear(self) -> None:
        """Let go of everything."""
        self._jobs.clear()
        self._rests.clear()
        self._bundles.clear()
        self._bundle_rows = self.num_bundle_bytes = 0

    def _startable_rest(self) -> int | None:
        if not self._rests:
            return None
        if self._order.preserves:
            return self._order.head if self._order.head in self._rests else None
        return next(iter(self._rests))

    def _first_new_number(self) -> int:
        return self._jobs[0].number if self._jobs else self._num_numbered

    def _gather(self, max_blocks: int) -> Job:
        bundles: list[RefBundle] = []
        num_bytes = num_rows = 0
        while self._bundles:
            block = self._bundles[0].metadata
            is_enough = len(bundles) >= max_blocks or num_bytes + block.num_bytes > self._max_job_bytes
            if is_enough and bundles and num_rows >= self._batch_rows:
                break
            bundles.append(self._bundles.popleft())
            num_bytes += block.num_bytes
            num_rows += bundles[-1].num_rows
        self.num_bundle_bytes -= num_bytes
        self._bundle_rows -= num_rows
        if self._bundles or not self.is_complete:
            self._put_back(num_rows % self._batch_rows, bundles)
        blocks = ((one, one.metadata) for one in bundles)
        fields = [(one.start, one.stop, block.num_bytes, block.source, block.spans) for one, block in blocks]
        return Job(self._next_number(), BlockPieces.of(fields), tuple(one.ref for one in bundles))

    def _put_back(self, num_rows: int, bundles: list[RefBundle]) -> None:
        """Leave the last rows of a job, which would be a short call, to the next one."""
        while num_rows:
            last = bundles.pop()
            left = min(num_rows, last.num_rows)
            num_rows -= left
            if left < last.num_rows:
                bundles.append(last.head(last.num_rows - left))
            self._bundles.appendleft(last.skip(last.num_rows - left))
            self._bundle_rows += left
            self.num_bundle_bytes += last.metadata.num_bytes

    def _next_number(self) -> int:
        self._num_numbered += 1
        return self._num_numbered - 1


def divide(pieces: Sequence[Piece], num_tasks: int) -> list[tuple[Piece, ...]]:
    """Divide pieces, in order, into jobs of about equal weight: at least `num_tasks`, if there are as many pieces.

    Example:
        Eight pieces of one weight and four tasks give four jobs of two pieces.
    """
    total = sum(piece.weight for piece in pieces)
    target = min(total / num_tasks, _MAX_JOB_BYTES)
    jobs: list[tuple[Piece, ...]] = []
    job: list[Piece] = []
    weight = 0
    for index, piece in enumerate(pieces):
        job.append(piece)
        weight += piece.weight
        must_leave_enough = len(pieces) - index - 1 <= num_tasks - len(jobs) - 1
        if weight >= target or must_leave_enough:
            jobs.append(tuple(job))
            job, weight = [], 0
    if job:
        jobs.append(tuple(job))
    return jobs


def align(jobs: Sequence[tuple[Piece, ...]], batch_rows: int) -> list[tuple[Piece, ...]]:
    """Move rows from the beginning of one job to the end of the one before, so that each has whole batches.

    A small piece is cut in two for that. A large one is not, since both jobs would read it; nor are pieces of which it
    is not known how many rows they have.

    Args:
        jobs: Pieces in order, by jobs.
        batch_rows: The rows of a batch.
    """
    aligned: list[list[Piece]] = [list(job) for job in jobs]
    if batch_rows > 1:
        for index, job in enumerate(aligned[:-1]):
            _complete(job, aligned[index + 1 :], batch_rows)
    return [tuple(job) for job in aligned if job]


def _complete(job: list[Piece], later: Sequence[list[Piece]], batch_rows: int) -> None:
    """Take the rows that a job's last batch lacks from the jobs after it."""
    counts = [piece.num_rows for piece in job]
    if None in counts:
        return
    missing = -sum(count for count in counts if count is not None) % batch_rows
    for following in later:
        while missing and following:
            num_rows = following[0].num_rows
            if num_rows is None or (num_rows > missing and following[0].weight > _MAX_CUT_BYTES):
                return
            piece = following.pop(0)
            if num_rows > missing:
                part = piece if isinstance(piece, PartPiece) else PartPiece(piece, 0, num_rows)
                middle = part.start + missing
                following.insert(0, PartPiece(part.piece, middle, part.stop))
                piece, num_rows = PartPiece(part.piece, part.start, middle), missing
            job.append(piece)
            missing -= num_rows
