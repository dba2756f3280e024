"""The words of the YAML about what a model is held to while it serves: alerts, gate, retraining, drift, latents."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from ae_pipeline.config.model import Section

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Evidence(StrEnum):
    """What can speak for a row being an anomaly."""

    COLUMNS = "columns"
    LATENT = "latent"
    ROW = "row"
    ENSEMBLE = "ensemble"


class AlertsConfig(Section):
    """What counts as an anomaly and how many rows a report shows."""

    budget: Fraction = Field(
        default=0.001, description="Share of normal rows that may be flagged: 0.001 is one alert in a thousand."
    )
    evidence: tuple[Evidence, ...] = Field(
        default=tuple(Evidence),
        min_length=1,
        description="What a score rests on, the strangest of: columns (the strangest one; of an image its strangest "
        "spot), latent (how far the latent is from those of training), row (the loss of the row as a whole, in "
        "variational forms with the divergence of its latent: -ELBO at its mean; of an image its residual as a whole), "
        "ensemble (tables: how far the row is from those of training, and from what small autoencoders that only score "
        "make of it).",
    )

    @field_validator("evidence")
    @classmethod
    def _evidence_is_named_once(cls, value: tuple[Evidence, ...]) -> tuple[Evidence, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"evidence={[part.value for part in value]} names one twice; name each once")
        return value

    false_discovery_rate: Fraction | None = Field(
        default=None,
        description="A second mark, in reports alone: rows of a day among which this share of false alarms is expected "
        "(Benjamini & Hochberg 1995). It depends on the other rows of the day; flags in the table always go by budget.",
    )
    report_rows: int = Field(default=200, ge=1, description="Rows that the report ranks at most.")
    webhook: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the environment variable that holds an address, http or https, to which each alert is "
        "posted as JSON: a failed run, a rejected challenger, a broken contract, a day over its alert budget. "
        "The address is a secret and stands in no file. Alerts show in the report with and without it.",
    )


class GateConfig(Section):
    """What a challenger must keep beside the version that serves, on days that neither was fitted on."""

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "most_worse": "max_error_increase",
        "most_departure": "max_ks_distance",
        "most_lost": "max_recall_drop",
        "least_alive": "min_active_latents",
    }

    days: int = Field(
        default=7,
        ge=0,
        description="The newest days with rows, which no part of a model sees: challenger and version that serves are "
        "compared on them. Without event time a twentieth of the rows, whatever stands here; with 0 days nothing is "
        "compared.",
    )
    max_error_increase: float = Field(
        default=0.1,
        ge=0,
        description="By how much of the other's the challenger's reconstruction error may be greater: the geometric "
        "mean over columns, each in its own unit.",
    )
    max_ks_distance: Fraction = Field(
        default=0.1,
        description="Gap between the scores of the gate's rows and those of the calibration, over all levels of the "
        "score, that a challenger may show, beyond what chance makes; or that of the version that serves.",
    )
    max_recall_drop: Fraction = Field(
        default=0.1,
        description="How much smaller than the other's the challenger's share of found faults may be: values planted "
        "into the gate's rows that must then score higher than 99 % of these.",
    )
    min_active_latents: Fraction = Field(
        default=0.5, description="Share of the latent columns that must vary from row to row."
    )
    compatible: bool = Field(
        default=False,
        description="Whether latents that could not be aligned to those in use bar a challenger from serving; "
        "otherwise that is a warning.",
    )


class DriftConfig(Section):
    """From which effect sizes on a new day counts as unlike the training window; see drift.py for what they are."""

    psi: float = Field(
        default=0.5,
        gt=0,
        description="Population stability index of a column, of the score or of a latent, less what chance makes of "
        "so few rows.",
    )
    wasserstein: float = Field(
        default=0.75,
        gt=0,
        description="Wasserstein distance of numbers, in units of their spread in the window, likewise.",
    )
    new_categories: Fraction = Field(
        default=0.05,
        description="Share of rows with a category unseen in the window, beyond that of the calibration days with one "
        "unseen before them.",
    )
    missing: Fraction = Field(default=0.2, description="Change of the share of missing values, up or down.")
    min_rows: int = Field(default=100, ge=1, description="Rows that a day needs to be judged.")


class RetrainConfig(Section):
    """When the schedule trains anew. It is stopped until somebody starts it."""

    cron: str = Field(default="0 3 * * 1", description="Cron expression, UTC.")
    min_new_rows: int = Field(
        default=1,
        ge=1,
        description="Rows on days that are new or changed since the last training below which a tick skips.",
    )
    drifting_days: int | None = Field(
        default=None,
        ge=1,
        description="Train before the next tick once so many drifted days in a row are there that the last training "
        "has not seen, not counting the newest gate.days, which no training sees, and if min_new_rows are there; a "
        "sensor of its own does so. Never when left out.",
    )


class LatentsConfig(Section):
    """How long earlier latents stay, and how near a retrained model's must come to those in use to go on with them."""

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "least_explained": "min_explained_variance",
        "most_condition": "max_condition_number",
    }

    retention_days: int = Field(
        default=90,
        ge=1,
        description="Days for which the rows of an earlier version of the table stay readable; after them their files "
        "are removed.",
    )

    min_explained_variance: Fraction = Field(
        default=0.9,
        description="Share of the variance of the latents in use that the best affine map of the new ones explains: "
        "below it the check latents_compatible warns.",
    )
    max_condition_number: float = Field(
        default=10_000.0,
        ge=1,
        description="Ratio of the greatest to the least stretch of that map, with each axis in units of its spread, "
        "above which the new axes stay as they were learnt.",
    )
