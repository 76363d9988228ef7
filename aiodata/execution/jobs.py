"""Jobs: what waits for a task, and in which order it may start; no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from aiodata.bundle import BlockRef, RefBundle
from aiodata.execution.ordering import OutputOrder
from aiodata.plan.pieces import BlockPieces, PartPiece, Piece
from aiodata.plan.work import Position

# Bytes of files that one task is given to read, at most; a single piece may have more.
_MAX_JOB_BYTES = 64 << 20

# Pieces that one task is given to read, at most: small ones cost more than their bytes say.
_MAX_JOB_PIECES = 1024

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
        # The parts of the source, and the next of them: a source may have more than memory has room for.
        self._parts: Iterator[tuple[Piece, ...]] = iter(())
        self._job: Job | None = None
        self._rests: dict[int, Job] = {}
        self._bundles: deque[RefBundle] = deque()
        self._num_numbered = 0
        self.num_bundle_bytes = 0

    def __len__(self) -> int:
        """Jobs that are known, and blocks that are not part of a job yet; 0: there is nothing to do."""
        return (self._job is not None) + len(self._rests) + len(self._bundles)

    @property
    def num_bundles(self) -> int:
        """Blocks that are not part of a job yet."""
        return len(self._bundles)

    def add_pieces(self, pieces: Sequence[Piece], num_tasks: int) -> None:
        """Divide a source's pieces into jobs, each when the one before it is taken."""
        self._parts = align(divide(pieces, num_tasks), self._batch_rows)
        self._take_part()

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
        return not (self._job or self._rests or self.is_complete) and 0 < self._bundle_rows < self._batch_rows

    @property
    def is_head_waiting(self) -> bool:
        """Whether the rest of the job that all others have to wait for is here; not so where none has to wait."""
        return self._order.preserves and self._order.head in self._rests

    def may_take(self) -> bool:
        """Whether there is a job that may start."""
        if self._startable_rest() is not None:
            return True
        has_blocks = bool(self._bundles) and (self.is_complete or self._bundle_rows >= self._batch_rows)
        return bool(self._job or has_blocks) and self._order.may_start(self._first_new_number(), is_rest=False)

    def is_worth_a_task(self, num_blocks: int) -> bool:
        """Whether what may start is more than a few small blocks: fewer than `num_blocks`, which may still be."""
        if self._job or self._startable_rest() is not None:
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
        if (job := self._job) is not None:
            self._take_part()
            return job
        share = max(-(-len(self._bundles) // num_free), min_blocks)
        return self._gather(min(share, max_blocks, _MAX_JOB_BLOCKS))

    def clear(self) -> None:
        """Let go of everything."""
        self._parts, self._job = iter(()), None
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
        return self._num_numbered if self._job is None else self._job.number

    def _take_part(self) -> None:
        part = next(self._parts, None)
        self._job = None if part is None else Job(self._next_number(), part)

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


def divide(pieces: Sequence[Piece], num_tasks: int) -> Iterator[tuple[Piece, ...]]:
    """Divide pieces, in order, into jobs of about equal weight: at least `num_tasks`, if there are as many pieces.

    Example:
        Eight pieces of one weight and four tasks give four jobs of two pieces.
    """
    target = _job_bytes(pieces, num_tasks)
    job: list[Piece] = []
    num_jobs = weight = 0
    for index, piece in enumerate(pieces):
        job.append(piece)
        weight += piece.weight
        must_leave_enough = len(pieces) - index - 1 <= num_tasks - num_jobs - 1
        if weight >= target or must_leave_enough or len(job) == _MAX_JOB_PIECES:
            yield tuple(job)
            job, weight, num_jobs = [], 0, num_jobs + 1
    if job:
        yield tuple(job)


def _job_bytes(pieces: Sequence[Piece], num_tasks: int) -> float:
    """Return the bytes of a job; where there is enough for jobs of the largest size, no more pieces are looked at."""
    total = 0
    for index, piece in enumerate(pieces):
        total += piece.weight
        if total >= _MAX_JOB_BYTES * num_tasks or index >= _MAX_JOB_PIECES * num_tasks:
            return _MAX_JOB_BYTES
    return total / num_tasks


def align(jobs: Iterable[tuple[Piece, ...]], batch_rows: int) -> Iterator[tuple[Piece, ...]]:
    """Move rows from the beginning of one job to the end of the one before, so that each has whole batches.

    A small piece is cut in two for that. A large one is not, since both jobs would read it; nor are pieces of which it
    is not known how many rows they have.

    Args:
        jobs: Pieces in order, by jobs.
        batch_rows: The rows of a batch.
    """
    later = map(deque, jobs)
    following: deque[Piece] | None = next(later, None)
    while (job := following) is not None:
        following = next(later, None)
        missing = _missing_rows(job, batch_rows)
        while missing and following is not None:
            if not following:
                following = next(later, None)
            elif (piece := _cut_first(following, missing)) is not None:
                job.append(piece)
                missing -= piece.num_rows or 0
            else:
                break
        if job:
            yield tuple(job)


def _missing_rows(job: Iterable[Piece], batch_rows: int) -> int:
    """Return how many rows a job's last batch lacks; 0 where that is not known."""
    if batch_rows == 1:
        return 0
    num_rows = 0
    for piece in job:
        if piece.num_rows is None:
            return 0
        num_rows += piece.num_rows
    return -num_rows % batch_rows


def _cut_first(job: deque[Piece], max_rows: int) -> Piece | None:
    """Take the first piece of a job, or so many rows of it; None: it cannot be cut."""
    num_rows = job[0].num_rows
    if num_rows is None or (num_rows > max_rows and job[0].weight > _MAX_CUT_BYTES):
        return None
    piece = job.popleft()
    if num_rows <= max_rows:
        return piece
    part = piece if isinstance(piece, PartPiece) else PartPiece(piece, 0, num_rows)
    middle = part.start + max_rows
    job.appendleft(PartPiece(part.piece, middle, part.stop))
    return PartPiece(part.piece, part.start, middle)
