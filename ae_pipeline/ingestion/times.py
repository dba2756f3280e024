"""Polars expressions that read times exactly: a time that a type cannot keep becomes null, and never wraps."""

import re
from collections.abc import Sequence

import polars as pl

from ae_pipeline.config.columns import EPOCH_FORMATS

ISO_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)
"""Timestamp formats that are read without a `format`. Times without a zone are those of the dataset."""

MICROSECONDS = pl.Datetime("us", "UTC")

_FIRST_MICROSECOND, _LAST_MICROSECOND = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The years 1 to 9999: what Python, SQL and ISO 8601 can write."""

_FIRST_DAY, _YEAR_1000, _LAST_DAY = -719_162, -354_285, 2_932_896
_NS_LIMIT = 2**63 // 1000 - 1
"""Greatest distance from 1970 in µs that fits into nanoseconds: the years 1678 to 2261."""

_UNITS = {"ms": 1000, "us": 1}


def has_offset(form: str) -> bool:
    """Return whether texts with a format say their time zone."""
    return re.search(r"%#?:*z|%\+|(UTC|GMT|Z)$", form) is not None


def to_instant(value: pl.Expr, timezone: str) -> pl.Expr:
    """Return times without a zone as moments in UTC.

    A time that occurs twice, because the clocks were set back, means the earlier moment. A time that the clocks skip
    becomes null.
    """
    return value.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null").dt.convert_time_zone("UTC")


def parse_moments(text: pl.Expr, form: str | None, timezone: str = "UTC") -> pl.Expr:
    """Return the moments in texts, UTC, in µs. Texts that are no time in the years 1 to 9999 become null.

    Args:
        text: Texts without surrounding whitespace.
        form: Format in strftime notation or of `EPOCH_FORMATS`; None for the forms of ISO 8601.
        timezone: Zone of texts without one.
    """
    if form is None:
        return pl.coalesce([parse_moments(text, candidate, timezone) for candidate in ISO_FORMATS])
    if form in EPOCH_FORMATS:
        return _in_range(_epoch_nanoseconds(text, form) // 1000).cast(MICROSECONDS)
    text, complete = _with_day(text, form)
    if not re.search("%[HIkl]|%[TRcsX+]", form):
        value = text.str.to_date(complete, strict=False).cast(pl.Datetime("us"))
    elif re.search(r"%#?:*z|%\+", form):
        return _plausible(_to_datetimes(text, complete, "UTC"), text, form)
    else:
        value = _to_datetimes(text, complete)
    return _plausible(to_instant(value, "UTC" if has_offset(form) else timezone), text, form)


def parse_dates(text: pl.Expr, form: str | None) -> pl.Expr:
    """Return the dates in texts. Texts that are no date in the years 1 to 9999 become null."""
    form = form or "%Y-%m-%d"
    text, complete = _with_day(text, form)
    return _plausible(text.str.to_date(complete, strict=False), text, form)


def moments(value: pl.Expr, dtype: pl.Datetime, timezone: str = "UTC") -> pl.Expr:
    """Return typed times as moments, UTC, in µs. Times outside the years 1 to 9999 become null.

    Args:
        value: Times.
        dtype: Their data type. With a zone, the numbers behind it are UTC.
        timezone: Zone of times without one.
    """
    number = value.to_physical()
    if dtype.time_unit == "ns":
        number = number // 1000
    else:
        factor = _UNITS[dtype.time_unit]
        is_valid = number.is_between(_FIRST_MICROSECOND // factor, _LAST_MICROSECOND // factor)
        number = pl.when(is_valid).then(number) * factor
    if dtype.time_zone is not None or timezone == "UTC":
        return number.cast(MICROSECONDS)
    return to_instant(number.cast(pl.Datetime("us")), timezone)


def nanoseconds(value: pl.Expr, dtype: pl.DataType, form: str | None) -> pl.Expr:
    """Return the nanoseconds of each time after its last full microsecond, 0 to 999; null if there are finer digits.

    Args:
        value: Times as text or typed.
        dtype: Their data type.
        form: Format of texts.
    """
    if isinstance(dtype, pl.Datetime):
        return value.to_physical() % 1000 if dtype.time_unit == "ns" else pl.lit(0, pl.Int64)
    if form in EPOCH_FORMATS:
        return (_epoch_nanoseconds(value, form) % 1000).cast(pl.Int64)
    if dtype != pl.String or not (form is None or "%.f" in form or "%f" in form or "%+" in form):
        return pl.lit(0, pl.Int64)
    return value.map_batches(_nanoseconds_of_text, return_dtype=pl.Int64)


def with_nanoseconds(value: pl.Expr, rest: pl.Expr) -> pl.Expr:
    """Return moments in ns from moments in µs and the rest. Moments that ns cannot keep become null."""
    number = value.to_physical()
    inside = pl.when(number.abs() < _NS_LIMIT).then(number)
    return (inside * 1000 + rest).cast(pl.Datetime("ns", "UTC"))


def valid_dates(value: pl.Expr) -> pl.Expr:
    """Return dates, or null outside the years 1 to 9999."""
    return pl.when(value.to_physical().is_between(_FIRST_DAY, _LAST_DAY)).then(value)


def midnights(value: pl.Expr, dtype: pl.Datetime) -> pl.Expr:
    """Return the dates of typed times at midnight in their own zone. Other times become null."""
    if dtype.time_zone is not None:
        value = value.dt.replace_time_zone(None)
    moment = moments(value, pl.Datetime(dtype.time_unit))
    exact = moment.to_physical() % 86_400_000_000 == 0
    if dtype.time_unit == "ns":
        exact &= value.to_physical() % 1000 == 0
    return pl.when(exact).then(moment).cast(pl.Date)


def format_moment(value: pl.Expr, rest: pl.Expr) -> pl.Expr:
    """Return the one text of each moment, such as 2024-03-01T10:00:00.5Z with as many digits as it needs: 0, 3, 6 or 9.

    Args:
        value: Moments in µs, UTC, in the years 1 to 9999.
        rest: Nanoseconds after the last full microsecond.
    """
    short = value.dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")
    long = value.dt.strftime("%Y-%m-%dT%H:%M:%S%.6f") + rest.cast(pl.String).str.zfill(3) + "Z"
    return pl.when(rest == 0).then(short).otherwise(long)


def _in_range(number: pl.Expr) -> pl.Expr:
    return pl.when(number.is_between(_FIRST_MICROSECOND, _LAST_MICROSECOND)).then(number).cast(pl.Int64)


def _to_datetimes(text: pl.Expr, form: str, zone: str | None = None) -> pl.Expr:
    """Return the times in texts with a format, in µs.

    polars reads formats without a fraction of seconds four times as fast, so that they are tried first.
    """

    def parse(texts: pl.Series) -> pl.Series:
        for each in dict.fromkeys((form.replace("%.f", ""), form)):
            values = texts.str.to_datetime(each, time_unit="us", time_zone=zone, strict=False)
            if values.null_count() == texts.null_count():
                break
        return values

    return text.map_batches(parse, return_dtype=pl.Datetime("us", zone))


def _with_day(text: pl.Expr, form: str) -> tuple[pl.Expr, str]:
    """Add the first day to a month, such as 2012-01, which is otherwise not a date."""
    has_day = re.search("%[deDFjcxsUWVGuwA+]|%[HI]", form) is not None
    return (text, form) if has_day else (text + " 1", f"{form} %d")


def _plausible(value: pl.Expr, text: pl.Expr, form: str) -> pl.Expr:
    """Drop values outside the years 1 to 9999, and years that are written with two digits in a format with four."""
    check = _with_long_year if "%Y" in form else _with_valid_year
    return pl.map_batches([value, text], check, return_dtype=pl.self_dtype())


def _with_valid_year(columns: Sequence[pl.Series]) -> pl.Series:
    values = columns[0]
    is_outside = ~values.cast(pl.Date).to_physical().is_between(_FIRST_DAY, _LAST_DAY)
    return values.set(is_outside, None) if is_outside.any() else values


def _with_long_year(columns: Sequence[pl.Series]) -> pl.Series:
    """Drop years below 1000 that are not written with four digits; `%Y` also reads 12 as the year 12."""
    values, texts = _with_valid_year(columns), columns[1]
    is_early = (values.cast(pl.Date).to_physical() < _YEAR_1000).fill_null(value=False)
    if not is_early.any():
        return values
    return values.set(is_early & ~texts.str.contains(r"(^|[^0-9])0[0-9]{3}([^0-9]|$)|^0[0-9]{7}"), None)


def _epoch_nanoseconds(text: pl.Expr, form: str) -> pl.Expr:
    """Return the nanoseconds since 1970 of numbers in text, as int128. Other texts become null."""
    factor = EPOCH_FORMATS[form]
    digits = len(str(factor)) - 1
    whole = text.str.extract(r"^([+-]?[0-9]{1,20})(?:\.[0-9]*)?$").cast(pl.Int128, strict=False)
    fraction = text.str.extract(r"^[+-]?[0-9]+\.([0-9]*)$").fill_null("").str.strip_chars_end("0")
    exact = pl.when(fraction.str.len_bytes() <= digits).then(fraction.str.pad_end(digits, "0"))
    part = pl.when(exact == "").then(pl.lit("0")).otherwise(exact).cast(pl.Int128, strict=False)
    return whole * factor + pl.when(text.str.starts_with("-")).then(part * -1).otherwise(part)


def _nanoseconds_of_text(texts: pl.Series) -> pl.Series:
    """Return digits 7 to 9 of the fraction of seconds in texts; null if there are more."""
    zeros = pl.zeros(len(texts), pl.Int64, eager=True).alias(texts.name)
    if not (texts.str.len_bytes() > len("20240301T100000.123456")).any():
        return zeros
    rest = texts.str.extract(r"[0-9]\.[0-9]{6}([0-9]+)").fill_null("").str.strip_chars_end("0")
    if not (rest != "").any():
        return zeros
    fits = rest.str.len_bytes() <= 3
    return rest.set(~fits, None).str.pad_end(3, "0").cast(pl.Int64, strict=False)
