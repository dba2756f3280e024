"""Infer a schema contract from samples of the landed files."""

import logging
from collections.abc import Callable, Sequence

import polars as pl

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.config.columns import RESERVED_COLUMNS, ColumnDeclaration, ColumnType, ImageShape, as_declaration
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.contract import ColumnRule, SchemaContract, check_names
from ae_pipeline.ingestion.parse import landed_text, lost_nanoseconds, parse_value
from ae_pipeline.ingestion.patches import PATCH_COLUMNS
from ae_pipeline.ingestion.rows import IMAGE_STRUCT, plain_text
from ae_pipeline.ingestion.text_inference import (
    AmbiguousOrderError,
    Role,
    infer_from_texts,
    is_null_word,
    plain_number_rule,
    suggest_declaration,
)

_TIMES = {ColumnType.TIMESTAMP, ColumnType.DATE}

logger = logging.getLogger(__name__)


def infer_contract(samples: Sequence[pl.DataFrame], config: PipelineConfig) -> SchemaContract:
    """Return a schema contract that fits samples of the landed files.

    A column that some samples lack is optional. Digits with leading zeros are text. Words such as NA mean a missing
    value only if all other values of the column are numbers, booleans or times. Columns of the identity are text, or
    times, unless the configuration declares their type. The log names what the contract assumes.

    Args:
        samples: Rows of some files, as text or typed.
        config: Configuration with the identity, the event time and the declared column types.

    Raises:
        SchemaError: The configuration names a column that no file has, a file uses a reserved name, the event time is
            not a time or has an ambiguous order of day and month, or no image can be read.
    """
    samples = [plain_text(sample) for sample in samples]
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
        rules[name] = _infer_column(name, values, config).model_copy(
            update={"required": name in required, "optional": len(values) < len(samples) and name not in required}
        )
    return SchemaContract(dataset=config.dataset, columns=_with_null_words(rules, samples))


def _infer_column(name: str, columns: Sequence[pl.Series], config: PipelineConfig) -> ColumnRule:
    """Return the rule of one column, and log what is not obvious about it."""
    declared = as_declaration(config.columns[name]) if name in config.columns else None
    role = Role.EVENT_TIME if name == config.event_time else Role.IDENTITY if name in config.identity else Role.VALUE
    if declared is None and config.images and config.images.patch and name in PATCH_COLUMNS:
        declared = ColumnDeclaration(type=ColumnType.INTEGER)
    try:
        rule = _infer_rule(columns, declared, role)
    except AmbiguousOrderError as error:
        choices = " or ".join(f"{{{name}: {choice}}}" for choice in error.choices)
        if role == Role.VALUE and declared is None:
            logger.info(
                f"{name!r} of {config.dataset!r} stays text: {error.problem}; to read it as a time, declare columns: "
                f"{choices} in the YAML, and move the schema contract away"
            )
            return ColumnRule(type=ColumnType.TEXT)
        raise SchemaError(
            f"{name!r} of {config.dataset!r} is ambiguous: {error.problem}; declare columns: {choices} in the YAML"
        ) from error
    if role == Role.EVENT_TIME and rule.type not in _TIMES:
        texts = _texts(columns)
        value = texts["text"][0] if texts.height else None
        remedy = "choose another column" if value is None else _time_remedy(name, str(value))
        raise SchemaError(
            f"event_time={name!r} of {config.dataset!r} has {rule.type.value} values such as {value!r}, not "
            f"timestamps; {remedy}, or write a schema contract with its format"
        )
    if declared is None and rule.type == ColumnType.TEXT and role == Role.VALUE:
        suggestion = suggest_declaration(_texts(columns)["text"])
        if suggestion:
            logger.info(
                f"{name!r} of {config.dataset!r} stays text; to read it as {suggestion.kind}, declare columns: "
                f"{{{name}: {suggestion.declaration}}} in the YAML, and move the schema contract away"
            )
    _log_assumptions(name, rule, columns, config)
    return rule


def _time_remedy(name: str, value: str) -> str:
    """Return what to do about an event time that is no time: an epoch is likely from its number of digits."""
    whole = value.split(".", maxsplit=1)[0]
    form = {10: "epoch_s", 13: "epoch_ms", 16: "epoch_us", 19: "epoch_ns"}.get(len(whole)) if whole.isdigit() else None
    written = form or '"%d/%m/%Y %H:%M"'
    return (
        "choose another column, declare its format in the YAML, such as "
        f"columns: {{{name}: {{type: timestamp, format: {written}}}}}"
    )


def _log_assumptions(name: str, rule: ColumnRule, columns: Sequence[pl.Series], config: PipelineConfig) -> None:
    """Log which texts mean a missing value, and a decimal comma that the values show."""
    declared = as_declaration(config.columns[name]) if name in config.columns else ColumnDeclaration(type=rule.type)
    null_texts = [word for word in rule.null_values if word not in declared.null_values]
    if null_texts:
        counts = dict(_texts(columns).filter(pl.col("text").is_in(null_texts)).iter_rows())
        named = ", ".join(f"{word!r} ({counts.get(word, 0):,})" for word in null_texts)
        logger.info(f"{name!r} of {config.dataset!r} is {rule.type.value}; these texts mean a missing value: {named}")
    if rule.decimal == "," and declared.decimal is None:
        logger.info(f"{name!r} of {config.dataset!r} is {rule.type.value} with a decimal comma")


def _infer_image(columns: Sequence[pl.Series], config: PipelineConfig) -> ColumnRule:
    """Return the rule with the most frequent shape; on a tie, the shape that comes first."""
    images = [values.drop_nulls() for values in columns if values.dtype == IMAGE_STRUCT]
    shapes = pl.concat([values.struct.unnest().drop("data") for values in images]) if images else pl.DataFrame()
    if shapes.is_empty():
        raise SchemaError(
            f"column {columns[0].name!r} of {config.dataset!r} should hold images, but no landed file has a readable "
            "image there; land image files, or Parquet files with images, or set another images.column"
        )
    counts = shapes.group_by(*shapes.columns, maintain_order=True).len()
    most_frequent = counts.row(int(counts["len"].arg_max() or 0), named=True)
    shape = ImageShape.model_validate({name: most_frequent[name] for name in shapes.columns})
    return ColumnRule(type=ColumnType.IMAGE, required=True, shape=shape)


def _with_null_words(rules: dict[str, ColumnRule], samples: Sequence[pl.DataFrame]) -> dict[str, ColumnRule]:
    """Apply the null values of number columns to text columns, since one source uses the same in all columns."""
    null_words = sorted({word for rule in rules.values() for word in rule.null_values if is_null_word(word)})
    if not null_words:
        return rules
    result = dict(rules)
    for name, rule in rules.items():
        if rule.type in {ColumnType.TEXT, ColumnType.CATEGORY} and not rule.required:
            columns = [sample[name] for sample in samples if name in sample.columns]
            texts = [values.str.strip_chars() for values in columns if values.dtype == pl.String]
            used = tuple(word for word in null_words if any((column == word).any() for column in texts))
            kept = tuple(word for word in rule.null_values if word not in used)
            result[name] = rule.model_copy(update={"null_values": (*kept, *used)})
    return result


def _texts(columns: Sequence[pl.Series]) -> pl.DataFrame:
    """Return the distinct texts of a column and how often each occurs, the commonest first."""
    parts = [
        values.rename("text").to_frame().select(landed_text(pl.col("text"), values.dtype).str.strip_chars())
        for values in columns
        if values.dtype not in {pl.Null(), IMAGE_STRUCT}
    ]
    if not parts:
        return pl.DataFrame(schema={"text": pl.String(), "count": pl.UInt32()})
    counts = pl.concat(parts).filter(pl.col("text") != "").group_by("text", maintain_order=True).len("count")
    return counts.sort("count", descending=True, maintain_order=True)


def _infer_rule(columns: Sequence[pl.Series], declared: ColumnDeclaration | None, role: Role) -> ColumnRule:
    typed = [values for values in columns if values.dtype not in {pl.String(), pl.Null()}]
    texts = [values for values in columns if values.dtype == pl.String]
    if not typed:
        if declared is None and role == Role.VALUE and (plain := _plain_rule(texts)):
            return plain
        return _with_precision(infer_from_texts(_texts(texts), declared, role), columns)
    kind = declared.type if declared else _type_of([values.dtype for values in typed])
    if declared is None and role == Role.IDENTITY and kind not in _TIMES:
        return ColumnRule(type=ColumnType.TEXT)
    if kind in {ColumnType.INTEGER, ColumnType.DECIMAL} and not any(values.dtype.is_float() for values in typed):
        return _infer_exact(columns, typed, declared, role)
    if not texts:
        return _with_precision(_declared_rule(declared, kind), columns)
    rule = infer_from_texts(_texts(texts), declared, role)
    if {rule.type, kind} <= {ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.DECIMAL}:
        return rule.model_copy(update={"type": ColumnType.NUMBER, "scale": None})
    return _with_precision(rule if rule.type == kind else ColumnRule(type=ColumnType.TEXT), columns)


def _plain_rule(columns: Sequence[pl.Series]) -> ColumnRule | None:
    parts = [values.drop_nulls() for values in columns]
    if not parts:
        return None
    texts = pl.concat(parts)
    return plain_number_rule(texts.filter(texts != "") if (texts == "").any() else texts)


def _infer_exact(
    columns: Sequence[pl.Series], typed: Sequence[pl.Series], declared: ColumnDeclaration | None, role: Role
) -> ColumnRule:
    """Return the rule of integers and decimals: an integer if int64 keeps all, otherwise a decimal."""
    scales = [values.dtype.scale for values in typed if isinstance(values.dtype, pl.Decimal)]
    rule = infer_from_texts(_texts(columns), declared, role, min_scale=max(scales) if scales else None)
    if rule.type == ColumnType.TEXT and len(typed) == len(columns):
        # No type keeps all digits; declared or not, text does.
        return _declared_rule(declared, ColumnType.TEXT if _texts(columns).height else ColumnType.INTEGER)
    return rule


def _declared_rule(declared: ColumnDeclaration | None, kind: ColumnType) -> ColumnRule:
    return ColumnRule.model_validate({"type": kind, **(declared.model_dump() if declared else {})})


def _with_precision(rule: ColumnRule, columns: Sequence[pl.Series]) -> ColumnRule:
    """Keep nanoseconds where a column of times has them."""
    if rule.type != ColumnType.TIMESTAMP or rule.precision is not None:
        return rule
    in_ns = rule.model_copy(update={"precision": "ns"})
    times = [values.rename("v").to_frame() for values in columns if isinstance(values.dtype, pl.String | pl.Datetime)]
    if not any(_expression(values, lost_nanoseconds, rule).any() for values in times):
        return rule
    counts = [[_expression(values, parse_value, each).null_count() for each in (rule, in_ns)] for values in times]
    # Some can be outside the years that nanoseconds reach.
    return in_ns if all(us == ns for us, ns in counts) else rule


def _expression(
    values: pl.DataFrame, expression: Callable[[pl.Expr, pl.DataType, ColumnRule], pl.Expr], rule: ColumnRule
) -> pl.Series:
    """Return an expression over the values of a column."""
    dtype = values.schema["v"]
    value = pl.col("v").str.strip_chars() if dtype == pl.String else pl.col("v")
    return values.select(expression(value, dtype, rule)).to_series()


def _type_of(dtypes: Sequence[pl.DataType]) -> ColumnType:
    if all(dtype.is_integer() for dtype in dtypes):
        return ColumnType.INTEGER
    if all(dtype.is_integer() or isinstance(dtype, pl.Decimal) for dtype in dtypes):
        return ColumnType.DECIMAL
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
