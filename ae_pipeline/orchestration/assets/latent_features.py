"""The asset `latent_features`: the published table of latents and scores."""

import datetime as dt

import dagster as dg

from ae_pipeline.common.text import pluralize
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.assets.common import (
    as_dagster_failure,
    check_result,
    dataset_asset,
    days_of,
    origin_of,
)
from ae_pipeline.orchestration.metadata import add_partition_metadata, column_schema, joint_version
from ae_pipeline.orchestration.resources import RunLock, Workspace
from ae_pipeline.orchestration.tags import accepts_removal

_DESCRIPTION = """\
**The published table.** It holds the latent columns z_000 …, score, p-value and flag of every row under the champion: a
Delta Lake table of plain Parquet files that changes in one commit.

Read it with `ae_pipeline.read_latents` or `deltalake.DeltaTable(…).to_pandas()`. Its data contract is
`_contract/contract.md`. The table never holds latents of two versions at once. Latents of two versions are comparable
only if the major version of the contract is the same."""

_CHECKS = {
    "rows_kept": "The table has one row for each row of features.",
    "latents_not_collapsed": "At least half of the latent columns vary from row to row.",
    "calibration_holds": "Scores after the calibration days are distributed like those of the calibration days. "
    "Otherwise a warning.",
}


def build_latent_features(config: PipelineConfig) -> dg.AssetsDefinition:
    """Build the asset of a dataset."""
    freshness = (
        dg.FreshnessPolicy.time_window(fail_window=dt.timedelta(hours=config.fresh_hours))
        if config.fresh_hours
        else None
    )

    @dataset_asset(
        config,
        "latent_features",
        description=_DESCRIPTION,
        checks=_CHECKS,
        kinds={"pytorch", "deltalake"},
        upstream=["features", "champion"],
        daily=True,
        freshness_policy=freshness,
    )
    def latent_features(
        context: dg.AssetExecutionContext, workspace: Workspace, run_lock: RunLock
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from ae_pipeline.latents.data_contract import PAGE, described
        from ae_pipeline.latents.layout import latent_schema
        from ae_pipeline.lifecycle.publish import publish_latents

        dataset = workspace.dataset(config)
        with as_dagster_failure():
            latents = publish_latents(
                dataset,
                workspace.tracker(),
                days_of(context, dataset),
                origin_of(context),
                before_commit=run_lock.require_active,
                accepts_removal=accepts_removal(context.run.tags),
            )
        publication, files, version = latents.publication, latents.files, latents.version
        for day in latents.days:
            uri = files.address(day.path or "")
            figures = {"rows": day.rows, "rows_flagged": day.flagged}
            add_partition_metadata(context, config, day.day, day.key, uri, **figures)
        rows = f"{pluralize(latents.rows, noun_of_rows(config))} in the table, {latents.expected_rows:,} of features"
        same = latents.rows == latents.expected_rows
        collapse, calibration = latents.collapse, latents.calibration
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": latents.rows,
                "dagster/uri": files.address(),
                "model_version": version.version,
                "mlflow_run": version.run_id,
                "mlflow": dg.MetadataValue.url(workspace.model_version_url(config.dataset, version.version)),
                "latent_space": publication.latent_space,
                "table_version": publication.table_version,
                "contract": f"version {publication.contract}, {files.full_path(PAGE)}",
                "rows_of_run_flagged": latents.flagged,
                "days_scored_now": sum(day.built for day in publication.days),
                "dagster/column_schema": column_schema(
                    latent_schema(latents.bundle.model.latent_dim), described(latents.contract)
                ),
            },
            data_version=joint_version(f"{publication.latent_space}/{day.key}" for day in latents.days),
            check_results=[
                check_result(context, "rows_kept", same, rows, figure=latents.rows, threshold=latents.expected_rows),
                check_result(
                    context,
                    collapse.rule,
                    not latents.is_collapsed,
                    collapse.message,
                    figure=collapse.figure,
                    threshold=collapse.threshold,
                ),
                check_result(
                    context,
                    calibration.rule,
                    calibration.passed,
                    calibration.message,
                    figure=calibration.figure,
                    threshold=calibration.threshold,
                    severity=dg.AssetCheckSeverity.WARN,
                ),
            ],
        )

    return latent_features
