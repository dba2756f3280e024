"""Cut images into square patches with array operations."""

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.ingestion.rows import IMAGE_STRUCT

PATCH_COLUMNS = ("top", "left")
"""Columns with the position of the upper left corner of a patch in its image, in pixels."""

_MAX_PATCH_BYTES = 1 << 30


def cut_patches(
    rows: pl.DataFrame, column: str, patch: int, stride: int, edge: str = "flush"
) -> tuple[pl.DataFrame, list[tuple[int, str]]]:
    """Cut each image into square patches, row by row from its upper left corner.

    All patches of a file are in memory at once. A stride far below the patch size multiplies the bytes of an image.

    Args:
        rows: Rows with images in `column`, without missing values.
        column: Name of the image column.
        patch: Side of a patch in pixels.
        stride: Distance from one patch to the next in pixels.
        edge: What becomes of pixels left over at the lower and right edge: "flush" adds a patch that ends at the edge,
            "pad" repeats the last pixels until a patch is full, "ignore" leaves them out.

    Returns:
        One row per patch, in the order of the images, with `PATCH_COLUMNS`; and the index and reason of each row whose
        image cannot be cut.
    """
    images = rows.select(pl.col(column).struct.unnest()).with_columns(_row=pl.int_range(pl.len()))
    parts = [pl.DataFrame(schema={"_row": pl.Int64(), "top": pl.Int64(), "left": pl.Int64(), column: IMAGE_STRUCT})]
    refused: list[tuple[int, str]] = []
    for (height, width, channels, dtype), group in images.group_by("height", "width", "channels", "dtype"):
        kind = np.dtype(dtype).newbyteorder("<")
        tops, lefts = (_starts(size, patch, stride, edge) for size in (height, width))
        count = len(tops) * len(lefts)
        if not count:
            reason = (
                f"it has {height}×{width} pixels, fewer than a patch of {patch}×{patch}; land a larger image, or "
                "change images.patch in the YAML"
            )
        elif count * patch * patch * channels * kind.itemsize > _MAX_PATCH_BYTES:
            reason = (
                f"its {count:,} patches take more than {_MAX_PATCH_BYTES >> 30} GiB; land it in parts, or change "
                "images.stride in the YAML"
            )
        else:
            pixels = np.frombuffer(b"".join(group["data"].to_list()), kind).reshape(-1, height, width, channels)
            if edge == "pad":
                margins = ((0, max(0, starts[-1] + patch - size)) for starts, size in ((tops, height), (lefts, width)))
                pixels = np.pad(pixels, ((0, 0), *margins, (0, 0)), mode="edge")
            top, left = (grid.ravel() for grid in np.meshgrid(tops, lefts, indexing="ij"))
            positions = {
                "_row": np.repeat(group["_row"].to_numpy(), count),
                "top": np.tile(top, group.height),
                "left": np.tile(left, group.height),
            }
            shape = {"height": patch, "width": patch, "channels": channels, "dtype": pl.lit(dtype)}
            cut = pl.struct(data=pl.lit(_patches(pixels, patch, tops, lefts)), **shape).cast(IMAGE_STRUCT)
            parts.append(pl.DataFrame(positions).with_columns(cut.alias(column)))
            continue
        refused += [(index, reason) for index in group["_row"]]
    patches = pl.concat(parts).sort("_row", maintain_order=True)
    other_columns = rows.drop(column)[patches["_row"]]
    result = pl.concat([other_columns, patches.drop("_row")], how="horizontal")
    return result.select(*rows.columns, *PATCH_COLUMNS), sorted(refused)


def _starts(size: int, patch: int, stride: int, edge: str) -> list[int]:
    """Return where patches begin along a side; empty if the side is shorter than a patch."""
    starts = [*range(0, size - patch + 1, stride)]
    if edge == "pad" and not starts:
        return [0]
    if edge == "pad" and starts[-1] + patch < size and starts[-1] + stride < size:
        starts.append(starts[-1] + stride)
    elif edge == "flush" and starts and starts[-1] + patch < size:
        starts.append(size - patch)
    return starts


def _patches(pixels: npt.NDArray[np.generic], patch: int, tops: list[int], lefts: list[int]) -> pl.Series:
    """Return the bytes of the patches of images of shape (n, height, width, channels), image by image."""
    import pyarrow as pa

    view = np.lib.stride_tricks.sliding_window_view(pixels, (patch, patch), axis=(1, 2))
    windows = view[:, tops][:, :, lefts].transpose(0, 1, 2, 4, 5, 3)  # (n, tops, lefts, patch, patch, channels)
    values = np.ascontiguousarray(windows)
    count = int(np.prod(values.shape[:3]))
    starts = np.arange(count + 1, dtype=np.int64) * (values.nbytes // max(count, 1))
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(values)]
    return pl.Series(pl.from_arrow(pa.LargeBinaryArray.from_buffers(pa.large_binary(), count, buffers)))
