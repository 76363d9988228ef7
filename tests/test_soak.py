"""The soak, in short: pairs of splits side by side, whose epochs all end with the right rows, or are told of."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks import soak
from benchmarks.soak import NUM_ROWS, Kind, run_kinds

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]

KINDS = (
    Kind(0.3, is_equal=True, is_apart=False),
    Kind(0.0, is_equal=False, is_apart=False),
    Kind(0.3, is_equal=True, is_apart=True),
)


@pytest.mark.usefixtures("same_store")
async def test_every_epoch_of_pairs_side_by_side_ends_with_its_rows() -> None:
    tally = await run_kinds(KINDS, 2 * len(KINDS))
    assert not tally.faults
    assert tally.epochs == Counter(dict.fromkeys(KINDS, 2))


@pytest.mark.parametrize("is_equal", [True, False])
async def test_epoch_with_wrong_rows_is_told(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, is_equal: bool
) -> None:
    read = soak.read

    async def read_too_few(*args: object) -> list[int]:
        return (await read(*args))[1:]  # type: ignore[arg-type]

    monkeypatch.setattr(soak, "read", read_too_few)
    kind = Kind(0.0, is_equal, is_apart=False)
    tally = await run_kinds((kind,), 3)
    [fault] = tally.faults
    assert f"{NUM_ROWS - 2} rows" in fault
    assert not tally.epochs


async def test_epoch_that_does_not_end_is_told(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "STUCK_AFTER_S", 1.0)
    tally = await run_kinds((Kind(1000.0, is_equal=True, is_apart=False),), 3)
    assert "TimeoutError" in tally.faults[0]
