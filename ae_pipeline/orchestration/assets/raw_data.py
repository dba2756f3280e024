"""The asset `raw_data`: typed, deduplicated rows of each day."""

import dagster as dg

from ae_pipeline.config.display import count_rejected
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
    count_table,
    joint_version,
    parquet_schema,
    table,
)
from ae_pipeline.orchestration.resources import RunLock, Workspace
from ae_pipeline.orchestration.side_by_side import is_side_by_side
from ae_pipeline.orchestration.tags import READ_TAG, accepts_removal

_DESCRIPTION = """\
**Rows as they landed, typed and deduplicated.** Files are read with the schema contract of the dataset. Each identity
occurs once: the row of the newest file wins. Without identity, all rows stay. Rows that break a rule go to quarantine
with a reason. One Parquet file per day.

*To correct a day, land its file again.* `data/quarantine/<dataset>/` holds the rows in quarantine with the reasons. The
metadata `files_refused` lists the files that cannot be used."""

_CHECKS = {
    "schema": "Every landed file can be read and has the columns of the schema contract.",
    "identity_unique": "No identity occurs twice among the rows of the run.",
    "quarantine_share": "The share of rows in quarantine is at most max_quarantine_share.",
}


def build_raw_data(config: PipelineConfig) -> dg.AssetsDefinition:
    """Build the asset of a dataset."""

    @dataset_asset(
        config,
        "raw_data",
        description=_DESCRIPTION,
        checks=_CHECKS,
        kinds={"polars", "parquet"},
        daily=True,
    )
    def raw_data(context: dg.AssetExecutionContext, workspace: Workspace, run_lock: RunLock) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from ae_pipeline.lifecycle.ingest import build_raw_days

        dataset = workspace.dataset(config)
        days = days_of(context, dataset)
        with as_dagster_failure():
            raw = build_raw_days(
                dataset,
                days,
                context.run.run_id,
                read_landed=READ_TAG not in context.run.tags,
                is_side_by_side=is_side_by_side(context.run),
                accepts_removal=accepts_removal(context.run.tags),
            )
        path = dataset.paths.raw
        add_days_metadata(context, dataset, path, raw.days)
        first = next((f": {name}: {reason}" for name, reason in raw.refused.items()), "")
        refused = f"{len(raw.refused):,} landed files are refused{first}"
        share, max_share = raw.quarantine_share, config.max_quarantine_share
        quarantined = (
            f"{raw.quarantined_rows:,} of {count_rejected(raw.rows_of_files, config)} of these files "
            f"{'is' if raw.rows_of_files == 1 else 'are'} in quarantine"
        )
        duplicates = f"{raw.duplicates:,} identities occur twice"
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": raw.rows,
                "dagster/uri": dataset.paths.state_uri(path(days[-1]).parent),
                "dagster/column_schema": parquet_schema(path(days[-1]), column_descriptions(dataset)),
                "schema_contract": dg.MetadataValue.path(dataset.paths.address(dataset.paths.contract)),
                "files_read_now": raw.files_read,
                "rows_superseded": sum(day.superseded for day in raw.days),
                "identities_replaced": sum(day.superseded for day in raw.days),
                "exact_repeats": sum(day.repeated for day in raw.days),
                "rows_quarantined": raw.quarantined_rows,
                "quarantined_by_rule": count_table(raw.quarantined, "rule"),
                "files_refused": table(["file", "reason"], list(raw.refused.items())),
                "days_waiting": len(raw.waiting),
            },
            data_version=joint_version(day.content_hash for day in raw.days),
            check_results=[
                check_result(context, "schema", not raw.refused, refused),
                check_result(context, "identity_unique", not raw.duplicates, duplicates, figure=raw.duplicates),
                check_result(
                    context, "quarantine_share", share <= max_share, quarantined, figure=share, threshold=max_share
                ),
            ],
        )

    return raw_data
