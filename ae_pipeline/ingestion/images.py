"""Images as rows, and columns of images: nested Arrow lists become arrays without a loop over pixels."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from ae_pipeline.ingestion.rows import IMAGE_STRUCT, UnreadableFileError

Pixels = npt.NDArray[Any]

_MAX_CHANNELS = 4
"""Largest number of channels that a file of unknown layout can have: red, green, blue and alpha."""


class UnreadableImageError(Exception):
    """Bytes are not a valid image. The message states the reason and the remedy."""


@dataclass(frozen=True)
class ImageColumn:
    """The images of a column, one per row.

    Attributes:
        images: Images as `IMAGE_STRUCT`, null for a row without a readable image.
        reasons: Reason for each row without a readable image, null for the others.
    """

    images: pl.Series
    reasons: pl.Series


def image_struct(pixels: Pixels) -> dict[str, Any]:
    """Return the fields of `IMAGE_STRUCT` for an array of shape (height, width, channels).

    >>> image_struct(np.zeros((2, 3, 1), np.uint8))["height"], image_struct(np.zeros((2, 3, 1), np.uint8))["dtype"]
    (2, 'uint8')
    """
    height, width, channels = pixels.shape
    data = np.ascontiguousarray(little_endian(pixels)).tobytes()
    return {"data": data, "height": height, "width": width, "channels": channels, "dtype": pixels.dtype.name}


def little_endian(pixels: Pixels) -> Pixels:
    """Return pixels with little-endian values."""
    return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)


def pixels_of(image: dict[str, Any]) -> Pixels:
    """Return the array of shape (height, width, channels) that `image_struct` has made fields of."""
    kind = np.dtype(image["dtype"]).newbyteorder("<")
    return np.frombuffer(image["data"], kind).reshape(image["height"], image["width"], image["channels"])


def image_bytes(images: pl.Series) -> int:
    """Return the size of the values of images in bytes.

    Args:
        images: Column of `IMAGE_STRUCT`. A file has one image as a rule, for which a query would take too long.
    """
    fields = images.struct.unnest()
    if len(images) != 1 or fields["dtype"][0] is None:
        return int(fields["data"].bin.size().sum() or 0)
    values = math.prod(int(fields[name][0]) for name in ("height", "width", "channels"))
    return values * int(np.dtype(fields["dtype"][0]).itemsize)


def read_image_column(
    column: pa.ChunkedArray,
    name: str,
    decode: Callable[[bytes], Pixels],
    dtype: str | None = None,
    axis: str | None = None,
) -> ImageColumn:
    """Read the images of a Parquet column: nested lists of numbers, encoded bytes, or a struct with encoded bytes.

    Args:
        column: Values of the column, n rows.
        name: Name of the column, for messages.
        decode: Function that decodes an image file.
        dtype: Type for integers that have neither 8 nor 16 bits, if the schema contract declares it.
        axis: Where arrays with three axes have their channels, "first" or "last"; None to find out.

    Raises:
        UnreadableFileError: The type of the column cannot hold images, or it is not clear which axis is the channels.
    """
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:  # the format of Hugging Face datasets
        column = pc.struct_field(column, "bytes")
        kind = column.type
    if pa.types.is_null(kind):
        return _decode_all([None] * len(column), decode)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return _decode_all(column.to_pylist(), decode)
    if isinstance(kind, pa.FixedShapeTensorType):
        column, kind = _as_lists(column)
    depth, leaf = _depth(kind)
    if depth not in {2, 3} or not (pa.types.is_integer(leaf) or pa.types.is_floating(leaf)):
        raise UnreadableFileError(
            f"column {name!r} has type {kind}, but an image must be nested lists of numbers (height × width, or height "
            "× width × channels) or the bytes of an image file; change it at the source, or set another images.column"
        )
    target = leaf
    for _ in range(depth):
        target = pa.large_list(target)
    arrays = [_Arrays.from_lists(chunk.cast(target), depth) for chunk in column.chunks]
    images = _Arrays.concatenate(arrays, leaf)
    if depth == 3 and (axis or _channel_axis(images, name, is_known=dtype is not None)) == "first":
        images = images.with_channels_last()
    return images.to_images(dtype)


def _channel_axis(images: "_Arrays", name: str, *, is_known: bool) -> str:
    """Return where the channels of arrays with three axes are. One to four values on one axis only are the channels.

    Args:
        images: The arrays.
        name: Name of the column, for messages.
        is_known: Whether a schema contract has the shape of the images. Until version 0.3 it has the channels last.

    Raises:
        UnreadableFileError: Both the first and the last axis can be the channels, or neither.
    """
    shapes = np.unique(images.shape[~(images.is_missing | images.is_ragged)], axis=0)
    can_be_first, can_be_last = (bool((shapes[:, axis] <= _MAX_CHANNELS).all()) for axis in (0, 2))
    if can_be_first != can_be_last:
        return "first" if can_be_first else "last"
    if is_known or (shapes[:, 2] <= 1).all():
        return "last"
    fits_first, fits_last = (shapes[:, axis] <= _MAX_CHANNELS for axis in (0, 2))
    only_first, only_last = shapes[fits_first & ~fits_last], shapes[fits_last & ~fits_first]
    if len(only_first) and len(only_last):
        raise UnreadableFileError(
            f"column {name!r} has arrays of {_times(only_first[0])}, with the channels first, and of "
            f"{_times(only_last[0])}, with the channels last; land all arrays with one order of axes"
        )
    shape = _times(shapes[0])
    raise UnreadableFileError(
        f"column {name!r} has arrays of {shape}, and the channels can be the first or the last axis; set "
        "images.channels to first or last in the YAML"
    )


def _times(shape: npt.NDArray[np.int64]) -> str:
    return "×".join(map(str, shape))


def _decode_all(values: list[bytes | None], decode: Callable[[bytes], Pixels]) -> ImageColumn:
    images: list[dict[str, Any] | None] = []
    reasons: list[str | None] = []
    for value in values:
        try:
            if not value:
                raise UnreadableImageError("it is missing; add it at the source")
            images.append(image_struct(decode(value)))
            reasons.append(None)
        except UnreadableImageError as error:
            images.append(None)
            reasons.append(str(error))
    return ImageColumn(pl.Series(images, dtype=IMAGE_STRUCT), pl.Series(reasons, dtype=pl.String))


def _as_lists(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.DataType]:
    """Convert an Arrow column of tensors of a fixed shape to nested lists."""
    shape, order = column.type.shape, column.type.permutation
    if order is not None and list(order) != sorted(order):
        raise UnreadableFileError(f"its tensors have the axis order {list(order)}; land them row by row, channels last")
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


@dataclass(frozen=True, kw_only=True)
class _Arrays:
    """Arrays of n rows in one flat buffer, and their defects.

    Attributes:
        values: Values of all rows, flat.
        starts: Index of the first value of each row, and the number of values, (n + 1,).
        shape: Height, width and channels of each row, (n, 3).
        is_missing: Whether a row, or a value in it, is null, (n,).
        is_ragged: Whether the lists of a row differ in length, (n,).
    """

    values: Pixels
    starts: npt.NDArray[np.int64]
    shape: npt.NDArray[np.int64]
    is_missing: npt.NDArray[np.bool_]
    is_ragged: npt.NDArray[np.bool_]

    @classmethod
    def from_lists(cls, array: pa.Array, depth: int) -> "_Arrays":
        """Convert nested large lists.

        Args:
            array: Lists of numbers, nested `depth` times; n rows.
            depth: 2 for height × width, 3 for height × width × channels.
        """
        count = len(array)
        is_missing = array.is_null().to_numpy(zero_copy_only=False)
        is_ragged = np.zeros(count, dtype=bool)
        starts = array.offsets.to_numpy()
        lengths = [np.diff(starts)]
        for _ in range(depth - 1):
            array = array.values
            is_missing = is_missing | _any(array.is_null().to_numpy(zero_copy_only=False), starts)
            offsets = array.offsets.to_numpy()
            sizes = np.diff(offsets)
            first = sizes[np.minimum(starts[:-1], len(sizes) - 1)] if len(sizes) else np.zeros(count, dtype=np.int64)
            differs = sizes[starts[0] : starts[-1]] != np.repeat(first, np.diff(starts))
            is_ragged = is_ragged | _any(differs, starts - starts[0])
            starts = offsets[starts]
            lengths.append(np.where(lengths[-1] > 0, first, 0))
        array = array.values
        is_missing = is_missing | _any(array.is_null().to_numpy(zero_copy_only=False), starts)
        if depth == 2:
            lengths.append(np.ones(count, dtype=np.int64))
        values = (array.fill_null(0) if array.null_count else array).to_numpy(zero_copy_only=False)[
            starts[0] : starts[-1]
        ]
        return cls(
            values=values,
            starts=starts - starts[0],
            shape=np.stack(lengths, axis=1),
            is_missing=is_missing,
            is_ragged=is_ragged,
        )

    @classmethod
    def concatenate(cls, parts: list["_Arrays"], leaf: pa.DataType) -> "_Arrays":
        """Concatenate the chunks of a column.

        Args:
            parts: The chunks; a column without rows has none.
            leaf: Type of the values.
        """
        kind, empty = leaf.to_pandas_dtype(), np.zeros(0, dtype=bool)
        ends = np.cumsum([0, *(len(part.values) for part in parts)])
        starts = (part.starts[1:] + end for part, end in zip(parts, ends[:-1], strict=True))
        return cls(
            values=np.concatenate([np.zeros(0, dtype=kind), *(part.values for part in parts)]),
            starts=np.concatenate([[0], *starts]),
            shape=np.concatenate([np.zeros((0, 3), dtype=np.int64), *(part.shape for part in parts)]),
            is_missing=np.concatenate([empty, *(part.is_missing for part in parts)]),
            is_ragged=np.concatenate([empty, *(part.is_ragged for part in parts)]),
        )

    def with_channels_last(self) -> "_Arrays":
        """Return arrays of channels × height × width as arrays of height × width × channels."""
        values = self.values.copy()
        is_whole = ~(self.is_missing | self.is_ragged)
        for shape in np.unique(self.shape[is_whole], axis=0):
            rows = np.flatnonzero(is_whole & (self.shape == shape).all(axis=1))
            positions = self.starts[rows][:, None] + np.arange(int(shape.prod()))
            planes = self.values[positions].reshape(len(rows), *shape)
            values[positions] = planes.transpose(0, 2, 3, 1).reshape(positions.shape)
        return replace(self, values=values, shape=self.shape[:, [1, 2, 0]])

    def to_images(self, dtype: str | None) -> ImageColumn:
        """Convert the arrays to images with values of type uint8, uint16 or float32.

        Args:
            dtype: Type for integers that have neither 8 nor 16 bits, if the schema contract declares it.
        """
        reason = np.full(len(self.shape), None, dtype=object)
        reason[self.shape.prod(axis=1) == 0] = "it has no pixels; add them at the source"
        reason[self.is_ragged] = "its lists differ in length, so it is not a rectangle; correct it at the source"
        reason[self.is_missing] = "the image or a value in it is missing; add it at the source"
        is_valid = reason == None  # noqa: E711
        values, is_unfit, problem = _to_contract_type(self.values, self.starts, is_valid, dtype)
        reason[is_valid & is_unfit] = problem
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


def _any(flags: npt.NDArray[np.bool_], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return whether any element between each start and the next one is true."""
    return np.diff(np.concatenate([[0], np.cumsum(flags)])[starts]) > 0


def _to_contract_type(
    values: Pixels, starts: npt.NDArray[np.int64], is_valid: npt.NDArray[np.bool_], dtype: str | None
) -> tuple[Pixels, npt.NDArray[np.bool_], str]:
    """Convert values to uint8, uint16 or float32.

    Other integer types do not show the range of the values. Such integers become the type of the schema contract.
    Without a contract they become uint8 if most images of the file fit it, and uint16 otherwise. A single dark or
    faulty image therefore does not get a type of its own.

    Args:
        values: Values of n rows, flat.
        starts: Index of the first value of each row, and the number of values, (n + 1,).
        is_valid: Rows that count for the choice of the type, (n,).
        dtype: Type in the schema contract, if there is one.

    Returns:
        The converted values, whether a row does not fit the type, (n,), and the reason for these rows.
    """
    if values.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        return values.astype(values.dtype.newbyteorder("<"), copy=False), np.zeros(len(is_valid), dtype=bool), ""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            single = values.astype("<f4")
        return single, _any(~np.isfinite(single), starts), "a value in it is not finite; correct it at the source"
    beyond_8, beyond_16 = (_any((values < 0) | (values > top), starts) for top in (255, 65535))
    is_8_bit = dtype == "uint8" or (dtype != "uint16" and (beyond_8 & is_valid).sum() * 2 <= is_valid.sum())
    if is_8_bit:
        reason = "a value in it is outside 0 to 255, the range of the other images; correct it at the source"
        return values.astype(np.uint8), beyond_8, reason
    return values.astype("<u2"), beyond_16, "a value in it is outside 0 to 65535; correct it at the source"
