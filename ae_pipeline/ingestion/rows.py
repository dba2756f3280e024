"""FileRows: what reading a landed file comes to, before anything is held against the schema contract."""

from dataclasses import dataclass, field

import polars as pl

REJECTED_SCHEMA = {
    "source_file": pl.String(),
    "row_number": pl.Int64(),
    "rule": pl.String(),
    "reason": pl.String(),
    "record": pl.String(),
}
"""Rows in quarantine: file and place in it, the rule broken, the reason in words, the row as it stood."""

PLACE = ("_source_file", "_row_number")
"""Columns that say where a row comes from."""

IMAGE_STRUCT = pl.Struct(
    {"data": pl.Binary(), "height": pl.Int32(), "width": pl.Int32(), "channels": pl.Int32(), "dtype": pl.String()}
)
"""An image that was read: its values row by row, channels last, little endian, and what they are."""


class UnreadableFileError(Exception):
    """A landed file that cannot be read at all; the message says why and what to do."""


@dataclass(frozen=True)
class FileRows:
    """What one or more files of the same columns hold.

    Attributes:
        rows: Their columns as they stand in them (CSV: all text; images: `IMAGE_STRUCT`), and `PLACE`: the file, and
            the line in a CSV or the row in a Parquet file, counted from 1. Patches of one image share it.
        rejected: Rows that cannot be read, in the columns of `REJECTED_SCHEMA`.
    """

    rows: pl.DataFrame
    rejected: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=REJECTED_SCHEMA))


def image_words(image: pl.Expr) -> pl.Expr:
    """Says what an image is, such as `32×32×1 uint8`."""
    fields = (image.struct.field(name) for name in ("height", "width", "channels", "dtype"))
    return pl.format("{}×{}×{} {}", *fields)
