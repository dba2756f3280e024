"""Local times of a time zone: days, and times that the clocks repeat or dates that they skip."""

import logging
from collections.abc import Mapping

import polars as pl

from ae_pipeline.config.columns import EPOCH_FORMATS, ColumnType
from ae_pipeline.ingestion.contract import ColumnRule, SchemaContract
from ae_pipeline.ingestion.parse import parse_value
from ae_pipeline.ingestion.times import has_offset, to_instant

UTC = "UTC"

_OTHER_ZONE = "Etc/GMT+12"
"""A zone with an offset that no zone has in which clocks change. Only times without a zone differ under it."""

logger = logging.getLogger(__name__)


def to_local(instant: pl.Expr, timezone: str) -> pl.Expr:
    """Return the local times of instants, without a zone.

    Args:
        instant: Times with a zone.
        timezone: IANA name of the zone of the result.
    """
    return instant.dt.convert_time_zone(timezone).dt.replace_time_zone(None)


def day_of(value: pl.Expr, rule: ColumnRule, timezone: str) -> pl.Expr:
    """Return the dates of event times in the time zone of the dataset.

    Args:
        value: Dates, or times with a zone.
        rule: Rule of the event time, which says which of them.
        timezone: IANA name of the zone.
    """
    return value if rule.type == ColumnType.DATE else to_local(value, timezone).dt.date()


def start_of_day(date: pl.Expr, timezone: str) -> pl.Expr:
    """Return the first instant of dates, in UTC. It is midnight, unless the clocks skip midnight.

    The result lies on another date if the zone skips the date, as Samoa skipped 30 December 2011.

    Args:
        date: Dates.
        timezone: IANA name of their zone.
    """
    midnight = date.cast(pl.Datetime("us"))
    if timezone == UTC:
        return to_instant(midnight, UTC)
    # With the offset of the day before, a skipped midnight is the instant at which the clocks change.
    skipped = to_instant(midnight.dt.offset_by("-1d"), timezone).dt.offset_by("24h")
    return pl.coalesce(to_instant(midnight, timezone), skipped)


def skips_date(date: pl.Expr, timezone: str) -> pl.Expr:
    """Return whether dates do not exist in a zone."""
    return to_local(start_of_day(date, timezone), timezone).dt.date() != date


def can_be_local(dtype: pl.DataType, rule: ColumnRule) -> bool:
    """Return whether a column can have times without a zone.

    Args:
        dtype: Data type in the file.
        rule: Rule of the column.
    """
    if rule.type != ColumnType.TIMESTAMP or (isinstance(dtype, pl.Datetime) and dtype.time_zone):
        return False
    return rule.format is None or not (rule.format in EPOCH_FORMATS or has_offset(rule.format))


def log_repeated_times(
    rows: pl.DataFrame, prefix: str, local: Mapping[str, pl.DataType], contract: SchemaContract, timezone: str
) -> None:
    """Log how many times without a zone occur twice, because the clocks were set back.

    Args:
        rows: Present values of the columns, and typed values with the prefix.
        prefix: Prefix of the typed values.
        local: Columns that can have times without a zone, with their data types in the file.
        contract: Rule of each column.
        timezone: IANA name of the zone.
    """
    for name, dtype in local.items():
        value = pl.col(prefix + name)
        local_time = to_local(value, timezone)
        unique = local_time.dt.replace_time_zone(timezone, ambiguous="null", non_existent="null")
        repeated = rows.filter(value.is_not_null() & unique.is_null())
        other = parse_value(pl.col(name), dtype, contract.columns[name], _OTHER_ZONE)
        if count := repeated.filter(value != other).height:
            logger.info(
                f"{count:,} values of {name!r} occur twice in {timezone}, because the clocks were set back; the "
                "earlier time is used"
            )
