"""What a person should know after a run, in a screenful."""

import json
from typing import Any

import dagster as dg

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.ledger import Ledger
from ae_pipeline.monitoring.alerts import alerts_of
from ae_pipeline.orchestration.stages import STAGES, asset_key
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.reports.ranking import reason_of
from ae_pipeline.storage.dataset import Dataset


def summarize(dataset: Dataset, tracker: Tracker, instance: dg.DagsterInstance) -> str:
    """Says what there is now: rows, model, table, report, the strangest rows, and what to do next."""
    config, paths = dataset.config, dataset.paths
    ledger = Ledger.load(paths.ledger)
    files = list(ledger.files.values())
    rejected = ledger.quarantined()
    champion = tracker.version(config.dataset, CHAMPION)
    summary_file = paths.reports / "summary.json"
    lines = ["", f"── {config.dataset} " + "─" * 60]
    lines.append(
        f"rows in          {sum(entry.rows for entry in files) + sum(rejected.values()):,} in {len(files):,} files"
    )
    reasons = (
        ", ".join(f"{rule}: {count:,}" for rule, count in list(rejected.items())[:5]) or "every row keeps the contract"
    )
    lines.append(f"in quarantine    {sum(rejected.values()):,} ({reasons})")
    if ledger.refused:
        name, reason = next(iter(ledger.refused.items()))
        lines.append(f"files refused    {len(ledger.refused):,}, the first one {name}: {reason}")
    if champion:
        lines.append(f"model            {config.dataset} version {champion.version}, MLflow run {champion.run_id}")
    lines.append(f"latent table     {paths.latents}")
    lines.append(f"report           {paths.reports / 'report.html'}")
    if alerts := alerts_of(paths):
        lines.append(f"alerts           {len(alerts):,}, the last one at {alerts[-1].at}: {alerts[-1].message}")
    failed = _failed_checks(config, instance)
    lines.append(f"checks           {'all passed' if not failed else 'FAILED: ' + '; '.join(failed)}")
    if summary_file.exists():
        summary = json.loads(summary_file.read_text(encoding="utf-8"))
        lines.append(
            f"flagged          {summary['flagged']:,} of {summary['rows']:,} rows, budget {summary['budget']:.2%}"
        )
        if verdict := summary.get("verdict"):
            lines.append(f"newest day       {verdict['day']}: {verdict['words']}")
        if labels := summary.get("labels"):
            lines.append(f"known anomalies  {_measured(labels)}")
        if left_out := summary["columns_left_out"]:
            lines.append(
                f"left out         {', '.join(left_out)} (columns that the model does not see; why: summary.json)"
            )
        lines += ["", "The ten strangest rows:"]
        for index, row in enumerate(summary["strangest"][:10], 1):
            lines.append(f"{index:>3}. {row['row_id']}  (score {row['score']:.1f})")
            is_marked = row["is_anomaly"] or bool(row["is_discovery"])
            lines.append(f"     {reason_of(row['because'], is_marked=is_marked)}")
    lines += [
        "",
        "Next: `make ui` opens the asset graph and the MLflow runs; open the report in a browser; read the table with",
        f"`pandas.read_parquet(deltalake.DeltaTable('{paths.latents}').file_uris())`; put new files into",
        f"{paths.landing} and run again.",
    ]
    return "\n".join(lines)


def _measured(labels: dict[str, Any]) -> str:
    whole, held_out = labels["all_rows"], labels["held_out"]
    message = (
        f"{whole['anomalies_flagged']:,} of {whole['anomalies']:,} flagged, "
        f"{whole['normal_flagged']:,} of {whole['rows'] - whole['anomalies']:,} normal rows"
    )
    if whole["auroc"] is not None:
        message += f"; AUROC {whole['auroc']:.4f}, average precision {whole['average_precision']:.4f}"
    if held_out and held_out["auroc"] is not None:
        message += f"; held out {held_out['auroc']:.4f} and {held_out['average_precision']:.4f}"
    return message


def _failed_checks(config: PipelineConfig, instance: dg.DagsterInstance) -> list[str]:
    keys = [dg.AssetCheckKey(asset_key(config, name), rule) for name, stage in STAGES.items() for rule in stage.checks]
    failed = []
    for record in instance.event_log_storage.get_latest_asset_check_execution_by_key(keys).values():
        # A check that was planned in a run that failed before it has no result, and the run's failure tells of that.
        planned = record.event is None or record.event.dagster_event_type != dg.DagsterEventType.ASSET_CHECK_EVALUATION
        if not planned and record.evaluation and not record.evaluation.passed:
            failed.append(f"{record.key.asset_key.path[-1]}.{record.key.name}: {record.evaluation.description}")
    return failed
