"""Tensors come as they went in: with their shape in rows, and of arrays that lie in memory in any way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import aiodata

CUBE = np.arange(12, dtype=np.int64).reshape(2, 2, 3)

# Arrays by how they lie in memory.
LAYOUTS: dict[str, Any] = {
    "one row by None": CUBE[0].T[None],
    "broadcast": np.broadcast_to(np.arange(6).reshape(2, 3), (3, 2, 3)),
    "broadcast numbers": np.broadcast_to(np.int64(3), (4,)),
    "transposed": CUBE.T,
    "one transposed row": np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)[:1],
    "Fortran order": np.asfortranarray(CUBE),
    "backwards": CUBE[::-1, :, ::-1],
    "every other": np.arange(48).reshape(4, 4, 3)[::2, ::2],
    "swapped bytes": CUBE.astype(">i4"),
    "swapped bytes, every other": np.arange(8, dtype=">f4")[::2],
    "bools backwards": np.array([[[True, False]], [[False, False]]])[::-1, :, ::-1],
    "moments transposed": np.arange(8).reshape(2, 2, 2).astype("M8[s]").T,
    "one field of many": np.zeros((2, 2), [("a", "i1"), ("b", "i8")])["b"],
    "not aligned": np.frombuffer(b"x" + bytes(48), "i8", offset=1).reshape(3, 2),
}


def rows(ds: aiodata.Dataset) -> aiodata.Dataset:
    return ds.with_options(runtime="local", preserve_order=True)


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_array_of_any_layout_becomes_rows_and_a_column(layout: str) -> None:
    array = LAYOUTS[layout]
    array.flags.writeable = False
    made = {
        "returned": aiodata.range(len(array), num_blocks=1).map_batches(lambda _: {"x": array}),
        "columns": aiodata.from_arrow({"x": array}),
        "items": aiodata.from_items([{"x": row} for row in array]),
    }
    for how, ds in made.items():
        batch = await rows(ds).take_batch(len(array))
        got = np.array(list(batch["x"]))  # Rows of one dimension are lists, each of any length.
        assert np.array_equal(got, array), how
        assert got.dtype == array.dtype.newbyteorder("="), how
    one = await rows(aiodata.from_items([{"x": array}])).take_batch()
    assert np.array_equal(one["x"][0], array)


TENSORS = {
    "numbers": pa.FixedShapeTensorArray.from_numpy_ndarray(CUBE),
    "text": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.string(), (2, 2)), pa.array([list("abcd"), list("efgh")], pa.list_(pa.string(), 4))
    ),
    "permuted": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int64(), (2, 3), permutation=[1, 0]),
        pa.array([list(range(6)), list(range(6, 12))], pa.list_(pa.int64(), 6)),
    ),
}
EXPECTED = {
    "numbers": list(CUBE),
    "text": [np.array([["a", "b"], ["c", "d"]], object), np.array([["e", "f"], ["g", "h"]], object)],
    "permuted": [np.arange(6).reshape(2, 3).T, np.arange(6, 12).reshape(2, 3).T],
}


async def taken(ds: aiodata.Dataset, how: str) -> list[dict[str, Any]]:
    return await ds.take() if how == "take" else [row async for row in ds.aiter_rows()]


@pytest.mark.parametrize("how", ["take", "aiter_rows"])
@pytest.mark.parametrize("kind", TENSORS)
async def test_tensor_in_a_row_has_its_shape(kind: str, how: str) -> None:
    ds = rows(aiodata.from_arrow(pa.table({"i": [0, 1], "x": TENSORS[kind]})))
    for index, (row, expected) in enumerate(zip(await taken(ds, how), EXPECTED[kind], strict=True)):
        assert row["i"] == index
        assert np.array_equal(row["x"], expected)
        row["x"][:] = row["x"][::-1]  # It is the row's own.
    assert np.array_equal((await ds.take())[0]["x"], EXPECTED[kind][0])


@pytest.mark.parametrize("how", ["take", "aiter_rows"])
async def test_null_tensors_are_none_and_null_values_are_masked(how: str) -> None:
    masked = np.ma.masked_array(CUBE[0], CUBE[0] == 4)
    given = [{"x": CUBE[0]}, {"x": None}, {"x": masked}]
    got = [row["x"] for row in await taken(rows(aiodata.from_items(given)), how)]
    assert got[1] is None
    assert np.array_equal(got[0], CUBE[0])
    assert not np.ma.isMaskedArray(got[0])
    assert got[2].tolist() == masked.tolist()


@pytest.mark.parametrize("how", ["take", "aiter_rows"])
async def test_tensors_within_structs_lists_and_maps_have_their_shape(how: str) -> None:
    pairs = pa.MapArray.from_arrays([0, 1, 1, 2], ["a", "b"], TENSORS["numbers"])
    given: list[dict[str, Any]] = [
        {"s": {"t": CUBE[0], "n": 1}, "l": [CUBE[0], CUBE[1]]},
        {"s": {"t": CUBE[1], "n": None}, "l": []},
        {"s": None, "l": None},
    ]
    [block] = [one async for one in rows(aiodata.from_items(given)).aiter_batches(batch_format="pyarrow")]
    ds = rows(aiodata.from_arrow(block.append_column("m", pairs)))
    first, second, third = await taken(ds, how)
    assert np.array_equal(first["s"]["t"], CUBE[0])
    assert first["s"]["n"] == 1
    assert np.array_equal(first["l"], CUBE)
    assert np.array_equal(second["s"]["t"], CUBE[1])
    assert (second["l"], second["m"]) == ([], [])
    assert (third["s"], third["l"]) == (None, None)
    assert [(key, value.shape) for row in (first, third) for key, value in row["m"]] == [("a", (2, 3)), ("b", (2, 3))]


async def test_rows_with_tensors_make_the_same_dataset_again() -> None:
    ds = rows(aiodata.from_items([{"x": CUBE, "y": 1}, {"x": None, "y": 2}]))
    again = rows(aiodata.from_items(await ds.take()))
    assert await again.schema() == await ds.schema()
    first, second = await again.take()
    assert np.array_equal(first["x"], CUBE)
    assert second == {"x": None, "y": 2}
