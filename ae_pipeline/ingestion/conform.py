"""Validate rows with the schema contract: return typed rows, and rejected rows with reasons."""

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass, replace

import polars as pl

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.config.columns import NUMERIC_TYPES, ColumnType
from ae_pipeline.config.days import last_day
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.contract import POLARS_TYPES, ColumnRule, SchemaContract
from ae_pipeline.ingestion.local_time import UTC, can_be_local, day_of, log_repeated_times, skips_date, start_of_day
from ae_pipeline.ingestion.numbers import LEADING_ZERO, plain_number
from ae_pipeline.ingestion.parse import identity_text, landed_text, lost_nanoseconds, parse_value
from ae_pipeline.ingestion.present import plain_numbers, present_value, without_null_values
from ae_pipeline.ingestion.rows import (
    IMAGE_STRUCT,
    ORIGIN_COLUMNS,
    REJECTED_SCHEMA,
    FileRows,
    content_hashes,
    format_image,
    plain_text,
    shape_problem,
)
from ae_pipeline.storage.paths import ALL_ROWS

ROW_COLUMNS = ("row_id", "event_time", "_day")
"""Columns that `conform` adds: identity as one text, event time (UTC, µs), and the day of the row.

Without identity, `row_id` is a hash of the values of the row, and equal rows have the same one.
"""

AFTER_LAST_DAY = ": after the last day"
"""Suffix of the name of the rule for rows whose day is in the future."""

SKIPPED = ": skipped by the clocks"
"""Suffix of the name of the rule for local times and dates that a zone does not have."""

_TYPED = "\0"
"""Prefix of the columns with typed values. Names of landed columns cannot contain it."""

_LOST = "\0\0"
"""Prefix of the columns that tell whether a timestamp has digits that the contract does not keep."""


def check_columns(names: list[str], contract: SchemaContract, source: str, keys: Collection[str]) -> None:
    """Compare the columns of a file with the schema contract.

    Args:
        names: Columns of the file.
        contract: Schema contract of the dataset.
        source: Name of the file.
        keys: Columns that every row needs.

    Raises:
        SchemaError: A column is missing or unknown.
    """
    missing = [name for name, rule in contract.columns.items() if name not in names and not rule.optional]
    new = [name for name in names if name not in contract.columns]
    if not missing and not new:
        return
    differences = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
    differences += [f"has unknown {', '.join(map(repr, new))}"] if new else []
    changed = f"the columns of {contract.dataset!r} have changed: {source} {' and '.join(differences)}"
    if lost := [name for name in missing if name in keys]:
        raise SchemaError(
            f"{changed}. Every row needs {lost[0]!r}, because it is an identity, event time or image column; land the "
            "file again with that column, or choose another one in the dataset's YAML"
        )
    edits = [f"set 'optional: true' for {', '.join(map(repr, missing))}"] if missing else []
    additions = [f"'{name}: {{type: …, optional: true}}'" for name in new]
    edits += [f"add {', '.join(additions)}"] if new else []
    raise SchemaError(
        f"{changed}. If this is intended, edit the schema contract ({' and '.join(edits)}) and run again; if not, land "
        "the file again"
    )


def conform(file: FileRows, contract: SchemaContract, config: PipelineConfig, today: dt.date) -> FileRows:
    """Cast rows to the types of the schema contract, and reject the rows that violate it.

    Args:
        file: Rows as read; `check_columns` has accepted their columns.
        contract: Rule of each column.
        config: Configuration with identity, event time, first and last day.
        today: Current day in the time zone of the dataset. Later rows are not valid yet.

    Returns:
        Valid rows with the columns of the contract and `ROW_COLUMNS`; and rejected rows: those that could not be read,
        and those that violate a rule, each with the first violated rule.
    """
    file = FileRows(plain_text(file.rows), file.rejected)
    schema = {name: dtype for name, dtype in file.rows.schema.items() if name in contract.columns}
    # Several small plans: polars takes ten times as long to optimize one plan over all columns and rules.
    plain = plain_numbers(file.rows, schema, contract)
    present = file.rows.select(
        *ORIGIN_COLUMNS,
        *(
            present_value(name, dtype, contract.columns[name])
            if name not in plain
            else without_null_values(name, contract)
            for name, dtype in schema.items()
        ),
    )
    values = present.select(
        plain[name].alias(_TYPED + name)
        if name in plain
        else _value(name, schema.get(name), rule, config.timezone).alias(_TYPED + name)
        for name, rule in contract.columns.items()
    )
    timestamps = [
        name for name in schema if contract.columns[name].type == ColumnType.TIMESTAMP and name != config.event_time
    ]
    lost = present.with_columns(
        lost_nanoseconds(pl.col(name), schema[name], contract.columns[name]).alias(_LOST + name) for name in timestamps
    ).select(_LOST + name for name in timestamps)
    both = pl.concat([present, values, lost], how="horizontal")
    rules = [rule for name, dtype in schema.items() for rule in _column_rules(name, dtype, contract.columns[name])]
    if config.timezone != UTC:
        local = {name: dtype for name, dtype in schema.items() if can_be_local(dtype, contract.columns[name])}
        rules = [_skipped_time(name, dtype, contract.columns[name], config) for name, dtype in local.items()] + rules
        log_repeated_times(both, _TYPED, local, contract, config.timezone)
    rules += [_precision_rule(name, schema[name]) for name in timestamps]
    if config.event_time is not None:
        event_rule = contract.columns[config.event_time]
        rules += _time_rules(config.event_time, schema[config.event_time], event_rule, config, today)
    is_wrong = both.select(pl.any_horizontal(rule.condition for rule in rules)).to_series().fill_null(value=False)
    rejected = file.rejected
    if is_wrong.any():
        # polars 2.1 panics in str.format on a filtered frame with several chunks, hence rechunk.
        violations = _rejections(file.rows.filter(is_wrong).rechunk(), both.filter(is_wrong).rechunk(), rules)
        rejected = pl.concat([rejected, violations]).sort("source_file", "row_number")
        both = both.filter(~is_wrong)
    return FileRows(_with_row_columns(both, schema, contract, config), rejected)


def _rejections(original: pl.DataFrame, both: pl.DataFrame, rules: list["_Rule"]) -> pl.DataFrame:
    """Return rejected rows with the first violated rule and the original values; of images only their shape.

    Args:
        original: The rows as they landed.
        both: The same rows, as present and typed values.
        rules: All rules; each row violates at least one.
    """
    first_rule = pl.coalesce([pl.when(rule.condition).then(pl.lit(rule.name)) for rule in rules])
    first_reason = pl.coalesce([pl.when(rule.condition).then(rule.reason) for rule in rules])
    texts = [
        format_image(pl.col(name)).alias(name) if dtype == IMAGE_STRUCT else _shown(name, dtype).alias(name)
        for name, dtype in original.schema.items()
        if name not in ORIGIN_COLUMNS
    ]
    record = pl.struct(texts).struct.json_encode()
    rejected = both.select(source_file="_source_file", row_number="_row_number", rule=first_rule, reason=first_reason)
    return rejected.with_columns(original.select(record=record)).select(*REJECTED_SCHEMA)


@dataclass(frozen=True)
class _Rule:
    """A rule that a row can violate.

    The expressions use the present values of a column, `name`, and its typed values, `_TYPED + name`.

    Attributes:
        name: Name of the rule, such as `price: number`.
        condition: Expression that is true for a violation.
        reason: Expression for the reason as text.
    """

    name: str
    condition: pl.Expr
    reason: pl.Expr


def _value(name: str, dtype: pl.DataType | None, rule: ColumnRule, timezone: str) -> pl.Expr:
    """Return the value in the type of the contract, null if it is missing or cannot be kept exactly."""
    if dtype is None:
        return pl.lit(None, dtype=rule.dtype)
    present = pl.col(name)
    if rule.type == ColumnType.IMAGE:
        return present.struct.field("data") if dtype == IMAGE_STRUCT else pl.lit(None, dtype=rule.dtype)
    return parse_value(present, dtype, rule, timezone)


def _shown(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return a value as in the file, as text."""
    text = landed_text(pl.col(name), dtype)
    # Times outside the years 1 to 9999 have no text.
    return pl.coalesce(text, pl.col(name).to_physical().cast(pl.String)) if dtype.is_temporal() else text


def _describe_type(rule: ColumnRule) -> str:
    match rule.type:
        case ColumnType.INTEGER:
            return "a whole number"
        case ColumnType.NUMBER:
            return "a finite number"
        case ColumnType.DECIMAL:
            return f"a number with at most 38 digits, {rule.scale or 0} of them after the decimal point"
        case ColumnType.BOOLEAN:
            return "true or false"
        case ColumnType.CLOCK_HHMM:
            return "a time of day such as 1745"
        case ColumnType.IMAGE:
            return "an image"
        case ColumnType.TIMESTAMP | ColumnType.DATE:
            return f"a {rule.type.value}" + (
                f" with the format {rule.format} (without a format in the contract: ISO 8601)" if rule.format else ""
            )
        case _:
            return "text"


def _column_rules(name: str, dtype: pl.DataType, rule: ColumnRule) -> list[_Rule]:
    present, value = pl.col(name), pl.col(_TYPED + name)
    remedy = "; correct it at the source, or change the rule in the schema contract"
    if rule.shape is not None and dtype == IMAGE_STRUCT:
        reason = shape_problem(_literal(name), present, rule.shape)
        return [_Rule(f"{name}: shape", format_image(present) != str(rule.shape), reason)]
    value_text = (format_image(present) if dtype == IMAGE_STRUCT else _shown(name, dtype)).str.slice(0, 80)

    def violation(rule_name: str, condition: pl.Expr, problem: str) -> _Rule:
        reason = pl.format(f"{_literal(name)} = {{}} {_literal(problem)}{remedy}", value_text)
        return _Rule(f"{name}: {rule_name}", condition, reason)

    rules = []
    if POLARS_TYPES[rule.type] != pl.String or dtype != pl.String:
        wrong = violation(rule.type.value, value.is_null() & present.is_not_null(), f"is not {_describe_type(rule)}")
        if rule.type in NUMERIC_TYPES and dtype != IMAGE_STRUCT:
            wrong = replace(wrong, reason=_number_reason(name, value_text, rule, wrong.reason))
        rules.append(wrong)
    if rule.required:
        reason = pl.lit(f"{name} is missing, but required; add it at the source")
        rules.append(_Rule(f"{name}: required", value.is_null(), reason))
    if rule.type == ColumnType.CLOCK_HHMM:
        is_no_time = (value < 0) | (value > 2400) | (value % 100 > 59)
        rules.append(violation(rule.type.value, is_no_time, f"is not {_describe_type(rule)}"))
    if rule.minimum is not None:
        rules.append(violation("minimum", value < rule.minimum, f"is below the minimum {rule.minimum:g}"))
    if rule.maximum is not None:
        rules.append(violation("maximum", value > rule.maximum, f"is above the maximum {rule.maximum:g}"))
    if rule.allowed is not None:
        problem = f"is not one of {', '.join(rule.allowed)[:120]}"
        rules.append(violation("allowed", ~value.cast(pl.String).is_in(rule.allowed), problem))
    return rules


def _number_reason(name: str, text: pl.Expr, rule: ColumnRule, default: pl.Expr) -> pl.Expr:
    """Return why a value is no number of the contract: it would lose zeros or digits, or it is no number at all."""

    def says(problem: str, remedy: str) -> pl.Expr:
        return pl.format(f"{_literal(name)} = {{}} {problem}; {remedy}", text)

    plain = plain_number(text, rule)
    kind = rule.type.value
    zeros = says(
        f"has leading zeros, which type {kind} would lose",
        "change the type to text in the schema contract, or correct it at the source",
    )
    digits = says(
        f"has more digits than type {kind} keeps",
        "change the type to decimal with a larger scale, or to text, in the schema contract",
    )
    is_long = plain.str.replace_all("[^0-9]", "").str.len_bytes() > (18 if rule.type == ColumnType.INTEGER else 15)
    is_number = plain.str.contains(r"^[+-]?[0-9]*\.?[0-9]*([eE][+-]?[0-9]+)?$")
    is_long |= (pl.lit(rule.type == ColumnType.DECIMAL) & plain.str.contains(r"\.[0-9]*[1-9]")).fill_null(value=False)
    reason = pl.when(plain.str.contains(LEADING_ZERO)).then(zeros)
    return reason.when(is_number & is_long).then(digits).otherwise(default)


def _precision_rule(name: str, dtype: pl.DataType) -> _Rule:
    reason = pl.format(
        f"{_literal(name)} = {{}} has digits after the microsecond, which the schema contract does not keep; set "
        "'precision: ns' for the column there, or round it at the source",
        _shown(name, dtype),
    )
    return _Rule(f"{name}: precision", pl.col(_LOST + name), reason)


def _literal(text: str) -> str:
    """Replace braces, which `pl.format` would read as placeholders."""
    return text.replace("{", "(").replace("}", ")")


def _skipped_time(name: str, dtype: pl.DataType, rule: ColumnRule, config: PipelineConfig) -> _Rule:
    """Return the rule for local times that the clocks skip: they are no moment."""
    reason = pl.format(
        f"{_literal(name)} = {{}} does not exist in {config.timezone}, because the clocks were set forward; correct it "
        "at the source, write the times with their offset from UTC, or correct timezone in the YAML",
        _shown(name, dtype),
    )
    is_time = parse_value(pl.col(name), dtype, rule, UTC).is_not_null()
    return _Rule(f"{name}{SKIPPED}", is_time & pl.col(_TYPED + name).is_null(), reason)


def _time_rules(name: str, dtype: pl.DataType, rule: ColumnRule, config: PipelineConfig, today: dt.date) -> list[_Rule]:
    last = last_day(config, today)
    remedy = "correct it at the source, or widen start and end in the YAML"
    value_text, day = _shown(name, dtype), day_of(pl.col(_TYPED + name), rule, config.timezone)
    reason = pl.format(f"{_literal(name)} = {{}} is outside {config.start} to {last}; {remedy}", value_text)
    rules = []
    if rule.type == ColumnType.DATE and config.timezone != UTC:
        problem = f"{_literal(name)} = {{}} does not exist in {config.timezone}, because the clocks skip that date"
        skipped = pl.format(f"{problem}; correct it at the source, or correct timezone in the YAML", value_text)
        rules = [_Rule(f"{name}{SKIPPED}", skips_date(pl.col(_TYPED + name), config.timezone), skipped)]
    return [
        *rules,
        _Rule(f"{name}: before start", day < pl.lit(config.start), reason),
        _Rule(f"{name}{AFTER_LAST_DAY}", day > pl.lit(last), reason),
    ]


def _with_row_columns(
    both: pl.DataFrame, schema: dict[str, pl.DataType], contract: SchemaContract, config: PipelineConfig
) -> pl.DataFrame:
    """Return typed values with `ROW_COLUMNS`, from rows with present and typed values."""
    typed = both.select(pl.col(_TYPED + name).alias(name) for name in contract.columns)
    if config.identity:
        texts = [
            identity_text(pl.col(name), pl.col(_TYPED + name), schema[name], contract.columns[name])
            for name in config.identity
        ]
        row_id = both.select(row_id=pl.concat_str(texts, separator="|")).to_series()
    else:
        row_id = content_hashes(typed).alias("row_id")
    if config.event_time is None:
        moment = pl.lit(None, dtype=pl.Datetime("us", "UTC"))
        day = pl.lit(ALL_ROWS)
    else:
        value, rule = pl.col(config.event_time), contract.columns[config.event_time]
        is_date = rule.type == ColumnType.DATE
        moment = start_of_day(value, config.timezone) if is_date else value.dt.cast_time_unit("us")
        day = day_of(value, rule, config.timezone).map_batches(_iso_dates, return_dtype=pl.String)
    return typed.with_columns(both[name] for name in ORIGIN_COLUMNS).select(
        *(name for name in contract.columns if name != "event_time"),
        *ORIGIN_COLUMNS,
        row_id,
        event_time=moment,
        _day=day,
    )


def _iso_dates(dates: pl.Series) -> pl.Series:
    """Return dates as text, each distinct one formatted once."""
    unique = dates.unique()
    texts = unique.dt.strftime("%Y-%m-%d")
    return dates.replace_strict(unique, texts, return_dtype=pl.String) if len(dates) else texts
