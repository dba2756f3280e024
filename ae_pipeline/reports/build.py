"""The anomaly report: ranked rows of each day with explanations, and one page and one JSON file over all days."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ae_pipeline.bundle import ModelBundle
from ae_pipeline.config import PipelineConfig
from ae_pipeline.latents.read import PublishedDay, published_days
from ae_pipeline.reports.drifted import DriftedDay, measure_drift
from ae_pipeline.reports.gallery import Gallery, build_gallery
from ae_pipeline.reports.labels import Labels, measure_labels
from ae_pipeline.reports.page import render_operations, render_page
from ae_pipeline.reports.ranking import (
    UNFINISHED,
    Progress,
    RankedRow,
    ReportDay,
    all_ranked,
    as_rows,
    cut_short,
    is_reported,
    report_days,
    reported_day,
)
from ae_pipeline.storage import DatasetPaths, write_parquet, write_text

SUMMARY_FORMAT = 1
"""Of summary.json; raised when a reader of before would stumble."""


@dataclass(frozen=True)
class Report:
    """What a report came to.

    Attributes:
        page: The HTML page over all days.
        summary: The same as JSON.
        alerts: Ranked rows of all days as Parquet.
        days: Days of this run.
        listed: Ranked rows over all days.
        rows: Rows scored on the days of this run.
        flagged: Flagged ones among them.
        known_anomalies: Rows on these days that the label calls anomalies; none without a label.
        known_flagged: Flagged ones among these.
        strangest: Highest scores over all days.
        labels: Scores of all days against the labels, None without a label.
        gallery: Pictures of the strangest rows, None where rows are no images.
        drift: Days after the training window beside it; none without event time.
    """

    page: Path
    summary: Path
    alerts: Path
    days: tuple[ReportDay, ...]
    listed: int
    rows: int
    flagged: int
    known_anomalies: int
    known_flagged: int
    strangest: tuple[RankedRow, ...]
    labels: Labels | None
    gallery: Gallery | None
    drift: tuple[DriftedDay, ...]


def build_report(
    days: Sequence[str],
    paths: DatasetPaths,
    bundle: ModelBundle,
    config: PipelineConfig,
    model_version: int,
    run_id: str,
    progress: Progress = lambda *_: None,
    on_ranked: Callable[[Sequence[ReportDay]], None] = lambda _: None,
) -> Report:
    """Ranks and explains the strangest rows of days, and rewrites page and summary over all published days.

    A day's flagged rows are listed, up to report_rows of them, and its ten strangest where fewer are flagged.

    Args:
        days: Days to report on; they must be published.
        paths: The dataset's.
        bundle: The model that the table was scored with.
        config: How many rows to list, and the label; flags go by the budget that the model was calibrated for.
        model_version: Its version.
        run_id: MLflow run that made it.
        progress: Told while it works.
        on_ranked: Told the days once their rows are ranked; alerts that it raises are in the page.

    Raises:
        PublicationError: A day has features and is not in the published table.
    """
    files = published_days(paths)
    # A table that has changed its model as a whole takes the report of all its days along.
    behind = {day for day, found in files.items() if not is_reported(day, found, paths, config)}
    behind |= cut_short(paths) & files.keys()
    unfinished = paths.reports / UNFINISHED
    write_text(unfinished, json.dumps(sorted({*days, *behind})))
    everything_built = report_days(sorted({*days, *behind}), files, paths, bundle, config, progress)
    built = [day for day in everything_built if day.day in set(days)]
    on_ranked(everything_built)
    everything = all_ranked(paths, set(files))
    alerts = paths.reports / "alerts.parquet"
    write_parquet(alerts, everything.to_arrow())
    strangest = tuple(as_rows(everything.head(config.alerts.report_rows)))
    labels = measure_labels(files, paths, bundle, config)
    drift = measure_drift(files, paths, bundle, config)
    gallery = build_gallery(files, paths, bundle)
    summary = _summary(paths, bundle, config, model_version, run_id, files, strangest, labels, drift)
    write_text(paths.reports / "summary.json", json.dumps(summary, indent=1, default=str))
    write_text(
        paths.reports / "report.html",
        render_page(summary, strangest, labels, gallery, render_operations(paths, config.drift.min_rows)),
    )
    unfinished.unlink()
    return Report(
        page=paths.reports / "report.html",
        summary=paths.reports / "summary.json",
        alerts=alerts,
        days=tuple(built),
        listed=everything.height,
        rows=sum(day.rows for day in built),
        flagged=sum(day.flagged for day in built),
        known_anomalies=sum(day.known_anomalies for day in built),
        known_flagged=sum(day.known_flagged for day in built),
        strangest=strangest,
        labels=labels,
        gallery=gallery,
        drift=drift,
    )


def _summary(
    paths: DatasetPaths,
    bundle: ModelBundle,
    config: PipelineConfig,
    model_version: int,
    run_id: str,
    files: dict[str, PublishedDay],
    strangest: Sequence[RankedRow],
    labels: Labels | None,
    drift: Sequence[DriftedDay],
) -> dict[str, Any]:
    by_day = [found for day in sorted(files) if (found := reported_day(day, paths))]
    rows, flagged = sum(day.rows for day in by_day), sum(day.flagged for day in by_day)
    budget, rate = bundle.config.alerts.budget, config.alerts.false_discovery_rate
    return {
        "format": SUMMARY_FORMAT,
        "dataset": paths.dataset,
        "model_version": model_version,
        "mlflow_run": run_id,
        "latent_space": next(iter(files.values())).identity.split("/")[0] if files else None,
        "rows": rows,
        "flagged": flagged,
        "budget": budget,
        "expected_alerts": rows * budget,
        "false_discovery_rate": rate,
        "discoveries": sum(day.discoveries for day in by_day) if rate is not None else None,
        # Beside the version that served when it was trained: figures of `latents.compatibility`.
        "alignment": bundle.facts.get("alignment"),
        "score_threshold": bundle.calibration.threshold,
        "calibration_rows": len(bundle.calibration.scores),
        "rows_by_part": bundle.facts["rows"],
        "train_days": [bundle.window.train[0], bundle.window.train[-1]],
        "calibration_days": [bundle.window.calibration[0], bundle.window.calibration[-1]],
        "columns": bundle.columns,
        "columns_left_out": {entry.column: entry.reason for entry in bundle.encoder.left_out},
        "labels": asdict(labels) if labels else None,
        "drift": [
            {"day": day.day, "rows": day.rows, "is_judged": day.is_judged, "drifted": day.words} for day in drift
        ],
        "days": [{"day": day.day, "rows": day.rows, "flagged": day.flagged} for day in by_day],
        "strangest": [asdict(row) for row in strangest[:50]],
        "files": {"alerts": "alerts.parquet", "days": "days/", "page": "report.html"},
    }
