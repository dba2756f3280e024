"""latent_features and anomaly_report: what other teams and whoever is on call read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.common.text import pluralize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.metadata import (
    add_latest_metadata,
    add_partition_metadata,
    column_schema,
    joint_version,
    parquet_schema,
    plot,
    table,
)
from ae_pipeline.orchestration.stages import Body, check, days_of, origin_of, paths_of, rows_on_days, workspace_of
from ae_pipeline.storage.dataset import Dataset

if TYPE_CHECKING:
    from ae_pipeline.monitoring.budget import ReportDay
    from ae_pipeline.monitoring.daily_drift import DayDrift
    from ae_pipeline.monitoring.day_assessment import DayAssessment
    from ae_pipeline.reports.gallery import Gallery
    from ae_pipeline.reports.labels import Labels

_LOOKED_AT_FOR_COLLAPSE = 31
"""Newest days of a run whose latents are checked."""

_PICTURES, _PICTURE_HEIGHT, _PICTURE_BYTES = 5, 96, 45_000
"""How many rows the materialization shows, how high in pixels, and how long all their addresses may be."""

_PLOTTED, _TOLD_ROWS = {"scores", "latents"}, 10
"""Charts of the newest day and strangest rows of the run that the materialization shows."""

_FEW_ROWS = 30
"""Fewer say nothing of how widely latents vary."""


def latent_features(config: PipelineConfig) -> Body:
    """Scores the days asked for and publishes them in one commit."""

    def body(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from ae_pipeline.gate.rules import calibration_holds, latents_not_collapsed
        from ae_pipeline.latents.data_contract import PAGE, build_contract, described
        from ae_pipeline.latents.files import TableFiles
        from ae_pipeline.latents.layout import latent_schema
        from ae_pipeline.latents.publish import publish
        from ae_pipeline.latents.read import latents_of, published_days, rows_published, scores_of
        from ae_pipeline.lifecycle.train import load_champion
        from ae_pipeline.storage.parquet import read_facts

        workspace, paths, days = workspace_of(context), paths_of(context, config), set(days_of(context))
        version, bundle = load_champion(config, workspace.tracker())
        origin = {**origin_of(context), "mlflow_run_id": version.run_id}
        done = publish(
            sorted(days), Dataset(config, paths), bundle, version.version, origin, ProgressLogger(context.log.info)
        )
        published = published_days(paths)
        looked_at = [published[day.day] for day in done.days if day.rows][-_LOOKED_AT_FOR_COLLAPSE:]
        std = latents_not_collapsed(latents_of(looked_at, paths, bundle.model.latent_dim))
        asked = [day for day in done.days if day.day in days]
        rows = rows_published([day.day for day in done.days], paths)
        expected = sum(int(read_facts(paths.features(day.day))["rows"]) for day in done.days)
        flagged = sum(day.flagged for day in asked)
        # The newest days of the table, whichever were asked for: as many as the model was calibrated on.
        newer = [found for day, found in published.items() if config.is_daily and day > bundle.window.days[-1]]
        recent = scores_of(newer[-len(bundle.window.calibration) :], paths)
        drift = calibration_holds(recent, bundle.calibration.scores)
        context.log.info(
            f"{rows_on_days(rows, len(done.days), config)} under model version {version.version}, {flagged:,} flagged; "
            + (f"now table version {done.table_version}" if done.committed else "the table stands as it was")
        )
        files = TableFiles(paths.latents)
        contract = build_contract(config, bundle, version.version, files)
        for day in asked:
            uri = files.address(day.path or "")
            add_partition_metadata(context, config, day.day, day.key, uri, rows=day.rows, rows_flagged=day.flagged)
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": rows,
                "dagster/uri": files.address(),
                "model_version": version.version,
                "mlflow_run": version.run_id,
                "mlflow": dg.MetadataValue.url(workspace.page_of_version(config.dataset, version.version)),
                "latent_space": done.latent_space,
                "table_version": done.table_version,
                "contract": f"version {done.contract}, {files.full_path(PAGE)}",
                "rows_of_run_flagged": flagged,
                "days_scored_now": sum(day.built for day in done.days),
                "dagster/column_schema": column_schema(latent_schema(bundle.model.latent_dim), described(contract)),
            },
            data_version=joint_version(f"{done.latent_space}/{day.key}" for day in asked),
            check_results=[
                check(
                    context,
                    "rows_kept",
                    rows == expected,
                    f"{rows:,} rows in the table, {expected:,} of features",
                    figure=rows,
                    threshold=expected,
                ),
                check(
                    context,
                    std.rule,
                    std.passed or rows < _FEW_ROWS,
                    std.message,
                    figure=std.figure,
                    threshold=std.threshold,
                ),
                check(
                    context,
                    drift.rule,
                    drift.passed,
                    drift.message,
                    figure=drift.figure,
                    threshold=drift.threshold,
                    severity=dg.AssetCheckSeverity.WARN,
                ),
            ],
        )

    return body


def anomaly_report(config: PipelineConfig) -> Body:
    """Ranks and explains the strangest rows of the days asked for."""

    def body(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from ae_pipeline.lifecycle.train import load_version_of_table
        from ae_pipeline.monitoring.budget import TOLERATED_FACTOR, is_over_budget
        from ae_pipeline.orchestration.alerts import alert_over_budget
        from ae_pipeline.reports.build import build_report
        from ae_pipeline.reports.ranking import DESCRIBED

        workspace, paths, days = workspace_of(context), paths_of(context, config), days_of(context)
        version, bundle = load_version_of_table(Dataset(config, paths), workspace.tracker())

        def tell(ranked: Sequence["ReportDay"]) -> None:
            alert_over_budget(ranked, bundle, Dataset(config, paths), context.run.run_id, context.log.warning)

        progress = ProgressLogger(context.log.info)
        report = build_report(days, Dataset(config, paths), bundle, version.version, version.run_id, progress, tell)
        after = [day for day in report.drift if day.is_after]
        asked = [day for day in after if day.day in set(days)]
        drifted = [day for day in asked if day.effects]
        # Known anomalies are flagged because they should be, and are none of what a budget is for.
        rows, flagged = report.rows - report.known_anomalies, report.flagged - report.known_flagged
        share, budget = flagged / max(rows, 1), bundle.config.alerts.budget
        context.log.info(f"{report.flagged:,} of {report.rows:,} rows flagged; {report.page}")
        for day in report.days:
            file = paths.reports / "days" / f"{day.day}.parquet"
            uri = file.as_uri()
            add_partition_metadata(
                context, config, day.day, day.content_hash, uri, rows=day.rows, rows_flagged=day.flagged
            )
        strangest = [
            (row.row_id, row.event_time or "", f"{row.score:.1f}", f"{row.p_value:.2g}", row.reason)
            for row in report.strangest[:_TOLD_ROWS]
        ]
        heads = ["row", "event time", "score", "p-value", "because"]
        add_latest_metadata(
            context,
            config,
            report.newest or days[-1],
            {
                **({"verdict": _verdict_in_words(report.verdict)} if report.verdict else {}),
                **({"day": dg.MetadataValue.url(workspace.page_of_file(report.day_page))} if report.day_page else {}),
                **{f"{chart.name}_plot": plot(chart) for chart in report.charts if chart.name in _PLOTTED},
                "strangest_rows_of_run": table(heads, strangest),
                **({"pictures": _pictures(report.gallery)} if report.gallery else {}),
            },
        )
        but = " that are not known anomalies" if report.labels else ""
        counts = f"{flagged:,} of {rows:,} rows{but} are flagged"
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": report.listed,
                "dagster/uri": report.page.as_uri(),
                "dagster/column_schema": parquet_schema(report.alerts, DESCRIBED),
                "report": dg.MetadataValue.url(workspace.page_of_file(report.page)),
                "mlflow": dg.MetadataValue.url(workspace.page_of_version(config.dataset, version.version)),
                "page": dg.MetadataValue.path(str(report.page)),
                "summary": dg.MetadataValue.path(str(report.summary)),
                "alerts": dg.MetadataValue.path(str(report.alerts)),
                "rows_of_run": report.rows,
                "rows_of_run_flagged": report.flagged,
                **(_measured(report.labels) if report.labels else {}),
            },
            data_version=joint_version(day.content_hash for day in report.days),
            check_results=[
                check(
                    context,
                    "alert_budget",
                    not is_over_budget(rows, flagged, budget),
                    f"{counts}, {share / budget:.1f} times the budget of {budget:.2%}",
                    figure=share,
                    threshold=TOLERATED_FACTOR * budget,
                    severity=dg.AssetCheckSeverity.WARN,
                ),
                check(
                    context,
                    "drift",
                    not drifted,
                    _drift_in_words(after, asked),
                    figure=len(drifted),
                    threshold=0,
                    severity=dg.AssetCheckSeverity.WARN,
                ),
            ],
        )

    return body


def _verdict_in_words(verdict: "DayAssessment") -> dg.MarkdownMetadataValue:
    from ae_pipeline.reports.markdown import escaped

    first, rest = verdict.deviations[:1], verdict.deviations[1:]
    also = [*(split for each in first for split in each.splits), *(each.message for each in rest)]
    points = "\n".join(f"- {escaped(message)}" for message in also)
    parts = [f"**{verdict.day}**: {escaped(verdict.message)}.", escaped(verdict.aside), points]
    return dg.MetadataValue.md("\n\n".join(part for part in parts if part))


def _drift_in_words(after: Sequence["DayDrift"], asked: Sequence["DayDrift"]) -> str:
    judged, drifted = [day for day in asked if day.is_judged], [day for day in asked if day.effects]
    if not asked:
        return f"none of these days lies after the training window; {pluralize(len(after), 'day')} of the table do"
    if not drifted:
        few = len(asked) - len(judged)
        return f"{pluralize(len(judged), 'day')} after the training window are like it" + (
            f", {few} have too few rows to tell" if few else ""
        )
    return (
        f"{len(drifted)} of {pluralize(len(judged), 'day')} after the training window have drifted; "
        f"{drifted[-1].day}: {drifted[-1].message}"
    )


def _measured(labels: "Labels") -> dict[str, float]:
    whole, held_out = labels.all_rows, labels.held_out
    figures = {
        "known_anomalies": whole.anomalies,
        "known_anomalies_flagged": whole.anomalies_flagged,
        "normal_rows_flagged": whole.normal_flagged,
        "auroc": whole.auroc,
        "average_precision": whole.average_precision,
        "auroc_held_out": held_out.auroc if held_out else None,
        "average_precision_held_out": held_out.average_precision if held_out else None,
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _pictures(gallery: "Gallery") -> dg.MarkdownMetadataValue:
    """Shows the strangest rows, as many as fit beside the rest of an event."""
    from ae_pipeline.reports.markdown import Markdown, escaped
    from ae_pipeline.reports.pictures import as_address

    left, rows = _PICTURE_BYTES, []
    for panel in gallery.strangest[:_PICTURES]:
        address = as_address(panel.strip(_PICTURE_HEIGHT))
        left -= len(address)
        if left < 0:
            break
        rows.append((panel.row_id, f"{panel.score:.1f}", Markdown(f"![of {escaped(panel.row_id)}]({address})")))
    return table(["row", "score", f"{gallery.noun}, reconstruction, residual map"], rows)
