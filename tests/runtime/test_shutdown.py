"""A `ray.shutdown` under a run ends it with an error that says so; each test needs a Ray of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.test_start import run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PROGRAM = """
    import asyncio, time
    import anyio, ray
    import pyarrow as pa
    from aiodata.errors import RuntimeUnavailableError
    from aiodata.options import ExecutionOptions
    from aiodata.plan.pieces import Origin, TablePiece
    from aiodata.plan.transforms import MapBatches
    from aiodata.plan.work import Cuts, Work
    from aiodata.runtime.base import Resources
    from aiodata.runtime.ray import compat, session
    from aiodata.runtime.ray.runtime import open_ray

    BEFORE

    def slow(batch):
        time.sleep(0.05)
        return batch

    async def main():
        pieces = (TablePiece(pa.table({"id": range(1000)}), Origin("numbers", None)),)
        work = Work(pieces, Cuts(1 << 20, 1 << 20, 1, 1, 1, 1 << 40, 1 << 40))
        try:
            async with open_ray(ExecutionOptions(runtime="ray")) as runtime:
                some = anyio.Event()
                stage = await runtime.stage("slow", [MapBatches(slow, 10, "numpy")], Resources())
                task = stage.submit(work, [], lambda _: some.set())
                await some.wait()
                [(pair)] = task.pull()[:1]
                runtime.on_release(pair.ref, lambda: None)
                try:
                    SHUTDOWN
                    with anyio.fail_after(60):
                        await anyio.sleep_forever()
                finally:
                    task.cancel()
                    with anyio.move_on_after(60, shield=True):
                        await task.wait_stopped()
                    print(task.pull(), runtime.size_of(pair.ref), runtime.fetch_ready([pair]))
        except RuntimeUnavailableError as error:
            print(error)
        print(ray.is_initialized())

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("before", "shutdown"),
    [
        ("", "ray.shutdown()"),
        ("", "await anyio.to_thread.run_sync(ray.shutdown)"),
        ("session.when_shut_down = compat._look_for_shutdown", "ray.shutdown()"),
    ],
    ids=["loop", "thread", "fallback"],
)
def test_shutdown_under_a_run_is_an_error_that_says_so(tmp_path: Path, before: str, shutdown: str) -> None:
    program = PROGRAM.replace("BEFORE", before).replace("SHUTDOWN", shutdown)
    result = run(program, tmp_path)
    told, message, is_up = result.stdout.splitlines()
    assert told == "[] None [None]", result.stderr
    assert message.startswith("Ray was shut down while a run was using it")
    assert is_up == "False"
