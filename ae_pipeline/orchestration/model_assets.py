"""Autoencoder and champion: the challenger that a training makes, and the version that serves."""

import math
from typing import TYPE_CHECKING

import dagster as dg

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.metadata import history_table, plot, table
from ae_pipeline.orchestration.retraining import settings_hash
from ae_pipeline.orchestration.stages import Body, check, origin_of, paths_of, who_asked, workspace_of
from ae_pipeline.storage.dataset import Dataset

if TYPE_CHECKING:
    from ae_pipeline.features.split import Window
    from ae_pipeline.latent_space.alignment import Alignment
    from ae_pipeline.registry.store import TrackedVersion


def _days_of(window: "Window") -> dict[str, str]:
    parts = {part: getattr(window, part) for part in ("train", "validation", "calibration", "gate")}
    return {f"{part}_days": f"{days[0]} to {days[-1]}" for part, days in parts.items() if days}


_COMPARED = {
    "as_is": "variance of the old latents that the new ones explain as they were learnt",
    "orthogonal": "… after the best turn",
    "affine": "… after the best affine map",
    "condition": "condition of that map",
    "neighbours": "share of ten nearest rows in common",
    "score_shift": "greatest gap between shares of rows up to a score",
}


def _compared(alignment: "Alignment") -> dict[str, dg.MetadataValue]:
    figures, axes = alignment.compatibility.figures(), alignment.compatibility.axes or ()
    rows = [(_COMPARED[name], f"{value:.4g}") for name, value in figures.items()]
    rows += [(f"correlation of z_{index:03d} as it was learnt", f"{value:.3f}") for index, value in enumerate(axes)]
    return {f"latents_beside_version_{alignment.previous}": table(["figure", "value"], rows)}


def autoencoder(config: PipelineConfig) -> Body:
    """Trains on the newest window."""

    def body(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from ae_pipeline.lifecycle.train import train_challenger

        workspace, paths = workspace_of(context), paths_of(context, config)
        links = {"The Dagster run that made it": workspace.page_of_run(context.run.run_id)}
        trained = train_challenger(
            Dataset(config, paths), workspace.tracker(), origin_of(context), links, context.log.info
        )
        bundle, window = trained.bundle, trained.bundle.window
        plots = {f"{chart.name}_plot": plot(chart) for chart in trained.charts}
        return dg.MaterializeResult(
            metadata={
                "model_version": trained.version.version,
                "mlflow_run": trained.version.run_id,
                "mlflow": dg.MetadataValue.url(workspace.page_of_training(config.dataset, trained.version.run_id)),
                **plots,
                "model_card": dg.MetadataValue.md(trained.card),
                **(_days_of(window) if config.is_daily else {}),
                "rows": dg.MetadataValue.json(bundle.facts["rows"]),
                "epochs": len(trained.result.epochs),
                "best_epoch": trained.result.best_epoch,
                "validation_loss": trained.result.best_loss,
                "encoded_shape": " × ".join(map(str, bundle.encoder.shape)),
                "columns_left_out": table(
                    ["column", "reason"], [(e.column, e.reason) for e in bundle.encoder.left_out]
                ),
                "latents": trained.compatible.message,
                **(_compared(trained.alignment) if trained.alignment else {}),
                "window_fingerprint": window.fingerprint,
                # What a schedule compares with: the days as they stood when this training began.
                "window_content": dg.MetadataValue.json(trained.content),
                "settings": settings_hash(config),
                "dagster/uri": trained.folder.as_uri(),
            },
            data_version=dg.DataVersion(bundle.fingerprint),
            check_results=[
                check(
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

    return body


def champion(config: PipelineConfig) -> Body:
    """Lets the challenger take over where it passed the gate."""

    def body(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from ae_pipeline.lifecycle.promote import decide
        from ae_pipeline.lifecycle.train import load_champion
        from ae_pipeline.monitoring.alerts import Alert, AlertEvent
        from ae_pipeline.orchestration.alerts import tell
        from ae_pipeline.reports.page import refresh_operations

        workspace, paths = workspace_of(context), paths_of(context, config)
        tracker = workspace.tracker()

        def on_rejected(challenger: "TrackedVersion", message: str) -> None:
            key = f"version {challenger.version} of run {challenger.run_id}"
            told = f"{message}. Look at the checks of autoencoder."
            alert = Alert(AlertEvent.CHALLENGER_REJECTED, key, told, context.run.run_id)
            tell(alert, Dataset(config, paths), context.log.warning)

        decision = decide(Dataset(config, paths), tracker, who_asked(context.run.tags), origin_of(context), on_rejected)
        context.log.info(decision.message)
        refresh_operations(paths, config.drift.min_rows)
        version, bundle = load_champion(config, tracker)
        loaded = f"version {version.version}, fingerprint {bundle.fingerprint}, {len(bundle.columns)} columns"
        return dg.MaterializeResult(
            metadata={
                "model_version": decision.champion.version,
                "mlflow_run": decision.champion.run_id,
                "mlflow": dg.MetadataValue.url(workspace.page_of_version(config.dataset, decision.champion.version)),
                "decision": decision.message,
                "promoted": decision.promoted,
                "history": history_table(paths),
                "fingerprint": bundle.fingerprint,
                "dagster/uri": tracker.bundle_folder(version).as_uri(),
            },
            data_version=dg.DataVersion(str(decision.champion.version)),
            check_results=[check(context, "can_be_loaded", version.version == decision.champion.version, loaded)],
        )

    return body
