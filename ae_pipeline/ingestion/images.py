"""Reads images: decodes PNG and JPEG, and takes arrays out of Arrow columns without a loop over pixels."""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps, UnidentifiedImageError

from ae_pipeline.common.text import first_line
from ae_pipeline.ingestion.rows import IMAGE_STRUCT, UnreadableFileError

_FORMATS = ("PNG", "JPEG")
# All that Pillow's readers are known to raise on bytes that are no whole image.
_BROKEN = (OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, struct.error, zlib.error)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_SAME_COLOURS = {"1": "L", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "RGBX": "RGB"}

Pixels = npt.NDArray[Any]


class UnreadableImageError(Exception):
    """Bytes that are no image; the message says why and what to do."""


@dataclass(frozen=True)
class ImageColumn:
    """Images of a column, row for row.

    Attributes:
        images: `IMAGE_STRUCT`, null where there is no image to be had.
        reasons: Why not, null elsewhere.
    """

    images: pl.Series
    reasons: pl.Series


def decode_image(data: bytes) -> Pixels:
    """Decodes a PNG or JPEG, turned upright as its EXIF data say.

    Grey, grey with alpha, RGB and RGBA stay what they are. A palette becomes the colours it stands for, black and white
    becomes grey, CMYK becomes RGB. 16-bit grey keeps its 16 bits; of 16-bit colour Pillow gives the upper 8.

    Returns:
        uint8 or uint16 of shape (height, width, channels).

    Raises:
        UnreadableImageError: It is neither, is cut off, or is too large to be opened safely.
    """
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(io.BytesIO(data), formats=_FORMATS) as opened,
        ):
            image = _in_plain_colours(ImageOps.exif_transpose(opened))
            pixels = np.asarray(image)
    except _BOMBS as error:
        raise UnreadableImageError(
            f"it has too many pixels to be opened safely ({first_line(error)}); land it smaller, or cut into parts"
        ) from error
    except _BROKEN as error:
        told = first_line(error) if not isinstance(error, UnidentifiedImageError) else "neither PNG nor JPEG"
        raise UnreadableImageError(
            f"it cannot be read as an image ({told}); it may have been cut off on its way: land it again"
        ) from error
    if pixels.dtype != np.uint8:  # I;16, or I from a Pillow of before 11
        pixels = pixels.astype(np.uint16)
    return pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis]


def _in_plain_colours(image: Image.Image) -> Image.Image:
    if image.mode == "P":
        return image.convert("RGBA" if "transparency" in image.info else "RGB")
    return image.convert(_SAME_COLOURS[image.mode]) if image.mode in _SAME_COLOURS else image


def image_struct(pixels: Pixels) -> dict[str, Any]:
    """Gives the fields of `IMAGE_STRUCT` of an array of shape (height, width, channels)."""
    height, width, channels = pixels.shape
    data = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)).tobytes()
    return {"data": data, "height": height, "width": width, "channels": channels, "dtype": pixels.dtype.name}


def read_image_column(column: pa.ChunkedArray, name: str, dtype: str | None = None) -> ImageColumn:
    """Reads images of a Parquet column: nested lists of numbers, encoded bytes, or a struct that holds such bytes.

    Args:
        column: Its values, n rows.
        name: Its name, for messages.
        dtype: What integers of other widths than 8 and 16 bits are to become, where the contract says it.

    Raises:
        UnreadableFileError: Values of its type are no images.
    """
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:  # as the datasets of Hugging Face hold them
        column = pc.struct_field(column, "bytes")
        kind = column.type
    if pa.types.is_null(kind):
        return _decoded([None] * len(column))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return _decoded(column.to_pylist())
    if isinstance(kind, pa.FixedShapeTensorType):
        column, kind = _as_lists(column)
    depth, leaf = _depth(kind)
    if depth not in {2, 3} or not (pa.types.is_integer(leaf) or pa.types.is_floating(leaf)):
        raise UnreadableFileError(
            f"column {name!r} holds {kind}, and an image is lists of numbers, height × width or height × width × "
            "channels, or the bytes of a PNG or JPEG; change it at the source, or name another column in images"
        )
    target = leaf
    for _ in range(depth):
        target = pa.large_list(target)
    arrays = [_Arrays.of(chunk.cast(target), depth) for chunk in column.chunks]
    return _Arrays.joined(arrays, leaf).read(dtype)


def _decoded(values: list[bytes | None]) -> ImageColumn:
    images: list[dict[str, Any] | None] = []
    reasons: list[str | None] = []
    for value in values:
        try:
            if not value:
                raise UnreadableImageError("it is missing; fill it at the source")
            images.append(image_struct(decode_image(value)))
            reasons.append(None)
        except UnreadableImageError as error:
            images.append(None)
            reasons.append(str(error))
    return ImageColumn(pl.Series(images, dtype=IMAGE_STRUCT), pl.Series(reasons, dtype=pl.String))


def _as_lists(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.DataType]:
    """Turns tensors of one shape, which Arrow keeps flat, into nested lists."""
    shape, order = column.type.shape, column.type.permutation
    if order is not None and list(order) != sorted(order):
        raise UnreadableFileError(
            f"it holds tensors in the order {list(order)} of their axes; land them row by row, channels last"
        )
    kind = column.type.value_type
    for size in reversed(shape):
        kind = pa.list_(kind, size)
    chunks = []
    for chunk in column.chunks:
        values = chunk.storage.values.slice(chunk.offset * int(np.prod(shape)), len(chunk) * int(np.prod(shape)))
        for size in reversed(shape[1:]):
            values = pa.FixedSizeListArray.from_arrays(values, size)
        chunks.append(pa.FixedSizeListArray.from_arrays(values, shape[0], mask=chunk.is_null()))
    return pa.chunked_array(chunks, kind), kind


def _depth(kind: pa.DataType) -> tuple[int, pa.DataType]:
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        depth, kind = depth + 1, kind.value_type
    return depth, kind


@dataclass(frozen=True)
class _Arrays:
    """Arrays of n rows as their values lie in memory, one after another, and what is wrong with them.

    Attributes:
        values: Of all rows, flat.
        starts: Where each row's values begin, and where the last one's end, (n + 1,).
        shape: Height, width and channels, (n, 3).
        is_missing: Whether a row, or a value in it, is null, (n,).
        is_ragged: Whether lists of a row differ in length, (n,).
    """

    values: Pixels
    starts: npt.NDArray[np.int64]
    shape: npt.NDArray[np.int64]
    is_missing: npt.NDArray[np.bool_]
    is_ragged: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, array: pa.Array, depth: int) -> "_Arrays":
        """Takes nested large lists apart."""
        count = len(array)
        is_missing = array.is_null().to_numpy(zero_copy_only=False)
        is_ragged = np.zeros(count, dtype=bool)
        starts = array.offsets.to_numpy()
        lengths = [np.diff(starts)]
        for _ in range(depth - 1):
            array = array.values
            is_missing = is_missing | _any(array.is_null().to_numpy(zero_copy_only=False), starts)
            offsets = array.offsets.to_numpy()
            here = np.diff(offsets)
            first = here[np.minimum(starts[:-1], len(here) - 1)] if len(here) else np.zeros(count, dtype=np.int64)
            inside = here[starts[0] : starts[-1]] != np.repeat(first, np.diff(starts))
            is_ragged = is_ragged | _any(inside, starts - starts[0])
            starts = offsets[starts]
            lengths.append(np.where(lengths[-1] > 0, first, 0))
        array = array.values
        is_missing = is_missing | _any(array.is_null().to_numpy(zero_copy_only=False), starts)
        if depth == 2:
            lengths.append(np.ones(count, dtype=np.int64))
        values = (array.fill_null(0) if array.null_count else array).to_numpy(zero_copy_only=False)[
            starts[0] : starts[-1]
        ]
        return cls(values, starts - starts[0], np.stack(lengths, axis=1), is_missing, is_ragged)

    @classmethod
    def joined(cls, parts: list["_Arrays"], leaf: pa.DataType) -> "_Arrays":
        """Puts chunks of one column one after another."""
        kind, nothing = leaf.to_pandas_dtype(), np.zeros(0, dtype=bool)
        ends = np.cumsum([0, *(len(part.values) for part in parts)])
        return cls(
            np.concatenate([np.zeros(0, dtype=kind), *(part.values for part in parts)]),
            np.concatenate([[0], *(part.starts[1:] + end for part, end in zip(parts, ends[:-1], strict=True))]),
            np.concatenate([np.zeros((0, 3), dtype=np.int64), *(part.shape for part in parts)]),
            np.concatenate([nothing, *(part.is_missing for part in parts)]),
            np.concatenate([nothing, *(part.is_ragged for part in parts)]),
        )

    def read(self, dtype: str | None) -> ImageColumn:
        """Makes images of the arrays, in the types that the contract knows."""
        reason = np.full(len(self.shape), None, dtype=object)
        reason[self.shape.prod(axis=1) == 0] = "it has no pixel; fill it at the source"
        reason[self.is_ragged] = "its lists differ in length, so it is no rectangle; mend it at the source"
        reason[self.is_missing] = "it, or a value in it, is missing; fill it at the source"
        values, unfit, why = _in_contract_type(self.values, self.starts, reason == None, dtype)  # noqa: E711
        reason[(reason == None) & unfit] = why  # noqa: E711
        fits = reason == None  # noqa: E711
        data = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(),
            len(self.shape),
            [None, pa.py_buffer(self.starts * values.itemsize), pa.py_buffer(values)],
        )
        fields = dict(zip(("height", "width", "channels"), self.shape.T, strict=True))
        frame = pl.DataFrame({"data": pl.from_arrow(data), **fields, "fits": fits})
        image = pl.struct("data", *fields, dtype=pl.lit(values.dtype.name)).cast(IMAGE_STRUCT)
        return ImageColumn(
            frame.select(pl.when("fits").then(image)).to_series(), pl.Series(reason.tolist(), dtype=pl.String)
        )


def _any(wrong: npt.NDArray[np.bool_], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether anything is wrong between each start and the next."""
    return np.diff(np.concatenate([[0], np.cumsum(wrong)])[starts]) > 0


def _in_contract_type(
    values: Pixels, starts: npt.NDArray[np.int64], sound: npt.NDArray[np.bool_], dtype: str | None
) -> tuple[Pixels, npt.NDArray[np.bool_], str]:
    """Brings values to uint8, uint16 or float32; gives them, which rows they do not fit, and why.

    Integers of other widths say nothing about the range that is meant: they become what the contract says, and before
    there is one uint8 where most rows of the file fit it, and uint16 otherwise, so that neither a dark image nor a
    wrong one sets itself apart.
    """
    if values.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        return values.astype(values.dtype.newbyteorder("<"), copy=False), np.zeros(len(sound), dtype=bool), ""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            single = values.astype("<f4")
        return single, _any(~np.isfinite(single), starts), "a value in it is not finite; mend it at the source"
    beyond_8, beyond_16 = (_any((values < 0) | (values > top), starts) for top in (255, 65535))
    is_8_bit = dtype == "uint8" or (dtype != "uint16" and (beyond_8 & sound).sum() * 2 <= sound.sum())
    if is_8_bit:
        return (
            values.astype(np.uint8),
            beyond_8,
            "a value in it is not within 0 to 255, as in most; mend it at the source",
        )
    return values.astype("<u2"), beyond_16, "a value in it is not within 0 to 65535; mend it at the source"
