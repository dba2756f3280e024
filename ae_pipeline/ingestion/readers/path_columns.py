"""Columns from the path of a file: folders named `column=value`, and named groups of a regular expression."""

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, cast
from urllib.parse import unquote

import polars as pl

from ae_pipeline.config.columns import RESERVED_COLUMNS
from ae_pipeline.ingestion.rows import FileRows, UnreadableFileError

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def add_path_columns(
    name: str,
    file: FileRows,
    expression: str | None = None,
    columns: Collection[str] | None = None,
    needed: Collection[str] = (),
) -> FileRows:
    """Add the columns that the path of a file gives, as text.

    Args:
        name: Path of the file below the landing folder.
        file: Rows of the file.
        expression: Regular expression whose named groups become columns.
        columns: Columns of the schema contract. Folders of other names are then no columns.
        needed: Columns that every row needs. Their names are not reserved.

    Raises:
        UnreadableFileError: The path does not match the expression, or a column in the file has another value.
    """
    values = _folder_values(name, {*(columns or ()), *file.rows.columns} if columns is not None else None)
    skipped = {
        column: "the name of its folder is reserved; rename the folder"
        for column in values
        if column in RESERVED_COLUMNS and column not in file.rows.columns and column not in {*(columns or ()), *needed}
    }
    if expression:
        match = re.search(expression, name)
        if match is None:
            raise UnreadableFileError(
                f"the path does not match source.path_columns={expression!r}; rename the file, or change path_columns"
            )
        for column, value in match.groupdict().items():
            if column in values and values[column] != value:
                raise _disagreement(column, values[column], repr(value), "its folder")
            values[column] = value
    rows = file.rows
    for column, value in values.items():
        if column in skipped:
            continue
        if column in rows.columns:
            _check_agreement(rows[column], value)
        else:
            rows = rows.with_columns(pl.lit(value, pl.String).alias(column))
    return replace(file, rows=rows, skipped={**file.skipped, **skipped}) if values else file


def path_texts(name: str, expressions: Iterable[str | None], columns: Collection[str]) -> dict[str, str | None]:
    """Return the texts that the path of a file gives for some columns.

    Args:
        name: Path of the file below the landing folder.
        expressions: Regular expressions whose named groups become columns.
        columns: Names of the columns.
    """
    texts = _folder_values(name, columns)
    for expression in filter(None, expressions):
        if match := re.search(expression, name):
            texts |= {column: text for column, text in match.groupdict().items() if column in columns}
    return texts


def _folder_values(name: str, known: Collection[str] | None) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    if "=" not in name:  # a path object for each of 200,000 files would take a second
        return values
    for folder in PurePosixPath(name).parent.parts:
        column, equals, value = folder.partition("=")
        column = unquote(column)
        if equals and column and (known is None or column in known):
            values[column] = None if value == _HIVE_NULL else unquote(value)
    return values


def _check_agreement(landed: pl.Series, value: str | None) -> None:
    """Check that all values of a column are the one in the path, as text, number, date or time."""
    text = landed.cast(pl.String, strict=False).str.strip_chars()
    expected = pl.Series([value], dtype=pl.String)
    agrees = text.eq_missing(expected)
    for dtype in (pl.Decimal(38, 10), pl.Boolean(), *([landed.dtype] if landed.dtype.is_temporal() else [])):
        typed = (
            expected.str.strptime(cast("Any", dtype), strict=False) if dtype.is_temporal() else _parse(expected, dtype)
        )
        if value is not None and typed.null_count() == 0:
            values = landed if landed.dtype == dtype else _parse(text, dtype)
            agrees |= (values == typed).fill_null(value=False)
    if not agrees.all():
        first = landed.filter(~agrees)[0]
        raise _disagreement(landed.name, value, repr(first), "the file")


def _parse(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    if dtype == pl.Boolean:
        lower = values.str.to_lowercase()
        return lower.replace_strict({"true": True, "false": False}, default=None, return_dtype=pl.Boolean)
    return values.cast(dtype, strict=False)


def _disagreement(column: str, in_path: str | None, other: str, where: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"column {column!r} is {in_path!r} in the path, but {other} in {where}; correct one of them"
    )
