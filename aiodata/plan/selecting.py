"""Selecting: columns that are asked for by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from aiodata.errors import UnknownColumnError
from aiodata.schemas import near_miss


def check_columns(name: str, wanted: Sequence[str], known: Collection[str]) -> None:
    """Check that columns are there.

    Args:
        name: Who asks, for example `select_columns(['x'])`.
        wanted: What is asked for.
        known: What there is.

    Raises:
        UnknownColumnError: One is not there.
    """
    if (reason := what_is_missing(wanted, known)) is not None:
        raise UnknownColumnError(name, reason)


def what_is_missing(wanted: Sequence[str], known: Collection[str]) -> str | None:
    """Return a text that says which column is not there, and what there is; None: all are."""
    for one in wanted:
        if one not in known:
            return f"there is no column {one!r}{near_miss(one, known)}"
    return None
