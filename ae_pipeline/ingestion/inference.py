"""Infer a schema contract from samples of the landed files."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.config.columns import RESERVED_COLUMNS, ColumnType, ImageShape
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.contract import ColumnRule, SchemaContract, check_names
from ae_pipeline.ingestion.parse import TIMESTAMP_FORMATS, parse_text
from ae_pipeline.ingestion.rows import IMAGE_STRUCT

_NULL_WORDS = ("NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-")
_INTEGER = r"^[+-]?(0|[1-9][0-9]*)$"


def infer_contract(samples: Sequence[pl.DataFrame], config: PipelineConfig) -> SchemaContract:
    """Return a schema contract that fits samples of the landed files.

    A column that some samples lack is optional. Digits with leading zeros are text. Words such as NA mean a missing
    value only if all other values of the column are numbers, booleans or times.

    Args:
        samples: Rows of some files, as text or typed.
        config: Configuration with the identity, the event time and the declared column types.

    Raises:
        SchemaError: The configuration names a column that no file has, a file uses a reserved name, the event time is
            not a time, or no image can be read.
    """
    names = list(dict.fromkeys(name for sample in samples for name in sample.columns))
    for name in names:
        if name in RESERVED_COLUMNS and name != config.event_time:
            raise SchemaError(
                f"column {name!r} of {config.dataset!r} has a name that is reserved for the pipeline; rename it at the "
                "source"
            )
    check_names(names, config)
    required = {*config.identity, config.event_time}
    rules = {}
    for name in names:
        values = [sample[name] for sample in samples if name in sample.columns]
        if config.images and name == config.images.column:
            rules[name] = _infer_image(values, config)
            continue
        rule = _infer_rule(values, config.columns.get(name))
        if name == config.event_time and rule.type not in {ColumnType.TIMESTAMP, ColumnType.DATE}:
            raise SchemaError(
                f"event_time={name!r} of {config.dataset!r} has {rule.type.value} values such as "
                f"{_first_value(values)!r}, not timestamps; choose another column, or write a schema contract with its "
                "format"
            )
        rules[name] = rule.model_copy(
            update={"required": name in required, "optional": len(values) < len(samples) and name not in required}
        )
    return SchemaContract(dataset=config.dataset, columns=_with_null_words(rules, samples))


def _infer_image(columns: Sequence[pl.Series], config: PipelineConfig) -> ColumnRule:
    """Return the rule with the most frequent shape; on a tie, the shape that comes first."""
    images = [values.drop_nulls() for values in columns if values.dtype == IMAGE_STRUCT]
    shapes = pl.concat([values.struct.unnest().drop("data") for values in images]) if images else pl.DataFrame()
    if shapes.is_empty():
        raise SchemaError(
            f"column {columns[0].name!r} of {config.dataset!r} should hold images, but no landed file has a readable "
            "image there; land PNG, JPEG or Parquet files with images, or set another images.column"
        )
    counts = shapes.group_by(*shapes.columns, maintain_order=True).len()
    most_frequent = counts.row(int(counts["len"].arg_max() or 0), named=True)
    shape = ImageShape.model_validate({name: most_frequent[name] for name in shapes.columns})
    return ColumnRule(type=ColumnType.IMAGE, required=True, shape=shape)


def _with_null_words(rules: dict[str, ColumnRule], samples: Sequence[pl.DataFrame]) -> dict[str, ColumnRule]:
    """Apply the null words of number columns to text columns, since one source uses the same words in all columns."""
    null_words = sorted({word for rule in rules.values() for word in rule.null_values})
    if not null_words:
        return rules
    result = dict(rules)
    for name, rule in rules.items():
        if rule.type in {ColumnType.TEXT, ColumnType.CATEGORY} and not rule.required:
            columns = [sample[name] for sample in samples if name in sample.columns]
            used = tuple(word for word in null_words if any((column == word).any() for column in columns))
            result[name] = rule.model_copy(update={"null_values": used})
    return result


def _first_value(columns: Sequence[pl.Series]) -> Any:
    return next((values.drop_nulls()[0] for values in columns if values.len() > values.null_count()), None)


def _infer_rule(columns: Sequence[pl.Series], declared: ColumnType | None) -> ColumnRule:
    typed = [values.dtype for values in columns if values.dtype not in {pl.String(), pl.Null()}]
    columns = [values for values in columns if values.dtype == pl.String]
    if not typed and columns:
        texts = pl.concat([values.rename("v") for values in columns]).drop_nulls().str.strip_chars()
        texts = texts.filter(texts != "").unique()
        return _infer_from_text(texts, declared)
    kind = declared or _type_of(typed)
    if not columns:
        return ColumnRule(type=kind)
    rule = _infer_rule(columns, declared)
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
    for dtype, kind in (
        (pl.Boolean, ColumnType.BOOLEAN),
        (pl.Date, ColumnType.DATE),
        (pl.Datetime, ColumnType.TIMESTAMP),
    ):
        if all(other == dtype for other in dtypes):
            return kind
    return ColumnType.TEXT


def _infer_from_text(texts: pl.Series, declared: ColumnType | None) -> ColumnRule:
    is_null_word = texts.is_in(_NULL_WORDS)
    # An infinite value is still a number: its row goes to quarantine, and the column does not become text.
    is_infinite = texts.str.contains(r"(?i)^[+-]?inf(inity)?$") | texts.cast(
        pl.Float64, strict=False
    ).is_infinite().fill_null(value=False)
    null_words = tuple(sorted(texts.filter(is_null_word)))
    for candidates, null_values in (
        (texts, ()),
        (texts.filter(~is_null_word), null_words),
        (texts.filter(~(is_null_word | is_infinite)), null_words),
    ):
        if candidates.is_empty():
            continue
        rule = _rule_that_fits_all(candidates, declared)
        if rule is not None:
            return rule.model_copy(update={"null_values": null_values})
    return ColumnRule(type=declared or ColumnType.TEXT)


def _rule_that_fits_all(texts: pl.Series, declared: ColumnType | None) -> ColumnRule | None:
    kinds = (
        [declared]
        if declared
        else [ColumnType.BOOLEAN, ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.DATE, ColumnType.TIMESTAMP]
    )
    for kind in kinds:
        if kind in {ColumnType.TEXT, ColumnType.CATEGORY}:
            return ColumnRule(type=kind)
        if kind == ColumnType.TIMESTAMP:
            for form in TIMESTAMP_FORMATS:
                if _can_parse_all(texts, ColumnRule(type=kind, format=form)):
                    return ColumnRule(type=kind, format=form)
            continue
        if kind == ColumnType.INTEGER and not texts.str.contains(_INTEGER).all():
            continue
        if kind == ColumnType.NUMBER and texts.str.contains(r"^[+-]?0[0-9]").any():
            continue
        if _can_parse_all(texts, ColumnRule(type=kind)):
            return ColumnRule(type=kind)
    return None


def _can_parse_all(texts: pl.Series, rule: ColumnRule) -> bool:
    values = texts.rename("text").to_frame()
    return values.select(parse_text(pl.col("text"), rule)).to_series().null_count() == 0
