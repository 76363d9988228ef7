"""Filtering: what an expression means, wherever the rows are. There is this one way to evaluate it."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa

from aiodata.errors import OptionError, UnknownColumnError
from aiodata.plan.naming import short_name
from aiodata.schemas import near_miss

# How Arrow says that a column is not there.
_NO_MATCH = re.compile(r"No match for FieldRef\.Name\((.*)\) in ")

_MAX_TYPES_SHOWN = 20

# Stands for an expression that Arrow cannot write out.
UNSHOWN = "<an expression with bytes in it>"


def show_expression(expression: Any) -> str:
    """Return an expression as text, for names and errors: as one line, and shortened.

    Example:
        >>> import pyarrow.compute as pc
        >>> show_expression(pc.field("x") > 0)
        '(x > 0)'
    """
    try:
        return short_name(str(expression))
    except UnicodeDecodeError:  # Arrow writes bytes out as they are.
        return UNSHOWN


def filter_table(table: pa.Table, expression: Any) -> pa.Table:
    """Return the rows for which an expression is true; null counts as false.

    It is done in this thread alone, which `Table.filter` would not.
    """
    # Here, since it imports pandas, which takes as long as all of aiodata: filters are evaluated off the event loop.
    from pyarrow import acero

    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
    kept = acero.Declaration("filter", acero.FilterNodeOptions(expression), inputs=[source])
    return kept.to_table(use_threads=False)


def check_expression(name: str, expression: Any, schema: pa.Schema) -> None:
    """Check that an expression can be evaluated on rows of a schema, and is true or false for them.

    Args:
        name: Who asks, for example `filter(...)`.
        expression: The expression.
        schema: The schema.

    Raises:
        UnknownColumnError: It names a column that is not there.
        OptionError: It cannot be evaluated.
    """
    try:
        filter_table(schema.empty_table(), expression)
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = explain_failure(error, schema)
        if _unknown_column(error) is not None:
            raise UnknownColumnError(name, reason) from error
        raise OptionError(f"{name}: {reason}") from error


def explain_failure(error: Exception, schema: pa.Schema) -> str:
    """Say why an expression cannot be evaluated on rows of a schema."""
    if (unknown := _unknown_column(error)) is not None:
        return f"there is no column {unknown!r}{near_miss(unknown, schema.names)}"
    types = ", ".join(f"{field.name}: {field.type}" for field in list(schema)[:_MAX_TYPES_SHOWN])
    return f"it cannot be evaluated on these columns ({types}): {str(error).splitlines()[0]}"


def _unknown_column(error: Exception) -> str | None:
    found = _NO_MATCH.search(str(error))
    return None if found is None else found[1]
