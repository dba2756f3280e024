"""FileRows: the rows of landed files as read, before validation with the schema contract."""

from dataclasses import dataclass, field

import polars as pl

REJECTED_SCHEMA = {
    "source_file": pl.String(),
    "row_number": pl.Int64(),
    "rule": pl.String(),
    "reason": pl.String(),
    "record": pl.String(),
}
"""Columns of quarantined rows: file and row number, violated rule, reason as text, and the row as it landed (JSON)."""

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
        rows: Columns as in the files (CSV: text only; images: `IMAGE_STRUCT`), and `ORIGIN_COLUMNS`. The row number is
            the line of a CSV file or the row of a Parquet file, from 1. All patches of an image have the same number.
        rejected: Rows that cannot be read, with the columns of `REJECTED_SCHEMA`.
    """

    rows: pl.DataFrame
    rejected: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=REJECTED_SCHEMA))


def format_image(image: pl.Expr) -> pl.Expr:
    """Return an expression for the shape of an image as text, such as `32×32×1 uint8`."""
    fields = (image.struct.field(name) for name in ("height", "width", "channels", "dtype"))
    return pl.format("{}×{}×{} {}", *fields)
