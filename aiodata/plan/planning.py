"""Planning: what is known of a plan's rows before any of them is there, and what cannot work."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from aiodata.errors import TaskError
from aiodata.plan.nodes import Apply, Plan, Read, Union
from aiodata.plan.source import Skip
from aiodata.schemas import SchemaError, unify_schemas


def find_plan_schema(plan: Plan, skip: Skip) -> pa.Schema | None:
    """Return the schema of a plan's rows; None: only a run can tell, since a user's function makes them.

    It asks the sources, which may block, and checks each verb on the way.

    Args:
        plan: The plan.
        skip: What is told of files that cannot be read.

    Raises:
        SourceError: A source cannot be read, or its parts have types that do not go together.
        OptionError: A verb cannot be applied, for example to a column that is not there.
        TaskError: The branches of a union have types that do not go together.
    """
    if isinstance(plan.origin, Read):
        schema: pa.Schema | None = plan.origin.source.schema(skip)
    else:
        schema = find_union_schema(plan.origin, skip)
    for step in plan.steps:
        if isinstance(step, Apply):
            schema = step.transform.output_schema(schema)
    return schema


def find_union_schema(union: Union, skip: Skip) -> pa.Schema | None:
    """Return the schema that the rows of all branches of a union have in it; None: only a run can tell."""
    schemas = [find_plan_schema(plan, skip) for plan in union.plans]
    known = [schema for schema in schemas if schema is not None]
    if len(known) < len(schemas):
        return None
    with_rows = [schema for plan, schema in zip(union.plans, known, strict=True) if not _is_empty(plan)]
    return unify_branches(with_rows or known)


def unify_branches(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the schema that holds the rows of several branches exactly.

    Raises:
        TaskError: There is none.
    """
    try:
        return unify_schemas([(f"branch {index}", schema) for index, schema in enumerate(schemas)])
    except SchemaError as error:
        raise TaskError("union", "its branches", None, str(error)) from error


def _is_empty(plan: Plan) -> bool:
    return isinstance(plan.origin, Read) and plan.origin.source.is_empty
