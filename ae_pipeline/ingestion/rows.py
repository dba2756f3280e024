"""FileRows: the rows of landed files as read, before validation with the schema contract."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from ae_pipeline.config.columns import ImageShape
from ae_pipeline.config.source import Dialect

REJECTED_SCHEMA = {
    "source_file": pl.String(),
    "row_number": pl.Int64(),
    "rule": pl.String(),
    "reason": pl.String(),
    "record": pl.String(),
}
"""Columns of quarantined rows: file and row number, violated rule, reason as text, and the row as it landed (JSON)."""

_NO_ROWS = pl.DataFrame(schema=REJECTED_SCHEMA)

ORIGIN_COLUMNS = ("_source_file", "_row_number")
"""Columns with the file and the row number that a row comes from."""

IMAGE_STRUCT = pl.Struct(
    {"data": pl.Binary(), "height": pl.Int32(), "width": pl.Int32(), "channels": pl.Int32(), "dtype": pl.String()}
)
"""A decoded image: its values (row by row, channels last, little endian), its shape and the type of its values."""


class UnreadableFileError(Exception):
    """A landed file cannot be read at all. The message states the reason and the remedy."""


@dataclass(frozen=True)
class FileRows:
    """Rows of one or more files that have the same columns.

    Attributes:
        rows: Columns as in the files (text files and Excel: text as landed; images: `IMAGE_STRUCT`), and
            `ORIGIN_COLUMNS`. The row number is the first line of a row of a text file, or the row of another file, from
            1. All patches of an image have the same number.
        rejected: Rows that cannot be read, with the columns of `REJECTED_SCHEMA`.
        skipped: Reason for each column that was not read.
        dialect: How the text file is written; None for other files.
    """

    rows: pl.DataFrame
    rejected: pl.DataFrame = field(default_factory=_NO_ROWS.clone)
    skipped: Mapping[str, str] = field(default_factory=dict)
    dialect: Dialect | None = None


def rejected_rows(rows: Sequence[tuple[int, str, str, str]]) -> pl.DataFrame:
    """Return rejected rows with the columns of `REJECTED_SCHEMA`.

    Args:
        rows: Number, violated rule, reason and record of each row.
    """
    return pl.DataFrame([(None, *row) for row in rows], schema=REJECTED_SCHEMA, orient="row")


def check_names(names: Sequence[str]) -> None:
    """Check the names of the columns of a file.

    Raises:
        UnreadableFileError: A name is reserved or occurs twice.
    """
    if reserved := sorted(set(ORIGIN_COLUMNS) & set(names)):
        raise UnreadableFileError(f"column {reserved[0]!r} has a reserved name; rename it at the source")
    if duplicates := sorted(name for name, count in Counter(names).items() if count > 1):
        raise UnreadableFileError(f"two columns have the name {duplicates[0]!r}; give each column a unique name")


def format_image(image: pl.Expr) -> pl.Expr:
    """Return an expression for the shape of an image as text, such as `32×32×1 uint8`."""
    fields = (image.struct.field(name) for name in ("height", "width", "channels", "dtype"))
    return pl.format("{}×{}×{} {}", *fields)


def shape_problem(name: str, image: pl.Expr, shape: ImageShape) -> pl.Expr:
    """Return an expression for why an image of another shape than the schema contract says is rejected.

    Args:
        name: Image column, for a format of polars.
        image: Images.
        shape: Shape in the schema contract.
    """
    is_other = {key: image.struct.field(key) != getattr(shape, key) for key in ("height", "width", "channels")}
    setting = (
        pl.when(is_other["channels"])
        .then(pl.lit("set images.mode in the YAML, "))
        .when(is_other["height"] | is_other["width"])
        .then(pl.lit("set images.resize in the YAML to a height and a width, "))
        .otherwise(pl.lit(""))
    )
    remedy = "correct it at the source, or change the rule in the schema contract"
    return pl.format(f"{name} is {{}}, but the contract says {shape}; {{}}{remedy}", format_image(image), setting)


def plain_text(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows with dictionary-encoded text as plain text, so that the same rules hold for both."""
    encoded = [name for name, dtype in rows.schema.items() if isinstance(dtype, pl.Categorical | pl.Enum)]
    return rows.with_columns(pl.col(encoded).cast(pl.String)) if encoded else rows


def content_hashes(rows: pl.DataFrame) -> pl.Series:
    """Return a hash of the values of each row: 32 hexadecimal digits of SHA-256.

    The order of the columns and columns without a value do not matter, so that a new optional column changes no hash.

    Args:
        rows: Typed values of the columns of a schema contract.
    """
    parts = [
        pl.lit(json.dumps(name) + ":") + _content_text(name, dtype) + "\x1e"
        for name, dtype in sorted(rows.schema.items())
    ]
    contents = rows.select(pl.concat_str(parts, ignore_nulls=True).alias("row_id")).to_series()
    return pl.Series("row_id", [hashlib.sha256(text.encode()).hexdigest()[:32] for text in contents], dtype=pl.String)


def with_occurrence(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows whose `row_id` is a hash of their content, with the number of the occurrence behind it."""
    occurrence = pl.int_range(1, pl.len() + 1).over("row_id")
    return rows.with_columns(row_id=pl.format("{}-{}", "row_id", occurrence))


def _content_text(name: str, dtype: pl.DataType) -> pl.Expr:
    value = pl.col(name)
    if dtype == pl.Binary:
        return value.bin.encode("hex")
    if dtype.is_temporal():
        value = value.to_physical()
    text = value.cast(pl.String)
    return text.str.replace_all("\\", r"\\", literal=True).str.replace_all("\x1e", r"\u", literal=True)
