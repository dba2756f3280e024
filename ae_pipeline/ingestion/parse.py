"""Polars expressions that parse text and numbers into the types of a schema contract."""

import re

import polars as pl

from ae_pipeline.config.columns import ColumnType
from ae_pipeline.ingestion.contract import ColumnRule
from ae_pipeline.ingestion.local_time import UTC, to_instant

TIMESTAMP_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
)
"""Timestamp formats that are recognized. The schema contract declares any other one as `format`."""


def parse_text(text: pl.Expr, rule: ColumnRule, timezone: str = UTC) -> pl.Expr:
    """Return an expression that parses text. Values that cannot be parsed become null.

    Args:
        text: Strings without surrounding whitespace.
        rule: Type and format of the column.
        timezone: IANA name of the zone of times that are written without one.
    """
    match rule.type:
        case ColumnType.INTEGER | ColumnType.CLOCK_HHMM:
            whole = text.cast(pl.Int64, strict=False)
            return pl.coalesce(whole, whole_numbers(text.cast(pl.Float64, strict=False)))
        case ColumnType.NUMBER:
            return finite_numbers(text.cast(pl.Float64, strict=False))
        case ColumnType.BOOLEAN:
            lower = text.str.to_lowercase()
            value = pl.when(lower.is_in(["true", "t", "yes"])).then(statement=True)
            return value.when(lower.is_in(["false", "f", "no"])).then(statement=False)
        case ColumnType.DATE:
            return text.str.to_date(rule.format or "%Y-%m-%d", strict=False)
        case ColumnType.TIMESTAMP:
            if rule.format is None:
                candidates = [rule.model_copy(update={"format": form}) for form in TIMESTAMP_FORMATS]
                return pl.coalesce([parse_text(text, candidate, timezone) for candidate in candidates])
            form = rule.format
            if has_offset(form):
                return text.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False)
            return to_instant(text.str.to_datetime(form, time_unit="us", strict=False), timezone)
        case _:
            return text


def has_offset(form: str) -> bool:
    """Return whether times in a strftime format have an offset from UTC, so that they are instants."""
    return re.search("%#?:*z|%\\+", form) is not None


def whole_numbers(value: pl.Expr) -> pl.Expr:
    """Return an expression that casts whole floats to integers. All other values become null.

    Files write integers with gaps as floats, such as 517.0.
    """
    is_whole = (value == value.floor()) & (value.abs() < 2**53)
    return pl.when(is_whole).then(value).cast(pl.Int64)


def finite_numbers(value: pl.Expr) -> pl.Expr:
    """Return an expression that replaces NaN and infinite values with null."""
    return pl.when(value.is_finite()).then(value)
