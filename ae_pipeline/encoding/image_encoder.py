"""Encode images as float32 tensors, and decode them."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.errors import BundleError, TrainingError
from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.model import Scaling
from ae_pipeline.config.section import Section
from ae_pipeline.encoding.blocks import Matrix
from ae_pipeline.encoding.table_encoder import ColumnEncoding, LeftOut

_TYPE_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
"""Lowest and highest value of the integer types of images."""

_BATCH_ROWS, _BATCH_BYTES = 1024, 32 << 20
"""Images, and size of their pixels, of which there is a copy at once."""


class ImageEncoder(Section):
    """Encode images with one offset and scale per channel. `fit_image_encoder` creates it.

    The scalings unit and symmetric use the range of the integer type, or of the training rows for floats. The scaling
    standard uses mean and standard std of each channel.
    """

    kind: Literal["image"] = "image"
    name: str
    image: ImageShape
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    low: float
    high: float
    left_out: tuple[LeftOut, ...]

    @property
    def columns(self) -> tuple[ColumnEncoding, ...]:
        """The image column."""
        return (ColumnEncoding(name=self.name, type=ColumnType.IMAGE),)

    @property
    def inputs(self) -> tuple[ColumnEncoding, ...]:
        """The image column."""
        return self.columns

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an encoded image."""
        return self.image.channels, self.image.height, self.image.width

    @property
    def span(self) -> float:
        """Difference between the highest and the lowest encoded value, of the channel with the largest difference."""
        return (self.high - self.low) / min(self.scale)

    @property
    def levels(self) -> int:
        """Number of steps between the lowest and the highest value: those of the integer type, or of 16 bits."""
        return 255 if self.image.dtype == "uint8" else 65535

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest and highest encoded value under unit and symmetric scaling."""
        return (self.low - self.offset[0]) / self.scale[0], (self.high - self.offset[0]) / self.scale[0]

    def encode(self, features: pl.DataFrame, into: Matrix | None = None) -> Matrix:
        """Encode images.

        Args:
            features: n rows with the image column. Other columns are ignored.
            into: Array to write to, shape (n, channels, height, width). None for a new one.

        Returns:
            Shape (n, channels, height, width).

        Raises:
            BundleError: The column is missing, or it does not contain images of the fitted shape.
        """
        if self.name not in features.columns:
            raise BundleError(f"features lack column {self.name!r}, on which this model was fitted")
        offset, scale = (np.asarray(part, np.float32).reshape(-1, 1, 1) for part in (self.offset, self.scale))
        encoded: Matrix = np.empty((features.height, *self.shape), np.float32) if into is None else into
        start = 0
        for values in pixel_batches(features[self.name], self.image):
            part = encoded[start : start + len(values)]
            part[:] = values.transpose(0, 3, 1, 2)
            part -= offset
            part /= scale
            start += len(values)
        return encoded

    def decode(self, encoded: npt.NDArray[np.floating], features: pl.DataFrame) -> pl.DataFrame:  # noqa: ARG002
        """Decode tensors, shape (n, channels, height, width), to the stored type of the images: rounded and clipped."""
        values = self._values(encoded)
        if self.image.dtype in _TYPE_RANGES:
            values = np.clip(np.rint(values), self.low, self.high)
        stored = np.ascontiguousarray(values.astype(_stored_type(self.image)))
        return pl.DataFrame({self.name: pl.Series([image.tobytes() for image in stored], dtype=pl.Binary)})

    def to_unit(self, encoded: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Rescale tensors, shape (n, channels, height, width), to 0 to 1, shape (n, height, width, channels)."""
        return np.clip((self._values(encoded) - self.low) / (self.high - self.low), 0, 1)

    def _values(self, encoded: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        offset, scale = (np.asarray(part).reshape(-1, 1, 1) for part in (self.offset, self.scale))
        values: npt.NDArray[np.float64] = encoded.astype(np.float64) * scale + offset
        return values.transpose(0, 2, 3, 1)


def pixels(images: pl.Series, shape: ImageShape) -> npt.NDArray[np.generic]:
    """Return the pixels of an image column, shape (n, height, width, channels).

    Raises:
        BundleError: The column does not contain images of this shape.
    """
    size = _image_bytes(shape)
    if images.dtype != pl.Binary or (images.len() and (images.has_nulls() or (images.bin.size() != size).any())):
        raise BundleError(
            f"column {images.name!r} does not contain images of {shape.height}×{shape.width}×{shape.channels} "
            f"{shape.dtype}, {size} bytes each, on which this model was fitted; use features of the same dataset"
        )
    flat = np.frombuffer(b"".join(images.to_list()), _stored_type(shape))
    return flat.reshape(-1, shape.height, shape.width, shape.channels)


def _image_bytes(shape: ImageShape) -> int:
    return shape.height * shape.width * shape.channels * _stored_type(shape).itemsize


def _stored_type(shape: ImageShape) -> np.dtype[np.generic]:
    return np.dtype(shape.dtype).newbyteorder("<")


def fit_image_encoder(
    features: pl.DataFrame, columns: Sequence[FeatureColumn], name: str, scaling: Scaling
) -> ImageEncoder:
    """Fit an image encoder on the rows of the training window.

    Args:
        features: Training rows.
        columns: Features. All columns except the image are left out, with a reason.
        name: Name of the image column.
        scaling: unit, symmetric or standard.

    Raises:
        TrainingError: The column contains no images, or all pixels have the same value.
    """
    shape = next((column.shape for column in columns if column.name == name), None)
    if shape is None:
        raise TrainingError(
            f"column {name!r} contains no images by the schema contract; set images.column to the column that does"
        )
    ends = [(float(part.min()), float(part.max())) for part in pixel_batches(features[name], shape)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low == high:
        raise TrainingError(f"every pixel of {name!r} in the training window is {low:g}; train on other images")
    low, high = _TYPE_RANGES.get(shape.dtype, (low, high))
    if scaling == Scaling.STANDARD:
        count = features.height * shape.height * shape.width
        offset = sum(part.sum((0, 1, 2), dtype=np.float64) for part in pixel_batches(features[name], shape)) / count
        squares = sum(np.square(part - offset).sum((0, 1, 2)) for part in pixel_batches(features[name], shape)) / count
        std = np.atleast_1d(np.sqrt(squares))
        # A constant channel, such as opaque alpha, gets the mean scale of the others.
        scale = np.where(std > 0, std, std[std > 0].mean() if std.any() else 1.0)
    else:
        offset = np.full(shape.channels, low if scaling == Scaling.UNIT else (low + high) / 2)
        scale = np.full(shape.channels, high - low if scaling == Scaling.UNIT else (high - low) / 2)
    return ImageEncoder(
        name=name,
        image=shape,
        offset=tuple(map(float, np.atleast_1d(offset))),
        scale=tuple(map(float, scale)),
        low=low,
        high=high,
        left_out=tuple(
            LeftOut(column=column.name, reason="the model looks at the image alone")
            for column in columns
            if column.name != name
        ),
    )


def pixel_batches(images: pl.Series, shape: ImageShape) -> Iterator[npt.NDArray[np.generic]]:
    """Yield the pixels of an image column as `pixels` does, a few images at once, because they are copied.

    Raises:
        BundleError: The column does not contain images of this shape.
    """
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // _image_bytes(shape)))
    for start in range(0, max(images.len(), 1), rows):
        yield pixels(images[start : start + rows], shape)
