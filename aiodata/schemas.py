"""Schemas: one for all blocks of a dataset, and what is known of a column beside its type."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches

import pyarrow as pa

from aiodata.casts import cast_exactly as cast_exactly
from aiodata.kinds import has_unknown_parts, refine_type, unify_all_types
from aiodata.kinds import plain_type as plain_type
from aiodata.kinds import unify_types as unify_types

# The keys in a field's metadata, which comparisons of schemas ignore.
_NULLS = b"aiodata.nulls"
_CATEGORIES = b"aiodata.categories"
_EXTENSION = b"ARROW:extension:"

_MAX_NAMES_SHOWN = 20


class SchemaError(ValueError):
    """A column's types do not go together; the message names it, the types, and what to do."""


def mark_nulls(field: pa.Field, *, has_nulls: bool | None) -> pa.Field:
    """Return the field with what is known of all rows of a dataset: whether some are null; None: nothing."""
    metadata = {key: value for key, value in (field.metadata or {}).items() if key != _NULLS}
    if has_nulls is not None:
        metadata[_NULLS] = b"some" if has_nulls else b"none"
    return field.with_metadata(metadata) if metadata else field.remove_metadata()


def has_nulls(field: pa.Field) -> bool | None:
    """Return whether some rows of the dataset are null in this column; None: that is not known."""
    if not field.nullable:
        return False
    mark = (field.metadata or {}).get(_NULLS)
    return None if mark is None else bool(mark == b"some")


def mark_categories(field: pa.Field, *, are_known: bool) -> pa.Field:
    """Return the field, of a dictionary type, with whether every block of the dataset has the same dictionary."""
    metadata = {key: value for key, value in (field.metadata or {}).items() if key != _CATEGORIES}
    if are_known:
        metadata[_CATEGORIES] = b"known"
    return field.with_metadata(metadata) if metadata else field.remove_metadata()


def has_known_categories(field: pa.Field) -> bool:
    """Return whether every block of the dataset has the same dictionary in this column."""
    return (field.metadata or {}).get(_CATEGORIES) == b"known"


def without_marks(schema: pa.Schema) -> pa.Schema:
    """Return the schema as users see it: without what is known of its columns."""
    return pa.schema([mark_categories(mark_nulls(one, has_nulls=None), are_known=False) for one in schema])


def unify_schemas(named: Sequence[tuple[str, pa.Schema]]) -> pa.Schema:
    """Return the schema that holds every value of all of these, its columns in the order of their appearance.

    Args:
        named: Schemas, each with what it is the schema of (a file), for errors.

    Raises:
        SchemaError: A column has types that no type holds exactly, or two columns have one name.
    """
    distinct: dict[bytes, tuple[str, pa.Schema]] = {}
    latest: pa.Schema | None = None
    for source, schema in named:
        # What wrote a file often leaves something about its rows there, so that no two are equal.
        bare = schema.remove_metadata()
        if latest is None or not bare.equals(latest, check_metadata=True):
            latest = bare
            # Schemas are equal, as keys too, whatever is noted in their fields.
            distinct.setdefault(bare.serialize().to_pybytes(), (source, bare))
    columns: dict[str, list[tuple[str, pa.Field]]] = {}
    for source, schema in distinct.values():
        if twice := duplicates(schema.names):
            raise SchemaError(f"{source} has several columns of one name: {twice}; rename them")
        for field in schema:
            columns.setdefault(field.name, []).append((source, field))
    return pa.schema([_unify_column(fields, len(distinct)) for fields in columns.values()])


def _unify_column(fields: Sequence[tuple[str, pa.Field]], num_schemas: int) -> pa.Field:
    first_source, first = fields[0]
    kinds: dict[pa.DataType, str] = {}
    for source, field in fields:
        kinds.setdefault(field.type, source)
    kind = unify_all_types(list(kinds))
    if kind is None:
        other = next((one for one in kinds if unify_types(first.type, one) is None), list(kinds)[-1])
        raise SchemaError(
            f"column {first.name!r} has types that do not go together: {first.type} in {first_source}, {other} in "
            f"{kinds[other]}; make one type (and for tensors, one shape) of them, or leave it out"
        )
    is_everywhere = len(fields) == num_schemas
    is_nullable = not is_everywhere or any(field.nullable for _, field in fields)
    unified = pa.field(first.name, kind, is_nullable, _common_metadata([field for _, field in fields]))
    marks = {has_nulls(field) for _, field in fields}
    if not is_everywhere or True in marks:
        return mark_nulls(unified, has_nulls=True)
    return mark_nulls(unified, has_nulls=False if marks == {False} else None)


def _common_metadata(fields: Sequence[pa.Field]) -> dict[bytes, bytes]:
    """Return what Arrow and this package keep in fields, where all say the same."""
    every = [_own_metadata(field) for field in fields]
    return {key: value for key, value in every[0].items() if all(one.get(key) == value for one in every)}


def _own_metadata(field: pa.Field) -> dict[bytes, bytes]:
    metadata = field.metadata or {}
    return {k: v for k, v in metadata.items() if k in (_NULLS, _CATEGORIES) or k.startswith(_EXTENSION)}


def is_known(schema: pa.Schema) -> bool:
    """Whether a schema says of each column what its values are; it does not where all that were seen are null."""
    return not any(has_unknown_parts(kind) for kind in schema.types)


def refine_schema(schema: pa.Schema, other: pa.Schema) -> pa.Schema | None:
    """Return a schema with what it leaves unknown as in another; None: they differ in what is known."""
    if schema.equals(other):
        return schema
    if schema.names != other.names or (is_known(schema) and is_known(other)):
        return None
    fields = []
    for field, its in zip(schema, other, strict=True):
        kind = refine_type(field.type, its.type)
        if kind is None:
            return None
        fields.append(field.with_type(kind))
    return pa.schema(fields)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with exactly this schema, which is free if it has that already; a missing column is null.

    Raises:
        SchemaError: The table has a column that the schema lacks, or one whose values it cannot hold exactly.
    """
    if table.schema.equals(schema):
        if table.schema.equals(schema, check_metadata=True) or not len(schema):
            return table
        return pa.Table.from_arrays(table.columns, schema=schema)
    names = table.column_names
    if len(set(names)) < len(names):
        raise SchemaError(f"several columns have one name: {duplicates(names)}; rename them")
    known = set(schema.names)
    for field in table.schema:
        if field.name not in known:
            raise SchemaError(
                f"column {field.name!r} ({field.type}) is new: the rows before had {_shown(schema.names)}; return "
                "the same columns each time, or name all of them with schema="
            )
    places = {name: place for place, name in enumerate(names)}
    columns = []
    for field in schema:
        place = places.get(field.name)
        column = _missing(table.num_rows, field) if place is None else table.column(place)
        columns.append(_conform_column(column, field))
    return pa.Table.from_arrays(columns, schema=schema)


def _missing(num_rows: int, field: pa.Field) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(num_rows, pa.null())])


def _conform_column(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    try:
        cast = cast_exactly(column, field.type)
    except ValueError as error:
        raise SchemaError(
            f"column {field.name!r} is {column.type}, but {field.type} in the rows before or by schema=: {error}; "
            "return one type each time, or name one that holds all values with schema="
        ) from error
    if not field.nullable and cast.null_count:
        raise SchemaError(f"column {field.name!r} has nulls, but its type is {field.type} without nulls; fill them")
    return cast


def with_plain_types(
    table: pa.Table, *, keep_nested_dictionaries: bool = True, keep_metadata: bool = False
) -> pa.Table:
    """Return the table with types that Arrow's kernels can work with, and no notes of other libraries in its fields.

    Args:
        table: Any table; returned as it is if there is nothing to change.
        keep_nested_dictionaries: As for `plain_type`.
        keep_metadata: Whether to keep what other libraries have noted in the fields.
    """
    for index, field in enumerate(table.schema):
        kind = plain_type(field.type, keep_nested_dictionaries=keep_nested_dictionaries)
        metadata = (field.metadata or {}) if keep_metadata else _own_metadata(field)
        if kind != field.type or len(metadata) < len(field.metadata or ()):
            plain = pa.field(field.name, kind, field.nullable, metadata or None)
            table = table.set_column(index, plain, cast_exactly(table.column(index), kind))
    return table


def check_names(names: Iterable[object]) -> tuple[str, ...]:
    """Return the names of columns as strings.

    Raises:
        ValueError: Two of them are one, as are `1` and `"1"`.
    """
    texts = tuple(str(name) for name in names)
    if twice := duplicates(texts):
        raise ValueError(f"several columns have one name: {twice}; rename them")
    return texts


def duplicates(names: Sequence[str]) -> list[str]:
    """Return the names that come more than once."""
    if len(set(names)) == len(names):
        return []
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def near_miss(name: str, known: Collection[str]) -> str:
    """Return the end of a message about an unknown name: what may have been meant, and what there is.

    Example:
        >>> near_miss("nmae", ["id", "name"])
        "; did you mean 'name'? The columns are ['id', 'name']"
    """
    close = get_close_matches(name, known, n=1)
    question = f"; did you mean {close[0]!r}? T" if close else "; t"
    return f"{question}he columns are {_shown(known)}"


def _shown(names: Collection[str]) -> str:
    every = list(names)
    if len(every) <= _MAX_NAMES_SHOWN:
        return str(every)
    return f"{str(every[:_MAX_NAMES_SHOWN])[:-1]}, ... {len(every) - _MAX_NAMES_SHOWN} more]"
