"""Selecting: columns that are asked for by name."""

from __future__ import annotations

from collections.abc import Sequence

from aiodata.errors import UnknownColumnError
from aiodata.schemas import near_miss


def check_columns(name: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Check that columns are there.

    Args:
        name: Who asks, for example `select_columns(['x'])`.
        wanted: What is asked for.
        known: What there is.

    Raises:
        UnknownColumnError: One is not there.
    """
    for one in wanted:
        if one not in known:
            raise UnknownColumnError(name, f"there is no column {one!r}{near_miss(one, known)}")
