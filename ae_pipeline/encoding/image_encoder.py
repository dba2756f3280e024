"""The fitted ImageEncoder: images to the float32 tensors that a network sees, and back."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.errors import BundleError, TrainingError
from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.model import Scaling, Section
from ae_pipeline.encoding.table_encoder import ColumnEncoding, LeftOut, Matrix

_ENDS = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
"""The ends of what integers of an image can be."""

_FITTED_AT_ONCE = 1024


class ImageEncoder(Section):
    """Maps images to a tensor by one offset and scale a channel; `fit_image_encoder` makes one.

    unit and symmetric go by the ends of what the image's integers can be, or of the training rows where its values are
    floats; standard goes by mean and standard deviation of each channel.
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
        """The one column that it reads."""
        return (ColumnEncoding(name=self.name, type=ColumnType.IMAGE),)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an encoded image."""
        return self.image.channels, self.image.height, self.image.width

    @property
    def span(self) -> float:
        """Distance between the ends of the scale, of the widest channel."""
        return (self.high - self.low) / min(self.scale)

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the scale under unit and symmetric scaling, which have any."""
        return (self.low - self.offset[0]) / self.scale[0], (self.high - self.offset[0]) / self.scale[0]

    def encode(self, features: pl.DataFrame) -> Matrix:
        """Encodes images.

        Args:
            features: The image column, n rows; further columns are not looked at.

        Returns:
            Shape (n, channels, height, width).

        Raises:
            BundleError: The column is not there, holds no images, or images of another shape.
        """
        if self.name not in features.columns:
            raise BundleError(f"features lack column {self.name!r}, on which this model was fitted")
        values = pixels(features[self.name], self.image).transpose(0, 3, 1, 2)
        offset, scale = (np.asarray(part, np.float32).reshape(-1, 1, 1) for part in (self.offset, self.scale))
        encoded: Matrix = (values.astype(np.float32) - offset) / scale
        return np.ascontiguousarray(encoded)

    def decode(self, encoded: npt.NDArray[np.floating], features: pl.DataFrame) -> pl.DataFrame:  # noqa: ARG002
        """Puts tensors of shape (n, channels, height, width) back into the images' own type, rounded and cut to it."""
        values = self._values(encoded)
        if self.image.dtype in _ENDS:
            values = np.clip(np.rint(values), self.low, self.high)
        stored = np.ascontiguousarray(values.astype(_stored_type(self.image)))
        return pl.DataFrame({self.name: pl.Series([image.tobytes() for image in stored], dtype=pl.Binary)})

    def to_unit(self, encoded: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Puts tensors of shape (n, channels, height, width) on the scale 0 to 1, (n, height, width, channels)."""
        return np.clip((self._values(encoded) - self.low) / (self.high - self.low), 0, 1)

    def _values(self, encoded: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        offset, scale = (np.asarray(part).reshape(-1, 1, 1) for part in (self.offset, self.scale))
        values: npt.NDArray[np.float64] = encoded.astype(np.float64) * scale + offset
        return values.transpose(0, 2, 3, 1)


def pixels(images: pl.Series, shape: ImageShape) -> npt.NDArray[np.generic]:
    """Reads a column of images into an array of shape (n, height, width, channels).

    Raises:
        BundleError: It holds no images, or images of another shape.
    """
    dtype = _stored_type(shape)
    size = shape.height * shape.width * shape.channels * dtype.itemsize
    if images.dtype != pl.Binary or (images.len() and (images.has_nulls() or (images.bin.size() != size).any())):
        raise BundleError(
            f"column {images.name!r} does not hold images of {shape.height}×{shape.width}×{shape.channels} "
            f"{shape.dtype}, {size} bytes each, on which this model was fitted; give it features of the same dataset"
        )
    flat = np.frombuffer(b"".join(images.to_list()), dtype)
    return flat.reshape(-1, shape.height, shape.width, shape.channels)


def _stored_type(shape: ImageShape) -> np.dtype[np.generic]:
    return np.dtype(shape.dtype).newbyteorder("<")


def fit_image_encoder(
    features: pl.DataFrame, columns: Sequence[FeatureColumn], name: str, scaling: Scaling
) -> ImageEncoder:
    """Fits an ImageEncoder on the rows of the training window, and on no others.

    Args:
        features: Training rows.
        columns: Features; all but the image are left out, with a reason.
        name: Column of the images.
        scaling: unit, symmetric or standard.

    Raises:
        TrainingError: The column holds no images, or images of one value alone.
    """
    shape = next((column.shape for column in columns if column.name == name), None)
    if shape is None:
        raise TrainingError(
            f"column {name!r} holds no images by the schema contract; name the column that does as images.column"
        )
    parts = list(_parts(features[name], shape))
    low, high = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
    if low == high:
        raise TrainingError(f"every pixel of {name!r} in the training window is {low:g}; train on other images")
    low, high = _ENDS.get(shape.dtype, (low, high))
    if scaling == Scaling.STANDARD:
        count = features.height * shape.height * shape.width
        offset = sum(part.sum((0, 1, 2), dtype=np.float64) for part in parts) / count
        squares = sum(np.square(part - offset).sum((0, 1, 2)) for part in parts) / count
        deviation = np.atleast_1d(np.sqrt(squares))
        # A channel of one value, such as opaque alpha, is scaled as the others are.
        scale = np.where(deviation > 0, deviation, deviation[deviation > 0].mean() if deviation.any() else 1.0)
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


def _parts(images: pl.Series, shape: ImageShape) -> Iterator[npt.NDArray[np.generic]]:
    for start in range(0, images.len(), _FITTED_AT_ONCE):
        yield pixels(images[start : start + _FITTED_AT_ONCE], shape)
