"""A Ray task as its driver sees it: what it lets go of."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from aiodata.concurrency import Wakeup
from aiodata.plan.work import TaskEnd
from aiodata.runtime.ray import compat
from aiodata.runtime.ray.session import Session
from aiodata.runtime.ray.tasks import RayTask
from aiodata.runtime.ray.worker import PackedEnd
from tests.batching.feeds import without_gc

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def fails_after_its_goodbye(_: None) -> Iterator[tuple[pa.Table, PackedEnd]]:
    yield pa.table({"x": [0]}), PackedEnd.pack(TaskEnd())
    raise ZeroDivisionError("as planned")


def fails_without_a_goodbye(_: None) -> Iterator[tuple[pa.Table, bytes]]:
    yield pa.table({"x": [0]}), b""
    raise ZeroDivisionError("as planned")


@pytest.mark.parametrize("function", [fails_after_its_goodbye, fails_without_a_goodbye])
async def test_error_of_a_task_does_not_keep_it_alive(function: Any) -> None:
    generator = compat.streaming_function(function).remote(None)
    task = RayTask("read", generator, Session(), lambda _: None, None, 0)
    complete = Wakeup()
    task.when_complete(complete.set)
    await complete.wait()
    with without_gc():
        await task.wait_stopped()
        watched = weakref.ref(task)
        del task, generator
        assert watched() is None
