"""The asset `features`: cleaned and derived columns of each day."""

import dagster as dg

from ae_pipeline.common.text import pluralize
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.assets.common import (
    as_dagster_failure,
    check_result,
    dataset_asset,
    days_of,
)
from ae_pipeline.orchestration.metadata import (
    add_days_metadata,
    column_descriptions,
    joint_version,
    parquet_schema,
)
from ae_pipeline.orchestration.resources import RunLock, Workspace

_DESCRIPTION = """\
**Cleaned and derived columns that depend on no model.** Clock times are minutes, text is stripped, derived columns are
added. Features have one row for each row of raw_data. One Parquet file per day.

The schema contract in `data/contracts/` lists the columns. `derive` and `exclude` in the `defs.yaml` of the dataset add
and remove columns."""

_CHECKS = {"rows_kept": "Features have one row for each row of raw_data."}


def build_features(config: PipelineConfig) -> dg.AssetsDefinition:
    """Build the asset of a dataset."""

    @dataset_asset(
        config,
        "features",
        description=_DESCRIPTION,
        checks=_CHECKS,
        kinds={"polars", "parquet"},
        upstream=["raw_data"],
        daily=True,
    )
    def features(context: dg.AssetExecutionContext, workspace: Workspace, run_lock: RunLock) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from ae_pipeline.lifecycle.ingest import build_feature_days

        dataset = workspace.dataset(config)
        days = days_of(context, dataset)
        with as_dagster_failure():
            built = build_feature_days(dataset, days)
        path = dataset.paths.features
        add_days_metadata(context, dataset, path, built.days)
        message = f"{pluralize(built.rows, noun_of_rows(config))} of features, {built.raw_rows:,} of raw_data"
        same = built.rows == built.raw_rows
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": built.rows,
                "dagster/uri": dataset.paths.state_uri(path(days[-1]).parent),
                "dagster/column_schema": parquet_schema(path(days[-1]), column_descriptions(dataset)),
            },
            data_version=joint_version(day.content_hash for day in built.days),
            check_results=[
                check_result(context, "rows_kept", same, message, figure=built.rows, threshold=built.raw_rows)
            ],
        )

    return features
