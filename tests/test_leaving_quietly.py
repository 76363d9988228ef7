"""Programs that end, at whatever moment and in whatever way, do so at once and print nothing.

Each test needs an interpreter that ends, so it runs a small program.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import PATIENCE_S

pytestmark = pytest.mark.slow

on_both = pytest.mark.parametrize(
    ("runtime", "times"), [("local", 100), pytest.param("ray", 10, marks=pytest.mark.ray)], ids=["local", "ray"]
)
loops = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])

# What Ray prints when it starts is no matter of ours.
PRELUDE = """
import asyncio, contextlib, gc, sys, threading, time
import aiodata
from tests.conftest import PATIENCE_S

# What takes as long has waited for something, in seconds; it takes no time else, and even a busy machine far less.
LONG_S = 30

def start_ray(runtime):
    if runtime == "ray":
        import ray
        ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
"""


def run(program: str, tmp_path: Path, *args: str, strict: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program, in Python's development mode if it is to be strict; one that does not end is an error."""
    path = tmp_path / "program.py"
    path.write_text(PRELUDE + textwrap.dedent(program))
    inherited = {name: value for name, value in os.environ.items() if name not in {"RAY_ADDRESS", "AIODATA_RUNTIME"}}
    options = ["-X", "dev", "-W", "error"] if strict else []
    return subprocess.run(
        [sys.executable, *options, str(path), *args],
        env=inherited,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )


def printed(result: subprocess.CompletedProcess[str]) -> list[str]:
    """What was printed, but for asyncio's remark that something took long, as it may on a busy machine."""
    lines = (result.stdout + result.stderr).splitlines()
    return [line for line in lines if not line.startswith("Executing <")]


def complaints(result: subprocess.CompletedProcess[str]) -> list[str]:
    """What was printed about coroutines and tasks, or raised."""
    words = ("never awaited", "was destroyed", "never retrieved", "Traceback", "Exception ignored", "Unhandled")
    return [line for line in (result.stdout + result.stderr).splitlines() if any(word in line for word in words)]


@on_both
@loops
def test_loops_that_end_right_after_a_break_print_nothing(tmp_path: Path, runtime: str, times: int, loop: str) -> None:
    result = run(
        """
        import uvloop
        runtime, times, loop = sys.argv[1:]
        start_ray(runtime)
        run = uvloop.run if loop == "uvloop" else asyncio.run

        async def main(turns):
            ds = aiodata.range(10_000, num_blocks=8).with_options(runtime=runtime)
            async for batch in ds.aiter_batches(batch_size=10):
                break
            # The loop ends at another moment each time.
            for _ in range(turns):
                await asyncio.sleep(0)

        for index in range(int(times)):
            run(main(index % 7))
        """,
        tmp_path,
        runtime,
        str(times),
        loop,
    )
    assert result.returncode == 0, result.stderr
    assert not complaints(result), result.stderr
    if runtime == "local":
        assert printed(result) == []


@loops
def test_loops_that_end_during_a_first_batch_print_nothing_and_do_not_wait(tmp_path: Path, loop: str) -> None:
    result = run(
        """
        import uvloop
        run = uvloop.run if sys.argv[1] == "uvloop" else asyncio.run

        class Same:
            def __call__(self, batch):
                return batch

        async def main(turns, of_actors):
            ds = aiodata.range(10_000, num_blocks=8).with_options(runtime="local", close_timeout_s=LONG_S)
            ds = ds.map_batches(Same if of_actors else Same(), batch_size=10)
            iterator = aiter(ds.aiter_batches(batch_size=10, collate_fn=lambda batch: batch))
            first = asyncio.get_running_loop().create_task(iterator.__anext__())
            for _ in range(turns):
                await asyncio.sleep(0)

        for of_actors in (False, True):
            for turns in range(60):
                began = time.perf_counter()
                run(main(turns, of_actors))
                took_s = time.perf_counter() - began
                assert took_s < LONG_S, f"{took_s} s after {turns} turns"
        """,
        tmp_path,
        loop,
    )
    assert result.returncode == 0, result.stderr
    assert printed(result) == []


@on_both
def test_exit_inside_a_loop_that_is_never_closed_ends_the_program_at_once(
    tmp_path: Path, runtime: str, times: int
) -> None:
    result = run(
        """
        start_ray(sys.argv[1])

        async def main():
            ds = aiodata.range(10**6, num_blocks=50).with_options(runtime=sys.argv[1])
            async for batch in ds.aiter_batches(batch_size=64):
                sys.exit(3)

        asyncio.new_event_loop().run_until_complete(main())
        """,
        tmp_path,
        runtime,
        strict=False,
    )
    assert result.returncode == 3, result.stderr


def test_call_that_goes_on_does_not_keep_a_program_from_ending(tmp_path: Path) -> None:
    result = run(
        """
        def hang(batch):
            if batch["id"][0]:
                time.sleep(10 * LONG_S)
            return batch

        async def main():
            ds = aiodata.range(100).with_options(runtime="local", num_cpus=2).map_batches(hang, batch_size=10)
            async for batch in ds.aiter_batches(batch_size=5):
                await asyncio.sleep(0.1)
                sys.exit(3)

        asyncio.new_event_loop().run_until_complete(main())
        """,
        tmp_path,
        strict=False,
    )
    assert result.returncode == 3, result.stderr


@pytest.mark.parametrize("runtime", ["local", pytest.param("ray", marks=pytest.mark.ray)])
@pytest.mark.parametrize("is_waiting", [False, True], ids=["between", "waiting"])
def test_what_another_loop_iterates_is_closed_at_once_in_that_loop(
    tmp_path: Path, runtime: str, is_waiting: bool
) -> None:
    result = run(
        """
        runtime, is_waiting = sys.argv[1], sys.argv[2] == "True"
        start_ray(runtime)

        async def hang(batch):
            if is_waiting and batch["id"][0] >= 9000:
                await asyncio.sleep(60)
            return batch

        ds = aiodata.range(10_000, num_blocks=10).map_batches(hang, batch_size=100)
        ds = ds.with_options(runtime=runtime, preserve_order=True, close_timeout_s=LONG_S)
        kinds = [ds.aiter_batches(), ds.aiter_batches(collate_fn=lambda batch: batch), ds.aiter_rows()]
        kinds += [ds.aiter_bundles()]
        if runtime == "ray":
            [split] = ds.streaming_split(1)
            kinds += [split.aiter_batches(), split.aiter_rows()]

        async def begin(batches):
            iterator = aiter(batches)
            await anext(iterator)
            if is_waiting:
                loop.create_task(go_on(iterator))
            return iterator

        async def go_on(iterator):
            async for _ in iterator:
                pass
            ended.set()

        async def close(closable):
            await closable.aclose()

        async def others():
            return asyncio.all_tasks() - {asyncio.current_task()}

        def there(coroutine):
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        for batches in kinds:
            for of_iterator in (True, False):
                ended = threading.Event()
                iterator = there(begin(batches))
                began = time.perf_counter()
                asyncio.run(close(iterator if of_iterator else batches))
                took_s = time.perf_counter() - began
                assert took_s < LONG_S, f"{took_s} s for {batches}"
                if is_waiting:
                    assert ended.wait(20), f"{batches} are still waited for"
                assert not there(others()), f"the run of {batches} goes on"
                asyncio.run(close(iterator))
                try:
                    there(iterator.__anext__())
                except StopAsyncIteration:
                    pass
                else:
                    raise AssertionError(f"{batches} go on")
        loop.call_soon_threadsafe(loop.stop)
        """,
        tmp_path,
        runtime,
        str(is_waiting),
        strict=False,
    )
    assert result.returncode == 0, result.stderr
    assert not complaints(result), result.stderr


def test_iterator_of_a_loop_that_stops_while_it_is_being_closed_is_closed(tmp_path: Path) -> None:
    result = run(
        """
        holds, may_stop = threading.Event(), threading.Event()
        kept = []

        async def main():
            ds = aiodata.range(10_000, num_blocks=8).with_options(runtime="local", close_timeout_s=0.5)
            kept.append(aiter(ds.aiter_batches()))
            await anext(kept[0])
            asyncio.get_running_loop().stop()  # When this turn ends, which the loop is held in.
            holds.set()
            may_stop.wait(20)

        async def close():
            closing = asyncio.get_running_loop().create_task(kept[0].aclose())
            await asyncio.sleep(0)
            may_stop.set()
            await closing

        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=lambda: (loop.create_task(main()), loop.run_forever()))
        thread.start()
        assert holds.wait(20)
        asyncio.run(close())
        thread.join()
        assert kept[0].closed
        loop.close()
        """,
        tmp_path,
        strict=False,
    )
    assert result.returncode == 0, result.stderr


def test_iterator_of_a_loop_that_stands_still_is_closed_at_once(tmp_path: Path) -> None:
    result = run(
        """
        async def start():
            ds = aiodata.range(10_000, num_blocks=8).with_options(runtime="local", close_timeout_s=LONG_S)
            iterator = aiter(ds.aiter_batches())
            await anext(iterator)
            return iterator

        async def close(iterator):
            await iterator.aclose()

        loop = asyncio.new_event_loop()
        iterator = loop.run_until_complete(start())
        began = time.perf_counter()
        asyncio.run(close(iterator))
        assert time.perf_counter() - began < LONG_S
        assert iterator.closed
        """,
        tmp_path,
        strict=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.ray
def test_process_that_was_forked_from_one_with_ray_is_told_at_once_and_may_run_locally(tmp_path: Path) -> None:
    result = run(
        """
        import multiprocessing
        start_ray("ray")
        ds = aiodata.range(10).map_batches(lambda batch: batch)
        [split] = ds.streaming_split(1)

        def child():
            began = time.perf_counter()
            for ask in (ds.count, split.schema, lambda: aiodata.attach("flights")):
                try:
                    asyncio.run(ask())
                except aiodata.RuntimeUnavailableError as error:
                    assert "spawn" in str(error)
                else:
                    raise AssertionError("Ray was used")
            assert asyncio.run(ds.with_options(runtime="local").count()) == 10
            assert time.perf_counter() - began < LONG_S

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(2 * LONG_S)
        assert process.exitcode == 0, process.exitcode
        assert asyncio.run(ds.count()) == 10
        """,
        tmp_path,
        strict=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["tasks", "actors"])
def test_run_whose_consumer_holds_all_cpus_says_so_with_the_remedy(tmp_path: Path, kind: str) -> None:
    result = run(
        """
        import logging, queue, ray
        start_ray("ray")

        class Same:
            def __call__(self, batch):
                return batch

        @ray.remote(num_cpus=2)
        class Consumer:
            async def first_warning(self, kind):
                warnings = queue.SimpleQueue()
                handler = logging.Handler()
                handler.emit = lambda record: warnings.put(record.getMessage())
                logging.getLogger("aiodata").addHandler(handler)
                ds = aiodata.range(10)
                if kind == "actors":
                    ds = ds.map_batches(Same, num_cpus=1)
                async with ds.aiter_batches() as batches:
                    first = asyncio.get_running_loop().create_task(batches.__anext__())
                    message = await asyncio.to_thread(warnings.get, timeout=LONG_S)
                    first.cancel()
                return message

        print(ray.get(Consumer.remote().first_warning.remote(sys.argv[1]), timeout=2 * LONG_S))
        """,
        tmp_path,
        kind,
        strict=False,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"no task of this run has been able to start for \d s", result.stdout)
    assert "held: 2 by actor Consumer" in result.stdout
    assert "num_cpus=0" in result.stdout
