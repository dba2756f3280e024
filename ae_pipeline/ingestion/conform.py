"""Holds rows of landed files against the schema contract: typed rows on one side, broken ones with reasons beside."""

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.config.columns import ColumnType
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.contract import POLARS_TYPES, ColumnRule, SchemaContract
from ae_pipeline.ingestion.parse import finite_numbers, parse_text, whole_numbers
from ae_pipeline.ingestion.rows import IMAGE_STRUCT, PLACE, REJECTED_SCHEMA, FileRows, image_words
from ae_pipeline.storage.paths import ALL_ROWS

ROW_COLUMNS = ("row_id", "event_time", "_day")
"""Columns that conforming adds: identity as one text, event time (UTC, µs), and the day that the row belongs to."""

AFTER_LAST_DAY = ": after the last day"
"""End of the name of the rule that a row breaks whose day has not come yet."""

_TYPED = "\0"
"""Stands before a column's name for its typed values; a landed column's name cannot hold it."""


def check_columns(names: list[str], contract: SchemaContract, source: str, keys: Collection[str]) -> None:
    """Compares a file's columns with the contract's.

    Args:
        names: The file's.
        contract: What it is held against.
        source: The file.
        keys: Columns that no row can do without.

    Raises:
        SchemaError: A column is missing or new.
    """
    missing = [name for name, rule in contract.columns.items() if name not in names and not rule.optional]
    new = [name for name in names if name not in contract.columns]
    if not missing and not new:
        return
    found = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
    found += [f"has {', '.join(map(repr, new))}, unknown so far"] if new else []
    changed = f"the columns of {contract.dataset!r} have changed: {source} {' and '.join(found)}"
    if lost := [name for name in missing if name in keys]:
        raise SchemaError(
            f"{changed}. Without {lost[0]!r} its rows cannot be told apart, placed in time or looked at: land the file "
            "anew with that column, or name another identity, event time or image column in the dataset's YAML"
        )
    remedy = [f"mark {missing[0]!r} there as 'optional: true'"] if missing else []
    remedy += [f"add '{new[0]}: {{type: …, optional: true}}' there"] if new else []
    raise SchemaError(
        f"{changed}. If this is meant, declare it in the schema contract ({' and '.join(remedy)}) and run again; "
        "if not, land the file anew"
    )


def conform(file: FileRows, contract: SchemaContract, config: PipelineConfig, today: dt.date) -> FileRows:
    """Types rows and rejects those that break the contract.

    Args:
        file: Rows as they stand in their files; `check_columns` has passed.
        contract: The rule of each column.
        config: Identity, event time and the days that the dataset spans.
        today: Day after which an event time cannot lie, unless the configuration gives a later end.

    Returns:
        Rows in the contract's columns and `ROW_COLUMNS`, and the rejected ones: those that could not be read and those
        that break a rule, each with the first rule broken.
    """
    schema = {name: dtype for name, dtype in file.rows.schema.items() if name in contract.columns}
    # In steps, each a small plan: one plan over all columns and rules takes polars ten times as long to optimise.
    present = file.rows.select(
        *PLACE, *(_present(name, dtype, contract.columns[name]) for name, dtype in schema.items())
    )
    values = present.select(
        _value(name, schema.get(name), rule).alias(_TYPED + name) for name, rule in contract.columns.items()
    )
    both = pl.concat([present, values], how="horizontal")
    rules = [broken for name, dtype in schema.items() for broken in _broken_rules(name, dtype, contract.columns[name])]
    if config.event_time is not None:
        rules += _broken_times(config.event_time, config, today)
    wrong = both.select(pl.any_horizontal(broken.condition for broken in rules)).to_series().fill_null(value=False)
    rejected = file.rejected
    if wrong.any():
        rejected = pl.concat(
            [rejected, _told(file.rows.filter(wrong).rechunk(), both.filter(wrong).rechunk(), rules)]
        ).sort("source_file", "row_number")
        both = both.filter(~wrong)
    typed = both.select(*PLACE, *(pl.col(_TYPED + name).alias(name) for name in contract.columns))
    return FileRows(_with_row_columns(typed, contract, config), rejected)


def _told(original: pl.DataFrame, both: pl.DataFrame, rules: list["_Rule"]) -> pl.DataFrame:
    """Says of each row which rule it breaks first, and keeps it as it stood; of an image what it is, not its bytes.

    Both frames are in one chunk: polars' format panics on a filtered frame of many (seen with 2.1).
    """
    rule = pl.coalesce([pl.when(broken.condition).then(pl.lit(broken.name)) for broken in rules])
    reason = pl.coalesce([pl.when(broken.condition).then(broken.reason) for broken in rules])
    texts = [
        image_words(pl.col(name)).alias(name) if dtype == IMAGE_STRUCT else pl.col(name).cast(pl.String)
        for name, dtype in original.schema.items()
        if name not in PLACE
    ]
    record = pl.struct(texts).struct.json_encode()
    told = both.select(source_file="_source_file", row_number="_row_number", rule=rule, reason=reason)
    return told.with_columns(original.select(record=record)).select(*REJECTED_SCHEMA)


@dataclass(frozen=True)
class _Rule:
    """A rule that a row may break: its name, when it is broken, and the reason in words.

    Both expressions stand over the values present in the file, `name`, and the same typed, `_TYPED + name`.
    """

    name: str
    condition: pl.Expr
    reason: pl.Expr


def _present(name: str, dtype: pl.DataType, rule: ColumnRule) -> pl.Expr:
    """The value as it stands in the file, null where it is missing."""
    column = pl.col(name)
    if dtype == pl.String:
        text = column.str.strip_chars()
        missing = ["", *rule.null_values, *(("nan", "NaN", "NAN") if rule.type == ColumnType.NUMBER else ())]
        return pl.when(~text.is_in(missing)).then(text).alias(name)
    return column.fill_nan(None) if dtype.is_float() else column


def _value(name: str, dtype: pl.DataType | None, rule: ColumnRule) -> pl.Expr:
    """The value in the contract's type, null where it is missing or cannot be read."""
    target = POLARS_TYPES[rule.type]
    if dtype is None:
        return pl.lit(None, dtype=target)
    present = pl.col(name)
    if rule.type == ColumnType.IMAGE:
        return present.struct.field("data") if dtype == IMAGE_STRUCT else pl.lit(None, dtype=target)
    if dtype == pl.String:
        return parse_text(present, rule)
    if dtype.is_float() and target == pl.String:  # 517.0 is category 517 in a column with gaps
        return pl.coalesce(whole_numbers(present).cast(pl.String), present.cast(pl.String))
    if dtype.is_float() and target == pl.Int64:
        return whole_numbers(present)
    if dtype.is_numeric() and target == pl.Float64:
        return finite_numbers(present.cast(pl.Float64))
    if isinstance(target, pl.Datetime) and isinstance(dtype, pl.Datetime):
        moment = present.dt.convert_time_zone("UTC") if dtype.time_zone else present.dt.replace_time_zone("UTC")
        return moment.dt.cast_time_unit("us")
    if target in (pl.String(), dtype) or (dtype.is_integer() and target == pl.Int64):
        return present.cast(target, strict=False)
    return parse_text(present.cast(pl.String, strict=False), rule)


def _spoken(rule: ColumnRule) -> str:
    match rule.type:
        case ColumnType.INTEGER:
            return "a whole number"
        case ColumnType.NUMBER:
            return "a finite number"
        case ColumnType.BOOLEAN:
            return "true or false"
        case ColumnType.CLOCK_HHMM:
            return "a clock such as 1745"
        case ColumnType.IMAGE:
            return "an image"
        case ColumnType.TIMESTAMP | ColumnType.DATE:
            return f"a {rule.type.value}" + (
                f" written {rule.format} (without format in the contract: any usual form)" if rule.format else ""
            )
        case _:
            return "text"


def _broken_rules(name: str, dtype: pl.DataType, rule: ColumnRule) -> list[_Rule]:
    present, value = pl.col(name), pl.col(_TYPED + name)
    remedy = "; mend it at the source, or change the rule in the schema contract"
    if rule.shape is not None and dtype == IMAGE_STRUCT:
        told = pl.format(f"{_literal(name)} is {{}}, and the contract says {rule.shape}{remedy}", image_words(present))
        return [_Rule(f"{name}: shape", image_words(present) != str(rule.shape), told)]
    shown = present.cast(pl.String, strict=False).str.slice(0, 80)

    def broken(what: str, condition: pl.Expr, message: str) -> _Rule:
        told = pl.format(f"{_literal(name)} = {{}} {_literal(message)}{remedy}", shown)
        return _Rule(f"{name}: {what}", condition, told)

    rules = []
    if POLARS_TYPES[rule.type] != pl.String:
        rules.append(broken(rule.type.value, value.is_null() & present.is_not_null(), f"is not {_spoken(rule)}"))
    if rule.required:
        rules.append(
            _Rule(
                f"{name}: required", value.is_null(), pl.lit(f"{name} is missing, and required; fill it at the source")
            )
        )
    if rule.type == ColumnType.CLOCK_HHMM:
        wrong = (value < 0) | (value > 2400) | (value % 100 > 59)
        rules.append(broken(rule.type.value, wrong, f"is not {_spoken(rule)}"))
    if rule.minimum is not None:
        rules.append(broken("minimum", value < rule.minimum, f"is below the minimum {rule.minimum:g}"))
    if rule.maximum is not None:
        rules.append(broken("maximum", value > rule.maximum, f"is above the maximum {rule.maximum:g}"))
    if rule.allowed is not None:
        message = f"is none of {', '.join(rule.allowed)[:120]}"
        rules.append(broken("allowed", ~value.cast(pl.String).is_in(rule.allowed), message))
    return rules


def _literal(text: str) -> str:
    """Keeps braces in a name from being read as a place holder."""
    return text.replace("{", "(").replace("}", ")")


def _broken_times(name: str, config: PipelineConfig, today: dt.date) -> list[_Rule]:
    last = config.end or today
    remedy = "mend it at the source, or widen start and end in the YAML"
    shown, day = pl.col(name).cast(pl.String), pl.col(_TYPED + name).cast(pl.Date)
    message = pl.format(f"{_literal(name)} = {{}} lies outside {config.start} to {last}; {remedy}", shown)
    return [
        _Rule(f"{name}: before start", day < pl.lit(config.start), message),
        _Rule(f"{name}{AFTER_LAST_DAY}", day > pl.lit(last), message),
    ]


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
        moment = pl.col(config.event_time).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        day = pl.col(config.event_time).dt.strftime("%Y-%m-%d")
    return rows.select(
        *(name for name in contract.columns if name != "event_time"),
        *PLACE,
        row_id=pl.concat_str([as_text(name) for name in config.identity], separator="|"),
        event_time=moment,
        _day=day,
    )
