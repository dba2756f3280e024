"""The stages of a dataset: names, keys, checks, partitions, and what all their assets have in common."""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg

from ae_pipeline.common.errors import PipelineError
from ae_pipeline.common.text import pluralize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

CODE_VERSION = "1"
"""Raised with a stage's own version when its results would change."""

DATASET_TAG = "ae_pipeline/dataset"
"""Tag of a run: whose it is."""

REQUEST_TAG = "ae_pipeline/request"
"""Tag of a run that a sensor asked for: names what was to be done, so that its attempts can be counted."""

READ_TAG = "ae_pipeline/read"
"""Tag of a run before which what has landed was read."""

WHO = "ae_pipeline/who"
"""Tag of a run: the person who asked for it."""

Body = Callable[[dg.AssetExecutionContext], dg.MaterializeResult[Any]]
"""What an asset does."""


@dataclass(frozen=True)
class Stage:
    """One asset of each dataset.

    Attributes:
        deps: Stages it is made from.
        daily: Whether it has the dataset's partitions.
        kinds: Shown as icons in the UI.
        description: What it is, for somebody new.
        checks: Rules of its asset checks, by name.
    """

    deps: tuple[str, ...]
    daily: bool
    kinds: frozenset[str]
    description: str
    checks: Mapping[str, str]


_NOT_COLLAPSED = "At least half of the latent columns vary from row to row."

STAGES = {
    "raw_data": Stage(
        (),
        True,
        frozenset({"polars", "parquet"}),
        "**Rows as they landed, made safe.** Files are read against the dataset's schema contract: typed, "
        "deduplicated by identity (the newest file wins), and rows that break a rule go to quarantine with a reason. "
        "One Parquet file a day.\n\n"
        "*To correct a day, land its file again.* Why a row was rejected stands in `data/quarantine/<dataset>/`; why a "
        "whole file was, in the metadata `files_refused`.",
        {
            "schema": "Every landed file can be read and has the columns of the schema contract.",
            "identity_unique": "No identity stands twice among the rows of the run.",
            "quarantine_share": "The share of rows in quarantine stays within max_quarantine_share.",
        },
    ),
    "features": Stage(
        ("raw_data",),
        True,
        frozenset({"polars", "parquet"}),
        "**Cleaned and derived columns that depend on no model.** Clocks in minutes, tidy text, derived columns; row "
        "for row what raw_data has. One Parquet file a day.\n\n"
        "Which columns there are says the contract in `data/contracts/`; which are derived or left out, `derive` and "
        "`exclude` in the dataset's `defs.yaml`.",
        {"rows_kept": "Features have row for row what raw_data has."},
    ),
    "autoencoder": Stage(
        ("features",),
        False,
        frozenset({"pytorch", "mlflow"}),
        "**A trained model, the challenger.** Fitted on a window of features that is cut by time into training, "
        "validation and calibration days; recorded as one MLflow run and one registered version. New days do not make "
        "it stale: a schedule or a person trains anew.\n\n"
        "Of the metadata `loss_plot` shows whether it has learnt, `calibration_plot` whether the alert budget holds on "
        "rows that no part of it has seen, and `model_card` all else. A broken rule below is a warning: the version is "
        "registered and does not serve.",
        {
            "finite_weights": "Every weight of the network is a finite number.",
            "loss_fell": "The validation loss is lower than before the first step.",
            "latents_not_collapsed": "Enough of the latent columns vary from row to row: gate.min_active_latents.",
            "reconstruction_no_worse": "On days that neither was fitted on, its reconstructions are about as near as "
            "those of the version that serves, in the columns' own units: gate.max_error_increase.",
            "calibration_no_worse": "On these days its scores lie about as near to its calibration as those of the "
            "version that serves to theirs: gate.max_ks_distance.",
            "planted_faults_found": "It finds about as many faults planted into these days as the version that serves: "
            "gate.max_recall_drop.",
            "latents_compatible": "The latents go on where those of the version that serves end: their axes could be "
            "aligned. Otherwise a warning, and an obstacle to serving where gate.compatible says so.",
        },
    ),
    "champion": Stage(
        ("autoencoder",),
        False,
        frozenset({"mlflow"}),
        "**The model version that serves.** The challenger takes over when it keeps every rule of the gate; a person "
        "goes back to another by the job rollback. The data version is the model version, so a rejected challenger "
        "makes nothing stale.\n\n"
        "The metadata `history` tells which version served since when, who decided and why.",
        {"can_be_loaded": "The bundle of the version that serves can be loaded."},
    ),
    "latent_features": Stage(
        ("features", "champion"),
        True,
        frozenset({"pytorch", "deltalake"}),
        "**The published table.** Latent columns z_000 …, score, p-value and flag of every row under the champion: a "
        "Delta Lake table of plain Parquet files that changes in one commit.\n\n"
        "Read it with `polars.scan_delta` or `pandas.read_parquet(deltalake.DeltaTable(…).file_uris())`; what readers "
        "may rely on stands in its `_contract/contract.md`. Latents of two versions are never in it at once, and "
        "compare only where the contract's major version is the same.",
        {
            "rows_kept": "The table has row for row what features have.",
            "latents_not_collapsed": _NOT_COLLAPSED,
            "calibration_holds": "Rows after the calibration days score like those of these days; a warning.",
        },
    ),
    "anomaly_report": Stage(
        ("latent_features",),
        True,
        frozenset({"parquet", "html"}),
        "**The strangest rows and why.** Ranked rows with the columns that made them strange, as Parquet and JSON, "
        "and one page to read: with pictures where rows are images, and measured where a label knows anomalies.\n\n"
        "**Start here in the morning:** the metadata `verdict` says whether anything is wrong on the newest day of the "
        "run, `report` opens the page. Other systems read `alerts.parquet` and `summary.json`.",
        {
            "alert_budget": "The share of flagged rows stays within three times the alert budget, or what chance makes "
            "of few rows; known anomalies do not count.",
            "drift": "Days after the training window are like it: columns, scores and latents, by effect sizes and the "
            "thresholds of drift. Otherwise a warning.",
        },
    ),
}
"""All stages, in the order of the data."""


def asset_key(config: PipelineConfig, stage: str) -> dg.AssetKey:
    """Gives the key [dataset, stage]."""
    return dg.AssetKey([config.dataset, stage])


def partitions(config: PipelineConfig) -> dg.DailyPartitionsDefinition | None:
    """Gives the dataset's days, UTC; none without event time."""
    if config.start is None:
        return None
    after = config.end + dt.timedelta(days=1) if config.end else None
    # Without an end the partition of today exists while today lasts, so that it can be scored as it fills.
    return dg.DailyPartitionsDefinition(
        start_date=config.start.isoformat(),
        end_date=after.isoformat() if after else None,
        end_offset=0 if after else 1,
        timezone="UTC",
    )


def build_asset(config: PipelineConfig, stage: str, body: Body) -> dg.AssetsDefinition:
    """Makes the asset of a stage out of what it does."""
    facts, key = STAGES[stage], asset_key(config, stage)
    settings: dict[str, Any] = {
        "key": key,
        "group_name": config.dataset,
        "deps": [asset_key(config, name) for name in facts.deps],
        "description": f"{facts.description}\n\n{config.description}".strip(),
        "owners": list(config.owners) or None,
        "kinds": set(facts.kinds),
        "pool": config.dataset,
        "code_version": CODE_VERSION,
        # What fails for want of a file handle or a busy database may pass a moment later.
        "retry_policy": dg.RetryPolicy(max_retries=1, delay=5),
        "required_resource_keys": {"workspace", f"{config.dataset}_lock"},
        "check_specs": [dg.AssetCheckSpec(name, asset=key, description=rule) for name, rule in facts.checks.items()],
    }
    if facts.daily:
        settings |= {"partitions_def": partitions(config), "backfill_policy": dg.BackfillPolicy.single_run()}
    if stage == "latent_features" and config.fresh_hours:
        window = dt.timedelta(hours=config.fresh_hours)
        settings["freshness_policy"] = dg.FreshnessPolicy.time_window(fail_window=window)

    # Dagster looks for the bare class here: with a type argument it would expect a value to store.
    def run(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with as_dagster_failure():
            return body(context)

    asset: dg.AssetsDefinition = dg.asset(**settings)(run)
    return asset


@contextmanager
def as_dagster_failure() -> Iterator[None]:
    """Makes of our own errors failures that are not retried: the same input would fail again."""
    try:
        yield
    except PipelineError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error


def workspace_of(context: dg.AssetExecutionContext) -> Workspace:
    """Gives the workspace resource."""
    workspace: Workspace = context.resources.workspace
    return workspace


def paths_of(context: dg.AssetExecutionContext, config: PipelineConfig) -> DatasetPaths:
    """Gives the dataset's paths."""
    return workspace_of(context).paths(config.dataset)


def days_of(context: dg.AssetExecutionContext) -> list[str]:
    """Gives the partitions of a run, in order, or the one that stands for all rows."""
    has_days = context.has_partition_key or context.has_partition_key_range
    return sorted(context.partition_keys) if has_days else [ALL_ROWS]


def origin_of(context: dg.AssetExecutionContext) -> dict[str, str]:
    """Runs that a result comes from; a run that Dagster retried counts as the one it retries."""
    run = context.run.root_run_id or context.run.run_id
    return {"dagster_run_id": run, "dagster_asset": context.asset_key.to_user_string()}


def who_asked(tags: Mapping[str, str]) -> str:
    """Says on whose behalf a run works, by its tags."""
    for tag, kind in (("dagster/schedule_name", "schedule"), ("dagster/sensor_name", "sensor")):
        if tag in tags:
            return f"{kind} {tags[tag]}"
    return tags.get(WHO, "somebody, through Dagster")


def check(
    context: dg.AssetExecutionContext,
    name: str,
    passed: bool,
    message: str,
    *,
    figure: float | None = None,
    threshold: float | None = None,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    """Gives the result of a check of the asset that runs.

    Args:
        context: Of the asset.
        name: Of the check.
        passed: Whether the rule is kept.
        message: What was found.
        figure: What was measured.
        threshold: What it was held against.
        severity: How a broken rule shows; none of them stops the run, since good rows must go on.
    """
    figures = {key: float(value) for key, value in (("figure", figure), ("threshold", threshold)) if value is not None}
    return dg.AssetCheckResult(
        asset_key=context.asset_key,
        check_name=name,
        passed=bool(passed),
        severity=severity,
        description=message,
        metadata=figures,
    )


def rows_on_days(rows: int, days: int, config: PipelineConfig) -> str:
    """Says how many rows, and on how many days where the dataset has any."""
    return f"{rows:,} rows on {pluralize(days, 'day')}" if config.is_daily else f"{rows:,} rows"
