"""Polars expressions that turn landed values into the types of a schema contract, without losing a digit."""

import polars as pl

from ae_pipeline.config.columns import ColumnType
from ae_pipeline.ingestion.contract import ColumnRule
from ae_pipeline.ingestion.numbers import (
    finite_numbers,
    parse_decimals,
    parse_floats,
    parse_integers,
    plain_number,
    whole_numbers,
)
from ae_pipeline.ingestion.times import (
    format_moment,
    midnights,
    moments,
    nanoseconds,
    parse_dates,
    parse_moments,
    valid_dates,
    with_nanoseconds,
)

TRUE_WORDS, FALSE_WORDS = ("true", "t", "yes", "y", "on"), ("false", "f", "no", "n", "off")
"""Texts of a boolean, in any case. The contract can name more."""


def parse_text(text: pl.Expr, rule: ColumnRule, timezone: str = "UTC") -> pl.Expr:
    """Return an expression that parses text. Values that cannot be parsed exactly become null.

    Args:
        text: Strings without surrounding whitespace.
        rule: Type and format of the column.
        timezone: Zone of times without one.
    """
    match rule.type:
        case ColumnType.INTEGER:
            return parse_integers(plain_number(text, rule))
        case ColumnType.CLOCK_HHMM:
            return parse_integers(text, with_zeros=True)
        case ColumnType.NUMBER:
            return parse_floats(plain_number(text, rule))
        case ColumnType.DECIMAL:
            return parse_decimals(plain_number(text, rule), rule.scale or 0)
        case ColumnType.BOOLEAN:
            return _parse_booleans(text, rule)
        case ColumnType.DATE:
            return parse_dates(text, rule.format)
        case ColumnType.TIMESTAMP:
            return _timestamps(parse_moments(text, rule.format, timezone), text, pl.String(), rule)
        case _:
            return text


def parse_value(value: pl.Expr, dtype: pl.DataType, rule: ColumnRule, timezone: str = "UTC") -> pl.Expr:
    """Return an expression that casts values to the type of a rule, see `parse_text` and `parse_typed`."""
    if dtype == pl.String:
        return parse_text(value, rule, timezone)
    return parse_typed(value, dtype, rule, timezone)


def parse_typed(value: pl.Expr, dtype: pl.DataType, rule: ColumnRule, timezone: str = "UTC") -> pl.Expr:
    """Return an expression that casts typed values. Values that the type cannot keep exactly become null.

    Args:
        value: Values as in a file with types.
        dtype: Their data type.
        rule: Type and format of the column.
        timezone: Zone of times without one.
    """
    target = rule.dtype
    if target == pl.String:
        return landed_text(value, dtype)
    if isinstance(dtype, pl.Datetime) and rule.type == ColumnType.TIMESTAMP:
        return _timestamps(moments(value, dtype, timezone), value, dtype, rule)
    if isinstance(dtype, pl.Datetime) and rule.type == ColumnType.DATE:
        return midnights(value, dtype)
    if dtype == pl.Date and rule.type == ColumnType.DATE:
        return valid_dates(value)
    if dtype == pl.Boolean and rule.type == ColumnType.BOOLEAN:
        return value
    if dtype.is_float() and target == pl.Int64:
        return whole_numbers(value)
    if dtype.is_float() and rule.type == ColumnType.NUMBER:
        return finite_numbers(value.cast(pl.Float64))
    if dtype.is_integer() and target == pl.Int64:
        return value.cast(pl.Int64, strict=False)
    if dtype.is_integer() and rule.type == ColumnType.NUMBER:
        return _floats_of_integers(value)
    # A declaration of how texts are written does not hold for typed numbers, which have a decimal point.
    plain = rule.model_copy(update={"decimal": None, "thousands": None, "prefix": None, "suffix": None})
    return parse_text(landed_text(value, dtype), plain, timezone)


def landed_text(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Return the exact text of typed values. Two values that differ have two texts.

    Whole floats below 2⁵³ are written as integers, because files write integers with gaps as floats, such as 517.0.
    Times are written as moments, in UTC if they have a zone, with as many digits as they need.

    Args:
        value: Values as in the file.
        dtype: Their data type.
    """
    if dtype == pl.String:
        return value
    if dtype.is_float():
        return pl.coalesce(whole_numbers(value.cast(pl.Float64)).cast(pl.String), value.cast(pl.String))
    if isinstance(dtype, pl.Datetime):
        return format_moment(moments(value, dtype), nanoseconds(value, dtype, None))
    if dtype == pl.Date:
        return valid_dates(value).cast(pl.String)
    if dtype == pl.Time:
        return value.dt.strftime("%H:%M:%S%.f")
    if dtype == pl.Duration:
        return value.dt.to_string("iso")
    return value.cast(pl.String, strict=False)


def identity_text(value: pl.Expr, typed: pl.Expr, dtype: pl.DataType, rule: ColumnRule) -> pl.Expr:
    r"""Return the text by which a value identifies its row: exactly what landed; times as one moment.

    `\` and `|` are escaped, because `|` joins the columns of an identity.

    Args:
        value: Present values, as in the file.
        typed: The same values in the type of the contract.
        dtype: Data type in the file.
        rule: Rule of the column.
    """
    if rule.type == ColumnType.DATE:
        return typed.cast(pl.String)
    if rule.type == ColumnType.TIMESTAMP:
        rest = nanoseconds(value, dtype, rule.format)
        return format_moment(typed.dt.cast_time_unit("us") if rule.precision == "ns" else typed, rest)
    text = landed_text(value, dtype)
    return text.str.replace_all("\\", r"\\", literal=True).str.replace_all("|", r"\|", literal=True)


def lost_nanoseconds(value: pl.Expr, dtype: pl.DataType, rule: ColumnRule) -> pl.Expr:
    """Return whether a timestamp has digits that the precision of the contract does not keep."""
    if rule.precision == "ns":
        return pl.lit(value=False)
    return (nanoseconds(value, dtype, rule.format) != 0).fill_null(value=False)


def _parse_booleans(text: pl.Expr, rule: ColumnRule) -> pl.Expr:
    lower = text.str.to_lowercase()
    declared_true = [word.lower() for word in rule.true_values]
    declared_false = [word.lower() for word in rule.false_values]
    true_words = [*declared_true, *(word for word in TRUE_WORDS if word not in declared_false)]
    false_words = [*declared_false, *(word for word in FALSE_WORDS if word not in declared_true)]
    value = pl.when(lower.is_in(true_words)).then(statement=True)
    return value.when(lower.is_in(false_words)).then(statement=False)


def _timestamps(moment: pl.Expr, value: pl.Expr, dtype: pl.DataType, rule: ColumnRule) -> pl.Expr:
    """Return moments with the precision of the contract; null if there are digits after the nanosecond."""
    rest = nanoseconds(value, dtype, rule.format)
    if rule.precision == "ns":
        return with_nanoseconds(moment, rest)
    return pl.when(rest.is_not_null()).then(moment)


def _floats_of_integers(value: pl.Expr) -> pl.Expr:
    """Return integers as float64. Integers above 2⁵³ that float64 cannot keep become null."""
    number = value.cast(pl.Float64)
    return pl.when(number.cast(pl.Int128, strict=False) == value.cast(pl.Int128)).then(number)
