"""Read image files as rows without a frame each: for a small image, a frame takes longer than its pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
import pyarrow as pa

from ae_pipeline.ingestion.image_files import decode_image
from ae_pipeline.ingestion.image_shape import shape_image
from ae_pipeline.ingestion.images import Pixels, UnreadableImageError, little_endian
from ae_pipeline.ingestion.readers.failures import library_errors_as
from ae_pipeline.ingestion.readers.files import ReadOptions
from ae_pipeline.ingestion.readers.pictures import is_image, values_of_path
from ae_pipeline.ingestion.rows import IMAGE_STRUCT


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


def read_image_row(name: str, data: bytes, options: ReadOptions) -> ImageRow | None:
    """Return an image file as a row, or None if `read_file` must read it: it is rejected, or has patches, for example.

    Args:
        name: Path of the file below the landing folder.
        data: Content of the file.
        options: How the file is read.
    """
    images = options.images
    if images is None or images.patch or options.source.path_columns or "=" in name or not is_image(name):
        return None
    values, described = values_of_path(name, images), options.metadata.values_of(name)
    if values is None or described is None:
        return None
    texts = {**values, images.column: None, **described}
    if not options.left_out.isdisjoint(texts):
        return None
    try:
        with library_errors_as(UnreadableImageError, str):
            pixels = decode_image(data, options.source.limits.pixels)
            pixels = shape_image(pixels, images) if images.is_shaped else pixels
    except UnreadableImageError:
        return None
    return ImageRow(name, texts, images.column, _compact(little_endian(pixels)))


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


def binary_of(arrays: Sequence[Pixels]) -> pa.LargeBinaryArray:
    """Return the bytes of arrays as an Arrow array, copied once."""
    offsets = np.cumsum([0, *(array.nbytes for array in arrays)], dtype=np.int64)
    content = b"".join(np.ascontiguousarray(array).data.cast("B") for array in arrays if array.size)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(arrays), [None, pa.py_buffer(offsets), pa.py_buffer(content)]
    )
