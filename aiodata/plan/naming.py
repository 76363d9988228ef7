"""Naming: names of stages, tasks and actors are short and have one line, whatever the user's things are called."""

from __future__ import annotations

# Characters of a name: Ray puts it before each line that a worker prints.
MAX_NAME = 60

_CUT = "..."


def short_name(text: str, limit: int = MAX_NAME) -> str:
    r"""Return a text as one line of at most `limit` characters: of a longer one the beginning and the end.

    Example:
        >>> short_name("map_batches(clean)")
        'map_batches(clean)'
        >>> short_name("is_in(x,\n  {value_set=[1, 2, 3, 4, 5]})", 24)
        'is_in(x, {value...5]})'
    """
    line = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    if len(line) <= limit:
        return line
    tail = (limit - len(_CUT)) // 3
    return line[: limit - len(_CUT) - tail].rstrip() + _CUT + line[-tail:].lstrip()
