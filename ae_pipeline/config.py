"""PipelineConfig: every word of a dataset's ``defs.yaml``, validated and described.

The same model is the schema of the YAML file, so a description here is what a person reads in ``dg docs`` and in the
scaffolded file.
"""

import datetime as dt
import re
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

RESERVED_COLUMNS = frozenset(
    {"row_id", "event_time", "date", "score", "p_value", "is_anomaly", "_day", "_source_file", "_row_number"}
)
"""Names that the pipeline gives its own columns."""

Fraction = Annotated[float, Field(gt=0, lt=1)]


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


class Section(BaseModel):
    """A part of the YAML: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(Section):
    """Where the dataset's files land."""

    path: str | None = Field(
        default=None,
        description="Folder of the landed files, absolute or relative to the data folder; "
        "landing/<dataset> when left out.",
    )
    pattern: str = Field(
        default="**/*",
        description="Which files below the folder belong to the dataset; .csv and .parquet files are read.",
    )


class ModelConfig(Section):
    """The network."""

    architecture: Literal["dense"] = Field(default="dense", description="Kind of autoencoder.")
    latent_dim: int = Field(default=8, ge=1, description="Width of the latent space: columns z_000 … of the table.")
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(128,), description="Widths of the encoder's hidden layers; the decoder mirrors them."
    )
    activation: Literal["relu", "gelu", "silu", "tanh"] = Field(
        default="relu", description="Activation between the layers."
    )


class TrainingConfig(Section):
    """The window a model learns from and how it learns."""

    window_days: int = Field(
        default=365, ge=3, description="Days before the newest one that a training looks at, cut by time as below."
    )
    validation_days: int = Field(
        default=21, ge=1, description="Days after the training days on which early stopping looks."
    )
    calibration_days: int = Field(
        default=42, ge=1, description="The newest days of the window, kept for the p-values of the scores."
    )
    epochs: int = Field(default=12, ge=1, description="Passes over the training days at most.")
    batch_size: int = Field(default=512, ge=1, description="Rows in one step.")
    learning_rate: float = Field(default=6e-3, gt=0, description="Highest step size of AdamW; it follows a cosine.")
    weight_decay: float = Field(default=1e-4, ge=0, description="Decoupled weight decay of AdamW.")
    patience: int = Field(
        default=5, ge=1, description="Epochs without a better validation loss after which training stops."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the weights and of the order of rows.")
    threads: int = Field(
        default=1,
        ge=1,
        description="CPU threads of torch. Small networks run fastest on one: a step is too little work to share.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where to train; auto takes CUDA where there is one. Published scores always come from the CPU.",
    )


class AlertsConfig(Section):
    """What counts as an anomaly and how many rows a report shows."""

    budget: Fraction = Field(
        default=0.001, description="Share of normal rows that may be flagged: 0.001 is one alert in a thousand."
    )
    report_rows: int = Field(default=200, ge=1, description="Rows that the report ranks at most.")


class RetrainConfig(Section):
    """When the schedule trains anew. It is stopped until somebody starts it."""

    cron: str = Field(default="0 3 * * 1", description="Cron expression, UTC.")
    min_new_rows: int = Field(
        default=1,
        ge=1,
        description="Rows on days that are new or changed since the last training below which a tick skips.",
    )


class PipelineConfig(Section):
    """One dataset's chain: raw_data → features → autoencoder → champion → latent_features → anomaly_report."""

    dataset: str = Field(description="Name of the dataset: the group and first part of its asset keys.")
    description: str = Field(default="", description="What a row is and where it comes from; shown in the UI.")
    owners: tuple[str, ...] = Field(default=(), description="Who answers for it: e-mail addresses, or team:<name>.")
    source: SourceConfig = Field(default_factory=SourceConfig, description="Where the files land.")
    identity: tuple[str, ...] = Field(
        min_length=1, description="Columns that together name a row; a later row of the same identity replaces it."
    )
    event_time: str | None = Field(
        default=None,
        description="Column that says when the row happened (UTC when it bears no zone): it cuts the daily "
        "partitions. Without one the dataset has no partitions.",
    )
    start: dt.date | None = Field(default=None, description="First day, UTC; needed with event_time.")
    end: dt.date | None = Field(default=None, description="Last day, UTC; open when left out.")
    columns: dict[str, ColumnType] = Field(
        default_factory=dict,
        description="Types that cannot be seen from the values, such as clock_hhmm (1745 is 17:45) or an integer "
        "that is a category. All others are inferred once, into the schema contract.",
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="Columns that stay in raw_data and are not offered to the model."
    )
    derive: dict[str, str] = Field(
        default_factory=dict,
        description="Further columns as SQL expressions over the others; clocks count in minutes after midnight.",
    )
    max_quarantine_share: Fraction = Field(
        default=0.01, description="Share of quarantined rows above which the check of raw_data fails."
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="The network.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="The window and how it is learnt.")
    alerts: AlertsConfig = Field(default_factory=AlertsConfig, description="What counts as an anomaly.")
    retrain: RetrainConfig = Field(default_factory=RetrainConfig, description="When to train anew.")
    fresh_hours: int | None = Field(
        default=48,
        ge=1,
        description="Hours after which a latent table that was not materialized counts as stale; null for never.",
    )

    @field_validator("dataset")
    @classmethod
    def _name_is_plain(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", value):
            raise ValueError(
                f"dataset={value!r} is not a plain name; use lower-case letters, digits and '_', beginning with a "
                "letter: it becomes a folder, an asset group and a registered model"
            )
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.event_time and self.start is None:
            raise ValueError(f"event_time={self.event_time!r} needs start: the first day of the daily partitions")
        if self.start and self.end and self.end < self.start:
            raise ValueError(f"end={self.end} lies before start={self.start}; give the last day")
        if self.start and not self.event_time:
            raise ValueError(f"start={self.start} needs event_time: the column that cuts the days")
        window = self.training
        if window.validation_days + window.calibration_days >= window.window_days:
            raise ValueError(
                f"validation_days={window.validation_days} and calibration_days={window.calibration_days} leave none "
                f"of window_days={window.window_days} to train on; make the window longer"
            )
        reserved = RESERVED_COLUMNS & (self.derive.keys() | (self.columns.keys() - {self.event_time}))
        if reserved:
            raise ValueError(f"column name {sorted(reserved)[0]!r} is the pipeline's own; choose another")
        return self

    @property
    def is_daily(self) -> bool:
        """Whether the dataset has event time, and so daily partitions."""
        return self.event_time is not None

    def has_day(self, day: str) -> bool:
        """Whether a day, ISO date or `all`, is one of the dataset's as it is configured now."""
        if self.start is None:
            return day == "all"
        return day != "all" and self.start.isoformat() <= day and (self.end is None or day <= self.end.isoformat())
