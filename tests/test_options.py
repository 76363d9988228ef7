"""Options are refused with their value and the remedy, before anything runs."""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import aiodata
from aiodata import ExecutionOptions, OptionError, SplitOptions
from aiodata.batching.options import BatchOptions
from aiodata.options import at_least, read_environment


class Same:
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


BAD_EXECUTION = [
    ("runtime", "gpu", "use one of ('auto', 'local', 'ray')"),
    ("runtime", None, "use one of ('auto', 'local', 'ray')"),
    ("num_cpus", 0, "must be an integer of at least 1 or None"),
    ("num_cpus", 1.5, "must be an integer of at least 1 or None"),
    ("num_cpus", True, "must be an integer of at least 1 or None"),
    ("target_block_bytes", 0, "must be an integer of at least 1"),
    ("target_block_bytes", None, "must be an integer of at least 1"),
    ("target_block_bytes", "32MiB", "must be an integer of at least 1"),
    ("task_max_retries", -1, "must be an integer of at least 0"),
    ("task_max_retries", None, "must be an integer of at least 0"),
    ("measure_loop_lag", 1, "must be True or False"),
    ("close_timeout_s", 0, "must be above 0 seconds"),
    ("close_timeout_s", -1.0, "must be above 0 seconds"),
    ("close_timeout_s", math.nan, "must be above 0 seconds"),
    ("close_timeout_s", "5", "must be above 0 seconds"),
    ("close_timeout_s", None, "must be above 0 seconds"),
    ("preserve_order", "no", "True or False"),
    ("preserve_order", None, "True or False"),
    ("read_memory", 0, "must be an integer of at least 1 or None"),
    ("read_memory", 1e9, "must be an integer of at least 1 or None"),
    ("scheduling_strategy", "spread", "(str) must be one of ('DEFAULT', 'SPREAD')"),
    ("scheduling_strategy", 3, "(int) must be one of ('DEFAULT', 'SPREAD')"),
    ("scheduling_strategy", ["SPREAD"], "(list) must be one of ('DEFAULT', 'SPREAD')"),
    ("runtime_env", "env.yaml", "(str) must be a dict"),
    ("runtime_env", {3: "a"}, "(dict) must be a dict, for example {'env_vars'"),
    ("read_resources", "tpu", "(str) must be a dict from names to amounts"),
    ("read_resources", ["tpu"], "(list) must be a dict from names to amounts"),
    ("read_resources", {1: 1}, "(dict) must be a dict from names to amounts"),
    ("read_resources", {"": 1}, "(dict) must be a dict from names to amounts"),
    ("read_resources", {"CPU": 1}, "must not name CPU, which"),
    ("read_resources", {"tpu": 1, "memory": 1, "GPU": 1}, "must not name GPU and memory, which"),
]

# Some of them are options, too, by another name.
BAD_MAPPING = [
    ("num_cpus", -1, "must be 0 or a number of at least 0.0001"),
    ("num_cpus", 1e-6, "must be 0 or a number of at least 0.0001"),
    ("num_gpus", 1.5, "must be a whole number"),
    ("num_gpus", math.inf, "must be 0 or a number of at least 0.0001"),
    ("memory", 0, "must be an integer of at least 1 or None"),
    ("resources", {"CPU": 1}, "must not name CPU, which"),
    ("resources", 3, "(int) must be a dict from names to amounts"),
    ("scheduling_strategy", "PACK", "(str) must be one of ('DEFAULT', 'SPREAD')"),
    ("runtime_env", [], "(list) must be a dict"),
]

BAD_SPLITTING = [
    ("barrier_timeout_s", 0, "must be above 0 seconds"),
    ("barrier_timeout_s", math.nan, "must be above 0 seconds"),
    ("barrier_timeout_s", "60", "must be above 0 seconds"),
    ("barrier_warn_s", 0.0, "must be above 0 seconds"),
    ("barrier_warn_s", None, "must be above 0 seconds"),
    ("on_split_lost", "retry", "use one of ('wait', 'raise', 'redistribute')"),
    ("on_split_lost", None, "use one of ('wait', 'raise', 'redistribute')"),
]

BAD_BATCHING = [
    ("batch_size", 0, "must be an integer of at least 1 or None"),
    ("batch_size", -5, "must be an integer of at least 1 or None"),
    ("batch_size", 2.0, "must be an integer of at least 1 or None"),
    ("batch_size", "all", "must be an integer of at least 1 or None"),
    ("prefetch_batches", -1, "must be an integer of at least 0"),
    ("prefetch_batches", None, "must be an integer of at least 0"),
    ("max_prefetch_bytes", 0, "must be an integer of at least 1 or None"),
    ("local_shuffle_buffer_size", 0, "must be an integer of at least 1 or None"),
    ("local_shuffle_seed", -1, "must be an integer of at least 0 or None"),
    ("local_shuffle_seed", 3, "needs local_shuffle_buffer_size"),
    ("collate_fn", "lower", "must be a function of a batch"),
    ("collate_workers", 2, "needs a collate_fn"),
    ("collate_workers", 0, "must be an integer of at least 1 or None"),
    ("finalize_fn", 3, "must be a function of a batch"),
    ("prefetch_to_device", -1, "must be an integer of at least 0"),
    ("batch_format", "csv", "use one of ('numpy', 'pyarrow', 'pandas', 'polars', 'torch')"),
    ("batch_format", None, "use one of ('numpy', 'pyarrow', 'pandas', 'polars', 'torch')"),
    ("drop_last", "no", "True or False"),
]


def refusal(name: str, value: object, remedy: str) -> str:
    return f"{re.escape(f'{name}={value!r}')}.*{re.escape(remedy)}"


@pytest.mark.parametrize(("name", "value", "remedy"), BAD_EXECUTION)
def test_bad_execution_option_is_refused_with_value_and_remedy(name: str, value: Any, remedy: str) -> None:
    with pytest.raises(OptionError, match=refusal(name, value, remedy)):
        ExecutionOptions(**{name: value})
    with pytest.raises(OptionError, match=refusal(name, value, remedy)):
        aiodata.range(1).with_options(**{name: value})


@pytest.mark.parametrize(("name", "value", "remedy"), BAD_BATCHING)
def test_bad_batch_option_is_refused_with_value_and_remedy(name: str, value: Any, remedy: str) -> None:
    with pytest.raises(OptionError, match=refusal(name, value, remedy)):
        BatchOptions(**{name: value})
    with pytest.raises(OptionError, match=refusal(name, value, remedy)):
        aiodata.range(1).aiter_batches(**{name: value})


@pytest.mark.parametrize(("name", "value", "remedy"), BAD_MAPPING)
def test_bad_argument_of_map_batches_is_refused_with_its_value(name: str, value: Any, remedy: str) -> None:
    with pytest.raises(OptionError, match=refusal(name, value, remedy)):
        aiodata.range(1).map_batches(Same, **{name: value})


@pytest.mark.parametrize("value", [-1, "1", True, 1e-6, math.nan, None])
def test_bad_amount_of_a_resource_is_refused_with_its_name(value: Any) -> None:
    message = refusal("resources['tpu']", value, "must be 0 or a number of at least 0.0001")
    if value is None:
        message = "resources\\['tpu'\\]=None must be"
    with pytest.raises(OptionError, match=message):
        aiodata.range(1).map_batches(Same, resources={"tpu": value})


def test_what_is_asked_of_ray_is_copied_and_keeps_no_amounts_of_nothing() -> None:
    environment = {"env_vars": {"ONE": "1"}}
    amounts: dict[str, Any] = {"tpu": np.float32(0.5), "disk": 0}
    options = ExecutionOptions(runtime_env=environment, read_resources=amounts)
    environment["env_vars"]["TWO"] = "2"
    amounts["tpu"] = 3
    assert options.runtime_env == {"env_vars": {"ONE": "1"}}
    assert options.read_resources == {"tpu": 0.5}


@pytest.mark.parametrize(("name", "value", "remedy"), BAD_SPLITTING)
def test_bad_split_option_is_refused_with_value_and_remedy(name: str, value: Any, remedy: str) -> None:
    with pytest.raises(OptionError, match=refusal(name, value, remedy)):
        SplitOptions(**{name: value})


def test_split_options_are_frozen_and_may_wait_for_ever() -> None:
    options = SplitOptions(barrier_timeout_s=None, barrier_warn_s=0.5)
    assert options == SplitOptions(barrier_warn_s=0.5)
    with pytest.raises(FrozenInstanceError):
        options.on_split_lost = "raise"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ds: ds.streaming_split(0), "n=0 must be an integer of at least 1"),
        (lambda ds: ds.streaming_split(2.0), "n=2.0 must be an integer of at least 1"),
        (lambda ds: ds.streaming_split(2, equal="yes"), "equal='yes' must be True or False"),
        (lambda ds: ds.streaming_split(2, options={"barrier_warn_s": 3}), "must be a SplitOptions"),
        (lambda ds: ds.streaming_split(True), "n=True must be an integer of at least 1"),
        (lambda ds: ds.streaming_split(2, options=0), "must be a SplitOptions"),
        (lambda ds: ds.streaming_split(2, name=3), "name=3 must be a string that is not empty, or None"),
        (lambda ds: ds.streaming_split(2, name=""), "name='' must be a string"),
        (lambda ds: ds.streaming_split(2, name="a", namespace=b"b"), "namespace=b'b' must be a string"),
        (lambda ds: ds.streaming_split(2, locality_hints="ab"), "locality_hints='ab' must be a list of node ids"),
        (lambda ds: ds.streaming_split(2, locality_hints=5), "locality_hints=5 must be a list of node ids"),
        (lambda ds: ds.streaming_split(2, locality_hints=[1, 2]), "must be a list of node ids"),
        (lambda ds: ds.streaming_split(2, locality_hints=["a"]), "must name one node for each of the 2 splits"),
        (lambda ds: ds.with_options(runtime="local").streaming_split(2), "runtime='local' has no splits"),
    ],
)
def test_bad_argument_of_streaming_split_is_refused_before_ray_starts(call: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call(aiodata.range(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aiodata.range(-1), "n=-1 must be an integer of at least 0"),
        (lambda: aiodata.range(1.5), "n=1.5 must be an integer"),  # type: ignore[arg-type]
        (lambda: aiodata.range(True), "n=True must be an integer"),
        (lambda: aiodata.range(1, num_blocks=True), "num_blocks=True must be an integer"),
        (lambda: aiodata.range(1).limit(True), "n=True must be an integer"),
        (
            lambda: aiodata.range(1).map_batches(Same, concurrency=(1, True)),
            r"concurrency=\(1, True\) must be an integer",
        ),
        (lambda: aiodata.range(1).map_batches(Same, concurrency=(1, 2, 3)), "at least 1, or"),  # type: ignore[arg-type]
        (lambda: aiodata.range(1).map_batches(Same, num_cpus=np.True_), "num_cpus=np.True_ must"),  # type: ignore[arg-type]
        (lambda: aiodata.range(1, num_blocks=0), "num_blocks=0 must be an integer of at least 1 or None"),
        (lambda: aiodata.from_arrow([]), "an empty table will do"),
        (lambda: aiodata.read_parquet([]), "must name at least one file"),
        (lambda: aiodata.read_parquet("x", filter="a > 1"), "must be a pyarrow.compute.Expression"),
        (lambda: aiodata.range(1).limit(-1), "n=-1 must be an integer of at least 0"),
        (lambda: aiodata.range(1).select_columns([]), "must name at least one column"),
        (lambda: aiodata.range(1).filter(lambda row: True), "to filter by a function use map_batches"),
        (lambda: aiodata.range(1).map_batches(1), "fn=1 must be a function"),  # type: ignore[arg-type]
        (lambda: aiodata.range(1).map_batches(as_coroutine, concurrency=(1, 2)), "only a class has a pool"),
        (lambda: aiodata.range(1).map_batches(as_async_generator, concurrency=0), "concurrency=0 must be an integer"),
        (lambda: aiodata.range(1).map_batches(dict.copy, batch_size=0), "batch_size=0 must be an integer"),
        (lambda: aiodata.range(1).map_batches(dict.copy, batch_format="csv"), "batch_format='csv' is unknown"),
    ],
)
def test_bad_argument_of_a_verb_is_refused_before_anything_runs(call: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call()


async def as_coroutine(batch: pa.Table) -> pa.Table:
    return batch


async def as_async_generator(batch: pa.Table) -> Any:
    yield batch


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint64])
def test_numbers_of_numpy_are_taken_as_plain_ones(kind: Any) -> None:
    seconds: Any = np.float32(2.5)
    options = ExecutionOptions(num_cpus=kind(2), target_block_bytes=kind(3), close_timeout_s=seconds)
    assert options == ExecutionOptions(num_cpus=2, target_block_bytes=3, close_timeout_s=2.5)
    assert type(options.num_cpus) is int
    assert type(options.close_timeout_s) is float
    true: Any = np.True_
    batching = BatchOptions(batch_size=kind(3), drop_last=true, prefetch_batches=kind(0))
    assert batching == BatchOptions(batch_size=3, drop_last=True, prefetch_batches=0)
    assert type(batching.drop_last) is bool
    with pytest.raises(OptionError, match="batch_size="):
        BatchOptions(batch_size=true)


async def test_sizes_of_numpy_work_wherever_a_number_is_asked_for() -> None:
    one: Any = np.int8(1)
    three: Any = np.int64(3)
    half: Any = np.float32(0.5)
    false: Any = np.False_
    ds = aiodata.range(3 * three, num_blocks=three).with_options(runtime="local", num_cpus=three)
    ds = ds.map_batches(Same, batch_size=three, concurrency=(one, three), num_cpus=half)
    ds = ds.map_batches(as_coroutine, concurrency=three)
    assert await ds.count() == 9
    assert len(await ds.take(three)) == len(await ds.limit(three).take()) == 3
    assert [len(batch["id"]) async for batch in ds.aiter_batches(batch_size=three, drop_last=false)] == [3, 3, 3]


@pytest.mark.parametrize("name", [3, "", None])
async def test_bad_name_to_attach_to_is_refused(name: Any) -> None:
    with pytest.raises(OptionError, match=f"name={name!r} must be"):
        await aiodata.attach(name)


def test_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"unknown option 'cpus'; the options are runtime, preserve_order, num_cpus"):
        aiodata.range(1).with_options(cpus=2)


def test_override_changes_a_copy() -> None:
    options = ExecutionOptions()
    changed = options.override(num_cpus=3, close_timeout_s=0.5)
    assert (changed.num_cpus, changed.close_timeout_s) == (3, 0.5)
    assert options == ExecutionOptions()
    with pytest.raises(FrozenInstanceError):
        options.num_cpus = 1  # type: ignore[misc]


@pytest.mark.parametrize("value", [2, 3, 10**12])
def test_integers_from_the_minimum_on_are_accepted(value: int) -> None:
    at_least("n", value, 2)
    at_least("n", None, 2, optional=True)
    with pytest.raises(OptionError, match="n=1 must be an integer of at least 2"):
        at_least("n", 1, 2)


def test_environment_counts_empty_variables_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIODATA_RUNTIME", "")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    environment = read_environment()
    assert (environment.runtime, environment.ray_address) == (None, "auto")
