"""The tables of docs/types.md say what conversions do."""

from __future__ import annotations

import pytest

from tests.types_table import PAGE, filled


def test_tables_of_types_say_what_conversions_do() -> None:
    for library in ("pandas", "polars", "torch"):
        pytest.importorskip(library)
    page = PAGE.read_text()
    assert page == filled(page), "run `python -m tests.types_table`, and read what it changes"
