"""Every argument that cannot work is refused when it is given, with its name, its value and the remedy."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from inspect import isawaitable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import aiodata
from aiodata import OptionError
from aiodata.integrations.ray_train import SplitConfig
from aiodata.options import shown
from aiodata.testing import Faults, SimulatedMap, SimulatedRuntime, SimulatedSource, Simulation

Call = Callable[[Any], Any]

DS = aiodata.range(9).with_options(runtime="local")
ON_RAY = aiodata.range(9).with_options(runtime="ray")
SOURCE = SimulatedSource(num_pieces=1)


class Same:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, batch: Any) -> Any:
        return batch


def same(batch: Any, *args: Any, **kwargs: Any) -> Any:
    return batch


def by_name(make: Callable[..., Any], *names: str, **others: Any) -> dict[str, Call]:
    """Calls of a function, each with one of several arguments."""

    def call(name: str) -> Call:
        return lambda value: make(**{**others, name: value})

    return {f"{getattr(make, '__qualname__', type(make).__name__)} {name}": call(name) for name in names}


COUNTS: dict[str, Call] = {
    **by_name(aiodata.range, "n", "num_blocks", n=9),
    **by_name(DS.limit, "n"),
    **by_name(DS.take, "n"),
    **by_name(DS.take_batch, "n"),
    **by_name(ON_RAY.streaming_split, "n"),
    **by_name(DS.map_batches, "batch_size", fn=same),
    **by_name(DS.map_batches, "concurrency", fn=Same),
    "pool concurrency": lambda value: DS.map_batches(Same, concurrency=(1, value)),
    **by_name(DS.aiter_batches, "batch_size", "prefetch_batches", "max_prefetch_bytes", "prefetch_to_device"),
    **by_name(DS.aiter_batches, "local_shuffle_buffer_size"),
    **by_name(DS.aiter_batches, "local_shuffle_seed", local_shuffle_buffer_size=4),
    **by_name(DS.aiter_batches, "collate_workers", collate_fn=same),
    **by_name(DS.aiter_torch_batches, "batch_size", "prefetch_batches", "max_prefetch_bytes", "prefetch_to_device"),
    **by_name(DS.with_options, "num_cpus", "max_object_store_bytes", "target_block_bytes", "max_errored_blocks"),
    **by_name(DS.with_options, "task_max_retries"),
    **by_name(SimulatedSource, "num_pieces", "blocks_per_piece", "rows_per_block", "bytes_per_block", num_pieces=1),
    **by_name(SimulatedSource, "first_row", num_pieces=1),
    **by_name(SimulatedMap, "blocks_per_input", "batch_size", "calls_in_flight"),
    **by_name(Simulation, "consumer_max_blocks", "limit_rows", source=SOURCE),
    **by_name(SimulatedRuntime, "num_workers", "store_bytes", "task_max_retries", num_workers=1),
    **by_name(Faults, "seed"),
}
AMOUNTS: dict[str, Call] = {
    **by_name(DS.map_batches, "num_cpus", "num_gpus", fn=same),
    **by_name(DS.with_options, "close_timeout_s"),
    **by_name(aiodata.SplitOptions, "barrier_timeout_s", "barrier_warn_s"),
    **by_name(aiodata.LoopLagMonitor, "interval_s"),
    **by_name(SimulatedSource, "s_per_block", num_pieces=1),
    **by_name(SimulatedMap, "s_per_block", "rows_ratio", "bytes_ratio"),
    **by_name(Simulation, "consumer_s_per_block", "max_virtual_s", source=SOURCE),
    **by_name(SimulatedRuntime, "num_gpus", "metadata_delay_s", "cancel_delay_s", "actor_start_s", num_workers=1),
    **by_name(Faults, "kill", "stall_s", "slow_factor"),
}
FLAGS: dict[str, Call] = {
    **by_name(DS.aiter_batches, "drop_last"),
    **by_name(DS.aiter_torch_batches, "drop_last", "pin_memory"),
    **by_name(DS.with_options, "preserve_order", "metadata_prefetch", "measure_loop_lag"),
    **by_name(ON_RAY.streaming_split, "equal", n=2),
    **by_name(SplitConfig, "equal", "use_locality"),
    **by_name(SimulatedMap, "needs_actor", "fuses"),
}
CHOICES: dict[str, Call] = {
    **by_name(DS.map_batches, "batch_format", fn=same),
    **by_name(DS.take_batch, "batch_format"),
    **by_name(DS.aiter_batches, "batch_format", "nulls"),
    **by_name(DS.aiter_torch_batches, "device"),
    **by_name(DS.with_options, "runtime"),
    **by_name(aiodata.SplitOptions, "on_split_lost"),
    **by_name(aiodata.read_parquet, "partitioning", paths="x"),
}
COLUMNS: dict[str, Call] = {
    **by_name(DS.select_columns, "names"),
    **by_name(aiodata.read_parquet, "columns", paths="x"),
}
LISTS: dict[str, Call] = {
    **by_name(DS.map_batches, "fn_args", fn=same),
    **by_name(DS.map_batches, "fn_constructor_args", fn=Same),
    **by_name(aiodata.from_items, "items"),
    **by_name(Simulation, "maps", "others", source=SOURCE),
}
DICTS: dict[str, Call] = {
    **by_name(DS.map_batches, "fn_kwargs", fn=same),
    **by_name(DS.map_batches, "fn_constructor_kwargs", fn=Same),
}
NAMES: dict[str, Call] = {
    **by_name(ON_RAY.streaming_split, "name", "namespace", n=2),
    **by_name(aiodata.attach, "name", "namespace", name="flights"),
}
OBJECTS: dict[str, Call] = {
    **by_name(DS.filter, "expression"),
    **by_name(DS.map_batches, "fn"),
    **by_name(DS.map_batches, "schema", fn=same),
    **by_name(DS.aiter_batches, "collate_fn", "finalize_fn"),
    **by_name(DS.aiter_torch_batches, "dtypes"),
    **by_name(ON_RAY.streaming_split, "options", n=2),
    **by_name(ON_RAY.streaming_split, "locality_hints", n=2),
    **by_name(SplitConfig, "options"),
    **by_name(aiodata.read_parquet, "paths"),
    **by_name(aiodata.read_parquet, "filter", "schema", "filesystem", paths="x"),
    **by_name(aiodata.from_arrow, "obj"),
    **by_name(aiodata.run, "main"),
    **by_name(Simulation, "source", "options", source=SOURCE),
    **by_name(SimulatedRuntime, "faults", num_workers=1),
    "union others[0]": DS.union,
}

SERIES = pd.Series(["x", "y"])
NO_NUMBERS = [True, np.True_, math.nan, "3", b"3", [], [3], {}, np.array([3, 4]), pa.scalar(3), SERIES, same]
WRONG: list[tuple[Mapping[str, Call], list[Any]]] = [
    (COUNTS, [*NO_NUMBERS, -2, 2.0, np.float32(2.5), math.inf, Decimal(2)]),
    (AMOUNTS, [*NO_NUMBERS, -1, np.float64(-1.0), 1j]),
    (FLAGS, [0, 1, 1.0, None, "yes", [], [True], np.array([True, False]), SERIES]),
    (CHOICES, ["x", "", 3.5, [], ["numpy"], {}, {"numpy"}, np.array(["numpy", "x"]), SERIES, Same]),
    (COLUMNS, [3, True, b"x", {}, {"x": 1}, Same, [1], [None], ["x", "x"], []]),
    (LISTS, [None, 3, True, "x", b"x", {"a": 1}, Same, DS, DS.aiter_batches()]),
    (DICTS, [3, True, "x", [], [1], ["ab"], {1: 2}, SERIES, Same]),
    (NAMES, [3, True, "", " ", b"x", [], ["x"], SERIES]),
    (OBJECTS, [3, True, 2.5, 10**200, np.float32(1), [3]]),
]
CASES = [(name, call, values) for calls, values in WRONG for name, call in calls.items()]


def outcome(call: Call, value: Any) -> None:
    made = call(value)
    if isawaitable(made):
        asyncio.run(awaited(made))


async def awaited(made: Awaitable[Any]) -> None:
    await made


@pytest.mark.parametrize(("name", "call", "values"), CASES, ids=[name for name, _, _ in CASES])
def test_wrong_value_is_refused_with_name_value_and_remedy(name: str, call: Call, values: list[Any]) -> None:
    name = name.rsplit(" ", 1)[-1]
    for value in values:
        with pytest.raises(OptionError) as caught:
            outcome(call, value)
        message = str(caught.value)
        assert message.startswith((f"{name}=", f"{name}[0]=")), message
        assert re.search(r"must|use|give|cannot be|once", message), message
        assert len(message) < 500, message
        assert "\n" not in message, message


# To split a dataset starts Ray.
NUMBERS = {name: call for name, call in {**COUNTS, **AMOUNTS}.items() if "streaming_split" not in name}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_numbers_may_be_those_of_numpy(name: str, kind: Any) -> None:
    outcome(NUMBERS[name], kind(1))


def test_value_that_is_long_or_cannot_be_shown_is_shown_all_the_same() -> None:
    class Secretive:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert shown("a" * 1000).startswith("'aaa")
    assert len(shown("a" * 1000)) <= 120
    assert shown(Secretive()) == "<a value that cannot be shown> (Secretive)"
    assert shown(SERIES) == "0 x 1 y dtype: str (Series)"
    assert shown(np.float32(2.5)) == "np.float32(2.5)"


def test_range_that_int64_has_no_room_for_is_refused() -> None:
    aiodata.range(2**63 - 1)
    with pytest.raises(OptionError, match=r"n=9223372036854775808 must be at most 2\*\*63 - 1"):
        aiodata.range(2**63)


@pytest.mark.parametrize("value", [2**62, 2**63, 10**30])
async def test_sizes_beyond_all_rows_are_all_rows(value: int) -> None:
    ds = DS.map_batches(same, batch_size=value).limit(value)
    batches = ds.aiter_batches(batch_size=value, prefetch_batches=value, local_shuffle_buffer_size=value)
    assert [len(batch["id"]) async for batch in batches] == [9]
    assert len(await ds.take(value)) == 9


@pytest.mark.parametrize("value", [[2**70], [{"x": 10**400}], [-1, 2**64], [[2**70]], [{"a": {"b": 2**70}}]])
def test_integer_beyond_64_bits_is_refused_with_what_holds_it(value: Any) -> None:
    with pytest.raises(OptionError, match=r"integers have 64 bits: give larger ones as decimal\.Decimal"):
        aiodata.from_items(value)


def test_value_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(OptionError, match="items cannot be made a table"):
        aiodata.from_items([endless])


@pytest.mark.parametrize("obj", [pa.array([1]), pd.Series([1], name="x"), np.array([1]), [pa.array([1])]])
def test_column_alone_is_no_table(obj: Any) -> None:
    with pytest.raises(OptionError, match=r"obj=.* cannot be read: cannot make a block of .*; give a dict of arrays"):
        aiodata.from_arrow(obj)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        (pc.field("y") > 1, r"there is no column 'y'"),
        (pc.field("id") > "a", r"has no kernel matching input types \(int64, string\)"),
        (pc.field("id") + 1, r"must evaluate to bool"),
        (pc.scalar(1), r"must evaluate to bool"),
    ],
)
async def test_fault_of_an_expression_is_told_as_its_own(tmp_path: Any, expression: Any, reason: str) -> None:
    table = pa.table({"id": [1]})
    pq.write_table(table, tmp_path / "a.parquet")
    files = aiodata.read_parquet(tmp_path)
    for ds in (
        files.filter(expression),
        aiodata.read_parquet(tmp_path, filter=expression),
        files.map_batches(same).filter(expression),
        aiodata.from_arrow(table).filter(expression),
    ):
        for ask in (ds.take, ds.count):
            with pytest.raises(OptionError, match=rf"filter\(.*{reason}"):
                await ask()
