"""The asset `anomaly_report`: the highest-scoring rows of each day, and why they stand out."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from ae_pipeline.common.text import one_in
from ae_pipeline.config.display import ColumnNames
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.assets.common import (
    as_dagster_failure,
    check_result,
    dataset_asset,
    days_of,
)
from ae_pipeline.orchestration.metadata import (
    add_latest_metadata,
    add_partition_metadata,
    joint_version,
    parquet_schema,
    plot,
    table,
)
from ae_pipeline.orchestration.resources import RunLock, Workspace

if TYPE_CHECKING:
    from ae_pipeline.lifecycle.report import ReportedDays
    from ae_pipeline.monitoring.verdict import DayAssessment
    from ae_pipeline.reports.build import Report
    from ae_pipeline.reports.gallery import Gallery

_DESCRIPTION = """\
**The highest-scoring rows and why they stand out.** Ranked rows with the columns that explain their score, as Parquet,
JSON, and one page to read. The page shows pictures if rows are images, and evaluates the scores if a label marks known
anomalies.

**Start here in the morning:** `newest_verdict` below tells whether the newest complete day is calm, worth a look or
wrong, why, and since when; the check `verdict` shows it as green, yellow or red. `report` opens the page. Other systems
read `alerts.parquet` and `summary.json`."""

_CHECKS = {
    "verdict": "The newest complete day is calm. A warning where it is worth a look, an error where it is wrong. The "
    "message says why, and since when.",
    "alert_budget": "The share of flagged rows is at most three times the alert budget, or within sampling noise if "
    "there are few rows. Known anomalies do not count, nor what people marked as known or as a "
    "false alarm. After a rebuild of old days, the checks are still those of the newest complete day.",
    "completeness": "The newest complete day has at least 80 % of the rows that are usual on its weekday. The "
    "usual number needs two earlier weeks.",
    "day_as_a_whole": "The newest complete day as a whole is like the training window. It has neither more missing "
    "values nor other values. Otherwise a warning.",
    "drift": "Columns, scores and latents of days after the training window are like those of the window, by effect "
    "sizes and the thresholds in the section drift. Otherwise a warning.",
}

_PICTURES, _PICTURE_HEIGHT, _PICTURE_BYTES = 5, 96, 45_000
"""Rows with pictures at most, their height in pixels, and the length of all their data addresses at most."""

_PLOTS, _ROWS = {"scores", "latents"}, 10
"""Plots of the newest day, and number of rows, that the materialization shows."""


def build_anomaly_report(config: PipelineConfig) -> dg.AssetsDefinition:
    """Build the asset of a dataset."""

    @dataset_asset(
        config,
        "anomaly_report",
        description=_DESCRIPTION,
        checks=_CHECKS,
        kinds={"parquet", "html"},
        upstream=["latent_features"],
        daily=True,
    )
    def anomaly_report(
        context: dg.AssetExecutionContext, workspace: Workspace, run_lock: RunLock
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from ae_pipeline.ingestion.names import column_names
        from ae_pipeline.lifecycle.report import report_on_days
        from ae_pipeline.reports.ranking import DESCRIBED

        dataset = workspace.dataset(config)
        days = days_of(context, dataset)
        with as_dagster_failure():
            reported = report_on_days(dataset, workspace.tracker(), days, context.run.run_id, workspace.file_url)
        report, version, paths = reported.report, reported.version, dataset.paths
        newest = report.newest_assessment
        for day in report.days:
            uri = paths.uri(paths.reports / "days" / f"{day.day}.parquet")
            figures = {"rows": day.rows, "rows_flagged": day.flagged}
            add_partition_metadata(context, config, day.day, day.content_hash, uri, **figures)
        latest = _latest_metadata(report, workspace, column_names(dataset))
        add_latest_metadata(context, config, report.newest or days[-1], latest)
        return dg.MaterializeResult(
            metadata={
                **({"newest_verdict": _headline(newest)} if newest else {}),
                **({"verdict_since": newest.since} if newest and newest.since else {}),
                "dagster/row_count": report.ranked_rows,
                "dagster/uri": paths.uri(report.page),
                # Not as dagster/column_schema: the list of columns would push the verdict off the first screen.
                "columns_of_alerts": parquet_schema(report.alerts, DESCRIBED),
                "report": dg.MetadataValue.url(workspace.file_url(report.page)),
                "mlflow": dg.MetadataValue.url(workspace.model_version_url(config.dataset, version.version)),
                "page": dg.MetadataValue.path(paths.address(report.page)),
                "summary": dg.MetadataValue.path(paths.address(report.summary)),
                "alerts": dg.MetadataValue.path(paths.address(report.alerts)),
                "rows_of_run": report.rows,
                "rows_of_run_flagged": report.flagged,
                **_label_metadata(report),
            },
            data_version=joint_version(day.content_hash for day in report.days),
            check_results=_check_results(context, reported),
        )

    return anomaly_report


def _check_results(context: dg.AssetExecutionContext, reported: "ReportedDays") -> list[dg.AssetCheckResult]:
    from ae_pipeline.monitoring.day_assessment import MIN_COMPLETENESS
    from ae_pipeline.monitoring.verdict import DayState

    over, drifting = reported.is_over_budget, reported.drifting
    share, most = reported.flagged_share, reported.max_flagged_share
    newest = reported.report.newest_assessment
    states = [*DayState]  # from calm to wrong
    state = newest.verdict if newest else DayState.CALM
    return [
        check_result(
            context,
            "verdict",
            state == DayState.CALM,
            _headline(newest) if newest else "no day is published",
            figure=states.index(state),
            threshold=0,
            severity=dg.AssetCheckSeverity.ERROR if state == DayState.WRONG else dg.AssetCheckSeverity.WARN,
        ),
        *(
            check_result(
                context, name, passed, message, figure=figure, threshold=limit, severity=dg.AssetCheckSeverity.WARN
            )
            for name, passed, message, figure, limit in (
                ("alert_budget", not over, reported.budget_message, share, most),
                (
                    "completeness",
                    not reported.missing_rows,
                    reported.completeness_message,
                    newest.completeness if newest else None,
                    MIN_COMPLETENESS,
                ),
                ("day_as_a_whole", not reported.unusual, reported.unusual_message, len(reported.unusual), 0),
                ("drift", not drifting, reported.drift_message, len(drifting), 0),
            )
        ),
    ]


def _latest_metadata(report: "Report", workspace: Workspace, names: ColumnNames) -> dict[str, Any]:
    """Return what a person looks at: the assessment of the newest day, plots, and the highest-scoring rows."""
    rows = [
        (
            row.row_id,
            row.event_time or "",
            f"{row.score:,.1f}",
            f"{row.p_value:.2g} ({one_in(row.p_value)})",
            row.reason_as(names),
        )
        for row in report.strangest[:_ROWS]
    ]
    return {
        **({"verdict": _assessment(report.assessment)} if report.assessment else {}),
        **({"day": dg.MetadataValue.url(workspace.file_url(report.day_page))} if report.day_page else {}),
        **{f"{chart.name}_plot": plot(chart) for chart in report.charts if chart.name in _PLOTS},
        "strangest_rows_of_run": table(["row", "event time", "score", "p-value", "because"], rows),
        **({"pictures": _pictures(report.gallery)} if report.gallery else {}),
    }


def _headline(assessment: "DayAssessment") -> str:
    """Return the verdict on the newest complete day as a line, for the overview of the asset."""
    return f"{assessment.title}: {assessment.headline}"


def _assessment(assessment: "DayAssessment") -> dg.MarkdownMetadataValue:
    from ae_pipeline.common.escape import escape_markdown

    first, rest = assessment.deviations[:1], assessment.deviations[1:]
    details = [*(split for each in first for split in each.splits), *(each.message for each in rest)]
    points = "\n".join(f"- {escape_markdown(detail)}" for detail in details)
    parts = [
        f"**{assessment.title}**: {escape_markdown(assessment.headline)}.",
        escape_markdown(assessment.aside),
        points,
    ]
    return dg.MetadataValue.md("\n\n".join(part for part in parts if part))


def _label_metadata(report: "Report") -> dict[str, float]:
    """Return the measures against the label: of images where rows are their patches, and otherwise of rows."""
    if report.images and report.images.all_images:
        unit, whole, held_out = "images", report.images.all_images, report.images.held_out
    elif report.labels:
        unit, whole, held_out = "rows", report.labels.all_rows, report.labels.held_out
    else:
        return {}
    figures = {
        "known_anomalies": whole.anomalies,
        "known_anomalies_flagged": whole.anomalies_flagged,
        f"normal_{unit}_flagged": whole.normal_flagged,
        "auroc": whole.auroc,
        "average_precision": whole.average_precision,
        "auroc_held_out": held_out.auroc if held_out else None,
        "average_precision_held_out": held_out.average_precision if held_out else None,
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _pictures(gallery: "Gallery") -> dg.MarkdownMetadataValue:
    """Return pictures of the highest-scoring rows, as many as fit into an event."""
    from ae_pipeline.common.escape import escape_markdown
    from ae_pipeline.reports.markdown import Markdown
    from ae_pipeline.reports.pictures import as_address

    remaining, rows = _PICTURE_BYTES, []
    for panel in gallery.strangest[:_PICTURES]:
        address = as_address(panel.strip(_PICTURE_HEIGHT))
        remaining -= len(address)
        if remaining < 0:
            break
        rows.append((panel.row_id, f"{panel.score:.1f}", Markdown(f"![of {escape_markdown(panel.row_id)}]({address})")))
    return table(["row", "score", f"{gallery.noun}, reconstruction, residual map"], rows)
