"""The local shuffle from end to end: no row is lost, every batch is full but the last, and a seed fixes the order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from itertools import combinations, count
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiodata
from tests.conftest import PATIENCE_S, collect

NUM_ROWS = 200

SEEDED: dict[str, Any] = {"batch_size": 16, "local_shuffle_buffer_size": 40, "local_shuffle_seed": 3}

SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=6)
BUFFER_ROWS = st.integers(1, 80)
BATCH_ROWS = st.integers(1, 50)
TARGET_BYTES = st.sampled_from([100, 400, 1 << 25])


def tables_of(sizes: Sequence[int]) -> list[pa.Table]:
    """Tables of these numbers of rows: `id` counts the rows of all, the other columns are made of it."""
    ids = range(sum(sizes))
    whole = pa.table({"id": ids, "text": [f"row {one}" for one in ids], "half": [one / 2 for one in ids]})
    return [whole.slice(sum(sizes[:index]), size) for index, size in enumerate(sizes)]


def counted(runtime: str, *, num_blocks: int = 7, preserve_order: bool = False) -> aiodata.Dataset:
    """Rows that tasks make, with a column to tell whether they stay together."""
    ds = aiodata.range(NUM_ROWS, num_blocks=num_blocks).with_options(runtime=runtime, preserve_order=preserve_order)
    return ds.map_batches(lambda batch: {"id": batch["id"], "twice": batch["id"] * 2}, batch_size=10)


async def orders(batches: aiodata.Batches, num_passes: int) -> list[tuple[int, ...]]:
    """The ids of some passes."""
    return [tuple([one async for batch in batches for one in batch["id"].tolist()]) for _ in range(num_passes)]


async def check_batches(ds: aiodata.Dataset, total: int, **options: Any) -> None:
    """Iterate, and check that the batches hold the rows of `tables_of` once, and are full."""
    batches = [
        batch.to_pylist()
        async for batch in ds.with_options(runtime="local").aiter_batches(batch_format="pyarrow", **options)
    ]
    size = options["batch_size"]
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    rows = [row for batch in batches for row in batch]
    assert len(rows) == total - (total % size if options["drop_last"] else 0)
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["text"] == f"row {row['id']}" and row["half"] == row["id"] / 2 for row in rows)


@pytest.mark.slow
def test_every_batch_but_the_last_is_full_and_no_row_is_lost_doubled_or_torn() -> None:
    @settings(max_examples=150, deadline=None, database=None)
    @given(
        SIZES,
        TARGET_BYTES,
        st.booleans(),
        st.fixed_dictionaries(
            {
                "batch_size": BATCH_ROWS,
                "drop_last": st.booleans(),
                "local_shuffle_buffer_size": st.none() | BUFFER_ROWS,
                "prefetch_batches": st.integers(0, 3),
                "max_prefetch_bytes": st.sampled_from([None, 1, 2000]),
            }
        ),
    )
    def rows_in_are_rows_out(sizes: list[int], target: int, through_tasks: bool, options: dict[str, Any]) -> None:
        ds = aiodata.from_arrow(tables_of(sizes)).with_options(target_block_bytes=target)
        if through_tasks:
            ds = ds.map_batches(lambda table: table, batch_format="pyarrow")
        asyncio.run(check_batches(ds, sum(sizes), **options))

    rows_in_are_rows_out()


@pytest.mark.slow
def test_a_seed_gives_one_order_however_blocks_divide_the_rows() -> None:
    @settings(max_examples=60, deadline=None, database=None)
    @given(SIZES, TARGET_BYTES, BUFFER_ROWS, BATCH_ROWS, st.integers(0, 2**70))
    def order_is_the_same(sizes: list[int], target: int, buffer_rows: int, batch_rows: int, seed: int) -> None:
        options: dict[str, Any] = {
            "batch_size": batch_rows,
            "local_shuffle_buffer_size": buffer_rows,
            "local_shuffle_seed": seed,
        }
        whole = aiodata.from_arrow(tables_of([sum(sizes)])).with_options(runtime="local")
        cut = aiodata.from_arrow(tables_of(sizes)).with_options(runtime="local")
        made = cut.map_batches(lambda table: table, batch_format="pyarrow", batch_size=9)
        made = made.with_options(target_block_bytes=target)
        expected = asyncio.run(collect(whole, **options))
        assert asyncio.run(collect(cut, **options)) == expected
        assert asyncio.run(collect(made, **options)) == expected

    order_is_the_same()


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("drop_last", [False, True], ids=["keep_last", "drop_last"])
async def test_batches_are_full_and_rows_stay_together(runtime: str, drop_last: bool) -> None:
    for buffer_rows, batch_rows in [(1, 1), (1, 30), (50, 7), (NUM_ROWS, 33), (10**9, 10**9)]:
        batches = counted(runtime).aiter_batches(
            batch_size=batch_rows, local_shuffle_buffer_size=buffer_rows, drop_last=drop_last
        )
        rest = NUM_ROWS % batch_rows
        sizes = [batch_rows] * (NUM_ROWS // batch_rows) + ([rest] if rest and not drop_last else [])
        rows: dict[int, int] = {}
        async for batch in batches:
            assert len(batch["id"]) == sizes.pop(0)
            rows |= zip(batch["id"].tolist(), batch["twice"].tolist(), strict=True)
        assert not sizes
        assert len(rows) == NUM_ROWS - (rest if drop_last else 0)
        assert all(twice == 2 * one for one, twice in rows.items())


@pytest.mark.usefixtures("clean")
async def test_a_seed_gives_the_same_sequence_of_passes_on_every_runtime_and_from_every_cutting(runtime: str) -> None:
    in_memory = aiodata.from_arrow(pa.table({"id": range(NUM_ROWS)})).with_options(runtime="local")
    expected = await orders(in_memory.aiter_batches(**SEEDED), 3)
    assert all(sorted(order) == list(range(NUM_ROWS)) for order in expected)
    for num_blocks in (1, 9):
        assert await orders(counted(runtime, num_blocks=num_blocks).aiter_batches(**SEEDED), 3) == expected


@pytest.mark.usefixtures("clean")
async def test_passes_of_one_batches_and_those_of_other_seeds_differ(runtime: str) -> None:
    made = [
        order
        for seed in (0, 1, 2**64)
        for order in await orders(
            counted(runtime).aiter_batches(local_shuffle_buffer_size=NUM_ROWS, local_shuffle_seed=seed), 2
        )
    ]
    assert all(one != other for one, other in combinations([*made, tuple(range(NUM_ROWS))], 2))


@pytest.mark.usefixtures("clean")
async def test_without_a_seed_every_batches_and_every_pass_has_an_order_of_its_own(runtime: str) -> None:
    ds = counted(runtime, preserve_order=True)
    made = [order for _ in range(2) for order in await orders(ds.aiter_batches(local_shuffle_buffer_size=NUM_ROWS), 2)]
    assert all(sorted(order) == list(range(NUM_ROWS)) for order in made)
    assert all(one != other for one, other in combinations([*made, tuple(range(NUM_ROWS))], 2))


async def test_a_seed_gives_the_same_order_though_tasks_finish_in_another() -> None:
    a_later_one_ended = threading.Event()

    def hold_the_first(batch: dict[str, Any]) -> dict[str, Any]:
        if 0 in batch["id"]:
            assert a_later_one_ended.wait(PATIENCE_S)
        else:
            a_later_one_ended.set()
        return batch

    # With as many CPUs as tasks, a later one runs beside the first.
    plain = aiodata.range(NUM_ROWS, num_blocks=4).with_options(runtime="local", num_cpus=4)
    assert await collect(plain.map_batches(hold_the_first), **SEEDED) == await collect(plain, **SEEDED)


async def test_a_seed_gives_the_same_order_through_collate() -> None:
    numbers = count()
    ended = {number: asyncio.Event() for number in range(1, 13, 2)}

    async def finish_pairs_in_the_wrong_order(batch: pa.Table) -> pa.Table:
        number = next(numbers)
        if number % 2:
            ended[number].set()
        elif number + 1 in ended:
            await ended[number + 1].wait()
        return batch

    ds = counted("local")
    collated = await collect(ds, **SEEDED, collate_fn=finish_pairs_in_the_wrong_order, collate_workers=2)
    assert collated == await collect(ds, **SEEDED)


async def test_seed_implies_source_order_of_what_is_shuffled() -> None:
    batches = counted("local").aiter_batches(local_shuffle_buffer_size=1, local_shuffle_seed=0, batch_size=1)
    # A buffer of one row holds two at most, so that rows hardly move.
    [order] = await orders(batches, 1)
    assert max(abs(one - place) for place, one in enumerate(order)) <= 2


async def test_rows_are_shuffled_alike_in_every_format() -> None:
    expected = await collect(counted("local"), **SEEDED)
    for batch_format in ("numpy", "pandas", "polars"):
        batches = counted("local").aiter_batches(batch_format=batch_format, **SEEDED)
        assert [one async for batch in batches for one in batch["id"]] == expected


async def test_pass_that_is_left_early_counts_as_one() -> None:
    expected = await orders(counted("local").aiter_batches(**SEEDED), 3)
    batches = counted("local").aiter_batches(**SEEDED)
    async for batch in batches:
        assert tuple(batch["id"].tolist()) == expected[0][:16]
        break
    async with batches as iterator:
        assert tuple([one async for batch in iterator for one in batch["id"].tolist()]) == expected[1]
        assert iterator.stats().epoch == 1
    assert await orders(batches, 1) == expected[2:]


async def test_empty_datasets_are_shuffled_into_no_batches() -> None:
    for ds in (counted("local").limit(0), aiodata.from_arrow(pa.table({"id": pa.array([], pa.int64())}))):
        assert await collect(ds.with_options(runtime="local"), local_shuffle_buffer_size=5) == []


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "5"])
def test_buffer_size_must_be_a_positive_integer(value: Any) -> None:
    with pytest.raises(aiodata.OptionError, match=f"local_shuffle_buffer_size={value!r} must be an integer of at le"):
        aiodata.range(3).aiter_batches(local_shuffle_buffer_size=value)


@pytest.mark.parametrize("value", [-1, True, 1.5, "5"])
def test_seed_must_be_an_integer_of_at_least_zero(value: Any) -> None:
    with pytest.raises(aiodata.OptionError, match=f"local_shuffle_seed={value!r} must be an integer of at least 0"):
        aiodata.range(3).aiter_batches(local_shuffle_buffer_size=5, local_shuffle_seed=value)


def test_seed_without_a_buffer_is_refused_with_the_remedy() -> None:
    with pytest.raises(aiodata.OptionError, match="local_shuffle_seed=0 needs local_shuffle_buffer_size: the number"):
        aiodata.range(3).aiter_batches(local_shuffle_seed=0)


def test_shuffling_whole_blocks_is_refused_with_the_remedy() -> None:
    with pytest.raises(aiodata.OptionError, match="local_shuffle_buffer_size needs a batch_size"):
        aiodata.range(3).aiter_batches(batch_size=None, local_shuffle_buffer_size=5)
