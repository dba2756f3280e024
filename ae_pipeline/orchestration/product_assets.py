"""latent_features and anomaly_report: what other teams and whoever is on call read."""

import dagster as dg

from ae_pipeline.config import PipelineConfig
from ae_pipeline.orchestration.console import Pace
from ae_pipeline.orchestration.metadata import joint_version, parquet_schema, table, tell_partition
from ae_pipeline.orchestration.stages import Body, check, days_of, origin_of, paths_of, workspace_of

_LOOKED_AT_FOR_COLLAPSE = 31
"""Newest files of a run whose latents are checked."""

_FEW_ROWS = 30
"""Fewer say nothing of how widely latents vary."""


def latent_features(config: PipelineConfig) -> Body:
    """Scores the days asked for and publishes them in one commit."""

    def body(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from ae_pipeline.latents.publish import publish
        from ae_pipeline.latents.read import latents_of, rows_published
        from ae_pipeline.orchestration.model_steps import load_champion
        from ae_pipeline.promotion import latents_not_collapsed
        from ae_pipeline.storage import read_facts

        paths, days = paths_of(context, config), set(days_of(context))
        version, bundle = load_champion(config, workspace_of(context).tracker())
        origin = {**origin_of(context), "mlflow_run_id": version.run_id}
        done = publish(sorted(days), paths, bundle, version.version, origin, Pace(context.log.info))
        files = [day.path for day in done.days if day.path]
        spread = latents_not_collapsed(latents_of(files[-_LOOKED_AT_FOR_COLLAPSE:], paths, bundle.model.latent_dim))
        asked = [day for day in done.days if day.day in days]
        rows = rows_published([day.day for day in done.days], paths)
        expected = sum(int(read_facts(paths.features(day.day))["rows"]) for day in done.days)
        flagged = sum(day.flagged for day in asked)
        context.log.info(
            f"{rows:,} rows on {len(done.days):,} days under model version {version.version}, {flagged:,} flagged; "
            + (f"now table version {done.table_version}" if done.committed else "the table stands as it was")
        )
        for day in asked:
            file = paths.latents / (day.path or "")
            tell_partition(context, config, day.day, file.stem, file, rows=day.rows, rows_flagged=day.flagged)
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": rows,
                "dagster/uri": paths.latents.as_uri(),
                "model_version": version.version,
                "mlflow_run": version.run_id,
                "latent_space": done.latent_space,
                "table_version": done.table_version,
                "rows_flagged": flagged,
                "days_scored_now": sum(day.built for day in done.days),
                **({"dagster/column_schema": parquet_schema(paths.latents / files[-1])} if files else {}),
            },
            data_version=joint_version(day.path or "" for day in asked),
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
                    spread.rule,
                    spread.passed or rows < _FEW_ROWS,
                    spread.words,
                    figure=spread.figure,
                    threshold=spread.threshold,
                ),
            ],
        )

    return body


def anomaly_report(config: PipelineConfig) -> Body:
    """Ranks and explains the strangest rows of the days asked for."""

    def body(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from ae_pipeline.orchestration.model_steps import load_version_of_table
        from ae_pipeline.reports.build import build_report

        paths, days = paths_of(context, config), days_of(context)
        version, bundle = load_version_of_table(config, paths, workspace_of(context).tracker())
        report = build_report(days, paths, bundle, config, version.version, version.run_id, Pace(context.log.info))
        share, budget = report.flagged / max(report.rows, 1), bundle.config.alerts.budget
        context.log.info(f"{report.flagged:,} of {report.rows:,} rows flagged; {report.page}")
        for day in report.days:
            file = paths.reports / "days" / f"{day.day}.parquet"
            tell_partition(context, config, day.day, day.content_hash, file, rows=day.rows, rows_flagged=day.flagged)
        strangest = [(row.row_id, f"{row.score:.1f}", row.because) for row in report.strangest[:10]]
        counts = f"{report.flagged:,} of {report.rows:,} rows are flagged"
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": report.listed,
                "dagster/uri": report.page.as_uri(),
                "dagster/column_schema": parquet_schema(report.alerts),
                "page": dg.MetadataValue.path(str(report.page)),
                "summary": dg.MetadataValue.path(str(report.summary)),
                "alerts": dg.MetadataValue.path(str(report.alerts)),
                "rows_scored": report.rows,
                "rows_flagged": report.flagged,
                "strangest_of_all_days": table(["row", "score", "because"], strangest),
            },
            data_version=joint_version(day.content_hash for day in report.days),
            check_results=[
                check(
                    context,
                    "alert_budget",
                    # Three rows are no sign of anything on a quiet day.
                    report.flagged <= max(3 * budget * report.rows, 3),
                    f"{counts}, {share / budget:.1f} times the budget of {budget:.2%}",
                    figure=share,
                    threshold=3 * budget,
                    severity=dg.AssetCheckSeverity.WARN,
                )
            ],
        )

    return body
