"""The tables of docs/types.md, made by converting a value of each type; `python -m tests.types_table` writes them."""

from __future__ import annotations

import datetime as dt
import decimal
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from aiodata.block import as_block
from aiodata.formats import get_format
from aiodata.schemas import mark_categories, mark_nulls

PAGE = Path(__file__).parents[1] / "docs" / "types.md"
FORMATS = ["numpy", "pandas", "polars", "torch"]

_MOMENT = dt.datetime(2024, 1, 2, 3, 4, 5)
_TENSOR = pa.fixed_shape_tensor(pa.float32(), [2, 2])

# A row's label, and columns of one value that look the same.
TYPES: dict[str, list[pa.Array]] = {
    "`null`": [pa.nulls(1)],
    "`bool`": [pa.array([True])],
    **{f"`int{bits}`": [pa.array([1], getattr(pa, f"int{bits}")())] for bits in (8, 16, 32, 64)},
    **{f"`uint{bits}`": [pa.array([1], getattr(pa, f"uint{bits}")())] for bits in (8, 16, 32, 64)},
    **{f"`float{bits}`": [pa.array([1.5], getattr(pa, f"float{bits}")())] for bits in (16, 32, 64)},
    "`decimal32`, `decimal64`, `decimal128`": [
        pa.array([decimal.Decimal("1.5")], make(9, 1)) for make in (pa.decimal32, pa.decimal64, pa.decimal128)
    ],
    "`decimal256`": [pa.array([decimal.Decimal("1.5")], pa.decimal256(50, 1))],
    "`string`, `large_string`, `string_view`": [
        pa.array(["a"], kind) for kind in (pa.string(), pa.large_string(), pa.string_view())
    ],
    "`binary`, `large_binary`, `binary_view`, fixed-size": [
        pa.array([b"a"], kind) for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(1))
    ],
    "`date32`": [pa.array([_MOMENT.date()], pa.date32())],
    "`date64`": [pa.array([_MOMENT.date()], pa.date64())],
    "`time32`, `time64`": [
        pa.array([_MOMENT.time()], kind) for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns"))
    ],
    **{f"`timestamp[{unit}]`": [pa.array([_MOMENT], pa.timestamp(unit))] for unit in ("s", "ms", "us", "ns")},
    "`timestamp[us, tz=Asia/Tokyo]`": [pa.array([_MOMENT], pa.timestamp("us", "Asia/Tokyo"))],
    "`timestamp[us, tz=+09:30]`": [pa.array([_MOMENT], pa.timestamp("us", "+09:30"))],
    **{f"`duration[{unit}]`": [pa.array([1], pa.duration(unit))] for unit in ("s", "ms", "us", "ns")},
    "`month_day_nano_interval`": [pa.array([pa.MonthDayNano([1, 2, 3])])],
    "`list<int64>`, `large_list`, list views": [
        pa.array([[1, 2]], make(pa.int64())) for make in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view)
    ],
    "`list<string>`": [pa.array([["a"]])],
    "`fixed_size_list<int64>[2]`": [pa.array([[1, 2]], pa.list_(pa.int64(), 2))],
    "`fixed_size_list<float32>[2]`": [pa.array([[1, 2]], pa.list_(pa.float32(), 2))],
    "`fixed_size_list<string>[2]`": [pa.array([["a", "b"]], pa.list_(pa.string(), 2))],
    "`fixed_shape_tensor<float32>[2, 2]`": [
        pa.ExtensionArray.from_storage(_TENSOR, pa.array([[1, 2, 3, 4]], _TENSOR.storage_type))
    ],
    "`struct<a: int64>`": [pa.array([{"a": 1}])],
    "`map<string, int64>`": [pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))],
    "`dictionary<string>`": [pa.array(["a"]).dictionary_encode()],
    "`dictionary<int64>`": [pa.array([1]).dictionary_encode()],
    "`run_end_encoded<int64>`": [pa.RunEndEncodedArray.from_arrays([1], [1])],
    "`uuid`": [pa.array([b"0" * 16], pa.uuid())],
    "`json`": [pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(["{}"]))],
    "`bool8`": [pa.array([1], pa.bool8())],
}


def convert(array: pa.Array, fmt: str, *, has_nulls: bool | None) -> Any:
    """The column in this format; a ValueError where it is refused."""
    field = mark_nulls(pa.field("x", array.type), has_nulls=has_nulls)
    if pa.types.is_dictionary(array.type):
        field = mark_categories(field, are_known=True)
    batch = pa.RecordBatch.from_arrays([array], schema=pa.schema([field]))
    return get_format(fmt).convert(batch)["x"]


def with_null(array: pa.Array) -> pa.Array:
    """The column and a null row."""
    if pa.types.is_run_end_encoded(array.type):
        return pa.RunEndEncodedArray.from_arrays([1, 2], pa.concat_arrays([array.values, pa.nulls(1, pa.int64())]))
    return pa.concat_arrays([array, pa.nulls(1, array.type)])


def kind_of(column: Any) -> str:
    """What a column is, in a few words; a tensor's shape, and an object's type."""
    text = re.sub(r"time_unit=|(, )?time_zone=(None)?|precision=|scale=|shape=", r"\1", str(column.dtype))
    text = re.sub(r"Extension\('([\w.]+)', .*\)", r"Extension('\1')", text.removeprefix("torch.")).replace(", )", ")")
    if isinstance(column, np.ma.MaskedArray):
        text = f"masked {text}"
    if len(getattr(column, "shape", ())) > 1:
        text += f" (rows, {', '.join(map(str, column.shape[1:]))})"
    if text != "object":
        return f"`{text}`"
    value = next(iter(column))
    return f"`object`: {'' if value is None else name_of(value)}".rstrip(": ")


def name_of(value: Any) -> str:
    """The type of a value in a column of objects."""
    if isinstance(value, np.ndarray):
        return f"arrays of `{value.dtype}`"
    kind = type(value)
    name = kind.__name__ if kind.__module__ in ("builtins", "decimal") else f"{kind.__module__}.{kind.__qualname__}"
    return f"`{name}`"


def null_of(column: Any) -> str:
    """What stands for null in a column whose last row is null."""
    if hasattr(column, "null_count"):
        return "`null`"
    last = list(column)[-1]
    while getattr(last, "ndim", 0) and last is not np.ma.masked:
        last = last[0]
    if last is np.ma.masked:
        return "masked"
    text = str(last)
    return "NaN" if "nan" in text else {"NaT": "NaT", "<NA>": "`NA`", "None": "`None`"}[text]


def cell(arrays: list[pa.Array], fmt: str) -> str:
    """How columns of a type look in a format, first without nulls and then, where that differs, with some."""
    looks = set()
    for array in arrays:
        try:
            plain = kind_of(convert(array, fmt, has_nulls=False)) if array.null_count == 0 else None
        except ValueError:
            looks.add("refused")
            continue
        try:
            column = convert(with_null(array), fmt, has_nulls=True)
        except ValueError:
            looks.add(f"{plain}; nulls refused" if plain else "refused")
            continue
        nulls, null = kind_of(column), null_of(column)
        looks.add(f"{nulls}, null is {null}" if plain in (None, nulls) else f"{plain}; with nulls {nulls}, {null}")
    return " / ".join(sorted(looks))


def returned(array: pa.Array, fmt: str) -> str:
    """What a column becomes that a function makes anew, equal to what it was given."""
    if array.null_count:
        return "–"
    try:
        column = convert(array, fmt, has_nulls=False)
    except ValueError:
        return "–"
    try:
        back = as_block({"x": column} if fmt in ("numpy", "torch") else frame_of(column, fmt)).schema.field("x").type
    except (ValueError, TypeError):
        return "refused"
    return "the same" if back == array.type else f"`{short(back)}`"


def frame_of(column: Any, fmt: str) -> Any:
    """The column alone in a frame of its format."""
    return column.to_frame() if fmt == "polars" else column.to_frame(name="x")


def short(kind: pa.DataType) -> str:
    """A type's name without what the reader does not need."""
    text = re.sub(r"extension<arrow\.(\w+)\[value_type=(\w+), shape=(\[[\d,]+\]).*", r"\1<\2>\3", str(kind))
    return re.sub(r", (indices|ordered)=\w+|item: |values=|extension<arrow\.(\w+)>", r"\2", text)


def render() -> dict[str, str]:
    """The page's tables by name."""
    looks = [f"| Arrow | {' | '.join(FORMATS)} |", "|---|" + "---|" * len(FORMATS)]
    back = [f"| Arrow | {' | '.join(FORMATS)} |", "|---|" + "---|" * len(FORMATS)]
    for label, arrays in TYPES.items():
        looks.append(f"| {label} | {' | '.join(cell(arrays, fmt) for fmt in FORMATS)} |")
        outcomes = [" / ".join(dict.fromkeys(returned(one, fmt) for one in arrays)) for fmt in FORMATS]
        back.append(f"| {label} | {' | '.join(outcomes)} |")
    return {"looks": "\n".join(looks), "returned": "\n".join(back)}


def filled(page: str) -> str:
    """The page with its tables made anew."""
    for name, table in render().items():
        before, rest = page.split(f"<!-- {name} -->\n")
        page = f"{before}<!-- {name} -->\n{table}\n{rest[rest.index('<!-- end -->') :]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
