"""Sections `source` and `images` of `defs.yaml`."""

import re
from pathlib import PurePath
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.columns import RESERVED_COLUMNS
from ae_pipeline.config.model import Section

DAY_PARAMETERS = ("day", "day_start", "day_end")
"""Parameters of a query: the day as ISO date, and the times at which it starts and ends."""


class SourceConfig(Section):
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
    query: str | None = Field(
        default=None,
        min_length=1,
        description="SQL query whose rows are fetched into the landing folder, one Parquet file a day. With event time "
        "it contains `:day_start` and `:day_end`, the times at which a day starts and ends, or `:day`, the ISO "
        "date. Without event time it runs once, and its rows replace those of the last fetch. Write `\\:` for a colon "
        "before a word. Needs `connection`.",
    )
    connection: str | None = Field(
        default=None,
        description="Name of the environment variable that holds the SQLAlchemy URL of the database, such as "
        "`postgresql+psycopg2://user:password@host/database`. The URL is a secret and is never written to a file.",
    )
    callable: str | None = Field(
        default=None,
        description="Python function that fetches rows, as `package.module:function`. With event time it receives a "
        "`datetime.date`, otherwise nothing. It returns a table of polars, pandas or pyarrow, or None where there are "
        "no rows.",
    )
    refresh_days: int = Field(
        default=2,
        ge=1,
        description="Age in days from which a fetched day is final. Younger days are fetched at each fetch, and once "
        "more when they have this age. 1 is for sources without late rows.",
    )
    check_minutes: int = Field(
        default=60,
        ge=1,
        description="Minutes after a fetch until the landing sensor requests the next one. `ae-pipeline run` does not "
        "wait.",
    )

    @model_validator(mode="before")
    @classmethod
    def _has_no_secret(cls, values: Any) -> Any:
        """Raise an error that is no ValueError, because pydantic would print the value, which may hold a password."""
        texts = (
            {key: value for key, value in values.items() if isinstance(value, str)} if isinstance(values, dict) else {}
        )
        remedy = "put the URL into an environment variable such as ORDERS_DB, and write connection: ORDERS_DB"
        for key, value in texts.items():
            if re.search(r"://[^/\s]*@", value):
                raise ConfigError(f"source.{key} holds a URL with a user or a password; {remedy}")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", texts.get("connection", "_")):
            raise ConfigError(f"source.connection is not the name of an environment variable; {remedy}")
        return values

    @field_validator("callable")
    @classmethod
    def _names_function(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", value):
            raise ValueError(f"callable={value!r} names no function; write package.module:function")
        return value

    @model_validator(mode="after")
    def _fetched_source_is_whole(self) -> Self:
        if self.query and self.callable:
            raise ValueError("query and callable are two sources of the same rows; keep one of them")
        if self.query and not self.connection:
            raise ValueError("query needs connection; give the environment variable that holds the database's URL")
        if self.connection and not self.query:
            raise ValueError(f"connection={self.connection!r} needs query; give the SQL query that fetches the rows")
        fields = type(self).model_fields
        # A bundle holds every key, so that a default is no setting.
        settings = [key for key in ("refresh_days", "check_minutes") if getattr(self, key) != fields[key].default]
        if settings and not self.is_fetched:
            raise ValueError(f"{settings[0]} is for a query or a callable; give one of them, or remove it")
        if self.is_fetched and not PurePath("2000-01-01.parquet").match(self.pattern.removeprefix("**/")):
            raise ValueError(
                f"pattern={self.pattern!r} does not match the files that are fetched, such as 2000-01-01.parquet; "
                "remove it"
            )
        if unknown := self.query_parameters - set(DAY_PARAMETERS):
            raise ValueError(
                f"query has the parameter :{min(unknown)}, but a query can use :day, :day_start and :day_end; write "
                f"\\:{min(unknown)} if the colon belongs to the SQL"
            )
        return self

    @property
    def is_fetched(self) -> bool:
        """Whether a query or a callable fetches rows into the landing folder."""
        return bool(self.query or self.callable)

    @property
    def query_parameters(self) -> set[str]:
        """Parameters in the query, by the rule of SQLAlchemy: a word after a single colon."""
        return set(re.findall(r"(?<![:\w\\]):(\w+)(?!:)", self.query or ""))


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
