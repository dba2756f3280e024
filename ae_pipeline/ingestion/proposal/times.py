"""The times of a landed column, as the ingestion reads them."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import polars as pl

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.conform import conform
from ae_pipeline.ingestion.inference import infer_contract
from ae_pipeline.ingestion.rows import FileRows

_NAME = "time_of_row"
"""Name of the column while it is read, because its own may be reserved."""

_OFFSET = r"[+-]\d\d:?\d\d$"


EpochUnit = Literal["s", "ms", "us", "ns"]

EPOCH_UNITS: Mapping[EpochUnit, str] = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
}
"""Units of times that are numbers since 1970."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """What the times of a column show.

    Attributes:
        rows: Number of rows with a time.
        days: Number of days with rows.
        first: First day, without a few that lie far before all others.
        last: Last day, without a few that lie far after all others.
        early_rows: Rows on days that lie far before all others.
        late_rows: Rows on days that lie far after all others.
        has_clock: Whether the times have a time of day.
        zone: IANA name of the time zone of a typed column, if it is not UTC.
        offset: The only offset that texts carry, such as `+02:00`, if it is not UTC.
    """

    rows: int
    days: int
    first: dt.date
    last: dt.date
    early_rows: int
    late_rows: int
    has_clock: bool
    zone: str | None
    offset: str | None

    def missing_share(self, rows: int) -> float:
        """Return the share of rows without a time."""
        return 1 - self.rows / max(rows, 1)


def read_times(values: pl.Series) -> Times | None:
    """Return what the times of a column show, or None if the ingestion does not read its values as times."""
    zone = _zone(values.dtype)
    config = PipelineConfig(
        dataset="proposal",
        identity=(_NAME,),
        event_time=_NAME,
        start=dt.date.min,
        end=dt.date(9999, 12, 31),
        timezone=zone or "UTC",
    )
    table = values.alias(_NAME).to_frame()
    try:
        contract = infer_contract([table], config)
    except SchemaError:
        return None
    origin = {"_source_file": pl.lit("", pl.String), "_row_number": pl.int_range(1, pl.len() + 1, dtype=pl.Int64)}
    rows = conform(FileRows(table.with_columns(**origin)), contract, config, dt.date(9999, 12, 31)).rows
    if rows.is_empty():
        return None
    counts = rows.group_by("_day").len().sort("_day")
    days = [dt.date.fromisoformat(day) for day in counts["_day"]]
    early, early_rows = _outlying(days, counts["len"].to_list())
    late, late_rows = _outlying(days[early:][::-1], counts["len"].to_list()[early:][::-1])
    days = days[early : len(days) - late]
    moments = rows["event_time"]
    return Times(
        rows=rows.height,
        days=len(days),
        first=days[0],
        last=days[-1],
        early_rows=early_rows,
        late_rows=late_rows,
        has_clock=bool((moments.dt.truncate("1d") != moments).any()),
        zone=zone,
        offset=_offset(values),
    )


def _zone(dtype: pl.DataType) -> str | None:
    """Return the time zone of a typed column, if it is that of a place."""
    zone = dtype.time_zone if isinstance(dtype, pl.Datetime) else None
    return zone if zone and "/" in zone and not zone.startswith("Etc/") else None


def _outlying(days: Sequence[dt.date], counts: Sequence[int]) -> tuple[int, int]:
    """Return how many leading days lie far from all others, and their rows: they often stand for a missing time.

    Far is further than all others are from each other, and than a year. Up to a hundredth of the rows may be far.

    >>> _outlying([dt.date(1900, 1, 1), dt.date(2025, 1, 1), dt.date(2025, 1, 2)], [1, 500, 500])
    (1, 1)
    """
    rows, limit = 0, sum(counts) / 100
    for index, (day, following) in enumerate(pairwise(days)):
        rows += counts[index]
        if rows > limit:
            break
        if abs(following - day) > max(abs(days[-1] - following), dt.timedelta(days=365)):
            return index + 1, rows
    return 0, 0


def epoch_unit(numbers: pl.Series) -> EpochUnit | None:
    """Return the unit in which numbers are times of 1990 to 2060, or None if there is none.

    >>> epoch_unit(pl.Series([1_700_000_000, 1_700_086_400])), epoch_unit(pl.Series([20250101, 20250102]))
    ('s', None)
    """
    for exponent, unit in enumerate(EPOCH_UNITS):
        factor = 10 ** (3 * exponent)
        if numbers.len() and bool(numbers.is_between(631_152_000 * factor, 2_840_140_800 * factor).all()):
            return unit
    return None


def _offset(values: pl.Series) -> str | None:
    if values.dtype != pl.String:
        return None
    offsets = values.drop_nulls().str.strip_chars().str.extract(f"({_OFFSET})").unique().to_list()
    only = offsets[0] if len(offsets) == 1 else None
    return only if only and only.strip("+-").strip("0:") else None


def ambiguous_formats(values: pl.Series) -> tuple[str, str] | None:
    """Return both formats of dates whose day and month cannot be told apart, or None for other values.

    >>> ambiguous_formats(pl.Series(["01/02/2025", "03/04/2025 10:30"]))
    >>> ambiguous_formats(pl.Series(["01/02/2025 10:00", "03/04/2025 10:30"]))
    ('%d/%m/%Y %H:%M', '%m/%d/%Y %H:%M')
    """
    parts = values.str.extract_groups(r"^(\d{1,2})([/.-])(\d{1,2})[/.-](\d{4}|\d{2})( \d{1,2}:\d\d(?::\d\d)?)?$")
    table = parts.struct.unnest()
    first, mark, second, year, clock = (table[name] for name in table.columns)
    if values.is_empty() or first.null_count() or mark.n_unique() > 1:
        return None
    clocks = clock.drop_nulls().str.len_chars()
    if 0 < clocks.len() < values.len() or clocks.n_unique() > 2:
        return None
    if any(part.cast(pl.Int64).gt(12).any() for part in (first, second)):
        return None
    has_seconds = bool((clocks > len(" 10:30")).any())
    tail = ("%Y" if year.str.len_chars().max() == 4 else "%y") + (" %H:%M" if clocks.len() else "")
    tail += ":%S" if has_seconds else ""
    sign = mark[0]
    return f"%d{sign}%m{sign}{tail}", f"%m{sign}%d{sign}{tail}"
