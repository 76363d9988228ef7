"""Train synchronously: the consumer keeps its thread for 20 ms with each batch.

The four numeric columns of the Parquet files are read in `numpy` batches of 50,000 rows, and each of the
128 batches goes to a training step. In the first pass that counts the step waits for 20 ms without the
interpreter's lock, as for a device; in the second it computes, in pure Python, what takes about 20 ms
when nothing disturbs it. In a coroutine that does not give the event loop a turn, the work behind the
iteration has to go on regardless, or to be done in what is left. The clock runs from opening the
iteration to the end of the last step. The ideal is the time of the same 128 steps without any data,
measured in the same process before each pass. One pass without steps comes first, uncounted.

- aiodata: defaults; the step is called within `async for`, and holds the loop.
- Ray Data: defaults, a plain `for`. With 32 or 128 read blocks, or four batches ahead, it was slower.
- torch: a `DataLoader` with two workers that live on from pass to pass, each reading every second file
  with `ParquetFile.iter_batches`; they make tensors, which travel through shared memory and cost nothing
  to turn into arrays. Further batches ahead, or any order, made no difference.
"""

from __future__ import annotations

import time
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from benchmarks import event_loop
from benchmarks.figures import percentile
from benchmarks.model import AIODATA, Contender, Metric, Scenario, aiodata_contenders, at_most, ray_data_contender
from benchmarks.sources import NUM_ROWS, NUMERIC_COLUMNS, aiodata_parquet, parquet_paths, ray_data_parquet
from benchmarks.stamps import Stamps, Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import pyarrow as pa
    import torch.utils.data

_BATCH_ROWS = 50_000
_NUM_STEPS = NUM_ROWS // _BATCH_ROWS
_STEP_S = 0.02
_NUM_TORCH_WORKERS = 2
_TRIAL_ROUNDS = 100_000
_NUM_TRIALS = 20
_MS_PER_S = 1e3


def _no_step() -> None:
    pass


def _waiting_step() -> None:
    time.sleep(_STEP_S)


def _compute(num_rounds: int) -> None:
    for _ in range(num_rounds):
        pass


def _seconds(work: Callable[[], None], times: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - started


@cache
def _rounds_per_step() -> int:
    """Find out how much computing takes as long as a step, at best."""
    trial_s = min(_seconds(partial(_compute, _TRIAL_ROUNDS)) for _ in range(_NUM_TRIALS))
    return round(_STEP_S / trial_s * _TRIAL_ROUNDS)


def _computing_step() -> None:
    _compute(_rounds_per_step())


def _figures(run_pass: Callable[[Callable[[], None]], Timing]) -> Mapping[str, float]:
    """Call `run_pass` with each kind of step, and compare its times with those of the steps alone."""
    run_pass(_no_step)
    waiting_ideal_s = _seconds(_waiting_step, _NUM_STEPS)
    waiting = run_pass(_waiting_step)
    _computing_step()
    computing_ideal_s = _seconds(_computing_step, _NUM_STEPS)
    computing = run_pass(_computing_step)
    return {
        "times_ideal": waiting.pass_s / waiting_ideal_s,
        "later_times_ideal": (waiting.pass_s - waiting.first_s) / waiting_ideal_s,
        "first_s": waiting.first_s,
        "next_p99_ms": percentile(waiting.waits_s, 99) * _MS_PER_S,
        "computing_times_ideal": computing.pass_s / computing_ideal_s,
    }


async def _aiodata_pass(runtime: str, step: Callable[[], None]) -> Timing:
    stamps = Stamps()
    dataset = aiodata_parquet(runtime).select_columns(NUMERIC_COLUMNS)
    async for batch in dataset.aiter_batches(batch_size=_BATCH_ROWS, batch_format="numpy"):
        stamps.batch(len(batch["id"]))
        step()
        stamps.ask()
    return stamps.end(NUM_ROWS)


def _aiodata(runtime: str) -> Mapping[str, float]:
    return _figures(lambda step: event_loop.run(_aiodata_pass(runtime, step)))


def _pull_pass(open_batches: Callable[[], Iterable[Any]], step: Callable[[], None]) -> Timing:
    stamps = Stamps()
    for batch in open_batches():
        stamps.batch(len(batch["id"]))
        step()
        stamps.ask()
    return stamps.end(NUM_ROWS)


def _pull(open_batches: Callable[[], Iterable[Any]]) -> Mapping[str, float]:
    return _figures(partial(_pull_pass, open_batches))


def _ray_data() -> Iterable[Any]:
    dataset = ray_data_parquet(columns=list(NUMERIC_COLUMNS))
    batches: Iterable[Any] = dataset.iter_batches(batch_size=_BATCH_ROWS, batch_format="numpy")
    return batches


def _to_tensors(batch: pa.RecordBatch) -> dict[str, Any]:
    import torch

    return {name: torch.tensor(batch.column(name).to_numpy()) for name in NUMERIC_COLUMNS}


@cache
def _torch_dataloader() -> torch.utils.data.DataLoader[Any]:
    import torch.utils.data

    from benchmarks.file_shares import FileShares

    return torch.utils.data.DataLoader(
        FileShares(parquet_paths(), _BATCH_ROWS, NUMERIC_COLUMNS),
        batch_size=None,
        collate_fn=_to_tensors,
        num_workers=_NUM_TORCH_WORKERS,
        persistent_workers=True,
    )


def _torch_batches() -> Iterator[Any]:
    for batch in _torch_dataloader():
        yield {name: column.numpy() for name, column in batch.items()}


SCENARIO = Scenario(
    name="blocking_trainer",
    summary="128 training steps of 20 ms that hold the consumer's thread, fed from Parquet files",
    timed="from building the recipe to the end of the last step, over the same steps without data",
    notes=__doc__,
    metrics=(
        Metric("times_ideal", "", "the pass, over its steps without data; a step waits for 20 ms"),
        Metric("later_times_ideal", "", "the same without the wait for the first batch"),
        Metric("first_s", "s", "the wait for the first batch"),
        Metric("next_p99_ms", "ms", "the wait for a later batch, 99th percentile"),
        Metric("computing_times_ideal", "", "the same ratio where a step computes in Python"),
    ),
    baseline="ray_data",
    contenders=(
        *aiodata_contenders(_aiodata, warms_itself=True),
        ray_data_contender(partial(_pull, _ray_data), warms_itself=True),
        Contender(
            "torch",
            "torch DataLoader, 2 workers",
            ("torch",),
            partial(_pull, _torch_batches),
            warms_itself=True,
        ),
    ),
    aims=tuple(at_most(contender, "times_ideal", 1.1) for contender in AIODATA),
)
