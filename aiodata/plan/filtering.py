"""Filtering: the one way in which an expression chooses rows, of files as of tables in memory."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pyarrow import acero


def filter_table(table: pa.Table, expression: Any) -> pa.Table:
    """Return the rows for which a `pyarrow.compute.Expression` is true; null counts as false.

    It works in this thread alone, which `Table.filter` would not.
    """
    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
    kept = acero.Declaration("filter", acero.FilterNodeOptions(expression), inputs=[source])
    return kept.to_table(use_threads=False)
