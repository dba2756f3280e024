"""Sections `source` and `images` of `defs.yaml`."""

import codecs
import re
import string
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ae_pipeline.config.columns import RESERVED_COLUMNS
from ae_pipeline.config.fetch import FetchedSource
from ae_pipeline.config.limits import LimitsConfig
from ae_pipeline.config.section import Section

Separator = Literal[",", ";", "\t", "|"]
"""Character between the values of a text file."""


def canonical_encoding(name: str) -> str:
    """Return Python's name of a text encoding.

    Raises:
        ValueError: There is no such encoding.

    >>> canonical_encoding("UTF8"), canonical_encoding("windows-1252"), canonical_encoding("latin-1")
    ('utf-8', 'cp1252', 'iso8859-1')
    """
    try:
        codec = codecs.lookup(name)
        bytes(4).decode(codec.name)  # codecs such as hex are not for text
    except LookupError as error:
        raise ValueError(f"encoding={name!r} is not a text encoding; write for example utf-8 or cp1252") from error
    return "utf-8" if codec.name == "utf-8-sig" else codec.name


def check_named_groups(key: str, value: str | None) -> str | None:
    """Return a regular expression, or None if it is not set.

    Args:
        key: Key of the YAML, for messages.
        value: The regular expression.

    Raises:
        ValueError: It is not a regular expression, or has no named group.
    """
    try:
        names = re.compile(value).groupindex if value is not None else {"": 0}
    except re.error as error:
        raise ValueError(f"{key}={value!r} is not a regular expression ({error}); correct it") from error
    if not names:
        raise ValueError(
            f"{key}={value!r} has no named group; write (?P<name>…) around each part that should become a column"
        )
    return value


class Dialect(Section):
    """How a text file is written.

    >>> str(Dialect(separator=";", encoding="latin-1"))
    "separator ';', encoding iso8859-1"
    """

    separator: Separator = Field(description='Character between two values: `,`, `;`, `|`, or a tab as `"\\t"`.')
    encoding: str = Field(default="utf-8", description="Text encoding, such as `utf-8`, `utf-16` or `cp1252`.")

    @field_validator("encoding")
    @classmethod
    def _is_encoding(cls, value: str) -> str:
        return canonical_encoding(value)

    def __str__(self) -> str:
        return f"separator {self.separator!r}, encoding {self.encoding}"


class SourceConfig(FetchedSource):
    """The files that belong to the dataset, and how they are read."""

    path: str | None = Field(
        default=None,
        description="Folder of the landed files: an absolute path, or a path relative to the project's folder, like "
        "every path of the YAML. By default `landing/<dataset>` in the data folder.",
    )
    pattern: str = Field(
        default="**/*",
        description="Glob pattern of the dataset's files, relative to the folder. The pipeline reads the files that "
        "match and have a known suffix: `.csv`, `.tsv`, `.txt`, `.json`, `.jsonl`, `.ndjson`, `.xlsx`, `.parquet`, "
        "`.arrow`, `.feather`, `.ipc` and `.avro`, each also as `.gz`, `.zst` or `.zip`; with `images` also `.png`, "
        "`.jpg` and `.jpeg`. The log counts all other files by reason, with the name of one. Names that start with `.` "
        "are not read, and names that start with `_` only if they are images.",
    )
    separator: Separator | None = Field(
        default=None,
        description="Character between the values of `.csv`, `.tsv` and `.txt` files: `,`, `;`, `|` or a tab as "
        '`"\\t"`. By default it is found in the first rows, and the schema contract then fixes it.',
    )
    encoding: str | None = Field(
        default=None,
        description="Encoding of text files, such as `utf-8`, `utf-16` or `cp1252`. By default a byte order mark or "
        "the content tells UTF-8, UTF-16 and cp1252 (Latin-1), and the schema contract then fixes it.",
    )
    max_record_lines: int = Field(
        default=1000,
        ge=1,
        description="Maximum number of lines of one row of a text file. A quoted value can hold line breaks. A longer "
        "row goes to quarantine, because its quote was probably never closed.",
    )
    limits: LimitsConfig = Field(
        default_factory=LimitsConfig,
        description="How much a file may hold. A file that exceeds a limit is refused before it is read.",
    )
    sheet: str | None = Field(
        default=None, description="Sheet to read of each Excel file. By default the only one of the file."
    )
    path_columns: str | None = Field(
        default=None,
        description="Regular expression that searches the path of each file below the landing folder. Its named groups "
        "become columns, for example `sales_(?P<branch>[a-z]+)_`. A file whose path does not match is refused. Folders "
        "that are named `<column>=<value>` become columns without it.",
    )

    @field_validator("encoding")
    @classmethod
    def _is_encoding(cls, value: str | None) -> str | None:
        return None if value is None else canonical_encoding(value)

    @field_validator("path_columns")
    @classmethod
    def _has_groups(cls, value: str | None) -> str | None:
        return check_named_groups("path_columns", value)

    @model_validator(mode="after")
    def _path_columns_are_free(self) -> Self:
        groups = re.compile(self.path_columns or "").groupindex
        if taken := sorted(groups.keys() & (RESERVED_COLUMNS - {"event_time", "date"})):
            raise ValueError(
                f"path_columns={self.path_columns!r}: the group {taken[0]!r} has a reserved name; choose another one"
            )
        return self

    @property
    def reading(self) -> dict[str, object]:
        """Settings other than the defaults that decide what the rows of a file are."""
        return self.model_dump(
            mode="json",
            exclude_defaults=True,
            include={"separator", "encoding", "max_record_lines", "limits", "sheet", "path_columns"},
        )


_Side = Annotated[int, Field(ge=1, le=65_535)]

ImageSize = tuple[_Side, _Side]
"""Height and width in pixels."""


class ImagesConfig(Section):
    """Rows that are images: image files with one row each, or an image column of Parquet files."""

    column: str = Field(
        default="image",
        description="Name of the image column. An image file (PNG, JPEG, WebP, BMP or TIFF) gets this column. In "
        "Parquet files, the column holds arrays (height × width, or with channels), or the bytes of an image file.",
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
        "columns `top` and `left` hold its position. By default a row is a whole image.",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        description="Distance from one patch to the next in pixels. By default the same as `patch`, so that patches do "
        "not overlap.",
    )
    edge: Literal["flush", "pad", "ignore"] = Field(
        default="flush",
        description="Pixels that patches leave over at the lower and right edge: `flush` adds patches that end at the "
        "edge, `pad` repeats the last pixels until a patch is full, `ignore` leaves them out.",
    )
    masks: str | None = Field(
        default=None,
        description="Path of the mask of an image below the landing folder, such as "
        "`ground_truth/{defect}/{stem}_mask.png`. In braces stand named groups of `path`, and `stem`, the name of the "
        "image without its suffix. A mask is black where the image is normal; other values, such as the numbers of "
        "classes, are anomalous. Masks are no rows; the report measures heat maps with them.",
    )
    metadata: str | None = Field(
        default="metadata.csv",
        description="Name of CSV files that describe the images of their folder and the folders below it: the column "
        "`file` has paths relative to the file, and the other columns become columns of the images. With `null`, such "
        "files are tables like others.",
    )
    mode: Literal["grey", "rgb", "rgba"] | None = Field(
        default=None,
        description="Channels of every image: `grey`, `rgb` or `rgba`. By default the most frequent ones, and images "
        "with others go to quarantine.",
    )
    resize: _Side | ImageSize | None = Field(
        default=None,
        description="Size that every image gets before it is cropped: `[height, width]`, or one number for the shorter "
        "side, which keeps the proportions.",
    )
    crop: _Side | ImageSize | None = Field(
        default=None,
        description="Part in the middle of every image that is used: `[height, width]`, or one number for a square.",
    )
    pad: _Side | ImageSize | None = Field(
        default=None,
        description="Least size of every image: `[height, width]`, or one number for a square. Black pixels are added "
        "on all sides.",
    )
    channels: Literal["first", "last"] | None = Field(
        default=None,
        description="Axis of the channels in arrays with three axes. By default the one axis with one to four values; "
        "if that is not clear, the file is refused.",
    )

    @property
    def is_shaped(self) -> bool:
        """Whether images get another mode or size."""
        return any((self.mode, self.resize, self.crop, self.pad))

    @field_validator("path")
    @classmethod
    def _is_expression(cls, value: str | None) -> str | None:
        return check_named_groups("path", value)

    @model_validator(mode="after")
    def _masks_fit(self) -> Self:
        known = {*re.compile(self.path or "").groupindex, "stem"}
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(self.masks or "") if name is not None]
        except ValueError as error:
            raise ValueError(f"masks={self.masks!r} has braces that do not match ({error}); correct it") from error
        if unknown := [name for name in fields if name not in known]:
            raise ValueError(
                f"masks={self.masks!r} uses {{{unknown[0]}}}, which is no named group of path; choose among "
                f"{', '.join(sorted(known))}"
            )
        if self.masks and "stem" not in fields:
            raise ValueError(f"masks={self.masks!r} lacks {{stem}}, so that all images would have one mask; add it")
        return self

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
