"""Column types, and what describes a feature column."""

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
"""Names that the pipeline gives its own columns."""


class ColumnType(StrEnum):
    """What the values of a column are, and so how they are read, encoded and reconstructed."""

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
    """What every image of a column is: height × width × channels values of one type."""

    height: int = Field(ge=1, description="Pixels from top to bottom.")
    width: int = Field(ge=1, description="Pixels from left to right.")
    channels: int = Field(ge=1, description="Values of a pixel: 1 for grey, 3 for RGB.")
    dtype: Literal["uint8", "uint16", "float32"] = Field(description="Type of a value.")

    def __str__(self) -> str:
        return f"{self.height}×{self.width}×{self.channels} {self.dtype}"


MINUTES_PER_DAY = 1440


@dataclass(frozen=True)
class FeatureColumn:
    """A column that the model may look at.

    Attributes:
        name: In the features table.
        type: What its values are; a clock stands as minutes after midnight.
        shape: What its images are, None where it holds none.
    """

    name: str
    type: ColumnType
    shape: ImageShape | None = None
