"""Column types, image shapes and feature columns."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import Field

from ae_pipeline.config.model import Section

RESERVED_COLUMNS = frozenset(
    {
        *("row_id", "event_time", "date", "is_known_anomaly", "score", "p_value", "is_anomaly"),
        *("_day", "_source_file", "_row_number"),
    }
)
"""Column names that the pipeline itself uses; landed files must not use them."""


class ColumnType(StrEnum):
    """The type of a column. It determines how values are read, encoded and reconstructed."""

    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    CATEGORY = "category"
    CLOCK_HHMM = "clock_hhmm"
    TIMESTAMP = "timestamp"
    DATE = "date"
    TEXT = "text"
    IMAGE = "image"


class ImageShape(Section):
    """The shape of all images of a column: height × width × channels values of one type.

    >>> str(ImageShape(height=32, width=32, channels=1, dtype="uint8"))
    '32×32×1 uint8'
    """

    height: int = Field(ge=1, description="Height in pixels.")
    width: int = Field(ge=1, description="Width in pixels.")
    channels: int = Field(
        ge=1, description="Values per pixel: 1 for gray, 2 for gray with alpha, 3 for RGB, 4 for RGBA."
    )
    dtype: Literal["uint8", "uint16", "float32"] = Field(description="Type of a value: `uint8`, `uint16` or `float32`.")

    def __str__(self) -> str:
        return f"{self.height}×{self.width}×{self.channels} {self.dtype}"


MINUTES_PER_DAY = 1440


@dataclass(frozen=True)
class FeatureColumn:
    """A column that the model sees.

    Attributes:
        name: Name in the features table.
        type: Type of the values. Clocks are minutes after midnight.
        shape: Shape of the images, or None if the column holds no images.
    """

    name: str
    type: ColumnType
    shape: ImageShape | None = None
