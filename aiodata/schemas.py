"""Schemas: what is known of a column beside its type, for formats that have no nulls of their own."""

from __future__ import annotations

import pyarrow as pa

# The key in a field's metadata, which comparisons of schemas ignore.
_NULLS = b"aiodata.nulls"
_CATEGORIES = b"aiodata.categories"


def mark_nulls(field: pa.Field, *, has_nulls: bool | None) -> pa.Field:
    """Return the field with what is known of all rows of a dataset: whether some are null; None: nothing."""
    metadata = {key: value for key, value in (field.metadata or {}).items() if key != _NULLS}
    if has_nulls is not None:
        metadata[_NULLS] = b"some" if has_nulls else b"none"
    return field.with_metadata(metadata or None)


def has_nulls(field: pa.Field) -> bool | None:
    """Return whether some rows of the dataset are null in this column; None: that is not known."""
    mark = (field.metadata or {}).get(_NULLS)
    return None if mark is None else bool(mark == b"some")


def mark_categories(field: pa.Field, *, are_known: bool) -> pa.Field:
    """Return the field, of a dictionary type, with whether every block of the dataset has the same dictionary."""
    metadata = {key: value for key, value in (field.metadata or {}).items() if key != _CATEGORIES}
    if are_known:
        metadata[_CATEGORIES] = b"known"
    return field.with_metadata(metadata or None)


def has_known_categories(field: pa.Field) -> bool:
    """Return whether every block of the dataset has the same dictionary in this column."""
    return (field.metadata or {}).get(_CATEGORIES) == b"known"
