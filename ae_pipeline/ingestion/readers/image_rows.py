"""Read image files as rows without a frame each: for a small image, a frame takes longer than its pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
import polars as pl
import pyarrow as pa

from ae_pipeline.ingestion.image_files import decode_image
from ae_pipeline.ingestion.image_shape import shape_image
from ae_pipeline.ingestion.images import Pixels, UnreadableImageError, little_endian
from ae_pipeline.ingestion.readers.failures import library_errors_as
from ae_pipeline.ingestion.readers.files import ReadOptions, completed
from ae_pipeline.ingestion.readers.image_metadata import merged_texts
from ae_pipeline.ingestion.readers.pictures import is_image, undecoded_image, values_of_path
from ae_pipeline.ingestion.rows import IMAGE_STRUCT, FileRows

_CHUNK_BYTES = 32 << 10
"""Size from which an array is a chunk of its own, because a copy into new memory takes longer than a chunk."""


@dataclass(frozen=True)
class ImageRow:
    """An image file as one row.

    Attributes:
        name: Path of the file below the landing folder.
        texts: Texts by their column, in order. The image column has None.
        column: Image column.
        pixels: Array of shape (height, width, channels), little endian.
    """

    name: str
    texts: dict[str, str | None]
    column: str
    pixels: Pixels

    @property
    def schema(self) -> tuple[tuple[str, pl.DataType], ...]:
        """Name and type of the columns that `read_file` would return."""
        return _schema(tuple(self.texts), self.column)


@lru_cache(maxsize=16)
def _schema(columns: tuple[str, ...], image: str) -> tuple[tuple[str, pl.DataType], ...]:
    schema: list[tuple[str, pl.DataType]] = []
    for column in columns:
        schema.append((column, IMAGE_STRUCT if column == image else pl.String()))
        schema += [("_row_number", pl.Int64())] if column == image else []
    return (*schema, ("_source_file", pl.String()))


def read_image_row(name: str, data: bytes, options: ReadOptions) -> ImageRow | FileRows | None:
    """Return an image file as a row, or None if `read_file` must read it, because it has patches, for example.

    Args:
        name: Path of the file below the landing folder.
        data: Content of the file.
        options: How the file is read.

    Returns:
        The row; or what `read_file` would return, if the image is rejected after it was decoded.
    """
    images = options.images
    if images is None or images.patch or options.source.path_columns or "=" in name or not is_image(name):
        return None
    values, described = values_of_path(name, images), options.metadata.values_of(name)
    if values is None or described is None:
        return None
    texts = merged_texts({**values, images.column: None}, described)
    if not options.left_out.isdisjoint(texts):
        return None
    pixels: Pixels | None = None
    reason = ""
    try:
        with library_errors_as(_LibraryError, str):
            try:
                pixels = decode_image(data, max_pixels := options.source.limits.pixels)
                shaped = shape_image(pixels, images, max_pixels) if images.is_shaped else pixels
            except UnreadableImageError as error:
                reason = str(error)
    except _LibraryError:
        return None
    if pixels is None:
        return completed(name, undecoded_image(name, reason, images), options)
    if reason:  # `completed` shapes the image again, and rejects it
        whole = ImageRow(name, {**values, images.column: None}, images.column, little_endian(pixels))
        return completed(name, FileRows(frame_of([whole]).drop("_source_file")), options)
    return ImageRow(name, texts, images.column, _compact(little_endian(shaped)))


class _LibraryError(Exception):
    """A library fails on an image with an error that it does not name."""


def _compact(pixels: Pixels) -> Pixels:
    """Return an array that keeps no larger one in memory, as a view of a cropped image does."""
    root = pixels
    while isinstance(root.base, np.ndarray):
        root = root.base
    return pixels if root.nbytes <= pixels.nbytes else pixels.copy()


def frame_of(rows: Sequence[ImageRow], data: pl.Series | None = None) -> pl.DataFrame:
    """Return the frame that `read_file` would return for image files.

    Args:
        rows: One or more images with the same columns.
        data: What to put in the place of the bytes of each image; the bytes by default.
    """
    values = pl.Series(pl.from_arrow(binary_of([row.pixels for row in rows]))) if data is None else data
    shapes = [row.pixels.shape for row in rows]
    sizes = {name: [shape[axis] for shape in shapes] for axis, name in enumerate(("height", "width", "channels"))}
    dtypes = [row.pixels.dtype.name for row in rows]
    columns: list[pl.Series] = []
    for name, dtype in rows[0].schema:
        match name:
            case "_row_number":
                columns.append(pl.Series(name, [1] * len(rows), dtype))
            case "_source_file":
                columns.append(pl.Series(name, [row.name for row in rows], dtype))
            case _ if dtype == IMAGE_STRUCT:
                columns.append(pl.DataFrame({"data": values, **sizes, "dtype": dtypes}).to_struct(name).cast(dtype))
            case _:
                columns.append(pl.Series(name, [row.texts[name] for row in rows], dtype))
    return pl.DataFrame(columns)


def binary_of(arrays: Sequence[Pixels]) -> pa.ChunkedArray:
    """Return the bytes of arrays as an Arrow array. Those of large arrays are not copied, but have a chunk each."""
    chunks = [
        chunk
        for is_large, group in groupby(arrays, lambda array: array.nbytes >= _CHUNK_BYTES)
        for chunk in (map(_binary, ([array] for array in group)) if is_large else [_binary(list(group))])
    ]
    return pa.chunked_array(chunks, pa.large_binary())


def _binary(arrays: Sequence[Pixels]) -> pa.LargeBinaryArray:
    """Return the bytes of arrays as one chunk: those of a single array as they are, and a copy of several."""
    offsets = np.cumsum([0, *(array.nbytes for array in arrays)], dtype=np.int64)
    parts = [np.ascontiguousarray(array).data.cast("B") for array in arrays if array.size]
    content = parts[0] if len(parts) == 1 else b"".join(parts)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(arrays), [None, pa.py_buffer(offsets), pa.py_buffer(content)]
    )
