"""Sections of `defs.yaml` about a model in service: alerts, gate, drift, retraining and latents."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field, field_validator, model_validator

from ae_pipeline.config.section import Section

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Evidence(StrEnum):
    """The kinds of measures that a score rests on."""

    COLUMNS = "columns"
    LATENT = "latent"
    ROW = "row"
    ENSEMBLE = "ensemble"
    CATEGORIES = "categories"


class AlertsConfig(Section):
    """Which rows count as anomalies, how many of them a report shows, and where alerts are sent."""

    budget: Fraction | None = Field(
        default=None,
        description="Alert budget: the share of normal rows that may be flagged. A row is flagged if its p-value is at "
        "most this value; 0.001 is one false alert in a thousand normal rows. By default 0.001, or with fewer than 999 "
        "calibration rows the lowest value that they can measure.",
    )
    image_budget: Fraction | None = Field(
        default=None,
        description="Where rows are patches: the share of normal images that may be flagged. An image has one score, "
        "and is calibrated on whole calibration images. By default 0.001, or the lowest value that the number of "
        "calibration images can measure.",
    )
    image_patches: int = Field(
        default=1,
        ge=1,
        description="Where rows are patches: the score of an image is the mean score of this many of its most "
        "anomalous patches. 1 is the maximum, which suits single small defects; more suit spread-out ones.",
    )
    evidence: tuple[Evidence, ...] = Field(
        default=tuple(Evidence),
        min_length=1,
        description="Kinds of evidence; the score is the maximum over them. `columns`: the most anomalous column, or "
        "the window of an image with the most anomalous residual or the least contrast. `latent`: the distance of the "
        "latent from the latents of the training rows. `row`: the loss of the whole row; for a variational model the "
        "negative ELBO at the mean. `ensemble` (tables only): the distance of the row from the training rows, and the "
        "errors of small autoencoders that only score. `categories` (tables only): a combination of categories that "
        "is rarer than its parts make expected; it needs two categorical columns that depend on each other. By default "
        "all five.",
    )
    false_discovery_rate: Fraction | None = Field(
        default=None,
        description="Expected share of false alarms among rows that the report marks in addition (Benjamini & Hochberg "
        "1995). The mark depends on the other rows of the day. The flag `is_anomaly` in the table depends on `budget` "
        "only. By default there is no such mark.",
    )
    min_recall: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="With a label: a day with at least ten known anomalies is wrong if a smaller share of them is "
        "flagged.",
    )
    min_precision: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="With a label: a day with at least ten known anomalies is worth a look if a smaller share of its "
        "flagged rows are known anomalies, and calm otherwise.",
    )
    report_rows: int = Field(
        default=200,
        ge=1,
        description="Maximum number of rows that a page lists, and that are explained of a day, highest score first. "
        "`alerts.parquet` has all flagged rows, up to 20,000 of a day.",
    )
    webhook: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the environment variable that holds an http or https URL. Each alert is posted there as "
        "JSON. Alerts report failed runs, rejected challengers, violated contracts and days that are wrong. "
        "The URL is a secret and is never written to a file. By default alerts appear in the report only.",
    )
    webhook_secret: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the environment variable that holds the secret that signs each post, so that the receiver "
        "can verify its origin. The headers `webhook-id`, `webhook-timestamp` and `webhook-signature` follow the "
        "specification Standard Webhooks (HMAC-SHA256). By default posts have no signature.",
    )

    @field_validator("evidence")
    @classmethod
    def _evidence_is_unique(cls, value: tuple[Evidence, ...]) -> tuple[Evidence, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"evidence={[part.value for part in value]} contains a duplicate; name each kind once")
        return value


class GateConfig(Section):
    """Conditions that a challenger must meet to be promoted, on days that neither it nor the champion was fitted on."""

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "most_worse": "max_error_increase",
        "most_departure": "max_ks_distance",
        "most_lost": "max_recall_drop",
        "least_alive": "min_active_latents",
    }

    days: int | None = Field(
        default=None,
        ge=0,
        description="Number of newest days with rows that no model is fitted on. Challenger and champion are compared "
        "on them. 0 switches the comparison off. By default 7, or fewer in proportion if there are fewer than 112 days "
        "with rows. Without event time the gate has 5 % of the rows instead, whatever this value is.",
    )
    max_error_increase: float = Field(
        default=0.1,
        ge=0,
        description="Maximum relative increase of the reconstruction error over that of the champion: 0.1 allows 10 %. "
        "The increase is the geometric mean over the columns, each in its own unit.",
    )
    max_ks_distance: Fraction = Field(
        default=0.1,
        description="Maximum Kolmogorov–Smirnov distance between the scores of the gate's rows and those of the "
        "calibration rows, after subtracting sampling noise. The distance is between 0 and 1. A challenger also passes "
        "if its distance is not above the champion's.",
    )
    max_recall_drop: Fraction = Field(
        default=0.1,
        description="Maximum amount by which the challenger's recall of planted faults may be below the champion's. "
        "Planted faults are wrong values that the gate inserts into its rows. A fault is detected if its row scores "
        "higher than 99 % of the gate's rows. The same limit holds for faults of several kinds that are flagged at the "
        "alert budget, for all together and for each kind.",
    )
    min_alert_agreement: Fraction = Field(
        default=0.5,
        description="Minimum share of the champion's recent alerts that a challenger must flag too. Only alerts on "
        "days over the alert budget count. If these days have more rows than `training.max_screened_share`, the data "
        "has changed, and the rule passes.",
    )
    max_threshold_rise: float = Field(
        default=2.0,
        gt=0,
        description="Maximum rise of the threshold, in nats of the champion's scores: how much higher the champion's "
        "threshold would have to be to flag as few rows and planted faults as the challenger.",
    )
    min_rank_agreement: float = Field(
        default=0.3,
        ge=-1,
        lt=1,
        description="Minimum rank correlation (Spearman) between the scores of challenger and champion, over the "
        "gate's rows and planted faults.",
    )
    min_active_latents: Fraction = Field(
        default=0.5, description="Minimum share of latents that vary from row to row, that is, have not collapsed."
    )
    compatible: bool = Field(
        default=False,
        description="Whether a challenger is rejected if its latents cannot be aligned with those in use. By default "
        "this is only a warning.",
    )


class DriftConfig(Section):
    """Effect sizes above which a day counts as drifted compared with the training window."""

    psi: float = Field(
        default=0.5,
        gt=0,
        description="Threshold for the population stability index of a column, a latent or the score, after "
        "subtracting sampling noise and normal day-to-day variation.",
    )
    wasserstein: float = Field(
        default=0.75,
        gt=0,
        description="Threshold for the Wasserstein distance of numbers, in standard deviations of the window, after "
        "subtracting sampling noise and normal day-to-day variation.",
    )
    new_categories: Fraction = Field(
        default=0.05,
        description="Threshold for the share of rows with a category that is not in the window. The share in the "
        "newest rows of the window, compared with the rows before them, is subtracted.",
    )
    missing: Fraction = Field(
        default=0.2, description="Threshold for the change of the share of missing values, up or down."
    )
    min_rows: int = Field(
        default=100,
        ge=1,
        description="Minimum number of rows of a day. A day with fewer rows is not checked for drift.",
    )


class RetrainConfig(Section):
    """When the pipeline trains a new model by itself. Schedule and sensor are off until you start them."""

    cron: str = Field(
        default="0 3 * * 1", description="Cron expression of the schedule, in `timezone`. By default Mondays at 03:00."
    )
    min_new_rows: int = Field(
        default=1,
        ge=1,
        description="Minimum number of rows on days that are new or changed since the last training. With fewer, the "
        "schedule skips.",
    )
    drifting_days: int | None = Field(
        default=None,
        ge=1,
        description="Number of consecutive drifted days, unknown to the last training, after which a sensor trains "
        "before the next scheduled time. The newest `gate.days` days do not count, because no training uses them. "
        "`min_new_rows` applies too. By default drift starts no training.",
    )


class ScaleConfig(Section):
    """How a long span of days is cut into runs, and how many of these runs work at the same time."""

    days_per_run: int | None = Field(
        default=None,
        ge=1,
        le=3660,
        description="Maximum number of days that a run of `raw_data` and `features` builds. A longer range is cut, at "
        "the ends of months where possible. Latents and report of all days stay one run. A backfill of any asset is "
        "cut after this number of days. By default nothing is cut. Without event time there is one run.",
    )
    runs_at_once: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Number of these runs that work at the same time, on one host or several. All other runs of the "
        "dataset wait for them. By default they run one after another. It needs `days_per_run`.",
    )

    @model_validator(mode="after")
    def _are_cut(self) -> "ScaleConfig":
        if self.runs_at_once > 1 and self.days_per_run is None:
            raise ValueError(
                f"runs_at_once={self.runs_at_once} needs days_per_run, because days that are not cut are one run; set "
                "days_per_run, such as 31"
            )
        return self


class LatentsConfig(Section):
    """How long earlier latents stay readable, and when the latents of a retrained model are compatible."""

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "least_explained": "min_explained_variance",
        "most_condition": "max_condition_number",
    }

    retention_days: int = Field(
        default=90,
        ge=1,
        description="Days for which earlier versions of the latent table stay readable. After that their files are "
        "vacuumed.",
    )
    min_explained_variance: Fraction = Field(
        default=0.9,
        description="Minimum share of the variance of the latents in use that the best affine map of the new latents "
        "explains. Below it, the check `latents_compatible` warns.",
    )
    max_condition_number: float = Field(
        default=10_000.0,
        ge=1,
        description="Maximum condition number of that map: the ratio of its largest to its smallest stretch. Each "
        "axis is in units of its standard deviation. Above it, the new latents keep their own axes.",
    )
