"""From the arguments of `map_batches` to a step of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa

from aiodata.errors import OptionError
from aiodata.formats import get_format
from aiodata.options import amount, at_least, given_list, given_mapping, shown
from aiodata.plan.nodes import Apply, Resources
from aiodata.plan.transforms import MapBatches
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
    schema: pa.Schema | None,
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
    )
    if (constructor_args or constructor_kwargs) and not transform.needs_actor:
        raise OptionError(f"fn_constructor_args and fn_constructor_kwargs are for a class; fn={fn!r} is none")
    resources = Resources(amount("num_cpus", num_cpus, optional=True), amount("num_gpus", num_gpus, optional=True))
    workers = _workers(concurrency)
    if transform.needs_actor:
        return Apply(transform, resources, workers)
    if isinstance(concurrency, tuple):
        raise OptionError(f"concurrency={concurrency!r} must be an integer: only a class has a pool to scale")
    if transform.is_async:
        return Apply(transform if workers is None else replace(transform, concurrency=workers[0]), resources)
    return Apply(transform, resources, workers)


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
