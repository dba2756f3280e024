"""raw_data and features: from landed files to clean columns of each day."""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.common.text import abbreviate, pluralize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.metadata import add_partition_metadata, counted, joint_version, parquet_schema, table
from ae_pipeline.orchestration.stages import READ_TAG, Body, check, days_of, paths_of, rows_on_days
from ae_pipeline.storage.dataset import Dataset

if TYPE_CHECKING:
    from ae_pipeline.ingestion.raw import DayResult


def _written(built: Sequence["DayResult"], config: PipelineConfig) -> str:
    written = sum(day.built for day in built)
    return f"{written:,} of them written now" if config.is_daily else "written now" if written else "up to date"


def raw_data(config: PipelineConfig) -> Body:
    """Reads what has landed and writes the days asked for."""

    def body(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from ae_pipeline.ingestion.landing import ingest, last_ingest
        from ae_pipeline.ingestion.raw import build_raw_day, count_duplicates
        from ae_pipeline.orchestration.alerts import alert_broken_contract

        paths, days, progress = paths_of(context, config), days_of(context), ProgressLogger(context.log.info)
        # A file that cannot be read must not hold up the days of those that were.
        known = last_ingest(Dataset(config, paths)) if READ_TAG in context.run.tags else None
        intake = known or ingest(Dataset(config, paths), dt.datetime.now(dt.UTC).date(), progress)
        built = [build_raw_day(day, intake, paths) for day in progress.over(days, "days written")]
        refused, rejected = intake.ledger.refused, intake.ledger.quarantined(days)
        rows, broken = sum(day.rows for day in built), sum(rejected.values())
        # A row that has moved to another day stands twice until the day that it left is rebuilt.
        doubled = count_duplicates(sorted({*days, *(intake.moved if intake.moved else ())}), paths)
        context.log.info(
            f"{rows_on_days(rows, len(days), config)}, {_written(built, config)}; {broken:,} rows in quarantine"
        )
        if waiting := [day for day in intake.pending_days(Dataset(config, paths)) if day not in set(days)]:
            context.log.info(f"{pluralize(len(waiting), 'further day')} to be run on their own: {abbreviate(waiting)}")
        for day in built:
            add_partition_metadata(
                context, config, day.day, day.content_hash, paths.raw(day.day).as_uri(), rows=day.rows
            )
        alert_broken_contract(intake.ledger, days, Dataset(config, paths), context.run.run_id, context.log.warning)
        first = next((f": {name}: {reason}" for name, reason in refused.items()), "")
        held = intake.ledger.rows_beside(days) + broken
        share = broken / max(held, 1)
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": rows,
                "dagster/uri": paths.raw(days[-1]).parent.as_uri(),
                "dagster/column_schema": parquet_schema(paths.raw(days[-1])),
                "schema_contract": dg.MetadataValue.path(str(paths.contract)),
                "files_read_now": len(intake.read),
                "rows_superseded": sum(day.superseded for day in built),
                "rows_quarantined": broken,
                "quarantined_by_rule": counted(rejected, "rule"),
                "files_refused": table(["file", "reason"], list(refused.items())),
                "days_waiting": len(waiting),
            },
            data_version=joint_version(day.content_hash for day in built),
            check_results=[
                check(context, "schema", not refused, f"{len(refused):,} landed files are refused{first}"),
                check(context, "identity_unique", doubled == 0, f"{doubled:,} identities stand twice", figure=doubled),
                check(
                    context,
                    "quarantine_share",
                    share <= config.max_quarantine_share,
                    f"{broken:,} of {held:,} rows of these files are in quarantine",
                    figure=share,
                    threshold=config.max_quarantine_share,
                ),
            ],
        )

    return body


def features(config: PipelineConfig) -> Body:
    """Cleans and derives columns of the days asked for."""

    def body(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from ae_pipeline.features.build import build_features_day
        from ae_pipeline.ingestion.contract import contract_in_force
        from ae_pipeline.storage.parquet import read_facts

        paths, days, progress = paths_of(context, config), days_of(context), ProgressLogger(context.log.info)
        contract = contract_in_force(paths.contract, config)
        built = [
            build_features_day(day, Dataset(config, paths), contract) for day in progress.over(days, "days written")
        ]
        rows, raw_rows = sum(day.rows for day in built), sum(int(read_facts(paths.raw(day))["rows"]) for day in days)
        context.log.info(f"{rows_on_days(rows, len(days), config)}, {_written(built, config)}")
        for day in built:
            add_partition_metadata(
                context, config, day.day, day.content_hash, paths.features(day.day).as_uri(), rows=day.rows
            )
        message = f"{rows:,} rows of features, {raw_rows:,} of raw_data"
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": rows,
                "dagster/uri": paths.features(days[-1]).parent.as_uri(),
                "dagster/column_schema": parquet_schema(paths.features(days[-1])),
            },
            data_version=joint_version(day.content_hash for day in built),
            check_results=[
                check(context, "rows_kept", rows == raw_rows, message, figure=rows, threshold=raw_rows),
            ],
        )

    return body
