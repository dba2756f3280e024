"""PipelineConfig: every word of a dataset's ``defs.yaml``, validated and described.

The same model is the schema of the YAML file, so a description here is what a person reads in ``dg docs`` and in the
scaffolded file.
"""

import datetime as dt
import re
from typing import Self

from pydantic import Field, field_validator, model_validator

from ae_pipeline.config.columns import RESERVED_COLUMNS, ColumnType
from ae_pipeline.config.model import (
    OUTPUT_OF,
    LossTerm,
    ModelConfig,
    Output,
    Scaling,
    Section,
    TrainingConfig,
    format_loss,
)
from ae_pipeline.config.service import (
    AlertsConfig,
    DriftConfig,
    Evidence,
    Fraction,
    GateConfig,
    LatentsConfig,
    RetrainConfig,
)


class SourceConfig(Section):
    """Where the dataset's files land."""

    path: str | None = Field(
        default=None,
        description="Folder of the landed files, absolute or relative to the data folder; "
        "landing/<dataset> when left out.",
    )
    pattern: str = Field(
        default="**/*",
        description="Which files below the folder belong to the dataset; .csv and .parquet files are read, and .png, "
        ".jpg and .jpeg where images are configured.",
    )


class ImagesConfig(Section):
    """Images: PNG and JPEG files, each a row, or arrays in a column of Parquet files."""

    column: str = Field(
        default="image",
        description="Column that holds the image: what a PNG or JPEG becomes, and the column of Parquet files with "
        "arrays (height × width, or × channels) or with encoded PNG or JPEG bytes.",
    )
    path: str | None = Field(
        default=None,
        description="Regular expression over an image file's path below the landing place; its named groups become "
        "columns, such as '(?P<texture>[a-z]+)/' or '(?P<taken_at>[0-9-]{10})_'. The path itself is the column file.",
    )
    patch: int | None = Field(
        default=None,
        ge=4,
        description="Cut each image into square patches of so many pixels, each a row with the columns top and left; "
        "what is left over at the lower and right edge is not looked at. Whole images when left out.",
    )
    stride: int | None = Field(
        default=None, ge=1, description="Pixels from one patch to the next; as many as patch when left out."
    )

    @field_validator("path")
    @classmethod
    def _is_expression(cls, value: str | None) -> str | None:
        try:
            names = re.compile(value).groupindex if value is not None else {"": 0}
        except re.error as error:
            raise ValueError(f"path={value!r} is not a regular expression ({error}); mend it") from error
        if not names:
            raise ValueError(f"path={value!r} names no group; write (?P<name>…) around what should become a column")
        return value

    @model_validator(mode="after")
    def _stride_fits(self) -> Self:
        if self.stride and not self.patch:
            raise ValueError(f"stride={self.stride} goes with patch; give both or none")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        own = {"file", "top", "left"}
        if self.column in own | RESERVED_COLUMNS:
            raise ValueError(f"column={self.column!r} is the pipeline's own; choose another")
        groups = re.compile(self.path or "").groupindex
        if taken := sorted(groups.keys() & (own | {self.column} | RESERVED_COLUMNS - {"event_time"})):
            raise ValueError(
                f"path={self.path!r}: the group {taken[0]!r} bears a name of the pipeline's own; choose another"
            )
        return self


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
    images: ImagesConfig | None = Field(
        default=None, description="Rows are images, or patches of images; the model looks at them and at nothing else."
    )
    label: str | None = Field(
        default=None,
        min_length=1,
        description="SQL expression over the columns that is true for known anomalies, such as \"texture <> 'brick'\". "
        "The report measures the scores by it, and no model sees it or the columns it names.",
    )
    max_quarantine_share: Fraction = Field(
        default=0.01, description="Share of quarantined rows above which the check of raw_data fails."
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="The network.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="The window and how it is learnt.")
    alerts: AlertsConfig = Field(default_factory=AlertsConfig, description="What counts as an anomaly.")
    latents: LatentsConfig = Field(
        default_factory=LatentsConfig, description="When latents of two models are compatible."
    )
    retrain: RetrainConfig = Field(default_factory=RetrainConfig, description="When to train anew.")
    gate: GateConfig = Field(default_factory=GateConfig, description="What a challenger must keep to serve.")
    drift: DriftConfig = Field(default_factory=DriftConfig, description="When a new day counts as drifted.")
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
        if window.only_normal and self.label is None:
            raise ValueError("only_normal=true needs label: the expression that says which rows are anomalies")
        if self.is_daily and window.split_by:
            raise ValueError("split_by goes with datasets without event time; days are cut by time")
        self._check_model()
        reserved = RESERVED_COLUMNS & (self.derive.keys() | (self.columns.keys() - {self.event_time}))
        if reserved:
            raise ValueError(f"column name {sorted(reserved)[0]!r} is the pipeline's own; choose another")
        return self

    @model_validator(mode="after")
    def _images_fit(self) -> Self:
        column = self.images.column if self.images else None
        for name, kind in self.columns.items():
            if (kind == ColumnType.IMAGE) != (name == column):
                raise ValueError(
                    f"columns says that {name!r} is {kind.value}, and images names {column!r} as the one image column; "
                    "name it there and leave it out of columns"
                )
        if self.images and self.alerts.evidence == (Evidence.ENSEMBLE,):
            raise ValueError("evidence=['ensemble'] is for tables; of images name columns, latent or row")
        if column in self.exclude:
            raise ValueError(f"exclude names {column!r}, the images that the model is to look at; leave it out there")
        if column in {*self.identity, self.event_time, *self.training.split_by} - {None}:
            raise ValueError(
                f"column {column!r} holds images, which do not name rows or keep them together; name another"
            )
        if self.images and self.images.patch and {"top", "left"} & set(self.training.split_by):
            raise ValueError("split_by names top or left, and patches that overlap must stay together; leave it out")
        if self.images and self.images.patch and not {"top", "left"} < set(self.identity):
            raise ValueError(
                f"patch={self.images.patch} makes many rows of an image; add top and left to identity, beside "
                "what names the image, so that they do not replace each other"
            )
        return self

    def _check_model(self) -> None:
        loss, scaling, output = self.loss, self.scaling, self.output
        message = f"loss={format_loss(loss)}"
        if self.images is None and LossTerm.SSIM in loss:
            raise ValueError(
                f"{message}: ssim compares images, and {self.dataset!r} has none; choose mse, mae or huber"
            )
        if self.images is not None and LossTerm.LIKELIHOOD in loss:
            raise ValueError(f"{message}: likelihood is for the columns of tables; choose mse, mae, huber, bce or ssim")
        if self.images is not None and scaling == Scaling.ROBUST:
            raise ValueError("scaling='robust' is for the numbers of tables; choose unit, symmetric or standard")
        if output != Output.LINEAR and LossTerm.LIKELIHOOD in loss:
            raise ValueError(f"output={output.value!r} cannot give the logits that likelihood needs; choose linear")
        if output not in {Output.LINEAR, OUTPUT_OF[scaling]}:
            raise ValueError(
                f"output={output.value!r} cannot reach inputs of scaling={scaling.value!r}; choose linear or "
                f"{OUTPUT_OF[scaling].value}"
                if OUTPUT_OF[scaling] != Output.LINEAR
                else f"output={output.value!r} cannot reach inputs of scaling={scaling.value!r}, which have no ends; "
                "choose linear, or scaling unit or symmetric"
            )
        if LossTerm.BCE in loss and (scaling != Scaling.UNIT or output != Output.SIGMOID):
            raise ValueError(
                f"{message}: bce needs scaling='unit' and output='sigmoid', got {scaling.value!r} and "
                f"{output.value!r}; choose these, or another loss"
            )
        if self.training.corruption == "salt_and_pepper" and scaling not in {Scaling.UNIT, Scaling.SYMMETRIC}:
            raise ValueError(
                f"corruption='salt_and_pepper' needs a scale with ends, got scaling={scaling.value!r}; choose unit or "
                "symmetric"
            )
        if self.training.beta_warmup >= self.training.epochs > 0 and self.training.beta_warmup:
            raise ValueError(
                f"beta_warmup={self.training.beta_warmup} never ends within epochs={self.training.epochs}; shorten it"
            )

    @property
    def loss(self) -> dict[LossTerm, float]:
        """Terms of the reconstruction loss with their weights, chosen or by default."""
        return self.model.loss or {LossTerm.MSE if self.images else LossTerm.LIKELIHOOD: 1.0}

    @property
    def scaling(self) -> Scaling:
        """Scaling of the inputs, chosen or by default."""
        return self.model.scaling or (Scaling.UNIT if self.images else Scaling.ROBUST)

    @property
    def output(self) -> Output:
        """Activation of the output, chosen or by default."""
        by_default = Output.LINEAR if LossTerm.LIKELIHOOD in self.loss else OUTPUT_OF[self.scaling]
        return self.model.output or by_default

    @property
    def is_daily(self) -> bool:
        """Whether the dataset has event time, and so daily partitions."""
        return self.event_time is not None

    def has_day(self, day: str) -> bool:
        """Whether a day, ISO date or `all`, is one of the dataset's as it is configured now."""
        if self.start is None:
            return day == "all"
        return day != "all" and self.start.isoformat() <= day and (self.end is None or day <= self.end.isoformat())
