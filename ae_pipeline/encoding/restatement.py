"""Columns that restate a part of the event time: year, month, weekday, hour and the like, in any time zone."""

import datetime as dt
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl

_MIN_MATCH = 0.999
"""Share of the rows on which a column must restate a part."""

_MIN_ROWS, _SAMPLE_ROWS, _MIN_SAMPLE_MATCH = 20, 256, 0.98
"""Rows that show a match at all, and rows on which candidates are searched. The match is then checked on all rows."""

_MIN_NAMES, _ROWS_PER_NAME = 5, 3
"""Distinct texts that name a part one to one, such as weekdays in any language, and rows for each of them."""

_ZONES = (
    *("Europe/London", "Europe/Berlin", "Europe/Athens"),
    *("America/New_York", "America/Chicago", "America/Denver", "America/Los_Angeles", "America/Santiago"),
    *("Australia/Sydney", "Australia/Adelaide", "Pacific/Auckland"),
)
"""Zones of each common rule of daylight saving time. Constant offsets are tried too."""

_OFFSETS = sorted((60 * hours + minutes for hours in range(-12, 15) for minutes in (0, 30, 45)), key=abs)
"""Constant offsets in minutes, the smallest first."""

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

_UNITS = {"time": 1, "date": 86_400_000_000, "hour": 3_600_000_000, "minute": 60_000_000, "second": 1_000_000}
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
        self._times = times.alias("time")
        known = np.flatnonzero(times.is_not_null().to_numpy()) if times.dtype.is_temporal() else np.empty(0, np.int64)
        self._rows = known[np.unique(np.linspace(0, len(known) - 1, min(_SAMPLE_ROWS, len(known))).astype(np.int64))]
        self._zones: list[str | int] = [zone, *_OFFSETS, *_ZONES]
        if len(self._rows):
            sample = self._times.gather(self._rows)
            self._sample = pl.concat([_local(sample, zone) for zone in self._zones]).to_frame()

    def restated_by(self, values: pl.Series) -> str | None:
        """Return the part that a column restates on at least 99.9 % of the rows, or None."""
        if values.dtype == pl.Boolean or len(self._rows) < _MIN_ROWS:
            return None
        for part, match in self._matches(values.gather(self._rows), self._sample, _MIN_SAMPLE_MATCH, self._zones):
            for zone in match:
                rows = _local(self._times, zone).to_frame()
                if any(name == part for name, _ in self._matches(values, rows, _MIN_MATCH, [zone])):
                    return part if zone == self._zones[0] else f"{part}, {_zone_name(zone)}"
        return None

    def _matches(
        self, values: pl.Series, local: pl.DataFrame, least: float, zones: list[str | int]
    ) -> Iterator[tuple[str, list[str | int]]]:
        """Yield each part that a column of n rows restates, with the zones in which it does.

        Args:
            values: Values of the column, shape (n,).
            local: Column `time` with the local times of the n rows, zone after zone.
            least: Share of the rows that must match.
            zones: The zones.
        """
        for part, shares in _shares(values, local, len(zones)):
            if (matching := np.flatnonzero(shares >= least)).size:
                yield part, [zones[index] for index in matching]


def _shares(values: pl.Series, local: pl.DataFrame, zones: int) -> Iterator[tuple[str, _Floats]]:
    """Yield the share of matching rows in each zone, shape (zones,), for each part."""
    present = values.is_not_null().to_numpy()
    if present.sum() < _MIN_ROWS:
        return

    def part_of(expression: pl.Expr) -> npt.NDArray[np.float64]:
        part = local.select(expression.cast(pl.Float64)).to_series().fill_null(float("nan")).to_numpy()
        return part.reshape(zones, len(values))[:, present]

    def texts_of(pattern: str) -> npt.NDArray[np.object_]:
        texts = local.select(_TIME.dt.strftime(pattern).str.to_lowercase()).to_series().to_numpy()
        return texts.reshape(zones, len(values))[:, present]

    if values.dtype.is_temporal():
        micros = values.cast(pl.Datetime("us")).cast(pl.Int64).to_numpy()[present].astype(np.float64)
        for part, unit in _UNITS.items():
            yield part, _constant_shares(part_of(_TIME.cast(pl.Int64) // unit * unit), micros)
        return
    numbers, is_text = values, not values.dtype.is_numeric()
    if is_text:
        texts = values.cast(pl.String).str.strip_chars().str.to_lowercase()
        numbers = texts.cast(pl.Float64, strict=False)
    column = numbers.cast(pl.Float64).to_numpy()[present]
    if np.isfinite(column).mean() >= _MIN_SAMPLE_MATCH:
        for part, expression in _NUMBERS.items():
            difference = part_of(expression) - column
            shifts = (0, 1, -1) if part in _COUNTED else (0,)
            yield part, np.max([(np.abs(difference - shift) < 1e-6).mean(axis=1) for shift in shifts], axis=0)
        for part, unit in _UNITS.items():
            yield part, _constant_shares(part_of(_TIME.cast(pl.Int64) // unit), column)
        yield "time", _constant_shares(part_of(_TIME.cast(pl.Int64) // 1000), column)
    if is_text:
        column_texts = texts.to_numpy()[present]
        for part, patterns in _TEXTS.items():
            yield part, np.max([(texts_of(each) == column_texts).mean(axis=1) for each in patterns], axis=0)
        codes = texts.filter(pl.Series(present)).cast(pl.Categorical).to_physical().to_numpy().astype(np.float64)
        for part in _NAMED:
            yield part, np.array([_one_to_one_share(codes, each) for each in part_of(_NUMBERS[part])])


def _constant_shares(parts: _Floats, column: _Floats) -> _Floats:
    """Return the share of the median difference, shape (zones,); 0 for columns and parts of one or two values."""
    if min(len(np.unique(column)), len(np.unique(parts[0]))) <= 2:
        return np.zeros(len(parts))
    difference = parts - column
    shares: _Floats = (np.abs(difference - np.median(difference, axis=1, keepdims=True)) < 1e-3).mean(axis=1)
    return shares


def _one_to_one_share(codes: _Floats, part: _Floats) -> float:
    """Return the share of rows on which codes and a part name each other; 0 for few names or few rows of each."""
    names = np.unique(codes)
    if len(names) < _MIN_NAMES or len(codes) < _ROWS_PER_NAME * len(names):
        return 0.0
    pairs = pl.DataFrame({"code": codes, "part": part}).group_by("code", "part").len()
    shares = [pairs.group_by(name).agg(pl.col("len").max())["len"].sum() / len(codes) for name in ("code", "part")]
    return float(min(shares))


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
