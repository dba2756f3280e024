"""Keys of the section `source` that fetch rows: a SQL query, or a Python function."""

import re
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.section import Section

DAY_PARAMETERS = ("day", "day_start", "day_end")
"""Parameters of a query: the day as ISO date, and the times at which it starts and ends."""


class FetchedSource(Section):
    """A query or a function that fetches the rows of a dataset into its landing folder."""

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
