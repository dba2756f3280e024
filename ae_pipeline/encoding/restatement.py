"""Columns that restate a part of the event time: year, month, weekday, hour and the like, in any time zone."""

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import polars as pl

_MIN_MATCH = 0.999
"""Share of the rows on which a column must restate a part."""

_MIN_ROWS, _SAMPLE_ROWS, _MIN_SAMPLE_MATCH = 20, 256, 0.98
"""Rows that show a match at all, and rows on which candidates are searched."""

_CHECKED_ROWS = 20_000
"""Rows, at most, on which a match is checked."""

_MIN_NAMES, _ROWS_PER_NAME = 5, 3
"""Distinct texts that name a part one to one, such as weekdays in any language, and rows for each of them."""

_ZONES = (
    *("Europe/London", "Europe/Berlin", "Europe/Athens"),
    *("America/New_York", "America/Chicago", "America/Denver", "America/Los_Angeles", "America/Santiago"),
    *("Australia/Sydney", "Australia/Adelaide", "Pacific/Auckland"),
)
"""Zones of each common rule of daylight saving time. Constant offsets are tried too."""

_OFFSETS = sorted((60 * hours + minutes for hours in range(-12, 15) for minutes in (0, 30, 45)), key=abs)
_PLAUSIBLE: list[str | int] = [
    *(minutes for minutes in _OFFSETS if minutes % 60 == 0),
    *_ZONES,
    *(minutes for minutes in _OFFSETS if minutes % 60),
]
"""Constant offsets in minutes and zones, the most plausible first."""

_TIME = pl.col("time")
_OF_DAY = _TIME.dt.hour().cast(pl.Int64) * 60 + _TIME.dt.minute()
_NUMBERS = {
    "year": _TIME.dt.year(),
    "year of two digits": _TIME.dt.year() % 100,
    "quarter": _TIME.dt.quarter(),
    "month": _TIME.dt.month(),
    "week": _TIME.dt.week(),
    "day of the year": _TIME.dt.ordinal_day(),
    "day": _TIME.dt.day(),
    "weekday": _TIME.dt.weekday(),
    "weekday from Sunday": _TIME.dt.weekday() % 7,
    "hour": _TIME.dt.hour(),
    "minute": _TIME.dt.minute(),
    "second": _TIME.dt.second(),
    "year and month": _TIME.dt.year() * 100 + _TIME.dt.month(),
    "date": _TIME.dt.year() * 10_000 + _TIME.dt.month().cast(pl.Int32) * 100 + _TIME.dt.day(),
    "time of day": _OF_DAY // 60 * 100 + _OF_DAY % 60,
    "minute of the day": _OF_DAY,
    "hour with its fraction": _OF_DAY / 60,
}
"""Parts as numbers."""

_COUNTED = {"month", "week", "weekday", "weekday from Sunday", "hour", "day", "day of the year", "quarter"}
"""Parts that a column may count from 0 or from 1."""

_UNITS = {
    "time": 1,
    "date": 86_400_000_000,
    "hour": 3_600_000_000,
    "minute": 60_000_000,
    "second": 1_000_000,
    "millisecond": 1000,
}
"""Microseconds of what a time can be truncated to."""

_TEXTS = {
    "month": ("%B", "%b"),
    "weekday": ("%A", "%a"),
    "date": ("%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d-%m-%Y", "%d %b %Y", "%d %B %Y"),
    "year and month": ("%Y-%m", "%m/%Y", "%b %Y", "%B %Y"),
    "month and day": ("%m-%d", "%d.%m.", "%m/%d"),
    "time of day": ("%H:%M", "%H:%M:%S", "%I:%M %p"),
    "time": ("%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"),
}
"""Texts of a part."""

_NAMED = ("month", "weekday", "hour", "day", "day of the year", "week", "date")
"""Parts that any texts can name one to one."""

_Floats = npt.NDArray[np.float64]


class EventTimeParts:
    """Finds columns that restate a part of the event time.

    Args:
        times: Event times of the training rows, shape (n,). Without times nothing is found.
        zone: Time zone of the dataset, tried first.
    """

    def __init__(self, times: pl.Series, zone: str = "UTC") -> None:
        known = np.flatnonzero(times.is_not_null().to_numpy()) if times.dtype.is_temporal() else np.empty(0, np.int64)
        self._times, self._zones = times, list[str | int]([zone, *_PLAUSIBLE])
        self._sample, self._rows = (_evenly_spaced(known, most) for most in (_SAMPLE_ROWS, _CHECKED_ROWS))
        self._sampled = _LocalTimes(times.gather(self._sample), self._zones) if len(known) else None

    def restated_by(self, values: pl.Series) -> str | None:
        """Return the part that a column restates on at least 99.9 % of the rows, or None."""
        if values.dtype == pl.Boolean or self._sampled is None:
            return None
        for part, shares in _shares(values.gather(self._sample), self._sampled):
            candidates = np.flatnonzero(shares >= _MIN_SAMPLE_MATCH)
            if not candidates.size:
                continue
            # Many zones have nearly the same dates. The first zone with the best match is that of the column.
            times, checked = self._times.gather(self._rows), values.gather(self._rows)
            best, best_zone = 0.0, self._zones[0]
            for zone in (self._zones[index] for index in candidates):
                share = max(each.max() for _, each in _shares(checked, _LocalTimes(times, [zone]), part))
                best, best_zone = (share, zone) if share > best else (best, best_zone)
                if best == 1:
                    break
            if best >= _MIN_MATCH:
                return part if best_zone == self._zones[0] else f"{part}, {_zone_name(best_zone)}"
        return None


class _LocalTimes:
    """Local times of n rows in some zones, and their parts. A part is computed once."""

    def __init__(self, times: pl.Series, zones: Sequence[str | int]) -> None:
        self._frame = pl.concat([_local(times, zone) for zone in zones]).alias("time").to_frame()
        self._shape = len(zones), len(times)

    @lru_cache(maxsize=len(_NUMBERS) + 2 * len(_UNITS) + 1)  # noqa: B019 - lives as long as the fit of an encoder
    def numbers(self, part: str, scale: int = 0) -> _Floats:
        """Return a part as numbers, or the time truncated to a unit, shape (zones, n)."""
        time = _TIME.cast(pl.Int64)
        expression = _NUMBERS[part] if not scale else time // _UNITS[part] * scale
        values = self._frame.select(expression.cast(pl.Float64)).to_series().fill_null(float("nan"))
        return values.to_numpy().reshape(self._shape)

    @lru_cache(maxsize=64)  # noqa: B019
    def texts(self, pattern: str) -> npt.NDArray[np.object_]:
        """Return the times as text in lower case, shape (zones, n)."""
        return (
            self._frame.select(_TIME.dt.strftime(pattern).str.to_lowercase())
            .to_series()
            .to_numpy()
            .reshape(self._shape)
        )


def _shares(values: pl.Series, local: _LocalTimes, only: str | None = None) -> Iterator[tuple[str, _Floats]]:
    """Yield the share of matching rows in each zone, shape (zones,), for each part or for one part."""
    present = values.is_not_null().to_numpy()
    if present.sum() < _MIN_ROWS:
        return

    def wanted(parts: Iterable[str]) -> list[str]:
        return [part for part in parts if only in {None, part}]

    if values.dtype.is_temporal():
        micros = values.cast(pl.Datetime("us")).cast(pl.Int64).to_numpy()[present].astype(np.float64)
        for part in wanted(_UNITS):
            yield part, _constant_shares(local.numbers(part, _UNITS[part])[:, present], micros)
        return
    numbers, is_text = values, not values.dtype.is_numeric()
    texts = values.cast(pl.String).str.strip_chars().str.to_lowercase() if is_text else pl.Series([], dtype=pl.String)
    if is_text:
        numbers = texts.cast(pl.Float64, strict=False)
    column = numbers.cast(pl.Float64).to_numpy()[present]
    if np.isfinite(column).mean() >= _MIN_SAMPLE_MATCH:
        for part in wanted(_NUMBERS):
            difference = local.numbers(part)[:, present] - column
            shifts = (0, 1, -1) if part in _COUNTED else (0,)
            yield part, np.max([(np.abs(difference - shift) < 1e-6).mean(axis=1) for shift in shifts], axis=0)
        for part in wanted(_UNITS):
            yield part, _constant_shares(local.numbers(part, 1)[:, present], column)
    if is_text:
        names = texts.to_numpy()[present]
        for part in wanted(_TEXTS):
            matches = [(local.texts(each)[:, present] == names).mean(axis=1) for each in _TEXTS[part]]
            yield part, np.max(matches, axis=0)
        distinct, codes = np.unique(names.astype(str), return_inverse=True)
        if len(distinct) >= _MIN_NAMES and len(names) >= _ROWS_PER_NAME * len(distinct):
            for part in wanted(_NAMED):
                yield part, np.array([_one_to_one_share(codes, each[present]) for each in local.numbers(part)])


def _constant_shares(parts: _Floats, column: _Floats) -> _Floats:
    """Return the share of the median difference, shape (zones,); 0 for columns and parts of one or two values."""
    if min(len(np.unique(column)), len(np.unique(parts[0]))) <= 2:
        return np.zeros(len(parts))
    difference = parts - column
    shares: _Floats = (np.abs(difference - np.median(difference, axis=1, keepdims=True)) < 1e-3).mean(axis=1)
    return shares


def _one_to_one_share(codes: npt.NDArray[np.int64], part: _Floats) -> float:
    """Return the share of rows on which codes from 0 and a part name each other, shape (n,) both."""
    values, part_codes = np.unique(part, return_inverse=True)
    pairs, counts = np.unique(codes * len(values) + part_codes, return_counts=True)
    shares = []
    for group in (pairs // len(values), pairs % len(values)):
        largest = np.zeros(group.max() + 1, dtype=np.int64)
        np.maximum.at(largest, group, counts)
        shares.append(largest.sum() / len(codes))
    return float(min(shares))


def _evenly_spaced(rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """Return at most a number of rows, evenly spaced."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64))]


def _local(times: pl.Series, zone: str | int) -> pl.Series:
    """Return the local times in a zone, or at a constant offset in minutes from UTC, without a zone."""
    utc = times.cast(pl.Datetime("us"))
    if isinstance(zone, int):
        return utc + dt.timedelta(minutes=zone)
    return utc.dt.replace_time_zone("UTC").dt.convert_time_zone(zone).dt.replace_time_zone(None)


def _zone_name(zone: str | int) -> str:
    return (
        zone if isinstance(zone, str) else f"UTC{'+' if zone >= 0 else '−'}{abs(zone) // 60:02d}:{abs(zone) % 60:02d}"
    )
