"""Infers a schema contract from samples of the landed files."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.config.columns import RESERVED_COLUMNS, ColumnType, ImageShape
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.contract import ColumnRule, SchemaContract, check_names
from ae_pipeline.ingestion.parse import TIMESTAMP_FORMATS, parse_text
from ae_pipeline.ingestion.rows import IMAGE_STRUCT

_WORDS_FOR_MISSING = ("NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-")
_INTEGER = r"^[+-]?(0|[1-9][0-9]*)$"


def infer_contract(samples: Sequence[pl.DataFrame], config: PipelineConfig) -> SchemaContract:
    """Infers a contract from samples of the landed files.

    A column that some samples lack is optional. Digits with leading zeros are text, and words such as NA mean missing
    only where all other values are numbers, booleans or times.

    Args:
        samples: Rows of some files, as text or typed.
        config: Names the identity, the event time and the types that values do not show.

    Raises:
        SchemaError: The configuration names a column that no file has, a file has a reserved name, or no image can be
            read.
    """
    names = list(dict.fromkeys(name for sample in samples for name in sample.columns))
    for name in names:
        if name in RESERVED_COLUMNS and name != config.event_time:
            raise SchemaError(
                f"column {name!r} of {config.dataset!r} bears a name that the pipeline gives its own "
                "columns; rename it at the source"
            )
    check_names(names, config)
    required = {*config.identity, config.event_time}
    rules = {}
    for name in names:
        having = [sample[name] for sample in samples if name in sample.columns]
        if config.images and name == config.images.column:
            rules[name] = _infer_image(having, config)
            continue
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


def _infer_image(columns: Sequence[pl.Series], config: PipelineConfig) -> ColumnRule:
    """Takes the most frequent shape for the one that all images should have; of two as frequent, the first."""
    images = [values.drop_nulls() for values in columns if values.dtype == IMAGE_STRUCT]
    shapes = pl.concat([values.struct.unnest().drop("data") for values in images]) if images else pl.DataFrame()
    if shapes.is_empty():
        raise SchemaError(
            f"column {columns[0].name!r} of {config.dataset!r} should hold images, and no landed file has one there "
            "that can be read; land PNG, JPEG or Parquet files that have, or name another column in images"
        )
    counted = shapes.group_by(*shapes.columns, maintain_order=True).len()
    most = counted.row(int(counted["len"].arg_max() or 0), named=True)
    shape = ImageShape.model_validate({name: most[name] for name in shapes.columns})
    return ColumnRule(type=ColumnType.IMAGE, required=True, shape=shape)


def _with_words_for_missing(rules: dict[str, ColumnRule], samples: Sequence[pl.DataFrame]) -> dict[str, ColumnRule]:
    """Carries the words that mean missing among numbers over to text: who writes NA for one writes it for the other."""
    message = {word for rule in rules.values() for word in rule.null_values}
    if not message:
        return rules
    found = dict(rules)
    for name, rule in rules.items():
        if rule.type in {ColumnType.TEXT, ColumnType.CATEGORY} and not rule.required:
            here = [
                word for word in sorted(message) if any((s[name] == word).any() for s in samples if name in s.columns)
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
    message = texts.is_in(_WORDS_FOR_MISSING)
    # An infinite number is a number all the same: its row goes to quarantine, its column does not turn into text.
    words_or_infinite = (
        message
        | texts.str.contains(r"(?i)^[+-]?inf(inity)?$")
        | texts.cast(pl.Float64, strict=False).is_infinite().fill_null(value=False)
    )
    said = tuple(sorted(texts.filter(message)))
    for candidate, used in ((texts, ()), (texts.filter(~message), said), (texts.filter(~words_or_infinite), said)):
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
