"""Services in Ray async actors: the actor, and the handle that processes call it by.

The actor's methods never raise: what they return is either the value, where Ray follows references, or a packed error.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import ray
from ray import cloudpickle
from ray.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    RayError,
    RuntimeEnvSetupError,
)

from aiodata.concurrency import Supervisor, ask_in_thread, reminding, without_frames
from aiodata.errors import AiodataError, CoordinatorLostError, OptionError, RuntimeUnavailableError, is_failure
from aiodata.plan.transforms import describe
from aiodata.runtime.forked import check_not_forked, is_forked
from aiodata.runtime.hosting import Service
from aiodata.runtime.ray import compat
from aiodata.runtime.ray.placement import ANYWHERE, refusals
from aiodata.runtime.ray.session import NAMESPACE, Session
from aiodata.runtime.ray.start import ensure_ray, ensure_ray_blocking
from aiodata.runtime.ray.worker import PackedError, pack_exception, unpack_error

# How long a call goes on trying while the service can not be reached, in seconds.
_UNREACHABLE_S = 3.0

# After how long a service that is called is asked whether it is there; then after as long again, in seconds.
_PROBE_EVERY_S = 3.0

# How long a service may take to clean up, and then its process to end, in seconds.
_CLOSE_TIMEOUT_S = 5.0

# Long polls of thousands of consumers are pending at a time; Ray's default is 1,000 calls.
_MAX_CALLS = 1_000_000

# The method that is no method of the service: being there is all there is to it.
_PROBE = ""

_logger = logging.getLogger("aiodata")

_OPTIONS = {"num_cpus": 0, "max_restarts": 0, "max_concurrency": _MAX_CALLS}


class Host:
    """The actor. Each method it has makes each handle longer.

    Args:
        packed: The function that makes the service, pickled.
        label: What errors call the service.
    """

    def __init__(self, packed: bytes, label: str) -> None:
        """Make the service and start it; runs in the actor's event loop."""
        compat.quiet_reads()
        self._label = label
        self._loop = asyncio.get_running_loop()
        self._service: Service | None = None
        self._serving = Supervisor(self._serve, name=f"aiodata {label}", on_end=self._note_end)
        self._calls: set[anyio.CancelScope] = set()
        # What calls return when the service is no more.
        self._end: PackedError | None = None
        # Ray does not say why a constructor failed in a way that a program can read: the calls do.
        try:
            self._service = cloudpickle.loads(packed)(new_token)
        except BaseException as error:
            if not isinstance(error, SystemExit) and not is_failure(error):
                raise
            self._end = PackedError(pack_exception(_not_made(label, error)))
        else:
            self._serving.start()

    async def call(self, method: str, args: tuple[Any, ...]) -> Any:
        """Return what a method of the service returns, or the packed error."""
        if method == _PROBE or self._end is not None:
            return self._end
        with anyio.CancelScope() as scope:
            self._calls.add(scope)
            try:
                result = getattr(self._service, method)(*args)
                # A reference could be awaited, too, but is a result.
                return await result if inspect.iscoroutine(result) else result
            except BaseException as error:
                if not is_failure(error):
                    raise
                return PackedError(pack_exception(error))
            finally:
                self._calls.discard(scope)
        return self._end

    async def aclose(self, timeout_s: float) -> None:
        """Cancel `serve`, wait for its cleanup, and end what is pending."""
        closed = CoordinatorLostError(f"{self._label} was closed; make a new one and iterate again")
        self._end = self._end or PackedError(pack_exception(closed))
        self._serving.cancel()
        if self._service is not None:
            with anyio.move_on_after(timeout_s):
                await self._serving.wait()
        self._end_calls()

    def __ray_shutdown__(self) -> None:
        """End the service when nobody holds a handle any more; Ray calls this when it has stopped the event loop.

        Worker threads that the service has used wait for its end, and the process would wait for them for ever.
        """
        if not self._loop.is_running():
            self._loop.run_until_complete(self.aclose(_CLOSE_TIMEOUT_S))

    async def _serve(self) -> None:
        assert self._service is not None
        await self._service.serve()

    def _note_end(self) -> None:
        """Have nobody wait for a service that has failed."""
        if self._serving.error is not None:
            # Packed once: an error that is raised again and again would collect frames.
            self._end = PackedError(pack_exception(self._serving.error))
            self._end_calls()

    def _end_calls(self) -> None:
        for scope in self._calls:
            scope.cancel()


_host_class = ray.remote(Host)


def new_token(on_released: Callable[[], None]) -> ray.ObjectRef:
    """Return a token, see `hosting.NewToken`: a stored object whose references Ray counts in all processes.

    Where this Ray can not tell, `on_released` is never called: a consumer must not count as gone while it is there.
    """
    loop = asyncio.get_running_loop()

    def tell() -> None:
        with suppress(RuntimeError):  # The loop is closed: nobody is there to be told.
            loop.call_soon_threadsafe(on_released)

    token = ray.put(None)
    compat.tell_of_release(token, tell)
    return token


@dataclass(frozen=True, slots=True)
class RayService:
    """A handle of a service in a Ray actor; see `hosting.RemoteService`.

    Attributes:
        handle: Ray's handle of the actor, a `Host`.
        label: What errors call the service.
    """

    handle: Any
    label: str

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the service."""
        check_not_forked()
        with Session().watched(), reminding(_Silence(self).look, first_s=_PROBE_EVERY_S):
            outcome = await self._outcome(method, args)
        if isinstance(outcome, PackedError):
            raise unpack_error(outcome.packed)
        return outcome

    def tell(self, method: str, *args: Any) -> None:
        """Have a method called."""
        if ray.is_initialized() and not is_forked():
            self._submit(method, args)

    async def aclose(self) -> None:
        """End the service."""
        check_not_forked()
        with anyio.move_on_after(2 * _CLOSE_TIMEOUT_S, shield=True), suppress(RayError):
            if ray.is_initialized():
                await self.handle.aclose.remote(_CLOSE_TIMEOUT_S)
        if not ray.is_initialized():
            return
        ray.kill(self.handle, no_restart=True)
        # Ray says so when the process ends; the name is free then.
        with anyio.move_on_after(_CLOSE_TIMEOUT_S, shield=True), suppress(ActorDiedError, RuntimeEnvSetupError):
            while ray.is_initialized():
                with suppress(ActorUnavailableError):
                    await self._submit(_PROBE, ())

    async def _outcome(self, method: str, args: tuple[Any, ...]) -> Any:
        while True:
            try:
                return await self._submit(method, args)
            except (ActorUnavailableError, GetTimeoutError, ObjectLostError) as error:
                await self._wait_reachable(error)
            except ActorDiedError as error:
                raise self._lost(error) from without_frames(error)
            except RuntimeEnvSetupError as error:
                raise _not_set_up(self.label, error) from without_frames(error)
            except RayError as error:
                raise _not_called(self.label, method, error) from without_frames(error)

    def _submit(self, method: str, args: tuple[Any, ...]) -> Any:
        if not ray.is_initialized():  # Ray would start anew.
            raise RuntimeUnavailableError(f"Ray was shut down, and {self.label} can not be reached without it")
        # In a tuple, references stay references.
        return self.handle.call.remote(method, args)

    async def _wait_reachable(self, error: RayError) -> None:
        """Wait until the service answers again, or is known to be dead; the pending call itself may take for ever."""
        with anyio.move_on_after(_UNREACHABLE_S), suppress(ActorDiedError):
            while True:
                with suppress(ActorUnavailableError):
                    await self._submit(_PROBE, ())
                    return
        raise self._lost(error) from without_frames(error)

    def _lost(self, error: RayError) -> CoordinatorLostError:
        reason = str(error).strip().partition("\n")[0]
        return CoordinatorLostError(
            f"{self.label} is gone: {type(error).__name__}: {reason} It was closed, its process was killed or crashed "
            "(see its logs), or its node is lost; make a new one and iterate again."
        )


class _Silence:
    """Says so where a service does not answer: a call may take long, but to be there takes no time.

    Args:
        service: The service that is called.
    """

    def __init__(self, service: RayService) -> None:
        """Nothing was asked."""
        self._service = service
        self._probe: Any = None

    def look(self, waited_s: float) -> None:
        """Ask whether it is there, or say that it has not answered since that was asked last."""
        if not ray.is_initialized():  # Ray would start anew.
            return
        if self._probe is None or not isinstance(compat.read_now(self._probe)[1], GetTimeoutError):
            self._probe = self._service.handle.call.remote(_PROBE, ())
            return
        _logger.warning(
            "%s does not answer for %.0f s: Ray has not started its process yet, or it is busy. If it goes on, see "
            "what Ray waits for with `ray status`, and the logs of the actor Host",
            self._service.label,
            waited_s,
        )


def start_service(
    make: Any,
    *,
    name: str | None,
    namespace: str | None,
    label: str,
    scheduling_strategy: Any = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> RayService:
    """Start an actor; see `hosting.start_service`.

    It is in no placement group unless it is told to: a group that is removed ends all that is in it, and Ray Tune
    removes that of a trial when it ends.
    """
    try:
        packed = cloudpickle.dumps(make)
    except Exception as error:
        raise OptionError(
            f"{label} can not be sent to another process: {error}. Use functions and objects that pickle."
        ) from error
    ensure_ray_blocking()
    asked: dict[str, Any] = {"scheduling_strategy": scheduling_strategy or ANYWHERE}
    if runtime_env is not None:
        asked["runtime_env"] = runtime_env
    if name is not None:
        asked |= {"name": name, "namespace": namespace or NAMESPACE, "lifetime": "detached"}
    with refusals(label, asked):
        host_class = _host_class.options(**_OPTIONS, **asked)
        try:
            return RayService(host_class.remote(packed, label), label)
        except ActorAlreadyExistsError as error:
            raise OptionError(
                f"name={name!r} can not be given: {error} Attach to the one that has it, close that, or use another "
                "name."
            ) from error


async def find_service(name: str, *, namespace: str | None) -> RayService:
    """Look for a named actor; see `hosting.find_service`."""
    await ensure_ray()
    namespace = namespace or NAMESPACE
    try:
        handle = await ask_in_thread(partial(ray.get_actor, name, namespace))
    except ValueError as error:
        raise CoordinatorLostError(
            f"there is none of the name {name!r} in namespace {namespace!r} on this cluster: it was not made yet, was "
            "closed, or has died. Make it under this name first; "
            "ray.util.list_named_actors(all_namespaces=True) lists the names there are."
        ) from error
    return RayService(handle, name)


def _not_made(label: str, error: BaseException) -> AiodataError:
    """Return what says that there is no service, and why."""
    if isinstance(error, AiodataError):
        return error
    failure = OptionError(f"{label} can not be made in its process: {describe(error)}")
    failure.__cause__ = error
    return failure


def _not_set_up(label: str, error: RayError) -> OptionError:
    reason = str(error).strip().rpartition("\n")[2]
    return OptionError(f"runtime_env of {label} cannot be set up: {reason} Change runtime_env in the options")


def _not_called(label: str, method: str, error: RayError) -> AiodataError:
    reason = str(error).strip().rpartition("\n")[2]
    return AiodataError(f"{method} of {label} could not be called, or its result not be sent: {reason}")
