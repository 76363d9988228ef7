"""Ray is shut down under a pass, or Ctrl-C ends its program; each test needs a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.conftest import PATIENCE_S
from tests.runtime.test_start import run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PIPELINE = """
    import asyncio, json, os, sys, time
    import ray
    import aiodata

    class Slow:
        def __init__(self):
            open(f"{sys.argv[1]}/{os.getpid()}", "w").close()

        def __call__(self, batch):
            time.sleep(0.02)
            return batch

    async def ask(batch):
        await asyncio.sleep(0.02)
        return batch

    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    pids = sys.argv[1]
    ds = aiodata.range(100_000).with_options(runtime="ray")
    ds = ds.map_batches(ask, batch_size=10, concurrency=4).map_batches(Slow, batch_size=10, concurrency=2)
"""

SHUTDOWN = """
    async def main():
        try:
            async for batch in ds.aiter_batches(batch_size=10):
                started = time.perf_counter()
                ray.shutdown()
        except aiodata.RuntimeUnavailableError as error:
            print(json.dumps([str(error), time.perf_counter() - started]))
        await asyncio.sleep(0)
        print(json.dumps([len(asyncio.all_tasks()), ray.is_initialized()]))

    aiodata.run(main)
"""

CTRL_C = """
    async def main():
        num_batches = 0
        async for batch in ds.aiter_batches(batch_size=10):
            num_batches += 1
            if num_batches == 20:
                print("running", flush=True)

    aiodata.run(main)
"""


def program(end: str, folder: Path) -> str:
    text = textwrap.dedent(PIPELINE) + textwrap.dedent(end)
    return text.replace("sys.argv[1]", repr(str(folder)))


def test_shutdown_under_an_iteration_is_an_error_at_once(tmp_path: Path) -> None:
    result = run(program(SHUTDOWN, tmp_path), tmp_path)
    (message, elapsed_s), (num_tasks, is_up) = map(json.loads, result.stdout.splitlines())
    assert message.startswith("Ray was shut down while a run was using it")
    # All of the rows would take minutes.
    assert elapsed_s < PATIENCE_S
    assert (num_tasks, is_up) == (1, False)


def test_ctrl_c_ends_the_program_with_its_actors_and_workers(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(program(CTRL_C, tmp_path))
    environment = {name: value for name, value in os.environ.items() if name not in {"RAY_ADDRESS", "AIODATA_RUNTIME"}}
    with subprocess.Popen(
        [sys.executable, str(path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        started_by_it = psutil.Process(process.pid).children(recursive=True)
        actors = [int(name.name) for name in tmp_path.iterdir() if name.name.isdigit()]
        assert actors
        assert set(actors) <= {one.pid for one in started_by_it}
        process.send_signal(signal.SIGINT)
        # All of the rows would take minutes.
        _, stderr = process.communicate(timeout=PATIENCE_S)
    # Where ray is imported, Python exits with 1 after Ctrl-C, not by the signal.
    assert process.returncode in {1, -signal.SIGINT}
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    _, left = psutil.wait_procs(started_by_it, timeout=PATIENCE_S)
    assert not left
