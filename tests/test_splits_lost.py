"""A consumer of a split is killed: no row is lost, none comes twice but what it was not known to be done with."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import ray
from ray.exceptions import RayError

import aiodata
from aiodata import SplitOptions
from aiodata.options import OnSplitLost
from tests.conftest import PATIENCE_S
from tests.split_consumers import BATCH_ROWS, Consumer, Record, Run, consume_in_task, start_driver

# What is tried is in other processes: one event loop suffices here.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("same_store"),
    pytest.mark.loops("asyncio"),
    pytest.mark.timeout(180),
]

BLOCK_ROWS = 50
NUM_ROWS = 1000
ALL = list(range(NUM_ROWS))

# A killed consumer is noticed within so many seconds: 2 of them pass in Ray, and the others on a busy machine.
NOTICED_S = 30.0

# What a consumer is done with is known after so many seconds, or with its next request; and how late a message may be.
KNOWN_S = 0.1
MESSAGE_S = 0.1

RAISE = SplitOptions(on_split_lost="raise")
MODES: list[OnSplitLost] = ["wait", "redistribute", "raise"]


def numbers(num_rows: int = NUM_ROWS) -> aiodata.Dataset:
    return aiodata.range(num_rows, num_blocks=num_rows // BLOCK_ROWS)


def slow(batch: dict[str, Any]) -> dict[str, Any]:
    """Take so long that the epoch goes on when a killed consumer is noticed."""
    time.sleep(0.6)
    return batch


@pytest.fixture(scope="module")
def survivors(ray_cluster: None) -> Iterator[list[Any]]:
    """Return processes that nobody kills; to start one takes longer than a test."""
    actors = [Consumer.remote() for _ in range(3)]
    yield actors
    for actor in actors:
        ray.kill(actor)


@pytest.fixture(scope="module")
def record(ray_cluster: None) -> Iterator[Any]:
    actor = Record.remote()
    yield actor
    ray.kill(actor)


@pytest.fixture
def run(record: Any) -> Run:
    return Run(record, uuid.uuid4().hex)


def kill(pid: int) -> float:
    """Kill a process; return when."""
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()


async def kill_at_gate(run: Run, split: aiodata.SplitIterator, who: str, num_batches: int) -> tuple[float, int]:
    """Kill a consumer at its gate; return when, and of how many rows it was known that it is done with them."""
    pid = await run.reached(who, num_batches)
    known_rows = (await split.stats()).splits[split.split_index].acked_rows
    return kill(pid), known_rows


def check_repeated(done: list[int], again: list[int], known_rows: int) -> None:
    """Check that of what a killed consumer was done with only the last rows came again, if nobody knew of them."""
    repeated = sorted(set(done) & set(again))
    assert repeated == sorted(done[len(done) - len(repeated) :])
    assert len(repeated) <= len(done) - known_rows


async def check_once(run: Run, dead: str, known_rows: int, *alive: str, epoch: int = 0, rows: list[int] = ALL) -> None:
    """Check that those alive have each row once that the killed one was not known to be done with."""
    done, others = await run.rows(dead, epoch=epoch), await run.rows(*alive, epoch=epoch)
    assert len(others) == len(set(others))
    assert sorted(set(done) | set(others)) == rows
    check_repeated(done, others, known_rows)


async def start_victim(kind: str, folder: Path, *args: Any) -> Any:
    if kind == "actor":
        return Consumer.remote().consume.remote(*args)
    if kind == "task":
        return consume_in_task.remote(*args)
    return await start_driver(folder, *args)


async def see_dead(kind: str, victim: Any) -> None:
    if kind == "driver":
        assert await victim.wait() == -signal.SIGKILL
        return
    with pytest.raises(RayError):
        await victim


@pytest.mark.parametrize("kind", ["actor", "task", "driver"])
async def test_replacement_of_a_killed_consumer_begins_with_what_was_not_acknowledged(
    run: Run, survivors: list[Any], tmp_path: Path, kind: str
) -> None:
    splits = numbers().streaming_split(2, options=SplitOptions(on_split_lost="wait"))
    await run.gate("dead", "other", at=15)
    victim = await start_victim(kind, tmp_path, splits[0], run, "dead")
    other = survivors[0].consume.remote(splits[1], run, "other", [0, 1])
    await run.reached("other", 15)
    killed_s, known_rows = await kill_at_gate(run, splits[0], "dead", 15)
    new = survivors[1].consume.remote(splits[0], run, "new", [0, 1])
    await run.reached("new", 1)
    await run.open("other")
    assert [(await one).error for one in (other, new)] == ["", ""]
    await see_dead(kind, victim)
    dead, first = await run.rows("dead"), (await run.notes("new"))[0]
    assert first.at_s - killed_s < NOTICED_S
    # What the killed one had and was not done with comes before all else.
    assert first.ids[0] in dead or first.ids[0] == dead[-1] + 1
    await check_once(run, "dead", known_rows, "new", "other")
    assert not set(dead) & set(await run.rows("other"))
    assert sorted(await run.rows("other", "new", epoch=1)) == ALL


async def test_survivors_get_what_a_killed_consumer_was_not_done_with_and_go_on_without_it(
    run: Run, survivors: list[Any]
) -> None:
    splits = numbers().streaming_split(3, options=SplitOptions(on_split_lost="redistribute"))
    await run.gate("dead", "a", "b", at=10)
    victim = Consumer.remote().consume.remote(splits[0], run, "dead")
    a, b = (survivors[i].consume.remote(splits[i + 1], run, who, [0, 1, 2]) for i, who in enumerate("ab"))
    for who in "ab":
        await run.reached(who, 10)
    _, known_rows = await kill_at_gate(run, splits[0], "dead", 10)
    await run.gate("a", "b", epoch=1, at=1)
    await see_dead("actor", victim)
    for who in "ab":
        await run.reached(who, 1, epoch=1)
    await check_once(run, "dead", known_rows, "a", "b")
    # It comes while epoch 1 runs without its split, and takes part from the next one on.
    new = survivors[2].consume.remote(splits[0], run, "new", [2])
    await run.gate("new", epoch=2, at=1)
    await run.reached("new", 0)
    await run.gate("a", "b", epoch=2, at=1)
    for who in "ab":
        await run.reached(who, 1, epoch=2)
    await run.reached("new", 1, epoch=2)
    await run.open("a", "b", "new")
    assert [(await one).error for one in (a, b, new)] == ["", "", ""]
    assert sorted(await run.rows("a", "b", epoch=1)) == ALL
    assert sorted(await run.rows("a", "b", "new", epoch=2)) == ALL


async def test_all_are_told_of_a_killed_consumer_while_one_holds_its_loop_and_the_next_epoch_is_whole(
    run: Run, survivors: list[Any]
) -> None:
    splits = numbers().map_batches(slow, batch_size=BLOCK_ROWS).streaming_split(3, options=RAISE)
    await run.gate("dead", "a", at=5)
    victim = Consumer.remote().consume.remote(splits[0], run, "dead")
    a = survivors[0].consume.remote(splits[1], run, "a")
    busy = survivors[1].consume.remote(splits[2], run, "busy", [0], 5.0)
    await run.reached("a", 5)
    pid = await run.reached("dead", 5)
    await run.open("a")
    killed_s = kill(pid)
    ended = await a
    assert ended.error == "SplitLostError"
    assert "split 0" in ended.message
    assert ended.at_s - killed_s < NOTICED_S
    ended = await busy
    assert ended.error == "SplitLostError"
    assert "split 0" in ended.message
    await see_dead("actor", victim)
    again = [survivors[i].consume.remote(splits[i], run, f"again {i}", [1]) for i in range(3)]
    assert [(await one).error for one in again] == ["", "", ""]
    assert sorted(await run.rows(*[f"again {i}" for i in range(3)], epoch=1)) == ALL


@pytest.mark.parametrize("mode", MODES)
async def test_consumer_killed_at_the_barrier_is_replaced_or_done_without(
    run: Run, survivors: list[Any], mode: OnSplitLost
) -> None:
    splits = numbers().streaming_split(3, options=SplitOptions(on_split_lost=mode))
    victim = Consumer.remote().consume.remote(splits[0], run, "dead")
    waiting = survivors[0].consume.remote(splits[1], run, "waiting")
    pid = await run.reached("dead", 0)
    await run.reached("waiting", 0)
    with anyio.fail_after(PATIENCE_S):
        while (await splits[0].stats()).absent != (2,):
            pass
    killed_s = kill(pid)
    await see_dead("actor", victim)
    consumers = [waiting]
    if mode == "raise":
        ended = await consumers.pop()
        assert ended.error == "SplitLostError"
        assert "split 0" in ended.message
        assert ended.at_s - killed_s < NOTICED_S
        consumers.append(survivors[0].consume.remote(splits[1], run, "waiting"))
    last = survivors[1].consume.remote(splits[2], run, "last")
    if mode != "redistribute":
        consumers.append(survivors[2].consume.remote(splits[0], run, "new"))
    assert [(await one).error for one in (*consumers, last)] == [""] * (len(consumers) + 1)
    names = ["waiting", "last"] + ["new"] * (mode != "redistribute")
    assert sorted(await run.rows(*names)) == ALL


@pytest.mark.parametrize("mode", MODES)
async def test_consumer_killed_with_the_last_batch_in_hand_holds_nobody_up(
    run: Run, survivors: list[Any], mode: OnSplitLost
) -> None:
    rows = 2 * BLOCK_ROWS
    splits = numbers(rows).streaming_split(2, equal=True, options=SplitOptions(on_split_lost=mode))
    await run.gate("dead", at=BLOCK_ROWS // BATCH_ROWS)
    victim = Consumer.remote().consume.remote(splits[0], run, "dead")
    other = survivors[0].consume.remote(splits[1], run, "other", [0, 1])
    killed_s, known_rows = await kill_at_gate(run, splits[0], "dead", BLOCK_ROWS // BATCH_ROWS)
    await see_dead("actor", victim)
    if mode == "raise":
        ended = await other
        assert ended.error == "SplitLostError"
        assert "split 0" in ended.message
        assert ended.at_s - killed_s < NOTICED_S
        return
    if mode == "wait":
        new = survivors[1].consume.remote(splits[0], run, "new", [0, 1])
        assert (await new).error == ""
    assert (await other).error == ""
    names = ["other"] + ["new"] * (mode == "wait")
    await check_once(run, "dead", known_rows, *names, rows=list(range(rows)))
    assert sorted(await run.rows(*names, epoch=1)) == list(range(rows))


async def test_survivor_whose_rows_are_all_done_before_the_loss_is_noticed_is_not_told_a_clean_end(
    run: Run, survivors: list[Any]
) -> None:
    rows = 2 * BLOCK_ROWS
    splits = numbers(rows).streaming_split(2, equal=True, options=RAISE)
    num_batches = BLOCK_ROWS // BATCH_ROWS
    await run.gate("dead", "other", at=num_batches - 1)
    victim = Consumer.remote().consume.remote(splits[0], run, "dead")
    other = survivors[0].consume.remote(splits[1], run, "other")
    pid = await run.reached("dead", num_batches - 1)
    await run.reached("other", num_batches - 1)
    kill(pid)
    # It is through long before anybody knows.
    await run.open("other")
    await run.reached("other", num_batches)
    ended = await other
    assert (ended.error, "split 0" in ended.message) == ("SplitLostError", True)
    await see_dead("actor", victim)
    assert len(await run.rows("other")) == BLOCK_ROWS
