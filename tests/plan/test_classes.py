"""Classes as functions: state is built once, and lives as long as its actor; and what counts as which."""

from __future__ import annotations

import asyncio
import functools
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from aiodata import TaskError
from aiodata.plan.transforms import FilterRows, LimitRows, MapBatches, SelectColumns, build, close
from aiodata.plan.work import Work
from tests.plan.running import UNLIMITED, Batch, counted, ids_of, outputs_of, run


class Model:
    """Adds to the ids, and counts its instances."""

    built: int = 0

    def __init__(self, offset: int = 0, *, factor: int = 1) -> None:
        type(self).built += 1
        self.offset, self.factor = offset, factor

    def __call__(self, batch: Batch) -> Batch:
        return {"id": batch["id"] * self.factor + self.offset}


class Streaming(Model):
    def __call__(self, batch: Batch) -> Iterator[Batch]:  # type: ignore[override]
        yield super().__call__(batch)
        yield super().__call__(batch)


class Client(Model):
    """Bound to the loop it was made in, as async clients are; notes what becomes of it."""

    instances: list[Client]

    def __init__(self, offset: int = 0, *, factor: int = 1) -> None:
        super().__init__(offset, factor=factor)
        self.loop = asyncio.get_running_loop()
        self.ended = False
        self.background = self.loop.create_task(self.run())

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True

    async def __call__(self, batch: Batch) -> Batch:  # type: ignore[override]
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0)
        return super().__call__(batch)


class StreamingClient(Client):
    async def __call__(self, batch: Batch) -> AsyncIterator[Batch]:  # type: ignore[override]
        yield await super().__call__(batch)
        yield await super().__call__(batch)


async def wait(batch: Batch, more: int = 0) -> Batch:
    return batch


async def stream(batch: Batch) -> AsyncIterator[Batch]:
    yield batch


def same(batch: Batch) -> Batch:
    return batch


def mapped(fn: Callable[..., Any], **fields: Any) -> MapBatches:
    return MapBatches(fn, 2, "numpy", **fields)


def instance_of(transform: Any) -> Any:
    return transform.fn


@pytest.mark.parametrize(
    ("cls", "copies"), [(Model, 1), (Streaming, 2), (Client, 1), (StreamingClient, 2)], ids=lambda one: str(one)
)
def test_class_is_built_once_with_its_arguments_and_called_by_every_task(cls: type[Model], copies: int) -> None:
    before = cls.built
    chain = build([mapped(cls, constructor_args=(10,), constructor_kwargs={"factor": 2})])
    for _ in range(3):
        ids = ids_of(outputs_of(Work((counted(2),), UNLIMITED), chain))
        assert ids == [10, 12] * copies
    close(chain)
    assert cls.built == before + 1


def test_kept_loop_outlives_tasks_and_ends_with_its_actor() -> None:
    chain = build([mapped(Client), mapped(wait), SelectColumns(("id",)), mapped(Client)])
    client, other = instance_of(chain[0]), instance_of(chain[3])
    assert client.loop is other.loop
    for _ in range(2):
        outputs_of(Work((counted(9),), UNLIMITED), chain)
        assert not client.loop.is_closed()
        assert not client.ended
    close(chain)
    close(chain)
    assert client.ended
    assert other.ended
    assert client.loop.is_closed()


def test_calls_in_flight_end_with_the_task_though_the_loop_is_kept() -> None:
    cancelled: list[int] = []

    class Hanging(Client):
        async def __call__(self, batch: Batch) -> Batch:  # type: ignore[override]
            try:
                if batch["id"][0]:
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(int(batch["id"][0]))
                raise
            return batch

    chain = build([mapped(Hanging, concurrency=3)])
    assert ids_of(outputs_of(Work((counted(9),), UNLIMITED), [*chain, LimitRows(2)])) == [0, 1]
    assert cancelled
    assert ids_of(outputs_of(Work((counted(2),), UNLIMITED), chain)) == [0, 1]
    assert not instance_of(chain[0]).ended
    close(chain)


def test_chain_without_a_class_is_built_as_it_is() -> None:
    chain = (mapped(wait), FilterRows(True), mapped(same), mapped(dict))
    assert all(one is other for one, other in zip(build(chain), chain, strict=True))


@pytest.mark.parametrize("base", [Model, Client])
def test_failing_constructor_is_named(base: type[Model]) -> None:
    class Broken(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            raise FileNotFoundError("weights.pt")

    with pytest.raises(TaskError) as caught:
        build([mapped(Client), mapped(Broken)])
    error = caught.value
    assert (error.operator, error.source, error.rows) == ("map_batches(Broken)", "its constructor", None)
    assert error.reason == "FileNotFoundError: weights.pt"
    assert isinstance(error.__cause__, FileNotFoundError)


def test_name_is_that_of_the_class_before_and_after_it_is_built() -> None:
    transform = mapped(Model)
    assert transform.name == build([transform])[0].name == "map_batches(Model)"


@pytest.mark.parametrize(
    ("fn", "needs_actor", "is_async"),
    [
        (same, False, False),
        (wait, False, True),
        (stream, False, True),
        (functools.partial(wait, more=1), False, True),
        (functools.partial(stream), False, True),
        (Model(), False, False),
        (functools.partial(Model()), False, False),
        (Model, True, False),
        (Streaming, True, False),
        (Client, True, True),
        (StreamingClient, True, True),
        (dict, False, False),
        (functools.partial(Model, 1), False, False),
    ],
)
def test_kind_of_function_is_told(fn: Callable[..., Any], needs_actor: bool, is_async: bool) -> None:
    transform = mapped(fn, concurrency=5)
    assert transform.needs_actor is needs_actor
    assert transform.calls_in_flight == (5 if is_async else 1)
    assert transform.calls_user_code


def test_callable_object_with_an_async_call_is_awaited_without_an_actor() -> None:
    class Adder:
        async def __call__(self, batch: Batch, more: int) -> Batch:
            return {"id": batch["id"] + more}

    class Repeater:
        async def __call__(self, batch: Batch, *, times: int) -> AsyncIterator[Batch]:
            for _ in range(times):
                yield batch

    chain = [mapped(Adder(), args=(5,)), mapped(functools.partial(Repeater(), times=2)), mapped(Model().__call__)]
    assert not any(transform.needs_actor for transform in chain)
    assert ids_of(outputs_of(Work((counted(2),), UNLIMITED), chain)) == [5, 6, 5, 6]


def test_other_transforms_need_no_actor() -> None:
    for transform in (SelectColumns(("id",)), FilterRows(True), LimitRows(1)):
        assert (transform.needs_actor, transform.calls_in_flight, transform.calls_user_code) == (False, 1, False)


def test_transform_of_a_class_can_be_sent() -> None:
    sent = pickle.loads(pickle.dumps(mapped(Model, constructor_args=(1,))))
    assert ids_of(outputs_of(Work((counted(2),), UNLIMITED), build([sent]))) == [1, 2]


def test_errors_of_an_instance_are_named_after_its_class() -> None:
    class Failing(Client):
        async def __call__(self, batch: Batch) -> Batch:  # type: ignore[override]
            raise KeyError("oops")

    chain = build([mapped(Failing)])
    _, end = run(Work((counted(4),), UNLIMITED), chain)
    close(chain)
    assert isinstance(end.error, TaskError)
    assert (end.error.operator, end.error.rows) == ("map_batches(Failing)", (0, 2))


@pytest.mark.parametrize("fn", [wait, stream])
def test_async_function_behind_a_plain_one_is_refused_with_the_remedy(fn: Callable[..., Any]) -> None:
    _, end = run(Work((counted(4),), UNLIMITED), [mapped(lambda batch: fn(batch))])
    assert isinstance(end.error, TaskError)
    assert "give the async function itself" in str(end.error)
