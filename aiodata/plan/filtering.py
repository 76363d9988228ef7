"""Filtering: what an expression means, wherever the rows are. There is this one way to evaluate it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pyarrow import acero

from aiodata.errors import OptionError, UnknownColumnError
from aiodata.schemas import near_miss


def filter_table(table: pa.Table, expression: Any) -> pa.Table:
    """Return the rows for which an expression is true; null counts as false.

    It is done in this thread alone, which `Table.filter` would not.
    """
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
        text = str(error)
        if "No match for FieldRef" in text:
            asked = text.partition("FieldRef.Name(")[2].partition(")")[0]
            raise UnknownColumnError(name, f"there is no column {asked!r}{near_miss(asked, schema.names)}") from error
        raise OptionError(f"{name} cannot be evaluated on columns of these types: {text.splitlines()[0]}") from error
