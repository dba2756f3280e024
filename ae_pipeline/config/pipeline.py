"""PipelineConfig: the validated content of a dataset's `defs.yaml`.

The model is also the schema of the YAML file. Its descriptions are shown by `dg docs` and in the reference.
"""

import datetime as dt
import re
from pathlib import PurePath
from typing import Annotated, Self
from zoneinfo import ZoneInfo

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ae_pipeline.config.columns import (
    RESERVED_COLUMNS,
    ColumnDeclaration,
    ColumnDisplay,
    ColumnType,
    as_declaration,
    declaration_kind,
)
from ae_pipeline.config.model import OUTPUT_OF, LossTerm, ModelConfig, Output, Scaling, TrainingConfig, format_loss
from ae_pipeline.config.section import Section
from ae_pipeline.config.service import (
    AlertsConfig,
    DriftConfig,
    Evidence,
    Fraction,
    GateConfig,
    LatentsConfig,
    RetrainConfig,
    ScaleConfig,
)
from ae_pipeline.config.source import ImagesConfig, SourceConfig
from ae_pipeline.config.timezone import check_timezone


class PipelineConfig(Section):
    """One dataset's chain: raw_data → features → autoencoder → champion → latent_features → anomaly_report.

    >>> config = PipelineConfig(dataset="orders", identity=("order_id",), event_time="created", start="2025-01-01")
    >>> config.is_daily, config.has_day("2025-01-02"), config.scaling.value
    (True, True, 'robust')
    """

    dataset: str = Field(
        description="Name of the dataset: lower-case letters, digits and `_`. It is the asset group, the first part of "
        "the asset keys, a folder name and the name of the registered model."
    )
    description: str = Field(
        default="", description="What a row is and where the data comes from. The web UI shows it; Markdown is allowed."
    )
    owners: tuple[str, ...] = Field(
        default=(), description="Owners of the assets: e-mail addresses, or teams as `team:<name>`."
    )
    source: SourceConfig = Field(default_factory=SourceConfig, description="Which files belong to the dataset.")
    identity: tuple[str, ...] = Field(
        default=(),
        description="Columns that together identify a row. A later row with the same identity replaces an earlier one. "
        "Their values are compared as text, exactly as they landed. Without identity, every landed row is kept: a row "
        "is known by a hash of its values and the number of its occurrence.",
    )
    event_time: str | None = Field(
        default=None,
        description="Column with the time at which the row happened. It determines the daily partition. Times without "
        "a time zone are local times of `timezone`. By default the dataset has no event time and no partitions.",
    )
    timezone: str = Field(
        default="UTC",
        description="IANA name of the time zone of the dataset, such as `America/New_York`. Days start and end at its "
        "midnight, the model sees its time of day and weekday, and the schedule uses it. Times in the data without a "
        "zone are local times of it.",
    )
    start: dt.date | None = Field(
        default=None,
        description="First daily partition, a day of `timezone`. Earlier rows go to quarantine. Required with "
        "`event_time`.",
    )
    end: dt.date | None = Field(
        default=None,
        description="Last daily partition, a day of `timezone`. Later rows go to quarantine, and rows after "
        "today stay there until their day comes. By default today.",
    )
    columns: dict[
        str,
        Annotated[
            Annotated[ColumnType, Tag("name")] | Annotated[ColumnDeclaration, Tag("mapping")],
            Discriminator(declaration_kind),
        ],
    ] = Field(
        default_factory=dict,
        description="Types of columns whose values do not show their type. Examples are `clock_hhmm` (1745 is 17:45), "
        "and `category` for an integer that is a name. A mapping also says how the values are written, for example "
        '`{type: number, decimal: ",", suffix: "%"}` or `{type: timestamp, format: "%d/%m/%Y %H:%M"}`. The types '
        "of other columns are inferred once, into the schema contract.",
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        description="Columns that the model does not see. They stay in `raw_data`, and `derive` and `label` can use "
        "them.",
    )
    display: dict[str, ColumnDisplay] = Field(
        default={},
        description="Titles, units and names of values of columns, also of derived ones, on all pages and in messages: "
        "`arr_delay: {title: arrival delay, unit: minutes}` makes `the median of arrival delay is 38 minutes`. With "
        "`carrier: {codes: {AA: American Airlines}}`, pages show the name instead of `AA`. Files and scores do not "
        "depend on them.",
    )
    derive: dict[str, str] = Field(
        default_factory=dict,
        description="Additional numeric columns: SQL expressions over the other columns, for example `delay: arrival - "
        "departure`. Clocks are minutes after midnight. An expression can use columns derived above it.",
    )
    images: ImagesConfig | None = Field(
        default=None,
        description="Settings for rows that are images, or patches of images. The model then sees the image column "
        "only. By default the dataset is a table.",
    )
    label: str | None = Field(
        default=None,
        min_length=1,
        description="SQL expression over the columns that is true for known anomalies, for example `texture <> "
        "'brick'`. The report measures the scores with it. The model sees neither the label nor the columns in it.",
    )
    max_quarantine_share: Fraction = Field(
        default=0.01,
        description="Maximum share of quarantined rows, between 0 and 1. Above it, the check of `raw_data` fails.",
    )
    max_removed_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2,
        description="Share of the rows that may go without a question, because of an edit, or a deleted or corrected "
        "file. Above it, a run changes nothing and asks for `--accept-removal`. 1 never asks.",
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="The network, its inputs and its loss.")
    training: TrainingConfig = Field(
        default_factory=TrainingConfig, description="The training window, and how a model is trained on it."
    )
    alerts: AlertsConfig = Field(
        default_factory=AlertsConfig, description="Which rows count as anomalies, and where alerts are sent."
    )
    latents: LatentsConfig = Field(
        default_factory=LatentsConfig,
        description="How long earlier latents stay readable, and when a new latent space is compatible with the "
        "current one.",
    )
    retrain: RetrainConfig = Field(
        default_factory=RetrainConfig, description="When the schedule and the drift sensor train a new model."
    )
    gate: GateConfig = Field(
        default_factory=GateConfig, description="Conditions that a challenger must meet to become the champion."
    )
    drift: DriftConfig = Field(
        default_factory=DriftConfig, description="Thresholds above which a day counts as drifted."
    )
    scale: ScaleConfig = Field(default_factory=ScaleConfig, description="How long spans of days are cut into runs.")
    fresh_hours: int | None = Field(
        default=48,
        ge=1,
        description="Hours without a new materialization after which the latent table counts as stale. `null` switches "
        "the check off.",
    )

    @field_validator("dataset")
    @classmethod
    def _name_is_plain(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", value):
            raise ValueError(
                f"dataset={value!r} is not a valid name, because it becomes a folder, an asset group and a registered "
                "model; use lower-case letters, digits and '_', and start with a letter"
            )
        return value

    @field_validator("timezone")
    @classmethod
    def _timezone_exists(cls, value: str) -> str:
        return check_timezone(value)

    @model_validator(mode="after")
    def _days_fit(self) -> Self:
        if self.event_time and self.start is None:
            raise ValueError(f"event_time={self.event_time!r} needs start; give the first day of the daily partitions")
        if self.start and self.end and self.end < self.start:
            raise ValueError(f"end={self.end} is before start={self.start}; give the last day")
        if self.start and not self.event_time:
            raise ValueError(f"start={self.start} needs event_time; name the column that holds the time of a row")
        return self

    @model_validator(mode="after")
    def _fetched_source_fits(self) -> Self:
        used = self.source.query_parameters
        if self.source.query and self.event_time and not used:
            raise ValueError(
                "source.query fetches the rows of one day, but uses no day; add a condition such as "
                f"{self.event_time} >= :day_start AND {self.event_time} < :day_end"
            )
        if used and not self.event_time:
            raise ValueError(f"source.query uses :{min(used)}, but the dataset has no days; set event_time and start")
        pattern = self.source.pattern
        if self.source.is_fetched and not PurePath("2000-01-01.parquet").match(pattern.removeprefix("**/")):
            raise ValueError(
                f"source.pattern={pattern!r} does not match the files that are fetched, such as 2000-01-01.parquet; "
                "remove it"
            )
        return self

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        training = self.training
        if (training.validation_days or 1) + (training.calibration_days or 1) >= training.window_days:
            raise ValueError(
                f"validation_days={training.validation_days} and calibration_days={training.calibration_days} leave no "
                f"training day in window_days={training.window_days}; make the window longer"
            )
        if training.only_normal and self.label is None:
            raise ValueError("only_normal=true needs label; give the SQL expression that is true for anomalies")
        if self.is_daily and training.split_by:
            raise ValueError(
                f"split_by={list(training.split_by)} is for datasets without event time, because days are split by "
                "time; remove it"
            )
        return self

    @model_validator(mode="after")
    def _loss_fits_rows(self) -> Self:
        loss = f"loss={format_loss(self.loss)}"
        if self.images is None and LossTerm.SSIM in self.loss:
            raise ValueError(f"{loss}: ssim compares images, and {self.dataset!r} has none; choose mse, mae or huber")
        if self.images is not None and LossTerm.LIKELIHOOD in self.loss:
            raise ValueError(f"{loss}: likelihood is for the columns of tables; choose mse, mae, huber, bce or ssim")
        if self.images is not None and self.scaling == Scaling.ROBUST:
            raise ValueError("scaling='robust' is for the numbers of tables; choose unit, symmetric or standard")
        return self

    @model_validator(mode="after")
    def _output_fits_loss_and_scaling(self) -> Self:
        scaling, output, bounded = self.scaling, self.output, OUTPUT_OF[self.scaling]
        if output != Output.LINEAR and LossTerm.LIKELIHOOD in self.loss:
            raise ValueError(f"output={output.value!r} cannot give the logits that likelihood needs; choose linear")
        if output not in {Output.LINEAR, bounded}:
            problem = f"output={output.value!r} cannot reach inputs of scaling={scaling.value!r}"
            if bounded == Output.LINEAR:
                raise ValueError(f"{problem}, which are unbounded; choose linear, or scaling unit or symmetric")
            raise ValueError(f"{problem}; choose linear or {bounded.value}")
        if LossTerm.BCE in self.loss and (scaling != Scaling.UNIT or output != Output.SIGMOID):
            raise ValueError(
                f"loss={format_loss(self.loss)}: bce needs scaling='unit' and output='sigmoid', got {scaling.value!r} "
                f"and {output.value!r}; choose these, or another loss"
            )
        return self

    @model_validator(mode="after")
    def _training_fits_model(self) -> Self:
        training = self.training
        if training.corruption == "salt_and_pepper" and self.scaling not in {Scaling.UNIT, Scaling.SYMMETRIC}:
            raise ValueError(
                f"corruption='salt_and_pepper' needs a bounded scale, got scaling={self.scaling.value!r}; choose unit "
                "or symmetric"
            )
        if 0 < training.epochs <= training.beta_warmup:
            raise ValueError(
                f"beta_warmup={training.beta_warmup} does not end within epochs={training.epochs}; choose a smaller "
                "value"
            )
        return self

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        reserved = RESERVED_COLUMNS & (self.derive.keys() | (self.columns.keys() - {self.event_time}))
        if reserved:
            raise ValueError(f"column name {sorted(reserved)[0]!r} is reserved; choose another one")
        return self

    @model_validator(mode="after")
    def _image_column_is_consistent(self) -> Self:
        column = self.images.column if self.images else None
        for name, declaration in self.columns.items():
            kind = as_declaration(declaration).type
            if (kind == ColumnType.IMAGE) != (name == column):
                raise ValueError(
                    f"columns gives {name!r} the type {kind.value}, but the image column is {column!r}; set "
                    "images.column, and remove the image column from columns"
                )
        if self.images and self.alerts.evidence == (Evidence.ENSEMBLE,):
            raise ValueError("evidence=['ensemble'] is for tables; for images choose columns, latent or row")
        if column in self.exclude:
            raise ValueError(f"exclude contains the image column {column!r}, which the model needs; remove it there")
        if column in {*self.identity, self.event_time, *self.training.split_by} - {None}:
            raise ValueError(
                f"column {column!r} holds images, which cannot be identity, event time or split_by; choose another "
                "column"
            )
        return self

    @model_validator(mode="after")
    def _patches_have_identity(self) -> Self:
        if self.images and self.images.masks and "file" not in self.identity:
            raise ValueError(f"masks={self.images.masks!r} belong to image files; add file to identity")
        if not (self.images and self.images.patch):
            return self
        if {"top", "left"} & set(self.training.split_by):
            raise ValueError(
                f"split_by={list(self.training.split_by)} contains top or left, but overlapping patches must stay "
                "together; remove them"
            )
        if not {"top", "left"} < set(self.identity):
            raise ValueError(
                f"patch={self.images.patch} makes many rows of one image; add top and left to identity, next to the "
                "columns that identify the image"
            )
        return self

    @property
    def loss(self) -> dict[LossTerm, float]:
        """Terms of the reconstruction loss and their weights, as configured or by default."""
        return self.model.loss or {LossTerm.MSE if self.images else LossTerm.LIKELIHOOD: 1.0}

    @property
    def scaling(self) -> Scaling:
        """Scaling of the inputs, as configured or by default."""
        return self.model.scaling or (Scaling.UNIT if self.images else Scaling.ROBUST)

    @property
    def output(self) -> Output:
        """Activation of the output layer, as configured or by default."""
        default = Output.LINEAR if LossTerm.LIKELIHOOD in self.loss else OUTPUT_OF[self.scaling]
        return self.model.output or default

    @property
    def is_daily(self) -> bool:
        """Whether the dataset has event time and therefore daily partitions."""
        return self.event_time is not None

    @property
    def zone(self) -> ZoneInfo:
        """Time zone of the dataset."""
        return ZoneInfo(self.timezone)

    def today(self) -> dt.date:
        """Return the current day in the time zone of the dataset."""
        return dt.datetime.now(self.zone).date()

    def timezone_setting(self) -> list[str]:
        """Return what a hash of settings adds for the time zone: nothing for UTC, so that earlier hashes stay valid."""
        return [] if self.timezone == "UTC" else [self.timezone]

    def has_day(self, day: str) -> bool:
        """Return whether a day, or `all` without event time, belongs to the dataset as configured now."""
        if self.start is None:
            return day == "all"
        return day != "all" and self.start.isoformat() <= day and (self.end is None or day <= self.end.isoformat())
