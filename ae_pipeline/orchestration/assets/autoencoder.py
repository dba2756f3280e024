"""The asset `autoencoder`: the challenger that a training registers."""

import math
from typing import TYPE_CHECKING

import dagster as dg

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.assets.common import (
    as_dagster_failure,
    check_result,
    dataset_asset,
    origin_of,
)
from ae_pipeline.orchestration.metadata import plot, table
from ae_pipeline.orchestration.resources import RunLock, Workspace

if TYPE_CHECKING:
    from ae_pipeline.features.split import Window
    from ae_pipeline.latent_space.alignment import Alignment

_DESCRIPTION = """\
**A trained model, the challenger.** It is fitted on a window of features that is split by time into training,
validation and calibration days. Each training is one MLflow run and one registered version. New days do not make it
stale: a schedule or a person retrains it.

In the metadata, `loss_plot` shows whether it has learned, and `calibration_plot` whether the alert budget holds on rows
that no part of it has seen. `model_card` describes the rest. A broken rule below is a warning: the version is
registered and is not promoted."""

_CHECKS = {
    "finite_weights": "Every weight of the network is a finite number.",
    "loss_fell": "The validation loss is lower than before the first step.",
    "latents_not_collapsed": "Enough latent columns vary from row to row (gate.min_active_latents).",
    "reconstruction_no_worse": "On days that neither model was fitted on, its reconstruction error is at most "
    "gate.max_error_increase above that of the version that serves, in the units of the columns.",
    "calibration_no_worse": "On these days, the KS distance of its scores from its calibration is at most "
    "gate.max_ks_distance, or at most that of the version that serves.",
    "planted_faults_found": "Of faults planted into these days, its recall is at most gate.max_recall_drop below that "
    "of the version that serves.",
    "faults_found_at_budget": "Of faults of several kinds planted into these days, it flags at most "
    "gate.max_recall_drop less than the version that serves.",
    "each_kind_found_at_budget": "Of no single kind of these faults does it flag more than gate.max_recall_drop less.",
    "alerts_still_found": "Of the alerts of the version that serves on recent days over the budget, it flags at least "
    "gate.min_alert_agreement.",
    "threshold_in_line": "In the scores of the version that serves, its threshold is at most gate.max_threshold_rise "
    "higher.",
    "rankings_agree": "The rank correlation of its scores with those of the version that serves is at least "
    "gate.min_rank_agreement.",
    "latents_compatible": "The latents can be aligned to those of the version that serves. Otherwise a warning; with "
    "gate.compatible it prevents the promotion.",
}

_FIGURES = {
    "as_is": "explained variance of the old latents without a map",
    "orthogonal": "explained variance after the best orthogonal map",
    "affine": "explained variance after the best affine map",
    "condition": "condition number of the affine map",
    "neighbours": "share of the ten nearest neighbors in common",
    "score_shift": "KS distance of the scores",
}


def build_autoencoder(config: PipelineConfig) -> dg.AssetsDefinition:
    """Build the asset of a dataset."""

    @dataset_asset(
        config,
        "autoencoder",
        description=_DESCRIPTION,
        checks=_CHECKS,
        kinds={"pytorch", "mlflow"},
        upstream=["features"],
    )
    def autoencoder(context: dg.AssetExecutionContext, workspace: Workspace, run_lock: RunLock) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from ae_pipeline.lifecycle.train import train_challenger

        links = {"The Dagster run of this training": workspace.run_url(context.run.run_id)}
        with as_dagster_failure():
            trained = train_challenger(workspace.dataset(config), workspace.tracker(), origin_of(context), links)
        bundle, version = trained.bundle, trained.version
        return dg.MaterializeResult(
            metadata={
                "model_version": version.version,
                "mlflow_run": version.run_id,
                "mlflow": dg.MetadataValue.url(workspace.mlflow_run_url(config.dataset, version.run_id)),
                **{f"{chart.name}_plot": plot(chart) for chart in trained.charts},
                "model_card": dg.MetadataValue.md(trained.card),
                **(_days_metadata(bundle.window) if config.is_daily else {}),
                "rows": dg.MetadataValue.json(dict(bundle.facts.rows)),
                "epochs": len(trained.result.epochs),
                "best_epoch": trained.result.best_epoch,
                "validation_loss": trained.result.best_loss,
                "encoded_shape": " × ".join(map(str, bundle.encoder.shape)),
                "columns_left_out": table(
                    ["column", "reason"], [(e.column, e.reason) for e in bundle.encoder.left_out]
                ),
                **({"screening": bundle.facts.screening.message} if bundle.facts.screening else {}),
                "latents": trained.compatible.message,
                **(_alignment_metadata(trained.alignment) if trained.alignment else {}),
                "window_fingerprint": bundle.window.fingerprint,
                "dagster/uri": trained.uri,
            },
            data_version=dg.DataVersion(bundle.fingerprint),
            check_results=[
                check_result(
                    context,
                    result.rule,
                    result.passed,
                    result.message,
                    figure=result.figure if math.isfinite(result.figure) else None,
                    threshold=result.threshold,
                    severity=dg.AssetCheckSeverity.WARN,
                )
                for result in (*trained.results, trained.compatible)
            ],
        )

    return autoencoder


def _days_metadata(window: "Window") -> dict[str, str]:
    parts = {part: getattr(window, part) for part in ("train", "validation", "calibration", "gate")}
    return {f"{part}_days": f"{days[0]} to {days[-1]}" for part, days in parts.items() if days}


def _alignment_metadata(alignment: "Alignment") -> dict[str, dg.MetadataValue]:
    figures, axes = alignment.compatibility.figures(), alignment.compatibility.axes or ()
    rows = [(_FIGURES[name], f"{value:.4g}") for name, value in figures.items()]
    rows += [(f"correlation of z_{index:03d} without a map", f"{value:.3f}") for index, value in enumerate(axes)]
    return {f"latents_beside_version_{alignment.previous}": table(["figure", "value"], rows)}
