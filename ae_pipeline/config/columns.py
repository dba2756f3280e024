"""Column types, image shapes and feature columns."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from ae_pipeline.config.section import Section

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
    DECIMAL = "decimal"
    BOOLEAN = "boolean"
    CATEGORY = "category"
    CLOCK_HHMM = "clock_hhmm"
    TIMESTAMP = "timestamp"
    DATE = "date"
    TEXT = "text"
    IMAGE = "image"


NUMERIC_TYPES = frozenset({ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.DECIMAL})
"""Types whose values are numbers, written with digits."""

EPOCH_FORMATS = {"epoch_s": 10**9, "epoch_ms": 10**6, "epoch_us": 10**3, "epoch_ns": 1}
"""Formats of a timestamp that is a number since 1970 (UTC), and the nanoseconds of one unit."""


class ValueFormat(Section):
    """How the values of a column are written. The YAML declares it, and the schema contract keeps it."""

    format: str | None = Field(
        default=None,
        description="Format of a timestamp or date, in strftime notation, or `epoch_s`, `epoch_ms`, `epoch_us` or "
        "`epoch_ns` for a number since 1970 (UTC). By default the usual ISO 8601 forms.",
    )
    null_values: tuple[str, ...] = Field(
        default=(), description="Texts that mean a missing value, in addition to the empty text."
    )
    scale: int | None = Field(
        default=None,
        ge=0,
        le=38,
        description="Digits after the decimal point of type `decimal`, which keeps 38 digits exactly.",
    )
    precision: Literal["us", "ns"] | None = Field(
        default=None,
        description="Precision of a timestamp in `raw_data`: `us` (microseconds, the default) or `ns` (nanoseconds, "
        "for the years 1678 to 2261).",
    )
    decimal: Literal[".", ","] | None = Field(
        default=None, description="Decimal mark of a number: `.` (the default) or `,`."
    )
    thousands: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="Character between groups of digits of a number, such as `,`, `.`, `'` or a space.",
    )
    prefix: str | None = Field(
        default=None, min_length=1, description="Text before each number, such as `$`. A value may lack it."
    )
    suffix: str | None = Field(
        default=None,
        min_length=1,
        description="Text after each number, such as `%` or `kg`. A value may lack it; 12.5 % is 12.5.",
    )
    true_values: tuple[str, ...] = Field(
        default=(), description="Texts that mean true in a boolean, in addition to true, t, yes, y and on."
    )
    false_values: tuple[str, ...] = Field(
        default=(), description="Texts that mean false in a boolean, in addition to false, f, no, n and off."
    )


class ColumnDeclaration(ValueFormat):
    """What the YAML says about a column: its type, and how its values are written."""

    type: ColumnType = Field(
        description="Type of the values. `clock_hhmm` is a time of day as an integer, such as 1745."
    )

    @model_validator(mode="after")
    def _keys_fit_type(self) -> Self:
        check_value_format(self, self.type)
        return self


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def _code(value: object) -> object:
    """Return a key of a YAML mapping as the text that a category has: `1` and `true` are no texts there."""
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int) else value


Code = Annotated[str, BeforeValidator(_code)]


class ColumnDisplay(Section):
    """How messages and pages name a column and its values."""

    title: Text | None = Field(default=None, description="Name for people, such as `arrival delay`.")
    unit: Text | None = Field(default=None, description="Unit of the values, such as `minutes`.")
    codes: dict[Code, Text] = Field(
        default={},
        description="What pages and messages show instead of a stored value, such as `{AA: American Airlines}`. The "
        "data, the model and the files of a report keep the stored value.",
    )


_KEYS_OF_TYPES: tuple[tuple[tuple[str, ...], frozenset[ColumnType]], ...] = (
    (("format",), frozenset({ColumnType.TIMESTAMP, ColumnType.DATE})),
    (("precision",), frozenset({ColumnType.TIMESTAMP})),
    (("scale",), frozenset({ColumnType.DECIMAL})),
    (("decimal", "thousands", "prefix", "suffix"), NUMERIC_TYPES),
    (("true_values", "false_values"), frozenset({ColumnType.BOOLEAN})),
)


def check_value_format(value: ValueFormat, kind: ColumnType) -> None:
    """Check that each key belongs to the type of the column.

    Raises:
        ValueError: A key is for another type, or two keys contradict each other.
    """
    for keys, kinds in _KEYS_OF_TYPES:
        # `format` of another type was accepted before the other keys existed, so that it stays readable.
        for key in keys if keys != ("format",) or kind == ColumnType.IMAGE else ():
            if getattr(value, key) not in (None, ()) and kind not in kinds:
                names = ", ".join(sorted(kinds))
                raise ValueError(f"{key} is for type {names}, got type {kind.value}; remove it, or change the type")
    if value.thousands is not None and (value.thousands == (value.decimal or ".") or value.thousands.isalnum()):
        raise ValueError(
            f"thousands={value.thousands!r} is also the decimal mark, a digit or a letter; give the character between "
            "groups of digits, and the decimal mark as decimal"
        )
    if (value.format or "") in EPOCH_FORMATS and kind != ColumnType.TIMESTAMP:
        raise ValueError(f"format={value.format!r} is for type timestamp, got type {kind.value}; change the type")


def as_declaration(value: "ColumnType | ColumnDeclaration") -> ColumnDeclaration:
    """Return the declaration of a column that the YAML gives as a type or in full."""
    return value if isinstance(value, ColumnDeclaration) else ColumnDeclaration(type=value)


def declaration_kind(value: Any) -> str:
    """Return `mapping` or `name`: in which of two forms the YAML declares a column."""
    return "mapping" if isinstance(value, dict | ColumnDeclaration) else "name"


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
        is_identity: Whether the column identifies a row, alone or with others. A model leaves it out if it is unique.
        is_unique: Whether the column alone identifies a row.
    """

    name: str
    type: ColumnType
    shape: ImageShape | None = None
    is_identity: bool = field(default=False, kw_only=True)
    is_unique: bool = field(default=False, kw_only=True)
