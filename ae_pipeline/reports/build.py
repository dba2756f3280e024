"""The anomaly report: ranked rows of each day with explanations, and one page and one JSON file over all days."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latents.read import published_days
from ae_pipeline.monitoring.budget import ReportDay
from ae_pipeline.monitoring.daily_drift import DayDrift, measure_drift, read_all_days
from ae_pipeline.monitoring.day_assessment import DayAssessment, assessment_json
from ae_pipeline.reports.charts import Chart
from ae_pipeline.reports.gallery import Gallery, build_gallery
from ae_pipeline.reports.index import most_worth_a_look, with_causes
from ae_pipeline.reports.labels import Labels, measure_labels
from ae_pipeline.reports.page import render_day, render_operations, render_page
from ae_pipeline.reports.ranking import (
    UNFINISHED,
    RankedRow,
    all_ranked,
    as_rows,
    cut_short,
    is_reported,
    ranked_day,
    report_days,
    reported_day,
)
from ae_pipeline.reports.summary import Summary, row_facts, schema_text
from ae_pipeline.reports.view import PageContext, Published
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.parquet import write_parquet


@dataclass(frozen=True)
class Report:
    """What a report came to.

    Attributes:
        page: The HTML page over all days.
        summary: The same as JSON.
        alerts: Ranked rows of all days as Parquet.
        days: Days of this run.
        listed: Ranked rows over all days.
        rows: Rows scored on the days of this run.
        flagged: Flagged ones among them.
        known_anomalies: Rows on these days that the label calls anomalies; none without a label.
        known_flagged: Flagged ones among these.
        newest: The newest day of this run that has rows, None where none has.
        day_page: Its page, None where it has none.
        verdict: On it; where there is none on the newest day of the table.
        charts: Of it.
        strangest: Highest scores over the days of this run.
        labels: Scores of all days against the labels, None without a label.
        gallery: Pictures of the strangest rows, None where rows are no images.
        drift: Days after the training window beside it; none without event time.
    """

    page: Path
    summary: Path
    alerts: Path
    days: tuple[ReportDay, ...]
    listed: int
    rows: int
    flagged: int
    known_anomalies: int
    known_flagged: int
    newest: str | None
    day_page: Path | None
    verdict: DayAssessment | None
    charts: Sequence[Chart]
    strangest: tuple[RankedRow, ...]
    labels: Labels | None
    gallery: Gallery | None
    drift: tuple[DayDrift, ...]


def build_report(
    days: Sequence[str],
    dataset: Dataset,
    bundle: ModelBundle,
    model_version: int,
    run_id: str,
    on_ranked: Callable[[Sequence[ReportDay]], None] = lambda _: None,
) -> Report:
    """Ranks and explains the strangest rows of days, and rewrites page and summary over all published days.

    A day's flagged rows are listed, up to report_rows of them, and its ten strangest where fewer are flagged.

    Args:
        days: Days to report on; they must be published.
        dataset: Configuration and paths of the dataset.
        bundle: The model that the table was scored with.
        model_version: Its version.
        run_id: MLflow run that made it.
        on_ranked: Told the days once their rows are ranked; alerts that it raises are in the page.

    Raises:
        PublicationError: A day has features and is not in the published table.
    """
    config, paths = dataset.config, dataset.paths
    files = published_days(paths)
    # A table that has changed its model as a whole takes the report of all its days along.
    behind = {day for day, found in files.items() if not is_reported(day, found, dataset)}
    behind |= cut_short(paths) & files.keys()
    unfinished = paths.reports / UNFINISHED
    write_text(unfinished, json.dumps(sorted({*days, *behind})))
    everything_built = report_days(sorted({*days, *behind}), files, dataset, bundle)
    built = [day for day in everything_built if day.day in set(days)]
    on_ranked(everything_built)
    everything = all_ranked(paths, set(files))
    alerts = paths.reports / "alerts.parquet"
    write_parquet(alerts, everything.to_arrow())
    strangest = tuple(as_rows(everything.head(config.alerts.report_rows)))
    labels = measure_labels(files, dataset, bundle)
    drift = measure_drift(files, dataset, bundle)
    gallery = build_gallery(files, paths, bundle)
    entries = {day: found for day in sorted(files) if (found := reported_day(day, paths))}
    published = Published(files, paths, bundle, config, model_version, entries, drift)
    # Days that were asked for alone have a page, and keep it up to date.
    alone = set(days) if len(days) == 1 and config.is_daily else set()
    for day in sorted(alone | {day.day for day in everything_built if published.page_of(day.day).exists()}):
        write_day_page(day, published, labels)
    page = paths.reports / "report.html"
    shown = published.show(published.newest, strangest, page)
    summary = _summary(published, run_id, shown, labels)
    write_text(paths.reports / "summary.json", summary.text())
    write_text(paths.reports / "summary.schema.json", schema_text())
    operations = render_operations(paths, config.drift.min_rows)
    features = published.features_beside(page, published.newest)
    index = published.index(page)
    listed = with_causes(most_worth_a_look(index), paths) if config.is_daily else ()
    write_text(page, render_page(summary.model_dump(), shown, index, listed, labels, gallery, features, operations))
    unfinished.unlink()
    newest = max((day.day for day in built if day.rows), default=None)
    asked = pl.col("event_time").dt.date().cast(pl.String).is_in([day.day for day in built])
    of_run = everything.filter(asked) if config.is_daily else everything
    same = shown.verdict is not None and newest == published.newest
    return Report(
        page=page,
        summary=paths.reports / "summary.json",
        alerts=alerts,
        days=tuple(built),
        listed=everything.height,
        rows=sum(day.rows for day in built),
        flagged=sum(day.flagged for day in built),
        known_anomalies=sum(day.known_anomalies for day in built),
        known_flagged=sum(day.known_flagged for day in built),
        newest=newest,
        day_page=own if newest and (own := published.page_of(newest)).exists() else None,
        verdict=published.verdict(newest) if newest and not same else shown.verdict,
        charts=shown.charts if same else published.charts(newest) if newest else (),
        strangest=published.listed.explanations(tuple(as_rows(of_run.head(config.alerts.report_rows)))),
        labels=labels,
        gallery=gallery,
        drift=drift,
    )


def day_page(day: str, dataset: Dataset, bundle: ModelBundle, model_version: int) -> Path:
    """Makes the page of a day that is in the report already.

    Args:
        day: ISO date.
        dataset: Configuration and paths of the dataset.
        bundle: The model that the table was scored with.
        model_version: Its version.

    Raises:
        PublicationError: The report knows no rows of that day.
    """
    config, paths = dataset.config, dataset.paths
    if not config.is_daily:
        raise PublicationError(f"rows of {paths.dataset!r} have no days, so there is one page of them all: report.html")
    files = published_days(paths)
    if not files or not min(files) <= day <= max(files):
        there = f"those from {min(files)} to {max(files)} do" if files else "none does so far"
        raise PublicationError(f"{day!r} has no report; of {paths.dataset!r} {there}, ISO dates; name one of them")
    entries = {one: found for one in sorted(files) if (found := reported_day(one, paths))}
    drift = read_all_days(paths, config.drift.min_rows)
    published = Published(files, paths, bundle, config, model_version, entries, drift)
    labels = measure_labels(files, dataset, bundle)
    page = write_day_page(day, published, labels) if is_reported(day, files.get(day), dataset) else None
    if page is None:
        raise PublicationError(
            f"the report of {paths.dataset!r} has no rows of {day} as the table has them; materialize that partition "
            "of anomaly_report, or name another day"
        )
    _link(day, page, paths.reports / "report.html")
    return page


def _link(day: str, page: Path, report: Path) -> None:
    """Makes the day a link where the page over all days lists it."""
    if report.exists():
        plain, linked = f'<td class="d">{day}</td>', f'<td class="d"><a href="days/{page.name}">{day}</a></td>'
        previous = report.read_text(encoding="utf-8")
        if (after := previous.replace(plain, linked, 1)) != previous:
            write_text(report, after)


def write_day_page(day: str, published: Published, labels: Labels | None) -> Path | None:
    """Writes the page of one day, or removes it where the day has no rows any more.

    Args:
        day: ISO date.
        published: The table and its ranked days.
        labels: Whether rows are known as anomalies or not.

    Returns:
        Where it is.
    """
    page, paths = published.page_of(day), published.paths
    entry = published.entries.get(day)
    if entry is None or not entry.rows:
        page.unlink(missing_ok=True)
        return None
    rows = tuple(as_rows(ranked_day(day, paths).head(published.config.alerts.report_rows)))
    shown = published.show(day, rows, page)
    alerts = (published.bundle.config.alerts.budget, published.config.alerts.false_discovery_rate)
    features, beside = published.features_beside(page, day), published.pages_beside(day)
    write_text(page, render_day(paths.dataset, shown, features, labels, *alerts, beside))
    return page


def _summary(published: Published, run_id: str, shown: PageContext, labels: Labels | None) -> Summary:
    paths, bundle, config = published.paths, published.bundle, published.config
    by_day = list(published.entries.values())
    rows, flagged = sum(day.rows for day in by_day), sum(day.flagged for day in by_day)
    budget, rate = bundle.config.alerts.budget, config.alerts.false_discovery_rate
    return Summary.model_validate(
        {
            "dataset": paths.dataset,
            "model_version": published.model_version,
            "mlflow_run": run_id,
            "latent_space": next((day.identity.split("/")[0] for day in published.files.values()), None),
            "rows": rows,
            "flagged": flagged,
            "budget": budget,
            "expected_alerts": rows * budget,
            "false_discovery_rate": rate,
            "discoveries": sum(day.discovery_count for day in by_day) if rate is not None else None,
            "verdict": assessment_json(shown.verdict) if shown.verdict else None,
            "groups": [
                {
                    "columns": list(group.columns),
                    "words": group.message,
                    "rows": len(group.rows),
                    "highest_score": group.rows[0].score,
                    "days": list(group.days),
                }
                for group in shown.groups
            ],
            # Beside the version that served when it was trained: figures of `latents.compatibility`.
            "alignment": bundle.facts.alignment.to_json() if bundle.facts.alignment else None,
            "score_threshold": bundle.calibration.threshold,
            "calibration_rows": len(bundle.calibration.scores),
            "rows_by_part": bundle.facts.rows,
            "train_days": [bundle.window.train[0], bundle.window.train[-1]],
            "calibration_days": [bundle.window.calibration[0], bundle.window.calibration[-1]],
            "columns": bundle.columns,
            "columns_left_out": {entry.column: entry.reason for entry in bundle.encoder.left_out},
            "labels": asdict(labels) if labels else None,
            "drift": [
                {
                    "day": day.day,
                    "rows": day.rows,
                    "is_after": day.is_after,
                    "is_judged": day.is_judged,
                    "drifted": day.message,
                }
                for day in published.drift
            ],
            "days": [{"day": day.day, "rows": day.rows, "flagged": day.flagged} for day in by_day],
            "strangest": [row_facts(row) for row in shown.strangest[:50]],
            "files": {
                "alerts": "alerts.parquet",
                "days": "days/",
                "page": "report.html",
                "schema": "summary.schema.json",
            },
        }
    )
