"""A Ray task as its driver sees it: what it lets go of."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiodata.concurrency import Wakeup
from aiodata.plan.work import TaskEnd
from aiodata.runtime.ray import compat
from aiodata.runtime.ray.packed import Report, ReportPacker
from aiodata.runtime.ray.session import Session
from aiodata.runtime.ray.tasks import RayTask
from aiodata.runtime.ray.worker import PackedEnd
from tests.batching.feeds import without_gc
from tests.conftest import until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def fails_after_its_goodbye(_: None) -> Iterator[Report]:
    yield ReportPacker(1).report(PackedEnd.pack(TaskEnd()))
    raise ZeroDivisionError("as planned")


def fails_without_a_goodbye(_: None) -> Iterator[Report]:
    yield ReportPacker(1).report()
    raise ZeroDivisionError("as planned")


@pytest.mark.parametrize("function", [fails_after_its_goodbye, fails_without_a_goodbye])
async def test_error_of_a_task_does_not_keep_it_alive(function: Any) -> None:
    generator = compat.streaming_function(function, 2).remote(None)
    task = RayTask("read", generator, 2, Session(), lambda _: None, 0, lambda _: None)
    complete = Wakeup()
    task.when_complete(complete.set)
    await complete.wait()
    with without_gc():
        await task.wait_stopped()
        watched = weakref.ref(task)
        del task, generator
        await until(lambda: watched() is None, "the task is kept")


def pauses(paths: tuple[str, ...]) -> Iterator[Report]:
    yield ReportPacker(1).report()
    begun, held, left = map(Path, paths)
    try:
        begun.touch()
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        held.touch()
        while not left.exists():
            time.sleep(0.01)
        raise


async def test_stream_of_a_cancelled_task_is_kept_until_its_worker_has_come_to_rest(tmp_path: Path) -> None:
    begun, held, left = (tmp_path / name for name in ("begun", "held", "left"))
    generator = compat.streaming_function(pauses, 2).remote((str(begun), str(held), str(left)))
    ready = anyio.Event()
    task = RayTask("read", generator, 2, Session(), lambda _: ready.set(), 0, lambda _: None)
    await ready.wait()
    with without_gc():
        # An interruption before it holds on would end it.
        await until(begun.exists, "the task does not go on")
        task.cancel()
        await until(held.exists, "the task is not interrupted")
        with anyio.move_on_after(0.1) as scope:
            await task.wait_stopped()
        assert scope.cancelled_caught, "its worker was still busy"
        watched = weakref.ref(generator)
        del task, generator
        assert watched() is not None, "what its worker is just storing would never be freed"
        left.touch()
        await until(lambda: watched() is None, "the stream is kept")
