"""The six assets of a dataset. Bodies call the core, attach metadata and return."""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg

from ae_pipeline.config import PipelineConfig
from ae_pipeline.errors import PipelineError, StorageError
from ae_pipeline.orchestration.checks import check, spec
from ae_pipeline.orchestration.console import paced
from ae_pipeline.orchestration.descriptions import DESCRIPTIONS
from ae_pipeline.orchestration.workspace import Workspace
from ae_pipeline.storage import ALL_ROWS, DatasetPaths

STAGES = ("raw_data", "features", "autoencoder", "champion", "latent_features", "anomaly_report")
"""Names of the assets, in the order of the data."""

KINDS = {
    "raw_data": {"polars", "parquet"},
    "features": {"polars", "parquet"},
    "autoencoder": {"pytorch", "mlflow"},
    "champion": {"mlflow"},
    "latent_features": {"pytorch", "deltalake"},
    "anomaly_report": {"parquet", "html"},
}
CHECKS = {
    "raw_data": ("schema", "identity_unique", "quarantine_share"),
    "features": ("rows_kept",),
    "autoencoder": ("finite_weights", "loss_fell", "latents_not_collapsed"),
    "latent_features": ("rows_kept", "latents_not_collapsed"),
    "anomaly_report": ("alert_budget",),
}
"""Names of the checks of each stage."""
CODE_VERSION = "1"
"""Raised with a stage's own version when its results would change."""


def asset_key(config: PipelineConfig, stage: str) -> dg.AssetKey:
    """Gives the key [dataset, stage]."""
    return dg.AssetKey([config.dataset, stage])


def partitions(config: PipelineConfig) -> dg.DailyPartitionsDefinition | None:
    """Gives the dataset's days, UTC; none without event time."""
    if config.start is None:
        return None
    after = config.end + dt.timedelta(days=1) if config.end else None
    # Without an end the partition of today exists while today lasts, so that it can be scored as it fills.
    return dg.DailyPartitionsDefinition(
        start_date=config.start.isoformat(),
        end_date=after.isoformat() if after else None,
        end_offset=0 if after else 1,
        timezone="UTC",
    )


def days_of(context: dg.AssetExecutionContext) -> list[str]:
    """Gives the partitions of a run, in order, or the one that stands for all rows."""
    return sorted(context.partition_keys) if context.has_partition_key_range or context.has_partition_key else [ALL_ROWS]


@contextmanager
def explained() -> Iterator[None]:
    """Makes of our own errors failures that are not retried: the same input would fail again."""
    try:
        yield
    except PipelineError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error


def _settings(config: PipelineConfig, stage: str, *, daily: bool, deps: Sequence[str] = ()) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "key": asset_key(config, stage),
        "group_name": config.dataset,
        "deps": [asset_key(config, name) for name in deps],
        "description": f"{DESCRIPTIONS[stage]}\n\n{config.description}".strip(),
        "owners": list(config.owners) or None,
        "kinds": KINDS[stage],
        "pool": config.dataset,
        "code_version": CODE_VERSION,
        # What fails for want of a file handle or a busy database may pass a moment later.
        "retry_policy": dg.RetryPolicy(max_retries=1, delay=5),
        "required_resource_keys": {"workspace", f"{config.dataset}_lock"},
    }
    if daily:
        settings |= {"partitions_def": partitions(config), "backfill_policy": dg.BackfillPolicy.single_run()}
    return settings


def build_assets(config: PipelineConfig) -> list[dg.AssetsDefinition]:
    """Builds the assets of a dataset."""
    return [
        _raw_data(config),
        _features(config),
        _autoencoder(config),
        _champion(config),
        _latent_features(config),
        _anomaly_report(config),
    ]


def _raw_data(config: PipelineConfig) -> dg.AssetsDefinition:
    key = asset_key(config, "raw_data")

    @dg.asset(
        **_settings(config, "raw_data", daily=True),
        check_specs=[
            spec(key, "schema", "Every landed file can be read and has the columns of the schema contract."),
            spec(key, "identity_unique", "No identity stands twice among the rows of the run."),
            spec(key, "quarantine_share", f"At most {config.max_quarantine_share:.1%} of the rows are in quarantine."),
        ],
    )
    def raw_data(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from ae_pipeline.ingestion.landing import build_raw_day, count_duplicates, quarantine_counts, take_in

        paths, days = _paths(context, config), days_of(context)
        progress = paced(context.log.info)
        with explained():
            intake = take_in(config, paths, dt.datetime.now(dt.UTC).date(), progress)
            built = []
            for done, day in enumerate(days):
                progress(done, len(days), "days written")
                built.append(build_raw_day(day, intake, paths))
        sources = {name: entry for day in days for name, entry in intake.ledger.sources(day)}
        refused = {name: entry.refused for name, entry in intake.ledger.files.items() if entry.refused}
        rules = quarantine_counts(list({**sources, **{name: intake.ledger.files[name] for name in refused}}.values()))
        rows, rejected = sum(day.rows for day in built), sum(rules.values())
        doubled = count_duplicates([day.day for day in built if day.built], paths)
        later = [day for day in intake.pending_days(paths) if day not in days]
        _say(context, f"{rows:,} rows on {len(days):,} days, {sum(day.built for day in built):,} days written now; "
                      f"{rejected:,} rows in quarantine")
        if later:
            _say(context, f"{len(later):,} further days have new rows and wait for their own run: {_shortened(later)}")
        _tell_partitions(context, config, {d.day: (d.rows, d.content_hash, paths.raw(d.day)) for d in built})
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": rows,
                "dagster/uri": paths.raw(days[-1]).parent.as_uri(),
                "dagster/column_schema": _column_schema(paths.raw(days[-1])),
                "files_read_now": len(intake.read),
                "rows_superseded": sum(day.superseded for day in built),
                "rows_quarantined": rejected,
                "quarantined_by_rule": dg.MetadataValue.md(_markdown(["rule", "rows"], rules.items())),
                "files_refused": dg.MetadataValue.md(_markdown(["file", "reason"], refused.items())),
                "schema_contract": dg.MetadataValue.path(str(paths.contract)),
                "days_with_new_rows_left": len(later),
            },
            data_version=_joint_version(d.content_hash for d in built),
            check_results=[
                check(key, "schema", not refused, f"{len(refused)} files are refused" + (
                    f", the first one {next(iter(refused.items()))[0]}: {next(iter(refused.values()))}" if refused else "")),
                check(key, "identity_unique", doubled == 0, f"{doubled:,} identities stand twice", figure=doubled),
                check(key, "quarantine_share", rejected <= config.max_quarantine_share * max(rows + rejected, 1),
                      f"{rejected:,} of {rows + rejected:,} rows are in quarantine", figure=rejected / max(rows + rejected, 1),
                      threshold=config.max_quarantine_share),
            ],
        )

    return raw_data


def _features(config: PipelineConfig) -> dg.AssetsDefinition:
    key = asset_key(config, "features")

    @dg.asset(
        **_settings(config, "features", daily=True, deps=["raw_data"]),
        check_specs=[spec(key, "rows_kept", "Features have row for row what raw_data has.")],
    )
    def features(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from ae_pipeline.ingestion.contract import load_contract
        from ae_pipeline.preprocessing.features import build_features_day
        from ae_pipeline.storage import read_facts

        paths, days = _paths(context, config), days_of(context)
        progress = paced(context.log.info)
        with explained():
            contract, built = load_contract(paths.contract), []
            for done, day in enumerate(days):
                progress(done, len(days), "days written")
                built.append(build_features_day(day, config, contract, paths))
        rows, raw_rows = sum(day.rows for day in built), sum(int(read_facts(paths.raw(day))["rows"]) for day in days)
        _say(context, f"{rows:,} rows on {len(days):,} days, {sum(day.built for day in built):,} days written now")
        _tell_partitions(context, config, {d.day: (d.rows, d.content_hash, paths.features(d.day)) for d in built})
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": rows,
                "dagster/uri": paths.features(days[-1]).parent.as_uri(),
                "dagster/column_schema": _column_schema(paths.features(days[-1])),
            },
            data_version=_joint_version(d.content_hash for d in built),
            check_results=[check(key, "rows_kept", rows == raw_rows, f"{rows:,} rows of features, {raw_rows:,} of raw_data",
                                 figure=rows, threshold=raw_rows)],
        )

    return features


def _autoencoder(config: PipelineConfig) -> dg.AssetsDefinition:
    key = asset_key(config, "autoencoder")

    @dg.asset(
        **_settings(config, "autoencoder", daily=False, deps=["features"]),
        check_specs=[
            spec(key, "finite_weights", "Every weight of the network is a finite number."),
            spec(key, "loss_fell", "The validation loss is lower than before the first step."),
            spec(key, "latents_not_collapsed", "At least half of the latent columns vary from row to row."),
        ],
    )
    def autoencoder(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from ae_pipeline.orchestration.training_step import train_challenger

        with explained():
            trained = train_challenger(
                config, _paths(context, config), _workspace(context).tracker(), _origin(context), context.log.info
            )
        version, window = trained.version, trained.bundle.window
        return dg.MaterializeResult(
            metadata={
                "model_version": version.version,
                "mlflow_run": version.run_id,
                "train_days": f"{window.train[0]} to {window.train[-1]}",
                "validation_days": f"{window.validation[0]} to {window.validation[-1]}",
                "calibration_days": f"{window.calibration[0]} to {window.calibration[-1]}",
                "rows": dg.MetadataValue.json(trained.bundle.facts["rows"]),
                "epochs": len(trained.result.epochs),
                "best_epoch": trained.result.best_epoch,
                "validation_loss": trained.result.best_loss,
                "encoded_columns": trained.bundle.encoder.width,
                "columns_left_out": dg.MetadataValue.md(
                    _markdown(["column", "reason"], ((e.column, e.reason) for e in trained.bundle.encoder.left_out))),
                "window_fingerprint": window.fingerprint,
                # What a schedule compares with: the days as they stood when this training began.
                "window_content": dg.MetadataValue.json(trained.content),
            },
            data_version=dg.DataVersion(trained.bundle.fingerprint),
            check_results=[
                check(key, v.rule, v.passed, v.words, figure=v.figure, threshold=v.threshold, severity=dg.AssetCheckSeverity.WARN)
                for v in trained.verdicts
            ],
        )

    return autoencoder


def _champion(config: PipelineConfig) -> dg.AssetsDefinition:
    @dg.asset(**_settings(config, "champion", daily=False, deps=["autoencoder"]))
    def champion(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from ae_pipeline.orchestration.training_step import decide

        with explained():
            decision = decide(config, _workspace(context).tracker())
        _say(context, decision.words)
        return dg.MaterializeResult(
            metadata={
                "model_version": decision.champion.version,
                "mlflow_run": decision.champion.run_id,
                "decision": decision.words,
                "promoted": decision.promoted,
            },
            data_version=dg.DataVersion(str(decision.champion.version)),
        )

    return champion


def _latent_features(config: PipelineConfig) -> dg.AssetsDefinition:
    key = asset_key(config, "latent_features")
    freshness = dg.FreshnessPolicy.time_window(fail_window=dt.timedelta(hours=config.fresh_hours)) if config.fresh_hours else None

    @dg.asset(
        **_settings(config, "latent_features", daily=True, deps=["features", "champion"]),
        freshness_policy=freshness,
        check_specs=[
            spec(key, "rows_kept", "The table has row for row what features have."),
            spec(key, "latents_not_collapsed", "At least half of the latent columns vary from row to row."),
        ],
    )
    def latent_features(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from ae_pipeline.latents.publish import publish
        from ae_pipeline.latents.read import latents_of
        from ae_pipeline.orchestration.training_step import load_champion
        from ae_pipeline.promotion import latents_not_collapsed
        from ae_pipeline.storage import read_facts

        paths, days = _paths(context, config), days_of(context)
        with explained():
            version, bundle = load_champion(config, _workspace(context).tracker())
            done = publish(days, paths, bundle, version.version, _origin(context), paced(context.log.info))
            files = [day.path for day in done.days if day.path]
            collapsed = latents_not_collapsed(latents_of(files[-31:], paths, bundle.model.latent_dim))
        asked = [day for day in done.days if day.day in set(days)]
        rows, expected = sum(day.rows for day in done.days), sum(int(read_facts(paths.features(d.day))["rows"]) for d in done.days)
        flagged = sum(day.flagged for day in asked)
        _say(context, f"{rows:,} rows on {len(done.days):,} days under model version {version.version}, {flagged:,} of them flagged; "
                      + (f"version {done.table_version} of the table" if done.committed else "the table stands as it was"))
        _tell_partitions(context, config, {
            d.day: (d.rows, d.path or "", paths.latents / d.path if d.path else paths.latents) for d in asked
        }, {d.day: {"rows_flagged": d.flagged} for d in asked})
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": rows,
                "dagster/uri": paths.latents.as_uri(),
                "dagster/column_schema": _column_schema(paths.latents / files[-1]) if files else None,
                "model_version": version.version,
                "latent_space": done.latent_space,
                "table_version": done.table_version,
                "rows_flagged": flagged,
                "days_written_now": sum(day.built for day in done.days),
            },
            data_version=_joint_version(day.path or "" for day in asked),
            check_results=[
                check(key, "rows_kept", rows == expected, f"{rows:,} rows in the table, {expected:,} of features",
                      figure=rows, threshold=expected),
                check(key, "latents_not_collapsed", collapsed.passed or not files, collapsed.words, figure=collapsed.figure,
                      threshold=collapsed.threshold),
            ],
        )

    return latent_features


def _anomaly_report(config: PipelineConfig) -> dg.AssetsDefinition:
    key = asset_key(config, "anomaly_report")

    @dg.asset(
        **_settings(config, "anomaly_report", daily=True, deps=["latent_features"]),
        check_specs=[spec(key, "alert_budget", "The share of flagged rows stays within three times the alert budget.")],
    )
    def anomaly_report(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from ae_pipeline.orchestration.training_step import load_version_of_table
        from ae_pipeline.reports.build import build_report

        paths, days = _paths(context, config), days_of(context)
        with explained():
            version, bundle = load_version_of_table(config, paths, _workspace(context).tracker())
            report = build_report(days, paths, bundle, version.version, version.run_id, paced(context.log.info))
        share = report.flagged / max(report.rows, 1)
        _say(context, f"{report.flagged:,} of {report.rows:,} rows flagged, a share of {share:.2%}; {report.page}")
        _tell_partitions(context, config, {
            d.day: (d.rows, d.content_hash, paths.reports / "days" / f"{d.day}.parquet") for d in report.days
        }, {d.day: {"rows_flagged": d.flagged} for d in report.days})
        budget = config.alerts.budget
        return dg.MaterializeResult(
            metadata={
                "dagster/uri": report.page.as_uri(),
                "page": dg.MetadataValue.url(report.page.as_uri()),
                "summary": dg.MetadataValue.path(str(report.summary)),
                "alerts": dg.MetadataValue.path(str(report.alerts)),
                "rows_scored": report.rows,
                "rows_flagged": report.flagged,
                "strangest": dg.MetadataValue.md(_markdown(
                    ["row", "score", "because"], ((a.row_id, f"{a.score:.1f}", a.because) for a in report.strangest[:10]))),
            },
            data_version=_joint_version(d.content_hash for d in report.days),
            check_results=[check(
                key, "alert_budget", report.flagged <= max(3 * budget * report.rows, 3),
                f"{report.flagged:,} of {report.rows:,} rows are flagged, {share / budget:.1f} times the budget of {budget:.2%}",
                figure=share, threshold=3 * budget, severity=dg.AssetCheckSeverity.WARN)],
        )

    return anomaly_report


def _workspace(context: dg.AssetExecutionContext) -> Workspace:
    workspace: Workspace = context.resources.workspace
    return workspace


def _paths(context: dg.AssetExecutionContext, config: PipelineConfig) -> DatasetPaths:
    return _workspace(context).paths(config.dataset)


def _origin(context: dg.AssetExecutionContext) -> dict[str, str]:
    """Runs that a result comes from; a run that Dagster retried counts as the one it retries."""
    return {"dagster_run_id": context.run.root_run_id or context.run.run_id, "dagster_asset": context.asset_key.to_user_string()}


def _say(context: dg.AssetExecutionContext, words: str) -> None:
    context.log.info(words)


def _tell_partitions(
    context: dg.AssetExecutionContext,
    config: PipelineConfig,
    facts: Mapping[str, tuple[int, str, Any]],
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Attaches to each partition its own row count, file and content hash; the hash decides what is new."""
    if not config.is_daily:
        return
    for day, (rows, content_hash, path) in facts.items():
        own = {"dagster/partition_row_count": rows, "content_hash": content_hash, "dagster/uri": path.as_uri(), **(more or {}).get(day, {})}
        context.add_asset_metadata(own, partition_key=day)


def _joint_version(hashes: Any) -> dg.DataVersion:
    from ae_pipeline.storage import hash_json

    return dg.DataVersion(hash_json(list(hashes)))


def _column_schema(path: Any) -> dg.TableSchema:
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except FileNotFoundError as error:
        raise StorageError(f"{path} is gone; materialize it again") from error
    return dg.TableSchema(columns=[
        dg.TableColumn(field.name, str(field.type), constraints=dg.TableColumnConstraints(nullable=field.nullable))
        for field in schema
    ])


def _markdown(heads: Sequence[str], rows: Any) -> str:
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join([f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *lines]) if lines else "none"


def _shortened(days: Sequence[str]) -> str:
    return ", ".join(days) if len(days) <= 4 else f"{days[0]}, {days[1]} … {days[-1]}"
