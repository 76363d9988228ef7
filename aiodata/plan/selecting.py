"""Selecting: columns that are asked for by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from aiodata.errors import OptionError, UnknownColumnError
from aiodata.options import shown
from aiodata.schemas import duplicates, near_miss


def given_columns(option: str, names: str | Sequence[str]) -> tuple[str, ...]:
    """Return the columns that are asked for.

    Args:
        option: The argument that they are given by, for errors.
        names: One or more names.

    Raises:
        OptionError: There is none, or one that is no string, or one that comes twice.
    """
    if isinstance(names, bytes | Mapping) or not isinstance(names, Iterable):
        raise OptionError(f"{option}={shown(names)} must be the name of a column, or a list of names")
    columns = (names,) if isinstance(names, str) else tuple(names)
    if not columns:
        raise OptionError(f"{option}={shown(names)} must name at least one column")
    if not all(isinstance(one, str) for one in columns):
        raise OptionError(f"{option}={shown(names)} must be names of columns, which are strings")
    if twice := duplicates(columns):
        raise OptionError(f"{option}={shown(names)} has {twice} more than once; name each column once")
    return columns


def check_columns(name: str, wanted: Sequence[str], known: Collection[str]) -> None:
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
