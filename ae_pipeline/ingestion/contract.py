"""The schema contract of a dataset: inferred once from what landed, then frozen in a YAML file that people edit."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import polars as pl
import yaml
from pydantic import Field, ValidationError, model_validator

from ae_pipeline.config import RESERVED_COLUMNS, ColumnType, PipelineConfig, Section
from ae_pipeline.errors import SchemaError
from ae_pipeline.storage import hash_json, write_text

POLARS_TYPES: Mapping[ColumnType, pl.DataType] = {
    ColumnType.INTEGER: pl.Int64(),
    ColumnType.NUMBER: pl.Float64(),
    ColumnType.BOOLEAN: pl.Boolean(),
    ColumnType.CATEGORY: pl.String(),
    ColumnType.TEXT: pl.String(),
    ColumnType.CLOCK_HHMM: pl.Int64(),
    ColumnType.TIMESTAMP: pl.Datetime("us", "UTC"),
    ColumnType.DATE: pl.Date(),
}
"""What a contract's type is in memory."""

TIMESTAMP_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
)
"""Text forms of a timestamp that are recognised; any other stands in the contract as `format`."""

_WORDS_FOR_MISSING = ("NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-")
_INTEGER = r"^[+-]?(0|[1-9][0-9]*)$"
_CLOCK_COLUMN_ENDS = 2400


class ColumnRule(Section):
    """What a column's values must be."""

    type: ColumnType
    required: bool = Field(default=False, description="A missing value sends the row to quarantine.")
    optional: bool = Field(default=False, description="A file may come without this column; its values are missing.")
    null_values: tuple[str, ...] = Field(default=(), description="Texts that mean missing, beside the empty one.")
    format: str | None = Field(default=None, description="How a timestamp or date is written (strftime).")
    minimum: float | None = Field(default=None, description="Least value allowed.")
    maximum: float | None = Field(default=None, description="Greatest value allowed.")
    allowed: tuple[str, ...] | None = Field(default=None, description="The only texts allowed.")

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if (self.minimum is not None or self.maximum is not None) and not POLARS_TYPES[self.type].is_numeric():
            raise ValueError(f"minimum and maximum do not go with type {self.type.value}; leave them out")
        return self


class SchemaContract(Section):
    """Columns of a dataset and the rule of each."""

    dataset: str
    columns: Annotated[dict[str, ColumnRule], Field(min_length=1)]

    @property
    def fingerprint(self) -> str:
        """Changes whenever a rule does."""
        return hash_json(self.model_dump(mode="json"))

    @property
    def polars_schema(self) -> dict[str, pl.DataType]:
        """Column types in memory."""
        return {name: POLARS_TYPES[rule.type] for name, rule in self.columns.items()}


def load_contract(path: Path) -> SchemaContract:
    """Reads a contract.

    Raises:
        SchemaError: The file is not a contract.
    """
    try:
        return SchemaContract.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SchemaError(
            f"the schema contract {path} is not YAML: {error}; mend it, or move it away to have one inferred anew"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SchemaError(
            f"the schema contract {path} breaks a rule at {place}: {first['msg']}, got "
            f"{first['input']!r}; mend it, or move it away to have one inferred anew"
        ) from error


def save_contract(contract: SchemaContract, path: Path, origin: str) -> None:
    """Writes a contract with a head that tells a person what it is."""
    body = contract.model_dump(mode="json", exclude_defaults=True)
    head = (
        f"# Schema contract of {contract.dataset!r}, inferred once from {origin}.\n"
        "# It is yours to edit: a row that breaks it goes to quarantine with a reason, and a file with other columns\n"
        "# is refused. After an edit the landed files are read again by the next run.\n"
        "# type: integer, number, boolean, category, clock_hhmm, timestamp, date or text; further words a column may\n"
        "# bear: required, optional (may be absent), null_values, format, minimum, maximum, allowed.\n"
    )
    write_text(path, head + yaml.safe_dump(body, sort_keys=False, default_flow_style=None, width=110))


def infer_contract(samples: Sequence[pl.DataFrame], config: PipelineConfig) -> SchemaContract:
    """Infers a contract from samples of the landed files.

    A column that some samples lack is optional. Digits with leading zeros are text, and words such as NA mean missing
    only where all other values are numbers, booleans or times.

    Args:
        samples: Rows of some files, as text or typed.
        config: Names the identity, the event time and the types that values do not show.

    Raises:
        SchemaError: The configuration names a column that no file has, or a file has a reserved name.
    """
    names = list(dict.fromkeys(name for sample in samples for name in sample.columns))
    for name in names:
        if name in RESERVED_COLUMNS and name != config.event_time:
            raise SchemaError(
                f"column {name!r} of {config.dataset!r} bears a name that the pipeline gives its own "
                "columns; rename it at the source"
            )
    _check_names(names, config)
    required = {*config.identity, config.event_time}
    rules = {}
    for name in names:
        having = [sample[name] for sample in samples if name in sample.columns]
        rule = _infer_rule(having, config.columns.get(name))
        if name == config.event_time and rule.type not in {ColumnType.TIMESTAMP, ColumnType.DATE}:
            raise SchemaError(
                f"event_time={name!r} of {config.dataset!r} holds {rule.type.value} values such as "
                f"{_example(having)!r}, not timestamps; name another column, or write a contract with "
                "its format"
            )
        rules[name] = rule.model_copy(
            update={"required": name in required, "optional": len(having) < len(samples) and name not in required}
        )
    return SchemaContract(dataset=config.dataset, columns=_with_words_for_missing(rules, samples))


def _check_names(names: Sequence[str], config: PipelineConfig) -> None:
    wanted = {*config.identity, *config.columns, *config.exclude, *([config.event_time] if config.event_time else [])}
    if unknown := sorted(wanted - set(names)):
        raise SchemaError(
            f"the configuration of {config.dataset!r} names column {unknown[0]!r}, which no landed file "
            f"has; the files have {', '.join(names)}"
        )


def contract_in_force(path: Path, config: PipelineConfig) -> SchemaContract:
    """Reads a contract and holds it against the settings, since either may have been edited after it was inferred.

    Identity and event time are required whatever the file says: a row without them would collapse into another.

    Raises:
        SchemaError: The file is no contract, the settings name a column that it does not have, or the event time is no
            time in it.
    """
    contract = load_contract(path)
    _check_names(list(contract.columns), config)
    keys = {*config.identity, *([config.event_time] if config.event_time else [])}
    if config.event_time and contract.columns[config.event_time].type not in {ColumnType.TIMESTAMP, ColumnType.DATE}:
        raise SchemaError(
            f"event_time={config.event_time!r} of {config.dataset!r} is "
            f"{contract.columns[config.event_time].type.value} in the schema contract, not a timestamp or date; change "
            "its type there, or name another column"
        )
    always = {"required": True, "optional": False}
    rules = {name: rule.model_copy(update=always) if name in keys else rule for name, rule in contract.columns.items()}
    return contract.model_copy(update={"columns": rules})


def _with_words_for_missing(rules: dict[str, ColumnRule], samples: Sequence[pl.DataFrame]) -> dict[str, ColumnRule]:
    """Carries the words that mean missing among numbers over to text: who writes NA for one writes it for the other."""
    words = {word for rule in rules.values() for word in rule.null_values}
    if not words:
        return rules
    found = dict(rules)
    for name, rule in rules.items():
        if rule.type in {ColumnType.TEXT, ColumnType.CATEGORY} and not rule.required:
            here = [
                word for word in sorted(words) if any((s[name] == word).any() for s in samples if name in s.columns)
            ]
            found[name] = rule.model_copy(update={"null_values": tuple(here)})
    return found


def _example(columns: Sequence[pl.Series]) -> Any:
    return next((values.drop_nulls()[0] for values in columns if values.len() > values.null_count()), None)


def _infer_rule(columns: Sequence[pl.Series], given: ColumnType | None) -> ColumnRule:
    typed = [values.dtype for values in columns if values.dtype not in {pl.String(), pl.Null()}]
    columns = [values for values in columns if values.dtype == pl.String]
    if not typed and columns:
        texts = pl.concat([values.rename("v") for values in columns]).drop_nulls().str.strip_chars()
        texts = texts.filter(texts != "").unique()
        return _infer_from_text(texts, given)
    kind = given or _type_of(typed)
    if not columns:
        return ColumnRule(type=kind)
    rule = _infer_rule(columns, given)
    if {rule.type, kind} == {ColumnType.INTEGER, ColumnType.NUMBER}:
        return rule.model_copy(update={"type": ColumnType.NUMBER})
    return rule if rule.type == kind else ColumnRule(type=ColumnType.TEXT)


def _type_of(dtypes: Sequence[pl.DataType]) -> ColumnType:
    if not dtypes:
        return ColumnType.TEXT
    if all(dtype.is_integer() for dtype in dtypes):
        return ColumnType.INTEGER
    if all(dtype.is_numeric() for dtype in dtypes):
        return ColumnType.NUMBER
    for kind, found in (
        (pl.Boolean, ColumnType.BOOLEAN),
        (pl.Date, ColumnType.DATE),
        (pl.Datetime, ColumnType.TIMESTAMP),
    ):
        if all(dtype == kind for dtype in dtypes):
            return found
    return ColumnType.TEXT


def _infer_from_text(texts: pl.Series, given: ColumnType | None) -> ColumnRule:
    words = texts.is_in(_WORDS_FOR_MISSING)
    # An infinite number is a number all the same: its row goes to quarantine, its column does not turn into text.
    words_or_infinite = (
        words
        | texts.str.contains(r"(?i)^[+-]?inf(inity)?$")
        | texts.cast(pl.Float64, strict=False).is_infinite().fill_null(value=False)
    )
    said = tuple(sorted(texts.filter(words)))
    for candidate, used in ((texts, ()), (texts.filter(~words), said), (texts.filter(~words_or_infinite), said)):
        if candidate.is_empty():
            continue
        rule = _rule_that_all_fit(candidate, given)
        if rule is not None:
            return rule.model_copy(update={"null_values": used})
    return ColumnRule(type=given or ColumnType.TEXT)


def _rule_that_all_fit(texts: pl.Series, given: ColumnType | None) -> ColumnRule | None:
    kinds = (
        [given]
        if given
        else [ColumnType.BOOLEAN, ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.DATE, ColumnType.TIMESTAMP]
    )
    for kind in kinds:
        if kind in {ColumnType.TEXT, ColumnType.CATEGORY}:
            return ColumnRule(type=kind)
        if kind == ColumnType.TIMESTAMP:
            for form in TIMESTAMP_FORMATS:
                if _all_read(texts, ColumnRule(type=kind, format=form)):
                    return ColumnRule(type=kind, format=form)
            continue
        if kind == ColumnType.INTEGER and not texts.str.contains(_INTEGER).all():
            continue
        if kind == ColumnType.NUMBER and texts.str.contains(r"^[+-]?0[0-9]").any():
            continue
        if _all_read(texts, ColumnRule(type=kind)):
            return ColumnRule(type=kind)
    return None


def _all_read(texts: pl.Series, rule: ColumnRule) -> bool:
    values = texts.rename("text").to_frame()
    return values.select(parse_text(pl.col("text"), rule)).to_series().null_count() == 0


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
