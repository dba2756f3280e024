"""Tell which landed values are present, and read plain numbers at once."""

from collections.abc import Mapping, Sequence
from functools import partial

import polars as pl

from ae_pipeline.config.columns import NUMERIC_TYPES, ColumnType
from ae_pipeline.ingestion.contract import ColumnRule, SchemaContract
from ae_pipeline.ingestion.parse import parse_value

_NUMBERS = {*NUMERIC_TYPES, ColumnType.CLOCK_HHMM}


def plain_numbers(
    rows: pl.DataFrame, schema: Mapping[str, pl.DataType], contract: SchemaContract
) -> dict[str, pl.Series]:
    """Return the numbers of the text columns whose texts all are numbers or null values of the contract.

    Most columns are such, and their texts need no other treatment: whitespace around a number would make it none.
    """
    names = [name for name, dtype in schema.items() if dtype == pl.String and contract.columns[name].type in _NUMBERS]
    texts = rows.select(without_null_values(name, contract) for name in names)
    values = texts.select(parse_value(pl.col(name), pl.String(), contract.columns[name]) for name in names)
    return {name: values[name] for name in names if values[name].null_count() == texts[name].null_count()}


def without_null_values(name: str, contract: SchemaContract) -> pl.Expr:
    """Return a column without the texts that mean a missing value in the contract."""
    null_texts, column = [word for word in contract.columns[name].null_values if word == word.strip()], pl.col(name)
    return pl.when(~column.is_in(null_texts)).then(column).alias(name) if null_texts else column


def present_value(name: str, dtype: pl.DataType, rule: ColumnRule) -> pl.Expr:
    """Return the value as in the file, null if it is missing."""
    column = pl.col(name)
    if dtype == pl.String:
        text = column.str.strip_chars()
        is_number = rule.type in {ColumnType.NUMBER, ColumnType.DECIMAL}
        missing = ["", *rule.null_values, *(("nan", "NaN", "NAN") if is_number else ())]
        return text.map_batches(partial(_drop, null_texts=missing), return_dtype=pl.String)
    return column.fill_nan(None) if dtype.is_float() else column


def _drop(texts: pl.Series, null_texts: Sequence[str]) -> pl.Series:
    """Replace some texts with null."""
    is_null_text = texts.is_in(null_texts).fill_null(value=False)
    return texts.set(is_null_text, None) if is_null_text.any() else texts
