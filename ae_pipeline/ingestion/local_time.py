"""Local times of a time zone: instants, days, and times that the clocks skip or repeat."""

import polars as pl

UTC = "UTC"


def to_instant(local: pl.Expr, timezone: str) -> pl.Expr:
    """Return the instants of local times, in UTC.

    A time that occurs twice, because the clocks were set back, means the earlier one. A time that the clocks skip
    becomes null.

    Args:
        local: Times without a zone.
        timezone: IANA name of their zone.
    """
    if timezone == UTC:
        return local.dt.replace_time_zone(UTC)
    return local.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null").dt.convert_time_zone(UTC)


def to_local(instant: pl.Expr, timezone: str) -> pl.Expr:
    """Return the local times of instants, without a zone.

    Args:
        instant: Times with a zone.
        timezone: IANA name of the zone of the result.
    """
    return instant.dt.convert_time_zone(timezone).dt.replace_time_zone(None)


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


def occurs_twice(instant: pl.Expr, timezone: str) -> pl.Expr:
    """Return whether the local time of instants occurs twice, because the clocks were set back.

    Args:
        instant: Times with a zone.
        timezone: IANA name of the zone.
    """
    local = to_local(instant, timezone)
    return instant.is_not_null() & local.dt.replace_time_zone(timezone, ambiguous="null", non_existent="null").is_null()
