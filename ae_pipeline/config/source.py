"""Sections `source` and `images` of `defs.yaml`."""

import re
from typing import Self

from pydantic import Field, field_validator, model_validator

from ae_pipeline.config.columns import RESERVED_COLUMNS
from ae_pipeline.config.fetch import FetchedSource
from ae_pipeline.config.model import Section


class SourceConfig(FetchedSource):
    """The files that belong to the dataset."""

    path: str | None = Field(
        default=None,
        description="Folder of the landed files: an absolute path, or a path relative to the data folder. By default "
        "`landing/<dataset>`.",
    )
    pattern: str = Field(
        default="**/*",
        description="Glob pattern of the dataset's files, relative to the folder. The pipeline reads the `.csv` and "
        "`.parquet` files that match; with `images` also `.png`, `.jpg` and `.jpeg`. Names that start with `.` or `_` "
        "are ignored.",
    )


class ImagesConfig(Section):
    """Rows that are images: PNG and JPEG files with one row each, or an image column of Parquet files."""

    column: str = Field(
        default="image",
        description="Name of the image column. A PNG or JPEG file gets this column. In Parquet files, the column holds "
        "arrays (height × width, or height × width × channels), or the bytes of a PNG or JPEG.",
    )
    path: str | None = Field(
        default=None,
        description="Regular expression that searches the path of an image file below the landing folder. Its named "
        "groups become columns, for example `(?P<texture>[a-z]+)/` or `(?P<taken_at>[0-9-]{10})_`. The path itself is "
        "always the column `file`.",
    )
    patch: int | None = Field(
        default=None,
        ge=4,
        description="Side of square patches in pixels. Each image is cut into patches, and each patch is a row; the "
        "columns `top` and `left` hold its position. Pixels left over at the lower and right edge are ignored. By "
        "default a row is a whole image.",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        description="Distance from one patch to the next in pixels. By default the same as `patch`, so that patches do "
        "not overlap.",
    )

    @field_validator("path")
    @classmethod
    def _is_expression(cls, value: str | None) -> str | None:
        try:
            names = re.compile(value).groupindex if value is not None else {"": 0}
        except re.error as error:
            raise ValueError(f"path={value!r} is not a regular expression ({error}); correct it") from error
        if not names:
            raise ValueError(
                f"path={value!r} has no named group; write (?P<name>…) around each part that should become a column"
            )
        return value

    @model_validator(mode="after")
    def _stride_fits(self) -> Self:
        if self.stride and not self.patch:
            raise ValueError(f"stride={self.stride} needs patch; set both, or neither")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        file_columns = {"file", "top", "left"}
        if self.column in file_columns | RESERVED_COLUMNS:
            raise ValueError(f"column={self.column!r} is a reserved name; choose another one")
        groups = re.compile(self.path or "").groupindex
        if taken := sorted(groups.keys() & (file_columns | {self.column} | RESERVED_COLUMNS - {"event_time"})):
            raise ValueError(f"path={self.path!r}: the group {taken[0]!r} has a reserved name; choose another one")
        return self
