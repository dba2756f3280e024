"""Arrow tables from the Python values that database drivers return.

`polars.read_database` panics at a NUMERIC that is NaN, rejects more than 38 digits, and rounds integers beside floats.
"""

import datetime as dt
import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

_DECIMAL_DIGITS = 38
"""Digits of the widest decimal that readers of Parquet know."""


def to_table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> pa.Table:
    """Return rows as an Arrow table with exact values.

    The type of a column comes from all of its values. Values that no type holds exactly become text: numbers of more
    than 38 digits, decimals beside NaN, and values of different kinds. UUIDs, times of day,
    intervals and JSON become text too. A column without any value has the type null.

    Args:
        names: Names of the columns.
        rows: Rows, as the driver returns them.

    >>> from decimal import Decimal
    >>> table = to_table(["id", "price"], [(2**62, Decimal("1.10")), (None, Decimal("2.255"))])
    >>> [str(kind) for kind in table.schema.types], table["price"].to_pylist()
    (['int64', 'decimal128(38, 3)'], [Decimal('1.100'), Decimal('2.255')])
    """
    columns = zip(*rows, strict=True) if rows else ([] for _ in names)
    return pa.table([_to_array(list(values)) for values in columns], names=list(names))


def _to_array(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return pa.nulls(len(values))
    for fitting, build in _BUILDERS:
        if kinds <= fitting and (array := build(values)) is not None:
            return array
    return pa.array([None if value is None else _as_text(value) for value in values], pa.string())


def _integers(values: list[Any]) -> pa.Array | None:
    fits = all(value is None or -(2**63) <= value < 2**63 for value in values)
    return pa.array(values, pa.int64()) if fits else None


def _floats(values: list[Any]) -> pa.Array | None:
    is_exact = all(not isinstance(value, int) or abs(value) <= 2**53 for value in values)
    return pa.array([None if value is None else float(value) for value in values], pa.float64()) if is_exact else None


def _decimals(values: list[Any]) -> pa.Array | None:
    numbers = [None if value is None else Decimal(value) for value in values]
    present = [number for number in numbers if number is not None]
    if not all(number.is_finite() for number in present):
        return None
    scale = max(0, *(-int(number.as_tuple().exponent) for number in present))
    if max(max(number.adjusted(), 0) + 1 for number in present) + scale > _DECIMAL_DIGITS:
        return None
    return pa.array(numbers, pa.decimal128(_DECIMAL_DIGITS, scale))


def _times(values: list[Any]) -> pa.Array | None:
    """Return timestamps, or None if only some of the values have a time zone."""
    has_zone = {value.tzinfo is not None for value in values if value is not None}
    return pa.array(values, pa.timestamp("us", "UTC" if has_zone == {True} else None)) if len(has_zone) == 1 else None


def _bytes(values: list[Any]) -> pa.Array:
    return pa.array([None if value is None else bytes(value) for value in values], pa.binary())


_BUILDERS: tuple[tuple[set[type], Callable[[list[Any]], pa.Array | None]], ...] = (
    ({bool}, lambda values: pa.array(values, pa.bool_())),
    ({int}, _integers),
    ({int, float}, _floats),
    ({int, Decimal}, _decimals),
    ({str}, lambda values: pa.array(values, pa.string())),
    ({dt.date}, lambda values: pa.array(values, pa.date32())),
    ({dt.datetime}, _times),
    ({bytes, bytearray, memoryview}, _bytes),
)
"""Kinds of values, and the function that returns their array, or None if the array would not be exact."""


def _as_text(value: Any) -> str:
    match value:
        case str():
            return value
        case Decimal():
            return f"{value:f}"
        case dt.date() | dt.time():  # a date also stands for a datetime
            return value.isoformat()
        case dict() | list() | tuple():
            return json.dumps(value, ensure_ascii=False, default=_as_text)
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case _:
            return str(value)
