"""Read image files, bring images to one size, and cut them into patches."""

import json
import re
from dataclasses import replace

import polars as pl

from ae_pipeline.config.source import ImagesConfig
from ae_pipeline.ingestion.image_files import decode_image
from ae_pipeline.ingestion.image_formats import IMAGE_SUFFIXES
from ae_pipeline.ingestion.image_shape import shape_image
from ae_pipeline.ingestion.images import UnreadableImageError, image_struct, pixels_of
from ae_pipeline.ingestion.patches import PATCH_COLUMNS, cut_patches
from ae_pipeline.ingestion.rows import (
    IMAGE_STRUCT,
    ORIGIN_COLUMNS,
    FileRows,
    UnreadableFileError,
    format_image,
    rejected_rows,
)

FILE_COLUMN = "file"
"""Column with the path of an image file below the landing folder."""


def is_image(name: str) -> bool:
    """Return whether a name has the suffix of an image file."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def read_image(name: str, data: bytes, images: ImagesConfig, max_pixels: int | None = None) -> FileRows:
    """Read an image file as one row. An image that cannot be read is a rejected row.

    Args:
        name: Path of the file below the landing folder.
        data: Content of the file.
        images: Settings for images.
        max_pixels: Maximum number of pixels.
    """
    expression = re.compile(images.path or "")
    values: dict[str, object] = {FILE_COLUMN: name}
    schema = {**dict.fromkeys((FILE_COLUMN, *expression.groupindex), pl.String()), images.column: IMAGE_STRUCT}
    try:
        image = decode_image(data, max_pixels)
    except UnreadableImageError as error:
        return undecoded_image(name, str(error), images)
    match = expression.search(name)
    if match is None:
        reason = f"{FILE_COLUMN} = {name} does not match images.path={images.path!r}; rename the file, or change path"
        return _rejected_image(f"{FILE_COLUMN}: path", reason, values, schema)
    values |= {**match.groupdict(), images.column: image_struct(image), "_row_number": 1}
    return FileRows(pl.DataFrame([values], schema={**schema, "_row_number": pl.Int64()}, orient="row"))


def values_of_path(name: str, images: ImagesConfig) -> dict[str, str | None] | None:
    """Return the texts that the path of an image file gives by their column; None if it does not match `images.path`.

    Args:
        name: Path of the file below the landing folder.
        images: Settings for images.
    """
    match = re.search(images.path or "", name)
    return None if match is None else {FILE_COLUMN: name, **match.groupdict()}


def undecoded_image(name: str, reason: str, images: ImagesConfig) -> FileRows:
    """Return an image file that cannot be decoded as a rejected row.

    Args:
        name: Path of the file below the landing folder.
        reason: Why it cannot be decoded.
        images: Settings for images.
    """
    groups = re.compile(images.path or "").groupindex
    schema = {**dict.fromkeys((FILE_COLUMN, *groups), pl.String()), images.column: IMAGE_STRUCT}
    return _rejected_image(f"{images.column}: readable", f"{images.column}: {reason}", {FILE_COLUMN: name}, schema)


def _rejected_image(rule: str, reason: str, values: dict[str, object], schema: dict[str, pl.DataType]) -> FileRows:
    rejected = rejected_rows([(1, rule, reason, json.dumps(values, ensure_ascii=False))])
    return FileRows(pl.DataFrame(schema={**schema, "_row_number": pl.Int64()}), rejected)


def rejected_images(rows: pl.DataFrame, column: str, rule: str, reasons: pl.Series) -> pl.DataFrame:
    """Return rejected rows with the shape of their image in place of its bytes.

    Args:
        rows: Rows to reject.
        column: Image column.
        rule: Violated rule.
        reasons: Reason for each row.
    """
    image = pl.coalesce(format_image(pl.col(column)), pl.lit("no image")).alias(column)
    record = pl.struct(pl.exclude(column, *ORIGIN_COLUMNS).cast(pl.String), image).struct.json_encode()
    return rows.select(
        source_file=pl.lit(None, pl.String),
        row_number="_row_number",
        rule=pl.lit(f"{column}: {rule}"),
        reason=reasons,
        record=record,
    )


def prepare_images(file: FileRows, images: ImagesConfig, max_pixels: int | None = None) -> FileRows:
    """Bring the images of a file to the mode and size of the settings, and cut them into patches if they say so.

    Args:
        file: Rows with images as they landed.
        images: Settings for images.
        max_pixels: Number of pixels up to which an image is enlarged.

    Raises:
        UnreadableFileError: A column has a name that holds the position of a patch.
    """
    if file.rows.schema.get(images.column) != IMAGE_STRUCT:
        return file
    if images.is_shaped:
        file = _shape_images(file, images, max_pixels)
    return _cut_images(file, images) if images.patch else file


def _shape_images(file: FileRows, images: ImagesConfig, max_pixels: int | None) -> FileRows:
    shaped: list[dict[str, object] | None] = []
    reasons: list[str | None] = []
    for image in file.rows[images.column]:
        try:
            shaped.append(image and image_struct(shape_image(pixels_of(image), images, max_pixels)))
            reasons.append(None)
        except UnreadableImageError as error:
            shaped.append(image)
            reasons.append(f"{images.column}: {error}")
    problems = pl.Series(reasons, dtype=pl.String)
    is_rejected = problems.is_not_null()
    rejected = rejected_images(file.rows.filter(is_rejected), images.column, "size", problems.filter(is_rejected))
    rows = file.rows.with_columns(pl.Series(images.column, shaped, dtype=IMAGE_STRUCT)).filter(~is_rejected)
    return replace(file, rows=rows, rejected=pl.concat([file.rejected, rejected]).sort("row_number"))


def _cut_images(file: FileRows, images: ImagesConfig) -> FileRows:
    assert images.patch
    if taken := [name for name in PATCH_COLUMNS if name in file.rows.columns]:
        raise UnreadableFileError(
            f"column {taken[0]!r} has a reserved name, which holds the position of a patch; rename it at the source"
        )
    stride = images.stride or images.patch
    rows, refused = cut_patches(file.rows, images.column, images.patch, stride, images.edge)
    reasons = pl.Series([f"{images.column}: {reason}" for _, reason in refused], dtype=pl.String)
    rejected = rejected_images(file.rows[[index for index, _ in refused]], images.column, "patches", reasons)
    return replace(file, rows=rows, rejected=pl.concat([file.rejected, rejected]).sort("row_number"))
