"""Ray is started when needed, off the loop, quietly; and an address that can not be reached is an error with a remedy.

Each test needs a process without Ray, so it runs a small program.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import PATIENCE_S

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def run(
    program: str, tmp_path: Path, *, timeout_s: float = 2 * PATIENCE_S, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in {"RAY_ADDRESS", "AIODATA_RUNTIME"}}
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program))
    return subprocess.run(
        [sys.executable, str(path)],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_ray_is_started_off_the_loop_quietly_and_outlives_the_loop(tmp_path: Path) -> None:
    result = run(
        """
        import asyncio, logging, time, aiodata

        # It says so where Ray takes long to start.
        logging.getLogger("aiodata").setLevel(logging.ERROR)

        async def tick(gaps):
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.01)
                gaps.append(time.perf_counter() - before)

        async def main():
            gaps = []
            ticker = asyncio.create_task(tick(gaps))
            count, started = 0, time.perf_counter()
            async for batch in aiodata.range(1000).with_options(runtime="ray").aiter_batches():
                count += len(batch["id"])
            ticker.cancel()
            return count, max(gaps), time.perf_counter() - started

        # Ray's processes end with the thread that started them: a second loop shows that they are still there.
        count, longest_gap_s, took_s = asyncio.run(main())
        again, _, _ = asyncio.run(main())
        # To start Ray takes nearly all of the time.
        print(count, again, longest_gap_s < took_s / 2)
        """,
        tmp_path,
    )
    assert (result.stdout, result.stderr) == ("1000 1000 True\n", "")


@pytest.mark.parametrize(
    ("address", "says"),
    [("127.0.0.1:1", "can not be reached"), ("ray://127.0.0.1:10001", "Ray Client"), ("nonsense", "HOST:PORT")],
)
def test_address_that_can_not_be_reached_is_an_error_with_the_remedy(tmp_path: Path, address: str, says: str) -> None:
    result = run(
        """
        import asyncio, time, aiodata

        async def main():
            started = time.perf_counter()
            try:
                await aiodata.range(10).with_options(runtime="ray").take()
            except aiodata.RuntimeUnavailableError as error:
                # Ray itself would try for minutes.
                print(error, time.perf_counter() - started < 60)

        asyncio.run(main())
        """,
        tmp_path,
        RAY_ADDRESS=address,
    )
    assert says in result.stdout, result.stderr
    assert address in result.stdout
    assert "RAY_ADDRESS" in result.stdout
    assert result.stdout.endswith("True\n")
    assert result.stderr == ""


def test_auto_is_local_unless_ray_is_there(tmp_path: Path) -> None:
    result = run(
        """
        import asyncio, sys, aiodata

        async def main():
            async with aiodata.range(10).aiter_batches() as batches:
                async for batch in batches:
                    pass
            print(batches.stats().runtime, "ray" in sys.modules)

        asyncio.run(main())
        """,
        tmp_path,
    )
    assert result.stdout == "local False\n", result.stderr


def test_environment_overrides_auto_but_not_a_choice(tmp_path: Path) -> None:
    result = run(
        """
        import asyncio, aiodata

        async def runtime_of(ds):
            async with ds.aiter_batches() as batches:
                async for batch in batches:
                    pass
            return batches.stats().runtime

        async def main():
            ds = aiodata.range(10)
            print(await runtime_of(ds), await runtime_of(ds.with_options(runtime="local")))

        asyncio.run(main())
        """,
        tmp_path,
        AIODATA_RUNTIME="ray",
    )
    assert result.stdout == "ray local\n", result.stderr


def test_ctrl_c_ends_the_program_at_once_and_quietly(tmp_path: Path) -> None:
    result = run(
        """
        import asyncio, os, signal, time, aiodata

        def slow(batch):
            time.sleep(0.1)
            return batch

        async def main():
            async for batch in aiodata.range(100_000).map_batches(slow, batch_size=10).aiter_batches(batch_size=10):
                os.kill(os.getpid(), signal.SIGINT)

        started = time.perf_counter()
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            # All of it would take minutes.
            print("interrupted", time.perf_counter() - started < 60)
        """,
        tmp_path,
        AIODATA_RUNTIME="local",
    )
    assert (result.stdout, result.stderr) == ("interrupted True\n", "")
