"""The summary that `ae-pipeline run` prints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.escape import terminal_line
from ae_pipeline.common.text import abbreviate, one_in, plural, pluralize
from ae_pipeline.config.display import ColumnNames, noun_of_rows
from ae_pipeline.ingestion.landing_folder import landing_address, list_landing
from ae_pipeline.ingestion.ledger import Ledger
from ae_pipeline.ingestion.names import column_names
from ae_pipeline.monitoring.alerts import alerts_of
from ae_pipeline.monitoring.verdict import WHOLE
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.reports.reasons import reason_of, reworded
from ae_pipeline.reports.summary import read_summary
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import DatasetPaths

_ROWS = 10
"""Highest-scoring rows that the summary lists."""


def summarize(dataset: Dataset, tracker: Tracker, definitions: dg.Definitions, instance: dg.DagsterInstance) -> str:
    """Return the state of a dataset: rows, model, table, report, the highest-scoring rows, and what to do next."""
    paths = dataset.paths
    failed = _failed_checks(dataset, definitions, instance)
    lines = ["", f"── {dataset.name} " + "─" * 60, *_ingestion_lines(dataset)]
    if champion := tracker.version(dataset.name, CHAMPION):
        lines.append(_line("model", f"{dataset.name} version {champion.version}, MLflow run {champion.run_id}"))
    lines += [_line("latent table", paths.latents), _line("report", paths.reports / "report.html")]
    if alerts := alerts_of(paths):
        lines.append(_line("alerts", f"{len(alerts):,}, the last one at {alerts[-1].at}: {alerts[-1].message}"))
    lines.append(_line("checks", "all passed" if not failed else "FAILED: " + "; ".join(failed)))
    report = report_lines(paths, column_names(dataset))
    lines += report
    if report and dataset.config.images is not None:
        command = f"`ae-pipeline page {dataset.name} --maps png`"
        lines += ["", f"The report shows the heat maps of images; {command} writes them as files."]
    lines += [
        "",
        "Next: `ae-pipeline ui` serves the asset graph, the MLflow runs and the report; read the table with",
        f"{_reading_line(dataset)}; put new files into",
        f"{landing_address(dataset)} and run again.",
    ]
    return "\n".join(map(terminal_line, lines))


def _unread(dataset: Dataset) -> str:
    """Return which files of the landing folder are not read, with the reasons; an empty text if there are none."""
    try:
        landing = list_landing(dataset)
    except StorageError:
        return ""
    return landing.describe_others() if landing.others else ""


def _reading_line(dataset: Dataset) -> str:
    """Return the code that reads the table, for a data folder of any name."""
    paths = dataset.paths
    data, is_beside = paths.store or str(paths.root), paths.tables in {None, f"{paths.store}/latents"}
    tables = "" if is_beside else f", tables={paths.tables!r}"
    return f"`ae_pipeline.read_latents({dataset.name!r}, data={data!r}{tables}).pandas()`"


def summarize_ingestion(dataset: Dataset) -> str:
    """Return what became of the rows and files that have landed."""
    return "\n".join(map(terminal_line, ["", *_ingestion_lines(dataset)]))


def _line(label: str, value: object) -> str:
    return f"{label:<16} {value}"


def _ingestion_lines(dataset: Dataset) -> list[str]:
    ledger, others = Ledger.load(dataset.paths.ledger), _unread(dataset)
    quarantined, noun = ledger.quarantined(), noun_of_rows(dataset.config)
    rows = sum(entry.rows for entry in ledger.files.values()) + sum(quarantined.values())
    rules = ", ".join(f"{rule}: {count:,}" for rule, count in list(quarantined.items())[:5])
    lines = [
        _line(f"{plural(noun)} in", f"{rows:,} in {len(ledger.files):,} files"),
        _line(
            "in quarantine", f"{sum(quarantined.values()):,} ({rules or f'every {noun} satisfies the schema contract'})"
        ),
    ]
    if copies := [entry.rejected_copy for entry in ledger.files.values() if entry.rejected_copy]:
        path = dataset.paths.quarantined(copies[-1])
        if reasons := _reasons(path):
            lines.append(_line("", f"the newest one: {reasons[0]} ({path.parent} holds all of them)"))
    if withdrawn := ledger.withdrawn:
        days = f"{pluralize(sum(withdrawn.values()), noun)} of {abbreviate(list(withdrawn))}"
        lines.append(_line("withdrawn", f"{days}; `ae-pipeline withdraw {dataset.name}` lists them"))
    if others:
        lines.append(_line("not read", others))
    if ledger.refused:
        name, reason = next(iter(ledger.refused.items()))
        lines.append(_line("files refused", f"{len(ledger.refused):,}, the first one {name}: {reason}"))
    return [*lines, *_duplicate_lines(dataset)]


def _reasons(path: Path) -> list[str]:
    """Return the first reason in a quarantine file, or nothing if it cannot be read."""
    try:
        return pl.scan_parquet(path, glob=False).select("reason").head(1).collect()["reason"].to_list()
    except (OSError, pl.exceptions.PolarsError):
        return []


def _duplicate_lines(dataset: Dataset) -> list[str]:
    """Return how many rows were replaced, or occur again in a dataset without identity."""
    facts = [read_facts(path) for path in dataset.paths.raw("_").parent.glob("[!.]*.parquet")]
    key, label = ("superseded", "replaced") if dataset.config.identity else ("repeated", "exact repeats")
    rows = sum(int(fact.get(key, 0)) for fact in facts)
    noun = noun_of_rows(dataset.config)
    equal = f"{plural(noun)} equal an earlier {noun}; all stay"
    meaning = f"identities replaced by a newer {noun}" if dataset.config.identity else equal
    return [_line(label, f"{rows:,} {meaning}")] if rows else []


def report_lines(paths: DatasetPaths, names: ColumnNames) -> list[str]:
    """Return what the newest report says: counts, the verdict, labels, and the highest-scoring rows or images."""
    if (summary := read_summary(paths)) is None:
        return []
    flagged = f"{summary['flagged']:,} of {summary['rows']:,} {names.rows}, budget {summary['budget']:.2%}"
    lines = [_line("flagged", flagged)]
    if images := _judged_images(summary):
        of_images = f"{images['flagged']:,} of {images['images']:,} images, budget {images['budget']:.2%}"
        lines.insert(0, _line("flagged images", f"{of_images} of the normal ones"))
    if assessment := summary.get("verdict"):
        filling = summary.get("filling")
        is_complete = filling is not None and not assessment.get("is_filling")
        is_daily = assessment["day"] != WHOLE
        label = "verdict" if not is_daily else "complete day" if is_complete else "newest day"
        lines.append(_line(label, _verdict(assessment, names)))
        if filling:
            lines.append(_line("still filling", filling["words"]))
    if images and images["all_images"]:  # a label marks all patches of an image, and a defect covers few of them
        lines.append(_line("known anomalies", _label_text(images["all_images"], images["held_out"], "images")))
    elif labels := summary.get("labels"):
        lines.append(_line("known anomalies", _label_text(labels["all_rows"], labels["held_out"], names.rows)))
    if left_out := summary["columns_left_out"]:
        lines.append(_line("left out", f"{', '.join(left_out)} (not seen by the model; summary.json says why)"))
    if images:
        return [*lines, "", *_top_images(images, summary["strangest"], names)]
    lines += ["", f"The {_ROWS} highest-scoring {names.rows}:"]
    for index, row in enumerate(summary["strangest"][:_ROWS], 1):
        lines.append(f"{index:>3}. {row['row_id']}  (score {row['score']:,.1f}, {one_in(row['p_value'])})")
        is_marked = row["is_anomaly"] or bool(row["is_discovery"])
        lines.append(f"     {reason_of(reworded(row, names), is_marked=is_marked)}")
    return lines


def _judged_images(summary: dict[str, Any]) -> dict[str, Any] | None:
    """Return the verdicts on images; None unless rows are patches."""
    images: dict[str, Any] | None = summary.get("images")
    return images if images and images["images"] else None


def _top_images(images: dict[str, Any], patches: list[dict[str, Any]], names: ColumnNames) -> Iterator[str]:
    """Yield the images with the highest scores, with the reason of their most anomalous patch where it is known."""
    top = images["top_images"][:_ROWS]
    yield f"The {len(top)} highest-scoring images:"
    reasons = {patch["row_id"]: patch for patch in patches}
    for index, image in enumerate(top, 1):
        state = "flagged" if image["is_anomaly"] else "not flagged"
        yield f"{index:>3}. {image['image_id']}  (score {image['score']:,.1f}, {one_in(image['p_value'])}, {state})"
        # The verdict is on the image: whether its patch is flagged too is another question.
        if (patch := reasons.get(image["strangest"])) and (reason := reworded(patch, names)):
            yield f"     {reason}"


def verdict_line(dataset: Dataset) -> str:
    """Return the verdict on the newest complete day, as the report shows it; empty without one."""
    summary = read_summary(dataset.paths) or {}
    if (assessment := summary.get("verdict")) is None:
        return ""
    refused = summary.get("refused")  # a report of an earlier version has none
    return terminal_line(_verdict(assessment, column_names(dataset)) + (f"; {refused}" if refused else ""))


def _verdict(assessment: dict[str, Any], names: ColumnNames) -> str:
    state = assessment.get("state")  # a report of an earlier version has none
    since = assessment.get("since")
    duration = f" since {since if since != assessment['day'] else 'this day'}" if since else ""
    day = f"all {names.rows}" if assessment["day"] == WHOLE else assessment["day"]
    return f"{day}: {f'{state}{duration}: ' if state else ''}{assessment['words']}"


def _label_text(whole: dict[str, Any], held_out: dict[str, Any] | None, units: str) -> str:
    text = (
        f"{whole['anomalies_flagged']:,} of {whole['anomalies']:,} flagged, "
        f"{whole['normal_flagged']:,} of {whole['rows'] - whole['anomalies']:,} normal {units}"
    )
    if whole["auroc"] is not None:
        text += f"; AUROC {whole['auroc']:.4f}, average precision {whole['average_precision']:.4f}"
    if held_out and held_out["auroc"] is not None:
        text += f"; held out {held_out['auroc']:.4f} and {held_out['average_precision']:.4f}"
    return text


def _failed_checks(dataset: Dataset, definitions: dg.Definitions, instance: dg.DagsterInstance) -> list[str]:
    graph = definitions.resolve_asset_graph()
    keys = [key for key in graph.asset_check_keys if key.asset_key.path[0] == dataset.name]
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    keys = [key for key in keys if key.name != "verdict"]  # the last line says it
    failed = []
    for record in (records[key] for key in keys if key in records):
        # A check that was planned in a run that failed first has no result; the failed run has its own alert.
        planned = record.event is None or record.event.dagster_event_type != dg.DagsterEventType.ASSET_CHECK_EVALUATION
        if not planned and record.evaluation and not record.evaluation.passed:
            failed.append(f"{record.key.asset_key.path[-1]}.{record.key.name}: {record.evaluation.description}")
    return failed
