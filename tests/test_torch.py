"""Batches of torch tensors: their types, where they are, whose memory they are, and what is refused."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

import aiodata
from aiodata.schemas import mark_nulls

torch = pytest.importorskip("torch")

Batch = dict[str, Any]

NUM_ROWS = 60


@pytest.fixture(autouse=True)
def every_warning() -> Iterator[None]:
    """Torch warns of many things once in a process; here as often as there is reason to, and each is an error."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


class Pair(NamedTuple):
    """What a collate function may return."""

    x: Any
    label: str


@dataclass
class Opaque:
    """What nobody looks into."""

    x: Any


class Labels(list[Any]):
    """A list with a meaning of its own."""


def table() -> pa.Table:
    ids = np.arange(NUM_ROWS)
    return pa.table(
        {
            "id": ids,
            "x": ids / 2,
            "small": pa.array(ids, pa.int8()),
            "flag": ids % 2 == 0,
            "pair": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2.0 * NUM_ROWS)), 2),
        }
    )


def in_memory(runtime: str = "local") -> aiodata.Dataset:
    return aiodata.from_arrow(table()).with_options(runtime=runtime, preserve_order=True)


def counted(runtime: str) -> aiodata.Dataset:
    """Rows of a number and a tensor, that tasks make."""

    def make(batch: Batch) -> Batch:
        return {"id": batch["id"], "image": np.float32(batch["id"][:, None, None] + np.zeros((2, 3)))}

    ds = aiodata.range(NUM_ROWS, num_blocks=4).with_options(runtime=runtime, preserve_order=True)
    return ds.map_batches(make, batch_size=4)


async def all_batches(batches: aiodata.Batches) -> list[Any]:
    return [batch async for batch in batches]


@pytest.mark.usefixtures("clean")
async def test_columns_are_cpu_tensors_of_the_type_that_the_data_has(runtime: str) -> None:
    batches = await all_batches(in_memory(runtime).aiter_torch_batches(batch_size=25))
    assert [len(batch["id"]) for batch in batches] == [25, 25, 10]
    for batch in batches:
        assert {name: one.dtype for name, one in batch.items()} == {
            "id": torch.int64,
            "x": torch.float64,
            "small": torch.int8,
            "flag": torch.bool,
            "pair": torch.float64,
        }
        assert {one.device.type for one in batch.values()} == {"cpu"}
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    assert all(
        joined[name].tolist() == column.to_pylist() for name, column in zip(joined, table().columns, strict=True)
    )


@pytest.mark.usefixtures("clean")
async def test_tensor_columns_keep_their_shape(runtime: str) -> None:
    # 7 rows make batches of several blocks.
    batches = await all_batches(counted(runtime).aiter_torch_batches(batch_size=7))
    assert [tuple(batch["image"].shape) for batch in batches] == [(7, 2, 3)] * 8 + [(4, 2, 3)]
    assert all((batch["image"] == batch["id"][:, None, None]).all() for batch in batches)
    assert {batch["image"].dtype for batch in batches} == {torch.float32}


async def test_one_dtype_is_for_all_columns() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int32, torch.float64):
        batches = await all_batches(in_memory().aiter_torch_batches(batch_size=25, dtypes=dtype))
        assert {one.dtype for batch in batches for one in batch.values()} == {dtype}
        assert [int(one) for batch in batches for one in batch["small"]] == list(range(NUM_ROWS))


async def test_columns_without_a_dtype_of_their_own_keep_theirs() -> None:
    dtypes = {"id": torch.float32, "flag": torch.uint8}
    async for batch in in_memory().aiter_torch_batches(dtypes=dtypes):
        kinds = [torch.float32, torch.float64, torch.int8, torch.uint8, torch.float64]
        assert [one.dtype for one in batch.values()] == kinds


@pytest.mark.usefixtures("clean")
async def test_dtype_of_an_unknown_column_is_an_error_that_lists_the_known_ones(runtime: str) -> None:
    with pytest.raises(aiodata.TaskError, match=r"dtypes names columns that are not there: \['z'\]; there are \['id'"):
        await all_batches(in_memory(runtime).aiter_torch_batches(dtypes={"z": torch.int8}))


@pytest.mark.parametrize("dtypes", ["float32", np.float32, {"id": "float32"}, [torch.float32], 5], ids=str)
def test_what_is_no_dtype_is_refused_at_once(dtypes: Any) -> None:
    with pytest.raises(aiodata.OptionError, match=re.escape(f"dtypes={dtypes!r} must be a torch.dtype, or a mapping")):
        in_memory().aiter_torch_batches(dtypes=dtypes)


@pytest.mark.parametrize("device", ["auto", "cpu", torch.device("cpu"), "meta", torch.device("meta")], ids=repr)
async def test_tensors_are_on_the_device_asked_for(device: Any) -> None:
    if device == "auto" and torch.cuda.is_available():
        pytest.skip("auto is CUDA here")
    expected = "meta" if "meta" in str(device) else "cpu"
    batches = await all_batches(in_memory().aiter_torch_batches(batch_size=25, device=device, dtypes=torch.float16))
    assert [batch["pair"].shape[0] for batch in batches] == [25, 25, 10]
    assert {(one.device.type, one.dtype) for batch in batches for one in batch.values()} == {(expected, torch.float16)}


@pytest.mark.parametrize("device", ["nonsense", "cuda:x", "", 1.5, ["cpu"]], ids=repr)
def test_what_is_no_device_is_refused_at_once_with_the_remedy(device: Any) -> None:
    with pytest.raises(aiodata.OptionError, match=re.escape(f"device={device!r} is no device of torch; use 'auto'")):
        in_memory().aiter_torch_batches(device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:97", "xpu:97", torch.device("cuda:97")], ids=repr)
def test_device_that_is_not_there_is_refused_at_once_and_not_offered(
    device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def current_device() -> int:
        raise RuntimeError("no NVIDIA driver")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", current_device)
    remedy = re.escape(f"device={device!r} is not on this machine; use 'auto' or 'cpu': torch finds no CUDA here")
    with pytest.raises(aiodata.OptionError, match=remedy):
        in_memory().aiter_torch_batches(device=device)


@pytest.mark.usefixtures("clean")
async def test_batches_go_to_a_device_on_both_runtimes(runtime: str) -> None:
    batches = await all_batches(counted(runtime).aiter_torch_batches(batch_size=25, device="meta"))
    assert [(one["image"].device.type, tuple(one["image"].shape)) for one in batches] == [
        ("meta", (25, 2, 3)),
        ("meta", (25, 2, 3)),
        ("meta", (10, 2, 3)),
    ]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_every_tensor_of_what_collate_returns_is_moved_and_all_else_is_kept(is_async: bool) -> None:
    def collate(batch: Batch) -> Any:
        x = torch.tensor(batch["x"])
        return {
            "dict": {"x": x, 5: [x, (x, "text", None)]},
            "ordered": OrderedDict(x=x),
            "named": Pair(x, "label"),
            "labels": Labels([x]),
            "opaque": Opaque(x),
            "array": batch["x"],
            "number": 3,
        }

    async def acollate(batch: Batch) -> Any:
        return collate(batch)

    function = acollate if is_async else collate
    async for made in in_memory().aiter_torch_batches(batch_size=20, device="meta", collate_fn=function):
        moved = [
            made["dict"]["x"],
            made["dict"][5][0],
            made["dict"][5][1][0],
            made["ordered"]["x"],
            made["named"].x,
        ]
        assert [(one.device.type, tuple(one.shape)) for one in moved] == [("meta", (20,))] * 5
        assert made["dict"][5][1][1:] == ("text", None)
        assert type(made["named"]) is Pair
        assert made["named"].label == "label"
        assert type(made["labels"]) is Labels
        assert {made["labels"][0].device.type, made["opaque"].x.device.type} == {"cpu"}
        assert isinstance(made["array"], np.ndarray)
        assert made["number"] == 3


@pytest.mark.parametrize("device", ["cpu", "meta"])
async def test_collate_may_return_a_tensor_or_none_at_all(device: str) -> None:
    def first_alone(batch: Batch) -> Any:
        return torch.tensor(batch["id"]) if 0 in batch["id"] else None

    made = await all_batches(in_memory().aiter_torch_batches(batch_size=30, device=device, collate_fn=first_alone))
    assert made[0].device.type == device
    assert made[1:] == [None]


@pytest.mark.usefixtures("clean")
async def test_collate_is_given_numpy_and_decides_on_types(runtime: str) -> None:
    def collate(batch: Batch) -> Any:
        assert type(batch) is dict
        assert all(isinstance(column, np.ndarray) for column in batch.values())
        assert batch["image"].shape == (len(batch["id"]), 2, 3)
        return torch.tensor(batch["id"], dtype=torch.float32), torch.tensor(batch["image"])

    made = await all_batches(counted(runtime).aiter_torch_batches(batch_size=25, collate_fn=collate, collate_workers=3))
    assert [one for ids, _ in made for one in ids.tolist()] == list(range(NUM_ROWS))
    assert {(ids.dtype, image.dtype) for ids, image in made} == {(torch.float32, torch.float32)}


async def test_collate_may_be_given_a_batch_that_torch_has_no_tensors_for() -> None:
    ds = aiodata.from_items([{"text": "a"}, {"text": "bb"}]).with_options(runtime="local")
    [made] = await all_batches(
        ds.aiter_torch_batches(collate_fn=lambda one: torch.tensor([len(s) for s in one["text"]]))
    )
    assert made.tolist() == [1, 2]


def test_collate_with_dtypes_is_refused_with_the_reason() -> None:
    with pytest.raises(aiodata.OptionError, match="give dtypes or collate_fn, not both: a collate_fn decides"):
        in_memory().aiter_torch_batches(dtypes=torch.float32, collate_fn=dict)


@pytest.mark.parametrize("collate_fn", [None, lambda batch: torch.tensor(batch["id"])], ids=["plain", "collate"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
async def test_pinning_without_cuda_changes_nothing(device: str, collate_fn: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    options: dict[str, Any] = {"batch_size": 25, "device": device, "collate_fn": collate_fn}
    made = await all_batches(in_memory().aiter_torch_batches(pin_memory=True, **options))
    tensors = made if collate_fn else [batch["id"] for batch in made]
    assert [(one.device.type, len(one), one.is_pinned()) for one in tensors] == [
        (device, 25, False),
        (device, 25, False),
        (device, 10, False),
    ]


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_pin_memory_must_be_true_or_false(value: Any) -> None:
    with pytest.raises(aiodata.OptionError, match=f"pin_memory={value!r} must be True or False"):
        in_memory().aiter_torch_batches(pin_memory=value)


@pytest.mark.usefixtures("clean")
async def test_writing_to_tensors_changes_neither_the_data_nor_other_batches(runtime: str) -> None:
    source = table()
    ds = aiodata.from_arrow(source).with_options(runtime=runtime, preserve_order=True)
    for batch_size in (None, 7, NUM_ROWS):
        first, second = [await all_batches(ds.aiter_torch_batches(batch_size=batch_size)) for _ in range(2)]
        for column in [column for batch in first for column in batch.values()]:
            column.zero_()
        assert [one for batch in second for one in batch["id"].tolist()] == list(range(NUM_ROWS))
        assert source.equals(table())
        for batch in second[::2]:
            batch["id"].zero_()
        kept = [one for batch in second[1::2] for one in batch["id"].tolist()]
        assert kept == [one for one in range(NUM_ROWS) if (one // (batch_size or NUM_ROWS)) % 2]


async def test_batches_used_for_one_backward_pass_may_be_changed_apart_from_each_other() -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    one, other, *_ = await all_batches(in_memory().aiter_torch_batches(batch_size=10))
    loss = (weight * one["x"]).sum()
    # Torch refuses this where both are slices of one tensor: the first is needed for the gradient.
    other["x"].mul_(2)
    loss.backward()
    assert weight.grad.item() == table()["x"].to_numpy()[:10].sum()


async def test_no_tensor_refers_to_more_memory_than_it_needs() -> None:
    batches = await all_batches(in_memory().aiter_torch_batches(batch_size=10))
    for batch in batches:
        for column in batch.values():
            assert column.untyped_storage().nbytes() == column.numel() * column.element_size()


@pytest.mark.usefixtures("clean")
async def test_strings_are_refused_with_the_remedy(runtime: str) -> None:
    ds = aiodata.from_items([{"id": 1, "text": "a"}]).with_options(runtime=runtime)
    with pytest.raises(aiodata.TaskError, match="column 'text' is string, which torch has no tensors for") as caught:
        await all_batches(ds.aiter_torch_batches())
    for remedy in ("select_columns", "map_batches", "collate_fn"):
        assert remedy in str(caught.value)
    [batch] = await all_batches(ds.select_columns("id").aiter_torch_batches())
    assert batch["id"].tolist() == [1]


def known_to_have_nulls(table: pa.Table) -> pa.Table:
    """The table, with what its source would know of its columns."""
    return table.cast(pa.schema([mark_nulls(field, has_nulls=True) for field in table.schema]))


@pytest.mark.usefixtures("clean")
async def test_integers_with_nulls_are_float64_with_nan(runtime: str) -> None:
    columns = {"id": [1, None, 3, 2**53], "small": pa.array([None, 1, 2, 3], pa.int8())}
    ds = aiodata.from_arrow(known_to_have_nulls(pa.table(columns))).with_options(runtime=runtime)
    [batch] = await all_batches(ds.aiter_torch_batches())
    assert {one.dtype for one in batch.values()} == {torch.float64}
    assert batch["id"].isnan().tolist() == [False, True, False, False]
    assert batch["id"][[0, 2, 3]].tolist() == [1, 3, 2**53]
    [batch] = await all_batches(ds.aiter_torch_batches(dtypes=torch.float32))
    assert batch["small"].isnan().tolist() == [True, False, False, False]


async def test_a_batch_of_blocks_with_and_without_nulls_has_one_type() -> None:
    tables = [pa.table({"id": pa.array(values, pa.int64())}) for values in ([1, 2], [None, 4], [5, 6])]
    ds = aiodata.from_arrow([known_to_have_nulls(one) for one in tables]).with_options(runtime="local")
    [batch] = await all_batches(ds.aiter_torch_batches())
    assert batch["id"].dtype == torch.float64
    assert batch["id"][[0, 1, 3, 4, 5]].tolist() == [1, 2, 4, 5, 6]
    batches = await all_batches(ds.aiter_torch_batches(batch_size=1))
    assert {one["id"].dtype for one in batches} == {torch.float64}


async def test_nulls_where_a_type_has_none_are_refused_with_the_remedy() -> None:
    ds = aiodata.from_items([{"id": 1}, {"id": None}]).with_options(runtime="local")
    with pytest.raises(aiodata.TaskError, match=r"'id' has nulls or NaN, but torch\.int64 none; fill them, or"):
        await all_batches(ds.aiter_torch_batches(dtypes=torch.int64))


@pytest.mark.usefixtures("clean")
async def test_short_last_batch_is_dropped_if_asked_for(runtime: str) -> None:
    for options in ({}, {"device": "meta"}, {"collate_fn": lambda batch: {"id": torch.tensor(batch["id"])}}):
        batches = counted(runtime).aiter_torch_batches(batch_size=25, drop_last=True, **options)
        assert [len(batch["id"]) for batch in await all_batches(batches)] == [25, 25]


@pytest.mark.usefixtures("clean")
async def test_seed_gives_the_same_rows_as_in_numpy_and_another_order_in_each_pass(runtime: str) -> None:
    options: dict[str, Any] = {"batch_size": 16, "local_shuffle_buffer_size": 40, "local_shuffle_seed": 3}
    expected = [one async for batch in counted(runtime).aiter_batches(**options) for one in batch["id"].tolist()]
    batches = counted(runtime).aiter_torch_batches(**options)
    passes = [[one async for batch in batches for one in batch["id"].tolist()] for _ in range(3)]
    assert passes[0] == expected
    assert all(sorted(one) == list(range(NUM_ROWS)) for one in passes)
    assert all(one != other for one, other in combinations(passes, 2))


async def test_torch_is_a_batch_format_like_others() -> None:
    batches = await all_batches(in_memory().aiter_batches(batch_size=25, batch_format="torch"))
    assert [one for batch in batches for one in batch["x"].tolist()] == table()["x"].to_pylist()
    sums = in_memory().aiter_batches(batch_size=30, batch_format="torch", collate_fn=lambda one: int(one["id"].sum()))
    assert await all_batches(sums) == [sum(range(30)), sum(range(30, 60))]
    head = await in_memory().take_batch(3, batch_format="torch")
    assert head["pair"].tolist() == [[0, 1], [2, 3], [4, 5]]


async def test_empty_dataset_has_no_batches() -> None:
    ds = in_memory().limit(0)
    assert await all_batches(ds.aiter_torch_batches()) == []
    assert await all_batches(ds.aiter_torch_batches(device="meta", collate_fn=dict)) == []


@pytest.mark.slow
@pytest.mark.usefixtures("clean")
async def test_model_learns_from_the_batches(runtime: str) -> None:
    def features(batch: Batch) -> Batch:
        x = batch["id"] / NUM_ROWS
        return {"x": np.stack([x, x**2], axis=1), "y": 3 * x - 2 * x**2 + 1}

    ds = aiodata.range(NUM_ROWS, num_blocks=3).map_batches(features).with_options(runtime=runtime)
    ds = await ds.materialize()
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    batches = ds.aiter_torch_batches(
        batch_size=20, dtypes=torch.float32, local_shuffle_buffer_size=NUM_ROWS, local_shuffle_seed=0
    )
    losses: list[float] = []
    for _ in range(15):
        total = 0.0
        async for batch in batches:
            loss = torch.nn.functional.mse_loss(model(batch["x"])[:, 0], batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
    assert losses[-1] < losses[0] / 10
