"""What a person should know after a run, in a screenful."""

import json
from collections import Counter

import dagster as dg

from ae_pipeline.config import PipelineConfig
from ae_pipeline.ingestion.landing import Ledger, quarantine_counts
from ae_pipeline.orchestration.assets import asset_key
from ae_pipeline.storage import DatasetPaths
from ae_pipeline.tracking import CHAMPION, Tracker


def summarise(config: PipelineConfig, paths: DatasetPaths, tracker: Tracker, instance: dg.DagsterInstance) -> str:
    """Says what there is now: rows, model, table, report, the strangest rows, and what to do next."""
    ledger = Ledger.load(paths.ledger)
    files = list(ledger.files.values())
    rejected = quarantine_counts(files)
    champion = tracker.version(config.dataset, CHAMPION)
    summary_file = paths.reports / "summary.json"
    lines = ["", f"── {config.dataset} " + "─" * 60]
    lines.append(f"rows in          {sum(entry.rows for entry in files) + sum(rejected.values()):,} in {len(files):,} files")
    reasons = ", ".join(f"{count:,} × {rule}" for rule, count in Counter(rejected).most_common(5)) or "every row keeps the contract"
    lines.append(f"in quarantine    {sum(rejected.values()):,} ({reasons})")
    if refused := {name: entry.refused for name, entry in ledger.files.items() if entry.refused}:
        name, reason = next(iter(refused.items()))
        lines.append(f"files refused    {len(refused):,}, the first one {name}: {reason}")
    if champion:
        lines.append(f"model            {config.dataset} version {champion.version}, MLflow run {champion.run_id}")
    lines.append(f"latent table     {paths.latents}")
    lines.append(f"report           {paths.reports / 'report.html'}")
    failed = _failed_checks(config, instance)
    lines.append(f"checks           {'all passed' if not failed else 'FAILED: ' + '; '.join(failed)}")
    if summary_file.exists():
        summary = json.loads(summary_file.read_text(encoding="utf-8"))
        lines.append(f"flagged          {summary['flagged']:,} of {summary['rows']:,} rows, budget {summary['budget']:.2%}")
        lines += ["", "The ten strangest rows:"]
        for place, row in enumerate(summary["strangest"][:10], 1):
            lines.append(f"{place:>3}. {row['row_id']}  (score {row['score']:.1f})")
            lines.append(f"     {row['because']}")
    lines += [
        "",
        "Next: `make ui` opens the asset graph and the MLflow runs; open the report in a browser; read the table with",
        f"`pandas.read_parquet(deltalake.DeltaTable('{paths.latents}').file_uris())`; put new files into",
        f"{paths.landing} and run again.",
    ]
    return "\n".join(lines)


def _failed_checks(config: PipelineConfig, instance: dg.DagsterInstance) -> list[str]:
    from ae_pipeline.orchestration.assets import STAGES

    keys = [asset_key(config, stage) for stage in STAGES]
    failed = []
    for record in instance.event_log_storage.get_latest_asset_check_execution_by_key(_check_keys(instance, keys)).values():
        evaluation = record.event.dagster_event.asset_check_evaluation_data if record.event and record.event.dagster_event else None
        if evaluation and not evaluation.passed:
            failed.append(f"{evaluation.asset_key.path[-1]}.{evaluation.check_name}: {evaluation.description}")
    return failed


def _check_keys(instance: dg.DagsterInstance, keys: list[dg.AssetKey]) -> list[dg.AssetCheckKey]:
    from ae_pipeline.orchestration.assets import CHECKS

    return [dg.AssetCheckKey(key, name) for key in keys for name in CHECKS.get(key.path[-1], ())]
