"""Values of columns as numbers and as text."""

import datetime as dt
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.config.columns import MINUTES_PER_DAY, ColumnType
from ae_pipeline.config.model import Scaling

_MAX_SCALED = 1e6
"""Scaled numbers are clipped to ± this value, so that their squares stay finite."""

_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def column_numbers(values: pl.Series, timezone: str) -> npt.NDArray[np.float64]:
    """Return values as float64: local times in minutes since 1970, clocks in minutes, NaN if missing."""
    if isinstance(values.dtype, pl.Datetime) and timezone != "UTC":
        values = values.dt.convert_time_zone(timezone).dt.replace_time_zone(None)
    if values.dtype.is_temporal():
        return values.cast(pl.Datetime("us")).cast(pl.Int64).cast(pl.Float64).to_numpy() / 60e6
    return values.cast(pl.Float64).to_numpy()


def category_codes(values: pl.Series, vocabulary: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the index of each value in a vocabulary of n; n for rare and unseen values, n + 1 for missing ones."""
    known = values.cast(pl.String).cast(pl.Enum(vocabulary), strict=False).to_physical()
    codes: npt.NDArray[np.int64] = known.cast(pl.Int64).fill_null(len(vocabulary)).to_numpy(writable=True)
    codes[values.is_null().to_numpy()] = len(vocabulary) + 1
    return codes


def scaled_numbers(numbers: npt.NDArray[Any], center: Any, scale: Any, scaling: Scaling) -> npt.NDArray[np.float64]:
    """Return scaled numbers, shape (columns, n). NaN becomes the middle of the scale.

    Args:
        numbers: Shape (columns, n).
        center: Number that becomes the middle, shape (columns, 1).
        scale: Difference from it that becomes one unit, shape (columns, 1).
        scaling: Scale; robust numbers become their asinh.
    """
    with np.errstate(over="ignore"):
        scaled: npt.NDArray[np.float64] = np.subtract(numbers, center)
        scaled /= scale
    is_robust = scaling == Scaling.ROBUST
    highest = np.finfo(np.float64).max if is_robust else _MAX_SCALED  # infinity becomes the largest float
    np.clip(scaled, -highest, highest, out=scaled)
    np.copyto(scaled, middle_of(scaling), where=np.isnan(scaled))
    return np.arcsinh(scaled, out=scaled) if is_robust else scaled


def middle_of(scaling: Scaling) -> float:
    """Return the value that stands for a missing number."""
    return 0.5 if scaling == Scaling.UNIT else 0.0


def to_known_hours(minutes: npt.NDArray[np.float64], hours: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return times of which those at an unknown hour move to the middle of the nearest known hour of their day.

    Args:
        minutes: Minutes since 1970, NaN if missing, shape (n,).
        hours: For each hour of the day, the hour to use.
    """
    days, of_day = np.divmod(minutes, MINUTES_PER_DAY)
    hour = np.nan_to_num(of_day // 60).astype(np.int64)
    known = np.asarray(hours)[hour]
    moved: npt.NDArray[np.float64] = np.where(known == hour, minutes, days * MINUTES_PER_DAY + known * 60.0 + 30.0)
    return np.where(np.isnan(minutes), np.nan, moved)


def is_known_hour(minutes: npt.NDArray[np.float64], hours: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return which times are at a known hour of the day. Missing times are, and without `hours` all are.

    Args:
        minutes: Minutes since 1970, NaN if missing, shape (n,).
        hours: For each hour of the day, the hour to use.

    >>> is_known_hour(np.array([30.0, 90.0, np.nan]), (0, 0, *range(2, 24))).tolist()
    [True, False, True]
    """
    if not hours:
        return np.ones(len(minutes), dtype=np.bool_)
    hour = np.nan_to_num(minutes % MINUTES_PER_DAY // 60).astype(np.int64)
    is_known: npt.NDArray[np.bool_] = np.isnan(minutes) | (np.asarray(hours)[hour] == hour)
    return is_known


def format_number(value: float) -> str:
    """Return a number as short text, with commas between thousands."""
    return f"{value:,.0f}" if 100 <= abs(value) < 1e18 else f"{value:.3g}"


def format_cycle(part: str, position: float) -> str:
    """Return a position in a cycle, 0 to 1, as weekday or time of day."""
    if part == "weekday":
        return _WEEKDAYS[round(position * 7) % 7]
    minutes = round(position * MINUTES_PER_DAY) % MINUTES_PER_DAY
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def format_value(kind: ColumnType, value: Any, timezone: str) -> str:
    """Return a value of a column as text. Times are local times of the time zone."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "missing"
    if kind == ColumnType.CLOCK_HHMM:
        return f"{int(value) // 60:02d}:{int(value) % 60:02d}"
    if kind == ColumnType.BOOLEAN:
        return str(value).lower()
    if kind == ColumnType.TIMESTAMP:
        value = (value if value.tzinfo else value.replace(tzinfo=dt.UTC)).astimezone(ZoneInfo(timezone))
        return f"{value:%H:%M} {_WEEKDAYS[value.weekday()]}"
    if kind not in {ColumnType.NUMBER, ColumnType.INTEGER}:
        return str(value)
    # Integers and decimals come from the raw rows and are shown exactly.
    if isinstance(value, Decimal):
        return f"{value:,f}"
    return f"{value:,}" if isinstance(value, int) else format_number(value)
