"""Tables of any types, cut into files whose types and columns differ, as hypothesis draws them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import aiodata
from tests.properties import oracle


def examples(count: int) -> settings:
    """So many examples, or more with `--hypothesis-profile=thorough --timeout=0`."""
    per_100 = settings().max_examples
    return settings(
        max_examples=count * per_100 // 100,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


YEAR_1, YEAR_9999 = -719_162, 2_932_896
_SECONDS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_MOST = 2**63 - 1
_TEXTS = ["", "a", "b", "Zoë 😀", "a\0b", "z" * 30, "1", "nan"]
_BYTES = [b"", b"a", b"\0\xff", b"z" * 30]
_FLOATS = [0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1.0, -1.5, 2.0]


def _moments(unit: str) -> list[int]:
    per_second = _SECONDS[unit]
    if unit == "ns":
        return [0, 1, -1, 1_700_000_000 * per_second + 1, _MOST, -_MOST]
    return [
        0,
        1,
        -1,
        1_700_000_000 * per_second,
        YEAR_1 * 86_400 * per_second,
        (YEAR_9999 + 1) * 86_400 * per_second - 1,
    ]


def _integers(bits: int, *, signed: bool) -> list[int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return [0, 1, low, high, *([-1] if signed else []), *([2**53 + 1] if bits == 64 else [])]


# Values as Arrow keeps them: integers for dates and times.
POOLS: dict[pa.DataType, list[Any]] = {
    pa.null(): [None],
    pa.bool_(): [True, False],
    **{getattr(pa, f"int{bits}")(): _integers(bits, signed=True) for bits in (8, 16, 32, 64)},
    **{getattr(pa, f"uint{bits}")(): _integers(bits, signed=False) for bits in (8, 16, 32, 64)},
    pa.float16(): [*_FLOATS, 65504.0],
    pa.float32(): [*_FLOATS, 2.0**-149, 3.4028234663852886e38],
    pa.float64(): [*_FLOATS, 5e-324, 1.7976931348623157e308, 0.1],
    pa.decimal32(5, 2): [Decimal(one) for one in ("0.00", "1.50", "-999.99")],
    pa.decimal64(12, 1): [Decimal(one) for one in ("0.0", "1.5", "-99999999999.9")],
    pa.decimal128(10, 3): [Decimal(one) for one in ("0.000", "1.500", "-9999999.999")],
    pa.decimal128(38, 5): [Decimal(one) for one in ("0.00000", "1.50000", "9" * 33 + ".99999")],
    pa.decimal256(50, 2): [Decimal(one) for one in ("0.00", "1.50", "-" + "9" * 48 + ".99")],
    **dict.fromkeys((pa.string(), pa.large_string(), pa.string_view()), _TEXTS),
    **dict.fromkeys((pa.binary(), pa.large_binary(), pa.binary_view()), _BYTES),
    pa.binary(3): [b"abc", b"\0\0\0"],
    pa.date32(): [0, -1, 19_000, YEAR_1, YEAR_9999],
    pa.date64(): [one * 86_400_000 for one in (0, -1, 19_000, YEAR_1, YEAR_9999)],
    pa.time32("s"): [0, 1, 86_399],
    pa.time32("ms"): [0, 1, 86_399_999],
    pa.time64("us"): [0, 1, 86_399_999_999],
    pa.time64("ns"): [0, 1, 1000, 86_399_999_999_999],
    **{pa.timestamp(unit, zone): _moments(unit) for unit in _SECONDS for zone in (None, "UTC", "Asia/Tokyo")},
    pa.timestamp("us", "+09:30"): _moments("us"),
    **{pa.duration(unit): [0, 1, -1, 86_400] for unit in _SECONDS},
    pa.month_day_nano_interval(): [pa.MonthDayNano([1, -2, 3]), pa.MonthDayNano([0, 0, 0])],
    pa.uuid(): [b"\0" * 16, b"0123456789abcdef"],
    pa.json_(): ["{}", '{"a": 1}', "null"],
    pa.bool8(): [0, 1],
    pa.fixed_shape_tensor(pa.float32(), [2, 2]): [[0.0, -0.0, 1.5, float("nan")], [1.0, 2.0, 3.0, 4.0]],
    pa.fixed_shape_tensor(pa.int64(), [2]): [[2**60 + 1, -1], [0, 0]],
    **{pa.dictionary(pa.int8(), kind): _TEXTS for kind in (pa.string(), pa.large_string())},
    pa.dictionary(pa.int16(), pa.int64()): [0, 1, 2**60 + 1],
    pa.run_end_encoded(pa.int32(), pa.int64()): [0, 1, 2**60 + 1],
}


def _only(*kinds: pa.DataType) -> list[pa.DataType]:
    return list(kinds)


# Types that files may have for the values of one column; most go together.
FAMILIES: list[list[pa.DataType]] = [
    _only(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()),
    _only(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    _only(pa.float16(), pa.float32(), pa.float64()),
    _only(pa.float64(), pa.float32(), pa.int32(), pa.int16(), pa.uint8()),
    _only(pa.decimal32(5, 2), pa.decimal64(12, 1), pa.decimal128(10, 3), pa.decimal128(38, 5), pa.decimal256(50, 2)),
    _only(pa.decimal128(10, 3), pa.int32(), pa.int64(), pa.uint8()),
    _only(pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())),
    _only(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())),
    _only(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3)),
    _only(pa.date32(), pa.date64()),
    _only(pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
    *(_only(*(pa.timestamp(unit, zone) for unit in _SECONDS)) for zone in (None, "UTC", "Asia/Tokyo")),
    _only(*(pa.duration(unit) for unit in _SECONDS)),
    _only(pa.dictionary(pa.int16(), pa.int64()), pa.int64(), pa.int16(), pa.run_end_encoded(pa.int32(), pa.int64())),
    *(_only(kind) for kind in (pa.bool_(), pa.null(), pa.uuid(), pa.json_(), pa.bool8(), pa.month_day_nano_interval())),
    *(_only(kind) for kind in POOLS if isinstance(kind, pa.FixedShapeTensorType)),
    _only(pa.timestamp("us", "+09:30")),
]
# Families of types that pyarrow can make lists and structs of, out of Python's values.
_INNER = [
    inner
    for family in FAMILIES
    if (
        inner := [
            kind for kind in family if not (isinstance(kind, pa.BaseExtensionType) or pa.types.is_run_end_encoded(kind))
        ]
    )
]
_ALIEN = [pa.int64(), pa.string(), pa.timestamp("us"), pa.list_(pa.bool_())]

Draw = st.DrawFn


@st.composite
def kinds(draw: Draw, count: int, depth: int = 2, *, goes_together: bool = True) -> list[pa.DataType]:
    """The types of one column in so many files."""
    shape = draw(st.sampled_from(["leaf"] * 5 + ["list", "struct", "map"])) if depth else "leaf"
    if shape == "leaf":
        family = draw(st.sampled_from(FAMILIES if depth == 2 else _INNER))
        result = [draw(st.sampled_from(family)) for _ in range(count)]
    elif shape == "list":
        inner = draw(kinds(count, depth - 1))
        result = [draw(st.sampled_from([pa.list_, pa.large_list, pa.list_view, _pair]))(kind) for kind in inner]
    elif shape == "map":
        result = [pa.map_(pa.string(), kind) for kind in draw(kinds(count, depth - 1))]
    else:
        members = {name: draw(kinds(count, depth - 1)) for name in ("a", "b")[: draw(st.integers(1, 2))]}
        result = [pa.struct([(name, every[index]) for name, every in _some(draw, members)]) for index in range(count)]
    if depth == 2:
        for index in range(count):
            change = draw(st.integers(0, 19))
            if change == 0:
                result[index] = pa.null()
            elif change == 1 and not goes_together:
                result[index] = draw(st.sampled_from(_ALIEN))
    return result


def _some(draw: Draw, members: dict[str, list[pa.DataType]]) -> list[tuple[str, list[pa.DataType]]]:
    items = list(members.items())
    return items if len(items) < 2 else draw(st.sampled_from([items, items[::-1], items[:1], items[1:]]))


def _pair(kind: pa.DataType) -> pa.DataType:
    return pa.list_(kind, 2)


@st.composite
def values(draw: Draw, kind: pa.DataType, *, with_nulls: bool = True) -> Any:
    """A value of a type, as Arrow keeps it."""
    if with_nulls and draw(st.integers(0, 5)) == 0:
        return None
    if kind in POOLS:
        return draw(st.sampled_from(POOLS[kind]))
    if pa.types.is_struct(kind):
        return {field.name: draw(values(field.type)) for field in kind}
    if pa.types.is_map(kind):
        keys = draw(st.sampled_from([[], ["a"], ["a", "b"]]))
        return [(key, draw(values(kind.item_type))) for key in keys]
    size = kind.list_size if pa.types.is_fixed_size_list(kind) else draw(st.integers(0, 3))
    return [draw(values(kind.value_type)) for _ in range(size)]


def array_of(rows: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """An array of values as Arrow keeps them."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(rows, kind.storage_type))
    if pa.types.is_run_end_encoded(kind):
        return pa.RunEndEncodedArray.from_arrays(
            pa.array(range(1, len(rows) + 1), pa.int32()), pa.array(rows, kind.value_type)
        )
    return pa.array(rows, kind)


@dataclass(frozen=True)
class Piece:
    """A file, or a table.

    Attributes:
        kinds: The type of each column.
        rows: The values of each column, as Arrow keeps them.
        num_rows: How many rows there are.
        partition: The name of the directory, if any.
    """

    kinds: dict[str, pa.DataType]
    rows: dict[str, list[Any]]
    num_rows: int
    partition: str | None = None

    @property
    def table(self) -> pa.Table:
        return pa.table({name: array_of(self.rows[name], kind) for name, kind in self.kinds.items()})


@dataclass(frozen=True)
class Case:
    """Pieces, and how they are stored.

    Attributes:
        pieces: The pieces.
        row_group_size: Of Parquet files, in rows; None: they are tables in memory.
        options: How many CPUs and the like.
    """

    pieces: list[Piece]
    row_group_size: int | None
    options: dict[str, Any]

    @contextmanager
    def dataset(self, **arguments: Any) -> Iterator[tuple[aiodata.Dataset, Expected]]:
        """The dataset, and what is expected of it; the arguments are for `read_parquet`."""
        if self.row_group_size is None:
            expected = Expected.of(
                [(piece, {name: oracle.plain(kind) for name, kind in piece.kinds.items()}) for piece in self.pieces]
            )
            yield self._with_options(aiodata.from_arrow([piece.table for piece in self.pieces])), expected
            return
        with tempfile.TemporaryDirectory() as folder:
            stored = {}
            for index, piece in enumerate(self.pieces):
                path = Path(folder, *([piece.partition] if piece.partition else []), f"{index}.parquet")
                path.parent.mkdir(exist_ok=True)
                pq.write_table(piece.table, path, row_group_size=self.row_group_size)
                schema = pq.read_schema(path)
                stored[str(path)] = piece, {name: oracle.plain(schema.field(name).type) for name in schema.names}
            ordered = [stored[path] for path in sorted(stored)]
            yield self._with_options(aiodata.read_parquet(folder, **arguments)), Expected.of(ordered)

    def _with_options(self, ds: aiodata.Dataset) -> aiodata.Dataset:
        return ds.with_options(runtime="local", **self.options)


@dataclass(frozen=True)
class Expected:
    """What a dataset should be.

    Attributes:
        schema: Its schema; None: types do not go together.
        table: Its rows in order; None: there is no schema, or a value does not fit it.
    """

    schema: pa.Schema | None
    table: pa.Table | None

    @classmethod
    def of(cls, stored: Sequence[tuple[Piece, dict[str, pa.DataType]]]) -> Expected:
        """Unify pieces, given the types as which they are stored."""
        deciding = [one for one in stored if one[0].num_rows] or list(stored)
        by_name: dict[str, list[pa.DataType]] = {}
        for _, kinds_ in deciding:
            for name, kind in kinds_.items():
                by_name.setdefault(name, []).append(kind)
        unified = {name: oracle.unify(every) for name, every in by_name.items()}
        if None in unified.values():
            return cls(None, None)
        columns: dict[str, list[Any]] = {}
        try:
            for name, kind in unified.items():
                columns[name] = [value for piece, _ in deciding for value in _column(piece, name, kind)]
        except oracle.DoesNotFit:
            return cls(pa.schema(list(unified.items())), None)
        arrays = {name: array_of(columns[name], unified[name]) for name in unified}
        arrays |= _directories([piece for piece, _ in stored])
        table = pa.table(arrays)
        return cls(table.schema, table)


def _column(piece: Piece, name: str, kind: pa.DataType) -> list[Any]:
    if name not in piece.kinds:
        return [None] * piece.num_rows
    return [oracle.convert(value, piece.kinds[name], kind) for value in piece.rows[name]]


def _directories(pieces: Sequence[Piece]) -> dict[str, pa.Array]:
    """The column that Hive directories make: of integers if all are, else of strings."""
    texts = [None if piece.partition is None else piece.partition.partition("=")[2] for piece in pieces]
    if all(text is None for text in texts):
        return {}
    known = [None if text == "__HIVE_DEFAULT_PARTITION__" else text for text in texts]
    values_ = [one for one, piece in zip(known, pieces, strict=True) for _ in range(piece.num_rows)]
    present = [one for one in known if one is not None]
    if present and all(one.lstrip("-").isdigit() and str(int(one)) == one for one in present):
        return {"k": pa.array([None if one is None else int(one) for one in values_], pa.int64())}
    return {"k": pa.array(values_, pa.string())}


def _is_for_parquet(kind: pa.DataType) -> bool:
    """Whether pyarrow can write it; views and dictionaries in lists it can only sometimes."""
    text = str(kind)
    return not re.search("run_end|interval", text) and not (kind.num_fields and re.search("_view|dictionary", text))


OPTIONS = st.fixed_dictionaries(
    {"num_cpus": st.sampled_from([1, 2, 16]), "target_block_bytes": st.sampled_from([1, 100, 16 << 20])}
)


@st.composite
def cases(draw: Draw, *, max_columns: int = 3, goes_together: bool = True, in_files: bool | None = None) -> Case:
    """Datasets; most have one schema, all if they must go together."""
    count = draw(st.integers(1, 4))
    names = ["x", "y", "z"][: draw(st.integers(1, max_columns))]
    columns = {name: draw(kinds(count, goes_together=goes_together)) for name in names}
    are_writable = all(map(_is_for_parquet, [kind for every in columns.values() for kind in every]))
    is_stored = are_writable if in_files is None else in_files
    is_stored = is_stored and are_writable and draw(st.integers(0, 3)) > 0
    partitions = draw(
        st.sampled_from([None, None, ["k=1", "k=02", "k=-3"], ["k=1", "k=-3", "k=__HIVE_DEFAULT_PARTITION__"]])
    )
    pieces = []
    for index in range(count):
        own = draw(st.permutations(names)) if draw(st.booleans()) else names
        own = own[: max(1, len(own) - (draw(st.integers(0, 3)) == 0))]
        num_rows = draw(st.sampled_from([0, 1, 2, 3, 5, 8]))
        types = {name: columns[name][index] for name in own}
        rows = {name: _draw_rows(draw, kind, num_rows) for name, kind in types.items()}
        partition = draw(st.sampled_from(partitions)) if partitions and is_stored else None
        pieces.append(Piece(types, rows, num_rows, partition))
    return Case(pieces, draw(st.integers(1, 5)) if is_stored else None, draw(OPTIONS))


def _draw_rows(draw: Draw, kind: pa.DataType, num_rows: int) -> list[Any]:
    with_nulls = draw(st.booleans())
    return [draw(values(kind, with_nulls=with_nulls)) for _ in range(num_rows)]
