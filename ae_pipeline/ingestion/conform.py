"""Validate rows with the schema contract: return typed rows, and rejected rows with reasons."""

import datetime as dt
import logging
from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.config.columns import ColumnType
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.contract import POLARS_TYPES, ColumnRule, SchemaContract
from ae_pipeline.ingestion.local_time import UTC, occurs_twice, start_of_day, to_instant, to_local
from ae_pipeline.ingestion.parse import finite_numbers, has_offset, parse_text, whole_numbers
from ae_pipeline.ingestion.rows import IMAGE_STRUCT, ORIGIN_COLUMNS, REJECTED_SCHEMA, FileRows, format_image
from ae_pipeline.storage.paths import ALL_ROWS

ROW_COLUMNS = ("row_id", "event_time", "_day")
"""Columns that `conform` adds: identity as one text, event time (UTC, µs), and the day of the row."""

AFTER_LAST_DAY = ": after the last day"
"""Suffix of the name of the rule for rows whose day is in the future."""

_OTHER_ZONE = "Etc/GMT+12"
"""A zone with an offset that no zone has in which clocks change. Only times without a zone differ under it."""

logger = logging.getLogger(__name__)

_TYPED = "\0"
"""Prefix of the columns with typed values. Names of landed columns cannot contain it."""


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
    edits = [f"set 'optional: true' for {missing[0]!r}"] if missing else []
    edits += [f"add '{new[0]}: {{type: …, optional: true}}'"] if new else []
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
        today: Last valid day if the configuration has no `end`.

    Returns:
        Valid rows with the columns of the contract and `ROW_COLUMNS`; and rejected rows: those that could not be read,
        and those that violate a rule, each with the first violated rule.
    """
    schema = {name: dtype for name, dtype in file.rows.schema.items() if name in contract.columns}
    # Several small plans: polars takes ten times as long to optimize one plan over all columns and rules.
    present = file.rows.select(
        *ORIGIN_COLUMNS, *(_present(name, dtype, contract.columns[name]) for name, dtype in schema.items())
    )
    values = present.select(
        _value(name, schema.get(name), rule, config.timezone).alias(_TYPED + name)
        for name, rule in contract.columns.items()
    )
    both = pl.concat([present, values], how="horizontal")
    rules = [rule for name, dtype in schema.items() for rule in _column_rules(name, dtype, contract.columns[name])]
    if config.timezone != UTC:
        local = {name: dtype for name, dtype in schema.items() if _is_local_time(dtype, contract.columns[name])}
        rules = [_skipped(name, dtype, contract.columns[name], config) for name, dtype in local.items()] + rules
        _log_repeated_times(both, local, contract, config)
    if config.event_time is not None:
        rules += _time_rules(config.event_time, contract.columns[config.event_time], config, today)
    is_wrong = both.select(pl.any_horizontal(rule.condition for rule in rules)).to_series().fill_null(value=False)
    rejected = file.rejected
    if is_wrong.any():
        # polars 2.1 panics in str.format on a filtered frame with several chunks, hence rechunk.
        violations = _rejections(file.rows.filter(is_wrong).rechunk(), both.filter(is_wrong).rechunk(), rules)
        rejected = pl.concat([rejected, violations]).sort("source_file", "row_number")
        both = both.filter(~is_wrong)
    typed = both.select(*ORIGIN_COLUMNS, *(pl.col(_TYPED + name).alias(name) for name in contract.columns))
    return FileRows(_with_row_columns(typed, contract, config), rejected)


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
        format_image(pl.col(name)).alias(name) if dtype == IMAGE_STRUCT else pl.col(name).cast(pl.String)
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


def _present(name: str, dtype: pl.DataType, rule: ColumnRule) -> pl.Expr:
    """Return the value as in the file, null if it is missing."""
    column = pl.col(name)
    if dtype == pl.String:
        text = column.str.strip_chars()
        missing = ["", *rule.null_values, *(("nan", "NaN", "NAN") if rule.type == ColumnType.NUMBER else ())]
        return pl.when(~text.is_in(missing)).then(text).alias(name)
    return column.fill_nan(None) if dtype.is_float() else column


def _value(name: str, dtype: pl.DataType | None, rule: ColumnRule, timezone: str) -> pl.Expr:
    """Return the value in the type of the contract, null if it is missing or cannot be parsed.

    Times without a zone are local times of `timezone`.
    """
    target = POLARS_TYPES[rule.type]
    if dtype is None:
        return pl.lit(None, dtype=target)
    present = pl.col(name)
    if rule.type == ColumnType.IMAGE:
        return present.struct.field("data") if dtype == IMAGE_STRUCT else pl.lit(None, dtype=target)
    if dtype == pl.String:
        return parse_text(present, rule, timezone)
    if dtype.is_float() and target == pl.String:  # 517.0 is category 517 in a column with gaps
        return pl.coalesce(whole_numbers(present).cast(pl.String), present.cast(pl.String))
    if dtype.is_float() and target == pl.Int64:
        return whole_numbers(present)
    if dtype.is_numeric() and target == pl.Float64:
        return finite_numbers(present.cast(pl.Float64))
    if isinstance(target, pl.Datetime) and isinstance(dtype, pl.Datetime):
        moment = present.dt.convert_time_zone(UTC) if dtype.time_zone else to_instant(present, timezone)
        return moment.dt.cast_time_unit("us")
    if target in (pl.String(), dtype) or (dtype.is_integer() and target == pl.Int64):
        return present.cast(target, strict=False)
    return parse_text(present.cast(pl.String, strict=False), rule, timezone)


def _describe_type(rule: ColumnRule) -> str:
    match rule.type:
        case ColumnType.INTEGER:
            return "a whole number"
        case ColumnType.NUMBER:
            return "a finite number"
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
        actual = format_image(present)
        reason = pl.format(f"{_literal(name)} is {{}}, but the contract says {rule.shape}{remedy}", actual)
        return [_Rule(f"{name}: shape", actual != str(rule.shape), reason)]
    value_text = present.cast(pl.String, strict=False).str.slice(0, 80)

    def violation(rule_name: str, condition: pl.Expr, problem: str) -> _Rule:
        reason = pl.format(f"{_literal(name)} = {{}} {_literal(problem)}{remedy}", value_text)
        return _Rule(f"{name}: {rule_name}", condition, reason)

    rules = []
    if POLARS_TYPES[rule.type] != pl.String:
        rules.append(
            violation(rule.type.value, value.is_null() & present.is_not_null(), f"is not {_describe_type(rule)}")
        )
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


def _literal(text: str) -> str:
    """Replace braces, which `pl.format` would read as placeholders."""
    return text.replace("{", "(").replace("}", ")")


def _is_local_time(dtype: pl.DataType, rule: ColumnRule) -> bool:
    """Return whether a column can have times without a zone."""
    if rule.type != ColumnType.TIMESTAMP or (isinstance(dtype, pl.Datetime) and dtype.time_zone):
        return False
    return rule.format is None or not has_offset(rule.format)


def _skipped(name: str, dtype: pl.DataType, rule: ColumnRule, config: PipelineConfig) -> _Rule:
    """Return the rule for local times that the clocks skip: they are no instant."""
    is_time = _value(name, dtype, rule, UTC).is_not_null()
    problem = f"does not exist in {config.timezone}, because the clocks were set forward"
    remedy = "; correct it at the source, write the times with their offset from UTC, or correct timezone in the YAML"
    reason = pl.format(f"{_literal(name)} = {{}} {problem}{remedy}", pl.col(name).cast(pl.String, strict=False))
    return _Rule(f"{name}: skipped by the clocks", is_time & pl.col(_TYPED + name).is_null(), reason)


def _log_repeated_times(
    both: pl.DataFrame, local: dict[str, pl.DataType], contract: SchemaContract, config: PipelineConfig
) -> None:
    """Log how many times without a zone occur twice, because the clocks were set back."""
    for name, dtype in local.items():
        value = pl.col(_TYPED + name)
        repeated = both.filter(occurs_twice(value, config.timezone))
        count = repeated.filter(value != _value(name, dtype, contract.columns[name], _OTHER_ZONE)).height
        if count:
            logger.info(
                f"{count:,} values of {name!r} occur twice in {config.timezone}, because the clocks were set back; the "
                "earlier time is used"
            )


def _time_rules(name: str, rule: ColumnRule, config: PipelineConfig, today: dt.date) -> list[_Rule]:
    last = config.end or today
    remedy = "correct it at the source, or widen start and end in the YAML"
    value_text, value = pl.col(name).cast(pl.String), pl.col(_TYPED + name)
    day, rules = _day(value, rule, config), []
    reason = pl.format(f"{_literal(name)} = {{}} is outside {config.start} to {last}; {remedy}", value_text)
    if rule.type == ColumnType.DATE and config.timezone != UTC:
        skips = pl.format(
            f"{_literal(name)} = {{}} does not exist in {config.timezone}, because the clocks skip that date; correct "
            "it at the source, or correct timezone in the YAML",
            value_text,
        )
        is_skipped = to_local(start_of_day(value, config.timezone), config.timezone).dt.date() != value
        rules.append(_Rule(f"{name}: skipped by the clocks", is_skipped, skips))
    return [
        *rules,
        _Rule(f"{name}: before start", day < pl.lit(config.start), reason),
        _Rule(f"{name}{AFTER_LAST_DAY}", day > pl.lit(last), reason),
    ]


def _day(value: pl.Expr, rule: ColumnRule, config: PipelineConfig) -> pl.Expr:
    """Return the dates of event times in the time zone of the dataset."""
    if rule.type == ColumnType.DATE:
        return value
    return to_local(value, config.timezone).dt.date()


def _with_row_columns(rows: pl.DataFrame, contract: SchemaContract, config: PipelineConfig) -> pl.DataFrame:
    def as_text(name: str) -> pl.Expr:
        column = pl.col(name)
        if contract.columns[name].type == ColumnType.TIMESTAMP:
            return column.dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")
        if POLARS_TYPES[contract.columns[name].type] == pl.String:
            return column.str.replace_all("\\", r"\\", literal=True).str.replace_all("|", r"\|", literal=True)
        return column.cast(pl.String)

    if config.event_time is None:
        moment = pl.lit(None, dtype=pl.Datetime("us", "UTC"))
        day = pl.lit(ALL_ROWS)
    else:
        value, rule = pl.col(config.event_time), contract.columns[config.event_time]
        moment = start_of_day(value, config.timezone) if rule.type == ColumnType.DATE else value
        day = _day(value, rule, config).dt.strftime("%Y-%m-%d")
    return rows.select(
        *(name for name in contract.columns if name != "event_time"),
        *ORIGIN_COLUMNS,
        row_id=pl.concat_str([as_text(name) for name in config.identity], separator="|"),
        event_time=moment,
        _day=day,
    )
