"""Cuts images into patches, without a loop over pixels."""

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ae_pipeline.ingestion.rows import IMAGE_STRUCT

PATCH_COLUMNS = ("top", "left")
"""Columns that say where in its image a patch stands, in pixels."""

_MAX_PATCH_BYTES = 1 << 30


def cut_patches(rows: pl.DataFrame, column: str, patch: int, stride: int) -> tuple[pl.DataFrame, list[tuple[int, str]]]:
    """Cuts each image into square patches, row by row from its upper left corner.

    All patches of a file are held at once; strides far below the patch multiply the bytes of an image.

    Args:
        rows: With images in `column`, none missing.
        column: Its name.
        patch: Pixels of a side.
        stride: Pixels from one patch to the next.

    Returns:
        A row for each patch, in the order of the images, with `PATCH_COLUMNS` added; and the places in `rows` of the
        images that give none, with the reason.
    """
    images = rows.select(pl.col(column).struct.unnest()).with_columns(_place=pl.int_range(pl.len()))
    parts = [pl.DataFrame(schema={"_place": pl.Int64(), "top": pl.Int64(), "left": pl.Int64(), column: IMAGE_STRUCT})]
    refused: list[tuple[int, str]] = []
    for (height, width, channels, dtype), alike in images.group_by("height", "width", "channels", "dtype"):
        kind = np.dtype(dtype).newbyteorder("<")
        tops, lefts = (range(0, size - patch + 1, stride) for size in (height, width))
        count = len(tops) * len(lefts)
        if not count:
            why = (
                f"it has {height}×{width} pixels, fewer than a patch of {patch}×{patch}; land it larger, or change "
                "patch of images in the YAML"
            )
        elif count * patch * patch * channels * kind.itemsize > _MAX_PATCH_BYTES:
            why = (
                f"its {count:,} patches take more than {_MAX_PATCH_BYTES >> 30} GiB; land it in parts, or change "
                "stride of images in the YAML"
            )
        else:
            pixels = np.frombuffer(b"".join(alike["data"].to_list()), kind).reshape(-1, height, width, channels)
            top, left = (grid.ravel() for grid in np.meshgrid(tops, lefts, indexing="ij"))
            index = {
                "_place": np.repeat(alike["_place"].to_numpy(), count),
                "top": np.tile(top, alike.height),
                "left": np.tile(left, alike.height),
            }
            shape = {"height": patch, "width": patch, "channels": channels, "dtype": pl.lit(dtype)}
            cut = pl.struct(data=pl.lit(_patches(pixels, patch, stride)), **shape).cast(IMAGE_STRUCT)
            parts.append(pl.DataFrame(index).with_columns(cut.alias(column)))
            continue
        refused += [(index, why) for index in alike["_place"]]
    patches = pl.concat(parts).sort("_place", maintain_order=True)
    beside = rows.drop(column)[patches["_place"]]
    found = pl.concat([beside, patches.drop("_place")], how="horizontal")
    return found.select(*rows.columns, *PATCH_COLUMNS), sorted(refused)


def _patches(pixels: npt.NDArray[np.generic], patch: int, stride: int) -> pl.Series:
    """Cuts images of shape (n, height, width, channels) into the bytes of their patches, image by image."""
    view = np.lib.stride_tricks.sliding_window_view(pixels, (patch, patch), axis=(1, 2))
    windows = view[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)  # (n, tops, lefts, patch, patch, channels)
    values = np.ascontiguousarray(windows)
    count = int(np.prod(values.shape[:3]))
    starts = np.arange(count + 1, dtype=np.int64) * (values.nbytes // max(count, 1))
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(values)]
    return pl.Series(pl.from_arrow(pa.LargeBinaryArray.from_buffers(pa.large_binary(), count, buffers)))
