"""Expressions that parse text and numbers into the types of a schema contract."""

import re

import polars as pl

from ae_pipeline.config.columns import ColumnType
from ae_pipeline.ingestion.contract import ColumnRule

TIMESTAMP_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
)
"""Text forms of a timestamp that are recognised; any other stands in the contract as `format`."""


def parse_text(text: pl.Expr, rule: ColumnRule) -> pl.Expr:
    """Reads text as a contract's type; what cannot be read becomes null.

    Args:
        text: String values without surrounding blanks.
        rule: Type and format.
    """
    match rule.type:
        case ColumnType.INTEGER | ColumnType.CLOCK_HHMM:
            whole = text.cast(pl.Int64, strict=False)
            return pl.coalesce(whole, whole_numbers(text.cast(pl.Float64, strict=False)))
        case ColumnType.NUMBER:
            return finite_numbers(text.cast(pl.Float64, strict=False))
        case ColumnType.BOOLEAN:
            lower = text.str.to_lowercase()
            said = pl.when(lower.is_in(["true", "t", "yes"])).then(statement=True)
            return said.when(lower.is_in(["false", "f", "no"])).then(statement=False)
        case ColumnType.DATE:
            return text.str.to_date(rule.format or "%Y-%m-%d", strict=False)
        case ColumnType.TIMESTAMP:
            if rule.format is None:
                tries = [rule.model_copy(update={"format": form}) for form in TIMESTAMP_FORMATS]
                return pl.coalesce([parse_text(text, known) for known in tries])
            form = rule.format
            if re.search("%#?:*z|%\\+", form):
                return text.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False)
            return text.str.to_datetime(form, time_unit="us", strict=False).dt.replace_time_zone("UTC")
        case _:
            return text


def whole_numbers(value: pl.Expr) -> pl.Expr:
    """Makes integers of floats that are whole, as files with gaps write them (517.0); all others become null."""
    is_whole = (value == value.floor()) & (value.abs() < 2**53)
    return pl.when(is_whole).then(value).cast(pl.Int64)


def finite_numbers(value: pl.Expr) -> pl.Expr:
    """Makes null of what is infinite or not a number."""
    return pl.when(value.is_finite()).then(value)
