"""From the arguments of `map_batches` to a step of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa

from aiodata.errors import OptionError
from aiodata.formats import get_format
from aiodata.options import (
    a_strategy,
    amounts,
    an_environment,
    at_least,
    given_list,
    given_mapping,
    resource_amount,
    shown,
)
from aiodata.plan.bisection import OnError
from aiodata.plan.nodes import Apply, Resources
from aiodata.plan.transforms import NO_ROWS_OF_GENERATORS, MapBatches
from aiodata.schemas import check_names

Concurrency = int | tuple[int, int] | None


def map_step(
    fn: Callable[..., Any],
    *,
    batch_size: int | None,
    batch_format: str,
    concurrency: Concurrency,
    num_cpus: float | None,
    num_gpus: float | None,
    memory: int | None,
    resources: Mapping[str, float] | None,
    scheduling_strategy: Any,
    runtime_env: Mapping[str, Any] | None,
    schema: pa.Schema | None,
    on_error: str,
    fn_args: Sequence[Any],
    fn_kwargs: Mapping[str, Any] | None,
    fn_constructor_args: Sequence[Any],
    fn_constructor_kwargs: Mapping[str, Any] | None,
) -> Apply:
    """Return the step that calls `fn` with batches; see `Dataset.map_batches`.

    Raises:
        OptionError: An argument has a value that can not work.
    """
    if not callable(fn):
        raise OptionError(f"fn={shown(fn)} must be a function, or a class whose instances can be called")
    batch_size = at_least("batch_size", batch_size, 1, optional=True)
    get_format(batch_format)
    constructor_args = given_list("fn_constructor_args", fn_constructor_args)
    constructor_kwargs = given_mapping("fn_constructor_kwargs", fn_constructor_kwargs)
    transform = MapBatches(
        fn,
        batch_size,
        batch_format,
        given_list("fn_args", fn_args),
        given_mapping("fn_kwargs", fn_kwargs),
        constructor_args,
        constructor_kwargs,
        schema=check_schema(schema),
        on_error=_on_error(on_error),
    )
    _check_on_error(transform)
    if (constructor_args or constructor_kwargs) and not transform.needs_actor:
        raise OptionError(f"fn_constructor_args and fn_constructor_kwargs are for a class; fn={fn!r} is none")
    takes = Resources(
        resource_amount("num_cpus", num_cpus),
        _gpus(num_gpus),
        at_least("memory", memory, 1, optional=True),
        amounts("resources", resources) or {},
        a_strategy("scheduling_strategy", scheduling_strategy),
        an_environment("runtime_env", runtime_env),
    )
    workers = _workers(concurrency)
    if transform.needs_actor:
        return Apply(transform, takes, workers)
    if isinstance(concurrency, tuple):
        raise OptionError(f"concurrency={concurrency!r} must be an integer: only a class has a pool to scale")
    if transform.is_async:
        return Apply(transform if workers is None else replace(transform, concurrency=workers[0]), takes)
    return Apply(transform, takes, workers)


def check_schema(schema: object) -> pa.Schema | None:
    """Check a schema that is asked for.

    Raises:
        OptionError: It is none, or has two columns of one name.
    """
    if schema is None:
        return None
    if not isinstance(schema, pa.Schema):
        raise OptionError(
            f"schema={shown(schema)} must be a pyarrow.Schema, for example pa.schema([('x', pa.int64())])"
        )
    try:
        check_names(schema.names)
    except ValueError as error:
        raise OptionError(f"schema has {error}") from error
    return schema.remove_metadata()


def _on_error(value: object) -> OnError:
    try:
        return OnError(value)
    except ValueError:
        choices = ", ".join(repr(one.value) for one in OnError)
        raise OptionError(f"on_error={value!r} must be one of {choices}") from None


def _check_on_error(transform: MapBatches) -> None:
    """Check that rows can be given up in the way that is asked for."""
    if transform.on_error is OnError.RAISE:
        return
    if transform.yields_many:
        raise OptionError(f"on_error={transform.on_error.value!r}: {transform.name} {NO_ROWS_OF_GENERATORS}")
    if transform.on_error is not OnError.NULL:
        return
    if transform.schema is None:
        raise OptionError(
            "on_error='null' needs to know which columns are null: give schema=, the schema of what fn returns"
        )
    if strict := [field.name for field in transform.schema if not field.nullable]:
        raise OptionError(
            f"on_error='null' makes nulls, which the columns {strict} of schema= may not be; drop nullable=False"
        )


def _workers(concurrency: Concurrency) -> tuple[int, int] | None:
    if concurrency is None:
        return None
    bounds = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
    if len(bounds) == 2:
        with suppress(OptionError):
            least, most = (at_least("concurrency", bound, 1) for bound in bounds)
            if least <= most:
                return least, most
    raise OptionError(f"concurrency={shown(concurrency)} must be an integer of at least 1, or (least, most) of them")


def _gpus(value: float | None) -> float | None:
    """Check a number of GPUs."""
    num_gpus = resource_amount("num_gpus", value)
    if num_gpus is not None and num_gpus > 1 and not num_gpus.is_integer():
        raise OptionError(
            f"num_gpus={shown(value)} must be a whole number, as it is more than 1: only one GPU can be shared"
        )
    return num_gpus
