"""Laws of work: wherever a task stops, its rest goes on there, and the same work makes the same blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodata import SourceError, TaskError, UnknownColumnError
from aiodata.plan.pieces import BlockPiece, Chunk, Origin, Piece, TablePiece
from aiodata.plan.source import raise_it
from aiodata.plan.transforms import Control, FilterRows, LimitRows, MapBatches, SelectColumns, Stopped, Transform
from aiodata.plan.work import Cuts, Work, run_work
from aiodata.sources.memory import RangePiece, RangeSource
from tests.plan.pieces import UnitsPiece
from tests.plan.running import HUGE, UNLIMITED, Batch, Output, ids, outputs_of, rows_of, run


def double(batch: Batch) -> Batch:
    return {**batch, "twice": batch["id"] * 2}


def halves(batch: Batch) -> Iterator[Batch]:
    middle = len(batch["id"]) // 2
    for part in (slice(0, middle), slice(middle, None)):
        yield {name: column[part] for name, column in batch.items()}


def nothing(batch: Batch) -> Iterator[Batch]:
    yield from ()


@st.composite
def works_pieces(draw: st.DrawFn) -> tuple[Piece, ...]:
    """A few pieces of either kind whose ids count up."""
    pieces: list[Piece] = []
    first = 0
    for index in range(draw(st.integers(1, 4))):
        sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=3))
        units = []
        for size in sizes:
            units.append(ids(first, size))
            first += size
        if len(units) == 1:
            pieces.append(TablePiece(units[0], Origin(f"table {index}", (0, sizes[0]))))
        else:
            pieces.append(UnitsPiece(f"piece {index}", tuple(units), draw(st.integers(1, 8))))
    return tuple(pieces)


def chains() -> st.SearchStrategy[tuple[Transform, ...]]:
    size = st.none() | st.integers(1, 7)
    transform = st.one_of(
        st.builds(MapBatches, st.sampled_from([double, halves]), size, st.just("numpy")),
        st.builds(lambda bound: FilterRows(pc.field("id") >= bound), st.integers(0, 20)),
        st.just(SelectColumns(("id",))),
    )
    return st.lists(transform, max_size=3).map(tuple)


def cuts() -> st.SearchStrategy[Cuts]:
    return st.builds(
        Cuts,
        first_block_bytes=st.integers(1, 100),
        target_block_bytes=st.integers(1, 300),
        growth=st.integers(2, 4),
        first_block_calls=st.integers(1, 4),
        calls_per_block=st.integers(1, 8),
        task_bytes=st.integers(1, 400),
        task_calls=st.integers(1, 8),
    )


def run_to_the_end(work: Work, chain: Sequence[Transform]) -> list[list[Output]]:
    """The outputs of a work, of its rest, of that one's rest, and so on."""
    tasks = []
    for _ in range(1000):
        outputs, end = run(work, chain)
        tasks.append(outputs)
        if end.rest is None:
            return tasks
        work = work.rest(end.rest)
    pytest.fail("the rest never ends")


@settings(max_examples=150, deadline=None)
@given(pieces=works_pieces(), chain=chains(), limits=cuts())
def test_work_and_its_rests_yield_the_rows_of_one_run(
    pieces: tuple[Piece, ...], chain: tuple[Transform, ...], limits: Cuts
) -> None:
    whole = rows_of(outputs_of(Work(pieces, UNLIMITED), chain))
    parts = run_to_the_end(Work(pieces, limits), chain)
    assert [row for task in parts for row in rows_of(task)] == whole


@settings(max_examples=60, deadline=None)
@given(pieces=works_pieces(), chain=chains(), limits=cuts())
def test_same_work_makes_the_same_blocks(pieces: tuple[Piece, ...], chain: tuple[Transform, ...], limits: Cuts) -> None:
    (once, end), (again, same_end) = (run(Work(pieces, limits), chain) for _ in range(2))
    assert [table for table, _ in once] == [table for table, _ in again]
    assert [(one.block, one.calls) for _, one in once] == [(one.block, one.calls) for _, one in again]
    assert end == same_end


@settings(max_examples=60, deadline=None)
@given(pieces=works_pieces(), chain=chains(), limits=cuts())
def test_metadata_describes_its_block(pieces: tuple[Piece, ...], chain: tuple[Transform, ...], limits: Cuts) -> None:
    for table, metadata in outputs_of(Work(pieces, limits), chain):
        assert metadata.block.num_rows == table.num_rows
        assert metadata.block.num_bytes == table.nbytes
        assert metadata.block.schema == table.schema
        assert metadata.task_s >= 0


@settings(max_examples=60, deadline=None)
@given(pieces=works_pieces(), limits=cuts())
def test_rest_is_progress(pieces: tuple[Piece, ...], limits: Cuts) -> None:
    chain = [MapBatches(double, 2, "numpy")]
    work = Work(pieces, limits)
    positions = [(-1, 0, 0)]
    done = 0
    while (rest := run(work, chain)[1].rest) is not None:
        positions.append((done + rest.piece, rest.unit, rest.row))
        done += rest.piece
        work = work.rest(rest)
    assert all(one < other for one, other in itertools.pairwise(positions))


@pytest.mark.parametrize(
    "chain",
    [[], [MapBatches(double, 4, "numpy")], [MapBatches(nothing, None, "numpy")], [FilterRows(pc.field("id") < 0)]],
    ids=["none", "map", "map to nothing", "filter all"],
)
@pytest.mark.parametrize("num_rows", [0, 10])
def test_work_yields_at_least_one_output(chain: list[Transform], num_rows: int) -> None:
    pieces = (TablePiece(ids(0, num_rows), Origin("table", (0, num_rows))),)
    assert outputs_of(Work(pieces, UNLIMITED), chain)


def test_filter_that_keeps_nothing_still_tells_the_schema() -> None:
    [(table, _)] = outputs_of(
        Work((TablePiece(ids(0, 5), Origin("t", None)),), UNLIMITED), [FilterRows(pc.field("id") < 0)]
    )
    assert (table.num_rows, table.schema) == (0, ids(0, 0).schema)


def test_blocks_grow_to_the_target() -> None:
    limits = Cuts(80, 640, 2, HUGE, 1 << 20, HUGE, HUGE)
    piece = UnitsPiece("units", (ids(0, 500),), chunk_rows=1)
    sizes = [metadata.block.num_bytes for _, metadata in outputs_of(Work((piece,), limits), [])]
    assert sizes[:6] == [80, 160, 320, 640, 640, 640]


def test_large_block_of_one_call_is_split_to_the_target() -> None:
    limits = Cuts(80, 80, 2, HUGE, 1 << 20, HUGE, HUGE)
    outputs = outputs_of(Work((TablePiece(ids(0, 100), Origin("t", None)),), limits), [])
    assert [table.num_rows for table, _ in outputs] == [10] * 10


def test_task_stops_when_its_calls_are_spent() -> None:
    limits = Cuts(HUGE, HUGE, 4, 1, 1, HUGE, 3)
    piece = TablePiece(ids(0, 100), Origin("t", (0, 100)))
    tasks = run_to_the_end(Work((piece,), limits), [MapBatches(double, 10, "numpy")])
    assert [sum(one.calls for _, one in task) for task in tasks] == [3, 3, 3, 1]
    assert [table.num_rows for task in tasks for table, _ in task if table.num_rows] == [10] * 10


def test_whole_batches_are_given_to_the_function_on_both_sides_of_a_cut() -> None:
    lengths: list[int] = []

    def note(batch: Batch) -> Batch:
        lengths.append(len(batch["id"]))
        return batch

    limits = Cuts(1, 100, 4, 1, 2, 50, 2)
    run_to_the_end(Work((TablePiece(ids(0, 45), Origin("t", (0, 45))),), limits), [MapBatches(note, 10, "numpy")])
    assert lengths == [10, 10, 10, 10, 5]


@settings(max_examples=60, deadline=None)
@given(pieces=works_pieces(), limits=cuts(), bound=st.integers(0, 30))
def test_limit_bounds_the_rows_of_a_task(pieces: tuple[Piece, ...], limits: Cuts, bound: int) -> None:
    unlimited = rows_of(outputs_of(Work(pieces, limits), []))
    limited = rows_of(outputs_of(Work(pieces, limits), [LimitRows(bound)]))
    assert limited == unlimited[:bound]


def test_limit_stops_reading() -> None:
    pieces = tuple(UnitsPiece(f"piece {index}", (ids(0, 10), ids(10, 10))) for index in range(3))
    outputs_of(Work(pieces, UNLIMITED), [LimitRows(15)])
    assert pieces[0].reads == [("piece 0", 0), ("piece 0", 1)]
    assert pieces[1].reads == pieces[2].reads == []


def fail_at(bad: int, size: int | None, *, lazily: bool = False) -> MapBatches:
    def check(batch: Batch) -> Batch:
        if bad in batch["id"]:
            raise KeyError("oops")
        return batch

    def check_lazily(batch: Batch) -> Iterator[Batch]:
        yield check(batch)

    return MapBatches(check_lazily if lazily else check, size, "numpy")


@pytest.mark.parametrize("lazily", [False, True], ids=["function", "generator"])
def test_failing_function_is_named_with_its_source_and_rows(lazily: bool) -> None:
    pieces = (
        TablePiece(ids(0, 20), Origin("jan.parquet", (0, 20))),
        UnitsPiece("feb.parquet", (ids(20, 20), ids(40, 20))),
    )
    chain = [fail_at(47, 5, lazily=lazily)]
    with pytest.raises(TaskError, match=r"KeyError: 'oops'") as caught:
        outputs_of(Work(pieces, UNLIMITED), chain)
    error = caught.value
    assert (error.operator, error.source, error.rows) == (chain[0].name, "feb.parquet, unit 1", (5, 10))
    assert isinstance(error.__cause__, KeyError)


def test_batch_across_two_sources_names_both() -> None:
    pieces = tuple(TablePiece(ids(3 * one, 3), Origin(f"file {one}", (0, 3))) for one in range(2))
    with pytest.raises(TaskError) as caught:
        outputs_of(Work(pieces, UNLIMITED), [fail_at(0, 6)])
    assert (caught.value.source, caught.value.rows) == ("file 0 to file 1", None)


@pytest.mark.parametrize("size", [None, 5])
@pytest.mark.parametrize(
    "before", [FilterRows(pc.field("id") >= 10), MapBatches(lambda batch: {"id": batch["id"][10:]}, None, "numpy")]
)
def test_rows_of_a_failure_are_not_claimed_wrongly_after_rows_were_dropped(before: Transform, size: int | None) -> None:
    piece = TablePiece(ids(0, 20), Origin("t", (0, 20)))
    with pytest.raises(TaskError) as caught:
        outputs_of(Work((piece,), UNLIMITED), [before, fail_at(17, size)])
    rows = caught.value.rows
    assert rows is None or rows[0] <= 17 < rows[1]


def test_missing_column_is_named_with_its_operator() -> None:
    piece = TablePiece(ids(0, 3), Origin("t", (0, 3)))
    with pytest.raises(UnknownColumnError, match=r"select_columns\(\['y'\]\): there is no column 'y'"):
        outputs_of(Work((piece,), UNLIMITED), [SelectColumns(("y",))])


def test_result_that_is_no_block_is_named_with_what_works() -> None:
    piece = TablePiece(ids(0, 3), Origin("t", (0, 3)))
    with pytest.raises(TaskError, match=r"failed on t, rows 0-2: TypeError: cannot make a block of NoneType"):
        outputs_of(Work((piece,), UNLIMITED), [MapBatches(lambda batch: None, None, "numpy")])


def test_stop_iteration_of_a_function_is_a_failure_like_any_other() -> None:
    piece = TablePiece(ids(0, 3), Origin("t", (0, 3)))
    with pytest.raises(TaskError, match="StopIteration"):
        outputs_of(Work((piece,), UNLIMITED), [MapBatches(lambda batch: next(iter(())), None, "numpy")])


def test_source_error_passes_as_it_is() -> None:
    class Missing(UnitsPiece):
        __slots__ = ()

        def read(self, unit: int, row: int, chunk_bytes: int) -> Iterator[Chunk]:
            raise SourceError("jan.parquet", "it is gone")

    with pytest.raises(SourceError, match=r"jan\.parquet: it is gone"):
        outputs_of(Work((Missing("missing", ()),), UNLIMITED), [MapBatches(double, None, "numpy")])


def test_checkpoint_stops_before_the_next_call() -> None:
    calls: list[int] = []
    control = Control()

    def note(batch: Batch) -> Batch:
        calls.append(len(batch["id"]))
        if len(calls) == 2:
            control.stop()
        return batch

    piece = TablePiece(ids(0, 100), Origin("t", (0, 100)))
    with pytest.raises(Stopped):
        list(run_work(Work((piece,), UNLIMITED), [MapBatches(note, 10, "numpy")], (), control))
    assert calls == [10, 10]


def test_block_piece_reads_its_range_of_its_block() -> None:
    blocks = [ids(0, 10), ids(100, 10)]
    work = Work((BlockPiece(1, 3, 6, 80, "range"), BlockPiece(0, 0, 2, 80, "range")), UNLIMITED)
    assert [row["id"] for row in rows_of(outputs_of(work, [], blocks))] == [103, 104, 105, 0, 1]
    with pytest.raises(TaskError) as caught:
        outputs_of(work, [fail_at(105, 1)], blocks)
    assert (caught.value.source, caught.value.rows) == ("range", (5, 6))


def parts_of_range(count: int, num_blocks: int) -> tuple[RangePiece, ...]:
    return tuple(RangeSource(count, num_blocks).pieces(1, raise_it))


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 60), num_blocks=st.integers(1, 60), size=st.integers(500, 2000))
def test_one_task_makes_the_blocks_that_its_pieces_end(count: int, num_blocks: int, size: int) -> None:
    limits = Cuts(size, 2000, 2, 1, 1, HUGE, HUGE)
    pieces = parts_of_range(count, num_blocks)
    chains: list[list[Transform]] = [
        [],
        [SelectColumns(("id",))],
        [FilterRows(pc.field("id") >= 0)],
        [LimitRows(count)],
    ]
    for chain in chains:
        outputs = outputs_of(Work(pieces, limits), chain)
        assert [table.num_rows for table, _ in outputs] == [piece.stop - piece.start for piece in pieces]
        assert [row["id"] for row in rows_of(outputs)] == list(range(count))


def test_task_of_many_pieces_that_end_blocks_stops_when_its_bytes_are_spent() -> None:
    limits = Cuts(8 * 10, 8 * 10, 2, 1, 1, 8 * 10 * 3, HUGE)
    tasks = run_to_the_end(Work(parts_of_range(100, 10), limits), [])
    assert [[table.num_rows for table, _ in task] for task in tasks] == [[10] * 3, [10] * 3, [10] * 3, [10]]


def test_pieces_of_which_a_filter_leaves_nothing_make_no_block() -> None:
    outputs = outputs_of(Work(parts_of_range(100, 10), UNLIMITED), [FilterRows(pc.field("id") >= 85)])
    assert [table.num_rows for table, _ in outputs] == [5, 10]


def test_user_functions_get_whole_batches_across_pieces_that_end_blocks() -> None:
    outputs = outputs_of(Work(parts_of_range(20, 10), UNLIMITED), [MapBatches(double, 8, "numpy")])
    assert [(table.num_rows, metadata.calls) for table, metadata in outputs] == [(20, 3)]


def test_table_without_columns_keeps_its_rows() -> None:
    piece = TablePiece(ids(0, 5).select([]), Origin("t", (0, 5)))
    for chain in ([], [LimitRows(9)]):
        assert [table.num_rows for table, _ in outputs_of(Work((piece,), UNLIMITED), chain)] == [5]
