"""Services are called from any process, tell who is gone, and end in a way that every caller hears of."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import ray
from ray import cloudpickle
from ray.exceptions import ActorUnavailableError

from aiodata.errors import AiodataError, CoordinatorLostError, EpochError, OptionError, SourceError
from aiodata.runtime.hosting import RemoteService, find_service, start_service
from aiodata.runtime.ray.host import RayService, _Silence
from aiodata.runtime.ray.worker import UnpicklableError
from tests.conftest import PATIENCE_S, until
from tests.runtime.hosted import Counting, LocalService, fails_as_aiodata, fails_to_make

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.loops("asyncio")]


@pytest.fixture
async def service(ray_cluster: None) -> AsyncIterator[RemoteService]:
    service = start_service(Counting, label="the counter")
    yield service
    await service.aclose()


@pytest.fixture(params=["local", "ray"])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[RemoteService]:
    """A service, on Ray or beside the test: both do the same."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
        service: RemoteService = start_service(Counting, label="the counter")
    else:
        service = LocalService(Counting)
    yield service
    await service.aclose()


@pytest.fixture
def name() -> str:
    """A name that no other test has."""
    return f"counter-{uuid.uuid4().hex}"


def start(service: RemoteService, method: str, *args: Any) -> asyncio.Task[Any]:
    return asyncio.ensure_future(service.call(method, *args))


async def wait_for(service: RemoteService, method: str, expected: Any, *args: Any) -> None:
    """Wait until a method returns what is expected."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            value = await service.call(method, *args)
            if (sorted(value) if isinstance(value, list) else value) == expected:
                return


async def test_sync_and_async_methods_return_their_values(either: RemoteService) -> None:
    assert [await either.call("add", 2), await either.call("add_async", 3), await either.call("add", -5)] == [2, 5, 0]


async def test_told_method_is_called_and_its_error_dropped(either: RemoteService) -> None:
    either.tell("raises", ValueError("nobody hears"))
    either.tell("add", 5)
    await wait_for(either, "add", 5, 0)


@pytest.mark.parametrize("kind", [EpochError, OptionError, RuntimeError, ValueError, KeyError])
async def test_error_of_a_method_arrives_with_its_cause(either: RemoteService, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="as planned") as caught:
        await either.call("raises", kind("as planned"), OSError("disk"))
    assert type(caught.value) is kind
    assert type(caught.value.__cause__) is OSError
    assert str(caught.value.__cause__) == "disk"


async def test_error_carries_the_traceback_there_unless_it_is_ours(service: RemoteService) -> None:
    with pytest.raises(KeyError) as caught:
        await service.call("raises", KeyError("x"))
    [note] = caught.value.__notes__
    assert "in raises" in note
    with pytest.raises(EpochError) as ours:
        await service.call("raises", EpochError("not yet"))
    assert not hasattr(ours.value, "__notes__")


async def test_what_can_not_be_sent_back_is_an_error_with_its_text(service: RemoteService) -> None:
    with pytest.raises(UnpicklableError, match="held"):
        await service.call("raises_unpicklable")
    with pytest.raises(AiodataError, match="returns_unpicklable of the counter"):
        await service.call("returns_unpicklable")
    assert await service.call("add", 1) == 1


async def test_reference_stays_a_reference_both_ways(service: RemoteService) -> None:
    assert await service.call("takes_reference", ray.put(1)) == "ObjectRef"
    _, token = await service.call("token", "a")
    assert isinstance(token, ray.ObjectRef)


async def test_failed_service_raises_its_error_in_pending_and_later_calls(service: RemoteService) -> None:
    pending = start(service, "wait")
    await wait_for(service, "num_waiting", 1)
    service.tell("fail_serving")
    for _ in range(3):
        with pytest.raises(ValueError, match="as planned"):
            await pending
        pending = start(service, "add", 1)
    with pytest.raises(ValueError, match="as planned"):
        await pending


async def test_error_of_making_the_service_is_raised_by_calls(ray_cluster: None) -> None:
    broken = start_service(fails_to_make, label="the counter")
    for _ in range(2):
        with pytest.raises(OptionError, match=r"the counter can not be made.*ZeroDivisionError: as planned") as caught:
            await broken.call("add", 1)
        assert type(caught.value.__cause__) is ZeroDivisionError
    await broken.aclose()
    missing = start_service(fails_as_aiodata, label="the counter")
    with pytest.raises(SourceError, match=r"jan\.parquet: it does not exist"):
        await missing.call("add", 1)
    await missing.aclose()


async def test_what_does_not_pickle_is_an_option_error(ray_cluster: None) -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(OptionError, match="the counter can not be sent"):
        start_service(lambda new_token: Counting(new_token, loop), label="the counter")  # type: ignore[arg-type]


async def test_handle_is_small_and_pickles_in_either_way(service: RemoteService) -> None:
    for dumps in (cloudpickle.dumps, pickle.dumps):
        packed = dumps(service)
        assert len(packed) < 700
        assert await pickle.loads(packed).call("add", 1) > 0


async def test_service_is_told_without_a_loop(service: RemoteService) -> None:
    await anyio.to_thread.run_sync(partial(service.tell, "add", 7))
    await wait_for(service, "add", 7, 0)


async def test_thousands_of_pending_calls_take_no_threads_and_hold_up_no_other(service: RemoteService) -> None:
    _, threads = await service.call("process")
    async with asyncio.TaskGroup() as group:
        pending = [group.create_task(service.call("wait")) for _ in range(2000)]
        await wait_for(service, "num_waiting", 2000)
        assert await service.call("add", 1) == 1
        # Ray itself has started one or two after its first calls.
        assert (await service.call("process"))[1] <= threads + 4
        service.tell("let_go")
    assert {task.result() for task in pending} == {"let go"}


async def test_cancelled_call_goes_on_there(service: RemoteService) -> None:
    async with asyncio.TaskGroup() as group:
        pending = group.create_task(service.call("wait"))
        await wait_for(service, "num_waiting", 1)
        pending.cancel()
    service.tell("let_go")
    assert await service.call("add", 1) == 1


async def test_token_is_released_when_its_holder_drops_it(service: RemoteService) -> None:
    held = await service.call("token", "a")
    other = await service.call("token", "b")
    del other
    await wait_for(service, "released", ["b"])
    del held
    await wait_for(service, "released", ["a", "b"])


async def test_token_is_released_when_the_process_of_its_holder_is_killed(service: RemoteService) -> None:
    consumer = ray.remote(Consumer).options(num_cpus=0).remote()
    pid = await consumer.hold.remote(service, "actor")
    task = ray.remote(hold).options(num_cpus=0, max_retries=0).remote(service)
    await wait_for(service, "num_waiting", 1)
    assert await service.call("released") == []
    os.kill(pid, signal.SIGKILL)
    await wait_for(service, "released", ["actor"])
    ray.cancel(task, force=True)
    await wait_for(service, "released", ["actor", "task"])
    with pytest.raises(ray.exceptions.RayError):
        await task


async def test_token_in_a_reply_that_nobody_reads_is_released(service: RemoteService) -> None:
    async with asyncio.TaskGroup() as group:
        pending = group.create_task(service.call("token_after_wait", "cancelled"))
        await wait_for(service, "num_waiting", 1)
        pending.cancel()
    consumer = ray.remote(Consumer).options(num_cpus=0).remote()
    pid = await consumer.pid.remote()
    asked = consumer.ask.remote(service, "killed")
    await wait_for(service, "num_waiting", 2)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayError):
        await asked
    service.tell("let_go")
    service.tell("token", "told")
    await wait_for(service, "released", ["cancelled", "killed", "told"])


async def test_killed_service_is_lost_for_pending_and_later_calls(service: RemoteService) -> None:
    pid, _ = await service.call("process")
    pending = start(service, "wait")
    await wait_for(service, "num_waiting", 1)
    os.kill(pid, signal.SIGKILL)
    with (
        pytest.raises(CoordinatorLostError, match=r"the counter is gone.*make a new one") as caught,
        anyio.fail_after(PATIENCE_S),
    ):
        await pending
    assert isinstance(caught.value.__cause__, ray.exceptions.ActorDiedError)
    assert not caught.value.__cause__.__traceback__
    with pytest.raises(CoordinatorLostError), anyio.fail_after(PATIENCE_S):
        await service.call("add", 1)
    service.tell("add", 1)


async def test_closing_lets_serve_clean_up_and_ends_pending_calls(ray_cluster: None, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    service = start_service(partial(Counting, notes=notes), label="the counter")
    pending = start(service, "wait")
    await wait_for(service, "num_waiting", 1)
    pid, _ = await service.call("process")
    await service.aclose()
    with pytest.raises(CoordinatorLostError, match="the counter"):
        await pending
    assert notes.read_text() == "cleaned up"
    await until(lambda: is_gone(pid), "the process is left")
    await service.aclose()
    with pytest.raises(CoordinatorLostError):
        await service.call("add", 1)


async def test_service_without_a_name_ends_with_its_last_handle(ray_cluster: None) -> None:
    service = start_service(Counting, label="the counter")
    pid, _ = await service.call("process")
    assert not is_gone(pid)
    del service
    await until(lambda: is_gone(pid), "the process is left")


async def test_name_is_taken_until_its_service_is_closed(ray_cluster: None, name: str) -> None:
    service = start_service(Counting, name=name, label="the counter")
    with pytest.raises(OptionError, match=f"name='{name}' can not be given.*[Aa]ttach"):
        start_service(Counting, name=name, label="the counter")
    start_service(Counting, name=name, namespace="another", label="the counter").tell("add", 1)
    await (await find_service(name, namespace="another")).aclose()
    await service.call("add", 1)
    found = await find_service(name)
    assert await found.call("add", 1) == 2
    await found.aclose()
    with pytest.raises(CoordinatorLostError, match=f"{name}.*list_named_actors"):
        await find_service(name)
    again = start_service(Counting, name=name, label="the counter")
    assert await again.call("add", 1) == 1
    pid, _ = await again.call("process")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(CoordinatorLostError):
        await again.call("wait")
    with pytest.raises(CoordinatorLostError, match=name):
        await find_service(name)


DRIVER = """
    import asyncio, os, sys
    import ray
    from aiodata.errors import RuntimeUnavailableError
    from aiodata.runtime.hosting import find_service

    async def main():
        service = await find_service(sys.argv[2])
        print(await service.call("add", 1))
        key, token = await service.call("token", "driver")
        pending = asyncio.ensure_future(service.call("wait"))
        while await service.call("num_waiting") < 1:
            pass
        if sys.argv[3] == "kill":
            os.kill(os.getpid(), 9)
        ray.shutdown()
        try:
            await pending
        except RuntimeUnavailableError as error:
            print(error)

    ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
    asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["kill", "shutdown"])
async def test_second_driver_finds_a_named_service_and_its_end_is_told(
    ray_cluster: None, name: str, tmp_path: Path, end: str
) -> None:
    program = tmp_path / "driver.py"
    program.write_text(textwrap.dedent(DRIVER))
    service = start_service(Counting, name=name, label="the counter")
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, str(program), address, name, end]
    result = await anyio.to_thread.run_sync(
        partial(subprocess.run, command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
    )
    first, *rest = result.stdout.splitlines()
    assert first == "1", result.stderr
    assert len(rest) == (end == "shutdown")
    assert all(line.startswith("Ray was shut down") for line in rest)
    await wait_for(service, "released", ["driver"])
    assert await service.call("add", 1) == 2
    await service.aclose()


async def test_unreachable_service_is_called_again_until_it_answers(ray_cluster: None) -> None:
    flaky = FlakyHandle(failures=3)
    assert await RayService(flaky, "the counter").call("add", 1) == "done"
    assert flaky.calls == ["add", "", "", "", "add"]


async def test_service_that_stays_unreachable_is_lost(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiodata.runtime.ray.host._UNREACHABLE_S", 0.05)
    with pytest.raises(CoordinatorLostError, match="the counter is gone: ActorUnavailableError"):
        await RayService(FlakyHandle(failures=10**9), "the counter").call("add", 1)


class FlakyHandle:
    """Stands for Ray's handle of an actor that can not be reached for some calls."""

    def __init__(self, failures: int) -> None:
        self.calls: list[str] = []
        self._failures = failures
        self.call = self

    async def remote(self, method: str, _: tuple[Any, ...]) -> str:
        self.calls.append(method)
        await anyio.lowlevel.checkpoint()
        if len(self.calls) <= self._failures:
            raise ActorUnavailableError("for a moment", None)
        return "done"


class Consumer:
    """Holds a token in an actor of its own."""

    async def hold(self, service: RemoteService, key: str) -> int:
        self._held = await service.call("token", key)
        return os.getpid()

    async def ask(self, service: RemoteService, key: str) -> None:
        await service.call("token_after_wait", key)

    def pid(self) -> int:
        return os.getpid()


def hold(service: RemoteService) -> None:
    async def main() -> None:
        _, token = await service.call("token", "task")
        await service.call("wait")
        del token

    asyncio.run(main())


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that its parent has not looked after yet has."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


async def test_service_that_does_not_answer_is_told_of(
    service: RemoteService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pid, _ = await service.call("process")
    monkeypatch.setattr("aiodata.runtime.ray.host._PROBE_EVERY_S", 0.5)
    os.kill(pid, signal.SIGSTOP)
    try:
        call = start(service, "add", 7)
        await until(lambda: bool(caplog.messages), "nothing is said", within_s=60)
        assert "the counter does not answer for" in caplog.messages[0]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await call == 7


async def test_service_that_answers_is_asked_again_and_nothing_is_said(
    service: RemoteService, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(service, RayService)
    silence = _Silence(service)
    silence.look(3.0)
    first = silence._probe
    await first
    silence.look(6.0)
    assert silence._probe != first
    assert caplog.messages == []
