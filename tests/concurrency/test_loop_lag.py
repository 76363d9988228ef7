"""LoopLagMonitor: a held loop is seen at its full length, and a monitor lives from start to stop."""

from __future__ import annotations

import asyncio
import gc
import math
import time
import weakref
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
import uvloop

from aiodata import OptionError
from aiodata.concurrency.loop_lag import MAX_KEPT_SAMPLES, LoopLagMonitor
from aiodata.stats import LoopLag
from tests.conftest import until

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


async def sampled(lag: LoopLagMonitor, at_least: int = 1) -> LoopLag:
    await until(lambda: lag.snapshot().samples >= at_least, "the timer does not run")
    return lag.snapshot()


async def test_held_loop_is_late_by_the_length_of_the_hold() -> None:
    async with LoopLagMonitor() as lag:
        time.sleep(0.05)  # noqa: ASYNC251 - the hold that is to be seen.
        measured = await sampled(lag)
    assert measured.max_s >= 0.04
    assert measured.samples >= 9


async def test_hold_right_before_stop_counts() -> None:
    async with LoopLagMonitor() as lag:
        time.sleep(0.05)  # noqa: ASYNC251 - the hold that is to be seen.
    assert lag.snapshot().max_s >= 0.04


async def test_each_turn_that_a_hold_missed_is_late_by_its_own_share() -> None:
    lag = LoopLagMonitor(interval_s=0.005)
    lag.start()
    lag._due_s -= 1.0
    lag.stop()
    measured = lag.snapshot()
    assert measured.samples == 1 + int(measured.max_s / 0.005) >= 199
    above_p50, above_p99 = (measured.samples - math.ceil(measured.samples * share) for share in (0.5, 0.99))
    assert measured.p50_s == pytest.approx(measured.max_s - above_p50 * 0.005)
    assert measured.p99_s == pytest.approx(measured.max_s - above_p99 * 0.005)


async def test_very_long_hold_is_counted_in_full_and_kept_in_part() -> None:
    lag = LoopLagMonitor(interval_s=0.001)
    lag.start()
    lag._due_s -= 1e6
    lag.stop()
    measured = lag.snapshot()
    assert measured.samples >= 999_999_999
    assert measured.max_s >= 999_999
    assert len(lag._kept_s) == MAX_KEPT_SAMPLES
    assert measured.p99_s <= MAX_KEPT_SAMPLES * 0.001


async def test_turns_after_a_hold_push_it_out_of_the_percentiles_but_not_of_the_maximum() -> None:
    lag = LoopLagMonitor(interval_s=0.001)
    for held_s in (3600.0, 10.0):
        lag.start()
        lag._due_s -= held_s
        lag.stop()
    measured = lag.snapshot()
    assert measured.max_s >= 3599
    assert measured.p99_s <= MAX_KEPT_SAMPLES * 0.001


async def test_turn_that_comes_early_is_on_time_and_is_served_once() -> None:
    async with LoopLagMonitor() as lag:
        lag._due_s += 3600
        assert await sampled(lag) == LoopLag(samples=1, p50_s=0.0, p99_s=0.0, max_s=0.0)


async def test_timer_goes_on_turn_after_turn() -> None:
    async with LoopLagMonitor(interval_s=0.001) as lag:
        measured = await sampled(lag, at_least=20)
    assert 0 <= measured.p50_s <= measured.p99_s <= measured.max_s


async def test_nothing_is_measured_before_start() -> None:
    assert LoopLagMonitor().snapshot() == LoopLag(samples=0, p50_s=0.0, p99_s=0.0, max_s=0.0)


async def test_starting_twice_makes_one_timer() -> None:
    lag = LoopLagMonitor()
    lag.start()
    timer = lag._timer
    lag.start()
    assert lag._timer is timer
    lag.stop()


async def test_stopping_twice_is_stopping_once() -> None:
    lag = LoopLagMonitor()
    lag.stop()
    lag.start()
    lag._due_s -= 1.0
    lag.stop()
    measured = lag.snapshot()
    lag.stop()
    assert lag.snapshot() == measured


async def test_stop_leaves_nothing_on_the_loop() -> None:
    lag = LoopLagMonitor(interval_s=0.001)
    lag.start()
    await sampled(lag, at_least=3)
    timer, gone = lag._timer, weakref.ref(lag)
    lag.stop()
    del lag
    assert timer is not None
    assert timer.cancelled()
    assert gone() is None


async def test_failing_body_stops_the_monitor() -> None:
    lag = LoopLagMonitor()
    with pytest.raises(ZeroDivisionError):
        async with lag:
            raise ZeroDivisionError
    assert lag._timer is None


async def test_running_monitor_outlives_its_last_reference() -> None:
    lag = LoopLagMonitor(interval_s=0.001)
    lag.start()
    kept = weakref.ref(lag)
    del lag
    gc.collect()
    await until(lambda: (one := kept()) is not None and one.snapshot().samples >= 3, "the timer does not run")
    found = kept()
    assert found is not None
    found.stop()


async def test_starting_again_adds_to_what_was_measured() -> None:
    lag = LoopLagMonitor()
    async with lag:
        before = await sampled(lag)
    async with lag:
        await sampled(lag, at_least=before.samples + 1)
    assert lag.snapshot().max_s >= before.max_s


def test_starting_without_a_loop_says_where_to_start() -> None:
    with pytest.raises(RuntimeError, match=r"in an async function"):
        LoopLagMonitor().start()


@LOOPS
def test_monitor_that_its_loop_left_behind_can_start_in_another(new_loop: NewLoop) -> None:
    lag = LoopLagMonitor()

    async def measure() -> LoopLag:
        lag.start()
        return await sampled(lag, at_least=lag.snapshot().samples + 1)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        first = runner.run(measure())
    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(measure()).samples > first.samples


@LOOPS
def test_monitor_that_its_loop_left_behind_stops_without_a_sample(new_loop: NewLoop) -> None:
    lag = LoopLagMonitor(1000.0)  # The end of a loop may take a while.

    async def measure() -> None:
        lag.start()
        lag._due_s -= 2000.0

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(measure())
    lag.stop()
    assert lag.snapshot().samples == 0


@LOOPS
def test_monitor_measures_one_loop_at_a_time(new_loop: NewLoop) -> None:
    lag = LoopLagMonitor()

    async def start() -> None:
        lag.start()

    with asyncio.Runner(loop_factory=new_loop) as one, asyncio.Runner(loop_factory=new_loop) as other:
        one.run(start())
        with pytest.raises(RuntimeError, match="another event loop"):
            other.run(start())
        lag.stop()
        other.run(start())


@pytest.mark.parametrize("interval_s", [0, -1.0, 0.0009, math.inf, math.nan, True, "0.005", None])
def test_interval_that_can_not_work_is_an_option_error(interval_s: float) -> None:
    with pytest.raises(OptionError, match=r"interval_s=.* must be a number of seconds of at least 0\.001"):
        LoopLagMonitor(interval_s)


async def test_repr_has_interval_state_and_samples() -> None:
    lag = LoopLagMonitor(0.25)
    assert repr(lag) == "<LoopLagMonitor interval_s=0.25 stopped samples=0>"
    async with lag:
        assert "running" in repr(lag)


def test_lag_prints_as_one_line_in_milliseconds() -> None:
    lag = LoopLag(samples=1234, p50_s=0.0001, p99_s=0.0012, max_s=0.0034)
    assert str(lag) == "loop lag p50 0.1 ms, p99 1.2 ms, max 3.4 ms (1,234 samples)"


def test_lag_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        LoopLag(samples=0, p50_s=0.0, p99_s=0.0, max_s=0.0).samples = 1  # type: ignore[misc] # that it can not be set.
