"""ShuffleBuffer: a local shuffle of a stream of rows; no I/O, no awaits, no threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, pairwise
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aiodata.block import concat_blocks
from aiodata.schemas import conform, has_known_categories, with_plain_types

# Rows before a shuffle per row of `buffer_rows`: more would copy less often, and hold more rows.
_FILL_FACTOR = 2

_Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Shuffled:
    """What a shuffle has made: copies that hold on to none of the blocks, nor to each other.

    Args:
        fill: Which shuffle of the stream it was, from 0.
        drawn: The rows that leave the buffer, in random order.
        kept: The rows that stay.
        kept_numbers: Which rows of the stream those are; they ascend.
        oldest: Which row is the oldest that is not out yet, after so many batches of `drawn`, from none to all.
    """

    fill: int
    drawn: pa.Table
    kept: pa.Table
    kept_numbers: _Indices
    oldest: _Indices


class ShuffleBuffer:
    """Gives out the rows of a stream in random order, each drawn from at least `buffer_rows` rows.

    Rows are shuffled many batches at a time: when the buffer has its fill, random rows leave it, as many whole
    batches as can be drawn one by one before fewer than `buffer_rows` rows are there at a draw. The first fill is
    the least that a batch needs; later ones are of `2 × buffer_rows` rows, and at least a batch more than
    `buffer_rows`. So a row is copied 4 times at most, amortised over the stream: twice when chunks are
    combined, once or less to stay, once to leave.

    The order depends on the arguments and on the rows, not on how blocks divide them. Rows stay as the plain types of
    the same values, where Arrow has no gathering kernel or would refer to all of a dictionary: string and binary views
    as large strings and binaries, list views as lists, run-end encoded columns and dictionaries inside other types
    decoded. They leave as what they came as, if that is the same for all blocks.

    The owner pushes `rows_wanted` rows. As long as `is_due`, it runs `job()`, in a thread if it likes, and has the
    result accepted. A job that was cancelled may be run again.

    Args:
        buffer_rows: Rows that are in the buffer, at least, whenever a batch is drawn, except at the end of the data.
        batch_rows: Rows per batch.
        seed: What the order is derived from: integers of 0 or more, of the same number for every stream.

    Example:
        >>> buffer = ShuffleBuffer(buffer_rows=2, batch_rows=2, seed=[42, 0])
        >>> buffer.push(pa.table({"x": [0, 1]}))
        >>> buffer.is_due, buffer.rows_wanted
        (True, 0)
        >>> sorted(buffer.accept(buffer.job()())["x"].to_pylist())
        [0, 1]
    """

    def __init__(self, buffer_rows: int, batch_rows: int, seed: Sequence[int]) -> None:
        """Start empty."""
        self._buffer_rows = buffer_rows
        self._batch_rows = batch_rows
        self._seed = tuple(seed)
        # That of all blocks that were pushed; None: none was, or they differ.
        self._schema: pa.Schema | None = None
        # The rows that the last shuffle kept come first.
        self._blocks: list[pa.Table] = []
        self._rows = 0
        self._full_rows = max(buffer_rows, batch_rows)
        self._fill = 0
        self._finished = False
        self._kept_numbers: _Indices = np.empty(0, np.int64)
        self._num_drawn = 0
        # Of the last shuffles: how many rows had been drawn before, and `Shuffled.oldest`.
        self._draws: deque[tuple[int, _Indices]] = deque()

    @property
    def rows_wanted(self) -> int:
        """Rows it takes before it has to be shuffled; 0: it has to be now, or is finished."""
        return 0 if self._finished else self._full_rows - self._rows

    @property
    def is_due(self) -> bool:
        """Whether a shuffle has to be made now: the buffer has its fill, or its last rows."""
        return self._is_full or (self._finished and self._rows > 0)

    @property
    def num_rows(self) -> int:
        """Rows in the buffer."""
        return self._rows

    @property
    def num_bytes(self) -> int:
        """Arrow bytes in the buffer, which a shuffle would copy now."""
        return sum(block.nbytes for block in self._blocks)

    @property
    def _is_full(self) -> bool:
        return self._rows == self._full_rows

    def push(self, block: pa.Table) -> None:
        """Add a block, without a copy; it is held until the next result has been accepted.

        Raises:
            ValueError: It has more rows than are wanted, or no columns.
        """
        if not block.num_rows:
            return
        if not block.num_columns:
            raise ValueError("a block has rows but no columns; select at least one column")
        if block.num_rows > self.rows_wanted:
            raise ValueError(f"a block of {block.num_rows} rows, where {self.rows_wanted} are wanted; push a slice")
        if not self._rows and not self._fill:
            self._schema = block.schema
        elif self._schema is not None and not block.schema.equals(self._schema):
            self._schema = None
        self._blocks.append(block)
        self._rows += block.num_rows

    def finish(self) -> None:
        """Say that no block follows."""
        self._finished = True

    def job(self) -> Callable[[], Shuffled]:
        """Return the shuffle that is due: a pure function, which may run in any thread, and more than once.

        It raises ValueError if the blocks have schemas that do not go together.

        Raises:
            RuntimeError: None is due.
        """
        if not self.is_due:
            raise RuntimeError(f"no shuffle is due; push {self.rows_wanted} more rows")
        shuffle = partial(_shuffle, tuple(self._blocks), self._schema, self._seed, self._fill, self._rows_to_draw())
        return partial(shuffle, self._batch_rows, self._kept_numbers, self._num_drawn)

    def accept(self, result: Shuffled) -> pa.Table:
        """Take the result of the job that was due, and return the rows that leave: whole batches.

        The last result of a finished stream is all that was left.

        Raises:
            ValueError: It is the result of an earlier shuffle.
        """
        if result.fill != self._fill:
            raise ValueError(f"this is the result of shuffle {result.fill}, and {self._fill} is due")
        self._rows = result.kept.num_rows
        self._blocks = [result.kept] if self._rows else []
        self._full_rows = max(_FILL_FACTOR * self._buffer_rows, self._buffer_rows + self._batch_rows)
        self._fill += 1
        self._draws.append((self._num_drawn, result.oldest))
        self._num_drawn += result.drawn.num_rows
        self._kept_numbers = result.kept_numbers
        return result.drawn

    def rows_before(self, num_drawn: int) -> int:
        """Return how many rows of the stream, from its first on, are all among the first `num_drawn` that left.

        Only whole batches count, and `num_drawn` must not fall from call to call.
        """
        while len(self._draws) > 1 and self._draws[1][0] <= num_drawn:
            self._draws.popleft()
        if not self._draws:
            return 0
        start, oldest = self._draws[0]
        return int(oldest[min((num_drawn - start) // self._batch_rows, len(oldest) - 1)])

    def _rows_to_draw(self) -> int:
        # A full buffer is treated alike before and after `finish`: whether the end is known by then is chance,
        # and the order must not depend on it.
        if not self._is_full:
            return self._rows
        draws = (self._rows - self._buffer_rows) // self._batch_rows + 1
        return min(draws, self._rows // self._batch_rows) * self._batch_rows

    def __repr__(self) -> str:
        return f"<ShuffleBuffer rows={self._rows}/{self._full_rows} shuffles={self._fill} finished={self._finished}>"


def _shuffle(
    blocks: Sequence[pa.Table],
    schema: pa.Schema | None,
    seed: Sequence[int],
    fill: int,
    num_drawn: int,
    batch_rows: int,
    old: _Indices,
    drawn_before: int,
) -> Shuffled:
    """Draw rows of the blocks at random; copy them, and apart from them the others."""
    # What was kept has plain types already; its new neighbours must have them before they can join it.
    groups = groupby(blocks, key=attrgetter("schema"))
    to_plain = partial(with_plain_types, keep_nested_dictionaries=False, keep_metadata=True)
    table = concat_blocks([to_plain(concat_blocks(list(group))) for _, group in groups])
    # The fill is the spawn key, not one more integer: numpy takes [1] and [1, 0] for the same seed.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(fill,)))
    drawn = rng.permutation(table.num_rows)[:num_drawn]
    # What stays is drawn from at random again, so its order is free, and memory is fastest read in its own.
    stays = np.ones(table.num_rows, bool)
    stays[drawn] = False
    kept = np.flatnonzero(stays)
    # One column at a time, so that no more than one is there three times over.
    columns = [_copy_rows(table.select([index]), drawn, kept) for index in range(table.num_columns)]
    leaving = pa.Table.from_arrays([column for column, _ in columns], schema=table.schema)
    return Shuffled(
        fill,
        leaving if schema is None else conform(leaving, schema),
        pa.Table.from_arrays([column for _, column in columns], schema=table.schema),
        _numbers(kept, old, drawn_before),
        _numbers(_oldest(drawn, kept, batch_rows), old, drawn_before),
    )


def _oldest(drawn: _Indices, kept: _Indices, batch_rows: int) -> _Indices:
    """Return the position of the oldest row that is not out yet, after each batch, and before the first."""
    first_kept = kept[0] if len(kept) else len(drawn)
    oldest_of_batches = np.minimum.reduceat(drawn, np.arange(0, len(drawn), batch_rows))
    return np.minimum.accumulate(np.append(oldest_of_batches, first_kept)[::-1])[::-1]


def _numbers(positions: _Indices, old: _Indices, drawn_before: int) -> _Indices:
    """Return the numbers in the stream of rows in the buffer; the `old` ones come first there. Positions ascend."""
    new_from = np.searchsorted(positions, len(old))
    # All rows before the new ones have been drawn, or are the old ones.
    return np.concatenate([old[positions[:new_from]], positions[new_from:] + drawn_before])


def _copy_rows(table: pa.Table, drawn: _Indices, kept: _Indices) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return copies of the drawn and of the kept rows of a table's only column."""
    # `take` would combine the chunks at every call. Where they do not fit one array, it fails and is replaced.
    with suppress(pa.ArrowInvalid):
        table = table.combine_chunks()
    [column] = table.columns
    is_whole = has_known_categories(table.schema.field(0))
    return _take(column, drawn, is_whole=is_whole), _take(column, kept, is_whole=is_whole)


def _take(column: pa.ChunkedArray, indices: _Indices, *, is_whole: bool) -> pa.ChunkedArray:
    """Return copies of rows, in the order of the indices; `is_whole`: with their whole dictionary."""
    # Even a slice without rows would hold on to the buffers.
    if not len(indices):
        return pa.chunked_array([], column.type)
    try:
        chunks = column.take(pa.array(indices)).chunks
    except pa.ArrowInvalid:
        chunks = _take_apart(column.chunks, indices, is_whole=is_whole)
    return pa.chunked_array([_with_own_dictionary(chunk, is_whole=is_whole) for chunk in chunks], column.type)


def _take_apart(chunks: Sequence[pa.Array], indices: _Indices, *, is_whole: bool) -> list[pa.Array]:
    """Return copies of rows as several arrays, where 32-bit offsets or small dictionary indices do not suffice."""
    # Nobody can tell beforehand how many rows fit: that depends on which ones they are.
    try:
        return [_take_chunkwise(chunks, indices, is_whole=is_whole)]
    except pa.ArrowInvalid:
        if len(indices) == 1:
            raise
    half = len(indices) // 2
    parts = (_take_apart(chunks, part, is_whole=is_whole) for part in (indices[:half], indices[half:]))
    return list(chain.from_iterable(parts))


def _take_chunkwise(chunks: Sequence[pa.Array], indices: _Indices, *, is_whole: bool) -> pa.Array:
    """Return copies of rows, combining none of the others."""
    order = np.argsort(indices)
    ascending = indices[order]
    starts = np.cumsum([0, *map(len, chunks)])
    spans = pairwise(np.searchsorted(ascending, starts))
    pieces = [
        _with_own_dictionary(chunk.take(pa.array(ascending[first:last] - start)), is_whole=is_whole)
        for chunk, start, (first, last) in zip(chunks, starts[:-1], spans, strict=True)
        if first < last
    ]
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return pa.concat_arrays(pieces).take(pa.array(places))


def _with_own_dictionary(array: pa.Array, *, is_whole: bool) -> pa.Array:
    """Copy the dictionary, if the array has one: `take` shares it with its input.

    One with more values than there are rows is cut down to those in use: if each block has its own values, those of
    every block that has passed would add up. The values of an ordered one mean something as a whole, and one that all
    blocks are known to have (`is_whole`) is what all batches have.
    """
    if not pa.types.is_dictionary(array.type):
        return array
    indices, values, is_ordered = array.indices, array.dictionary, array.type.ordered
    used = pa.array(np.arange(len(values)))
    if len(values) > len(array) and not is_ordered and not is_whole:
        used = pc.unique(indices).drop_null()
        indices = pc.index_in(indices, used).cast(indices.type)
    return pa.DictionaryArray.from_arrays(indices, values.take(used), ordered=is_ordered)
