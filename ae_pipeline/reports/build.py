"""Build the anomaly report: ranked rows, a page over all days, pages of single days, and summary.json."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latents.read import PublishedDay, published_days
from ae_pipeline.monitoring.budget import ReportDay
from ae_pipeline.monitoring.daily_drift import DayDrift, measure_drift
from ae_pipeline.monitoring.feedback import marks_digest, marks_of
from ae_pipeline.monitoring.newest_day import FillingDay
from ae_pipeline.monitoring.verdict import DayAssessment
from ae_pipeline.reports.charts import Chart
from ae_pipeline.reports.context import PageContext, page_context, report_variables
from ae_pipeline.reports.day_pages import write_day_page
from ae_pipeline.reports.files import damaged_report_files, record_report_file, write_report_file
from ae_pipeline.reports.gallery import Gallery, build_gallery
from ae_pipeline.reports.image_report import ImageReport, report_images
from ae_pipeline.reports.index import most_worth_a_look, with_causes
from ae_pipeline.reports.labels import Labels, measure_labels
from ae_pipeline.reports.page import shown_marks, write_report
from ae_pipeline.reports.ranking import (
    UNFINISHED,
    RankedRow,
    all_ranked,
    as_rows,
    cut_short,
    is_reported,
    remove_foreign_days,
    report_days,
    reported_days,
)
from ae_pipeline.reports.review import review_of
from ae_pipeline.reports.summarize import summarize
from ae_pipeline.reports.summary import schema_text
from ae_pipeline.reports.view import Published, adjacent
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.parquet import write_parquet


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of building a report.

    Attributes:
        page: HTML page over all days.
        summary: `summary.json`.
        alerts: Ranked rows of all days, Parquet.
        days: Counts of the days of this run.
        ranked_rows: Number of ranked rows of all days.
        rows: Scored rows on the days of this run.
        flagged: Flagged rows on these days.
        known_anomalies: Known anomalies on these days; 0 without a label.
        known_flagged: Flagged known anomalies on these days.
        newest: Newest complete day of this run with rows, or the newest if none is complete; None if no day has rows.
        day_page: Page of the newest day; None if it has none.
        assessment: Assessment of the newest day of this run, or else of the newest published day.
        charts: Charts of the newest day of this run.
        strangest: Rows with the highest scores on the days of this run.
        labels: Measures against the label; None without a label.
        images: Verdicts on images; None unless rows are patches, or have masks.
        gallery: Pictures; None if rows are not images.
        drift: Drift of all days; empty without event time.
        filling: The newest day, if it is still filling.
        newest_assessment: Assessment of the newest complete day of the table, which the page over all days shows.
        judged: Counts of the days that the checks judge: those of this run, or the newest complete day if they are
            older.
        hidden: Flagged rows on these days that people marked as known or as false alarms, themselves or with their day.
        known_drift: Those of these days that as a whole are unusual in a way that people marked so.
    """

    page: Path
    summary: Path
    alerts: Path
    days: tuple[ReportDay, ...]
    ranked_rows: int
    rows: int
    flagged: int
    known_anomalies: int
    known_flagged: int
    newest: str | None
    day_page: Path | None
    assessment: DayAssessment | None
    charts: Sequence[Chart]
    strangest: tuple[RankedRow, ...]
    labels: Labels | None
    images: ImageReport | None
    gallery: Gallery | None
    drift: tuple[DayDrift, ...]
    filling: FillingDay | None = None
    newest_assessment: DayAssessment | None = None
    judged: tuple[ReportDay, ...] = ()
    hidden: int = 0
    known_drift: frozenset[str] = frozenset()


def build_report(
    days: Sequence[str],
    dataset: Dataset,
    bundle: ModelBundle,
    model_version: int,
    run_id: str,
    on_assessed: Callable[[Mapping[str, DayAssessment]], None] = lambda _: None,
) -> Report:
    """Rank and explain the most anomalous rows of days, and write page and summary over all published days.

    All flagged rows of a day are ranked, and at least ten rows. At most `alerts.report_rows` of a day are explained.

    Args:
        days: Days to report on; they must be published.
        dataset: Configuration and paths of the dataset.
        bundle: Model that scored the published table.
        model_version: Version of the model.
        run_id: MLflow run that trained the model.
        on_assessed: Called with the assessments of the ranked days before the page is written. The page shows alerts
            raised here.

    Raises:
        PublicationError: A day has features but is not in the published table.
    """
    paths = dataset.paths
    marks = marks_digest(paths)  # before they are read: a mark made meanwhile is not part of this report
    remove_foreign_days(dataset)
    files = published_days(paths)
    outdated = _outdated_days(files, dataset)
    unfinished = paths.reports / UNFINISHED
    write_text(unfinished, json.dumps(sorted({*days, *outdated})))
    all_reported = report_days(sorted({*days, *outdated}), files, dataset, bundle)
    ranked = all_ranked(paths, set(files))
    write_parquet(paths.reports / "alerts.parquet", ranked.to_arrow())
    record_report_file(paths.reports / "alerts.parquet", paths)
    labels = measure_labels(files, dataset, bundle)
    published = Published(
        files=files,
        dataset=dataset,
        bundle=bundle,
        model_version=model_version,
        drift=measure_drift(files, dataset, bundle),
        entries=(entries := reported_days(files, paths)),
        review=review_of(ranked, list(entries), dataset),
    )
    on_assessed({day.day: published.assessments[day.day] for day in all_reported if day.day in entries})
    gallery = build_gallery(files, paths, bundle)
    images = report_images(files, dataset, bundle, model_version)
    # A day that is reported alone gets a page. Existing pages are kept up to date.
    with_page = set(days) if len(days) == 1 and dataset.config.is_daily else set()
    with_page |= {day.day for day in all_reported if published.page_of(day.day).exists()}
    changed = {day.day for day in all_reported if day.day in entries}
    if shown_marks(paths) != marks:
        # A known cause covers later days too.
        marked = {day for each in marks_of(paths) for day in (each.day, *each.rows.values())}
        later = {day for day in entries if marked and day >= min(marked)}
        with_page |= {day for day in later if published.page_of(day).exists()}
        changed |= later
    # Their pages tell the verdicts of the days before and after.
    choices = (published.days_with_rows, published.days_with_page())
    neighbors = {each for day in changed for days_to_choose in choices for each in adjacent(day, days_to_choose)}
    with_page |= {day for day in neighbors if day and published.page_of(day).exists()}
    damaged = {path.stem for path in damaged_report_files(paths) if path.suffix == ".html"}
    with_page |= damaged & published.entries.keys()
    record_report_file(paths.reports / "drift.parquet", paths)
    for day in sorted(with_page):
        write_day_page(day, published)
    context = _write_pages(published, ranked, run_id, labels, gallery, images, marks)
    unfinished.unlink()
    reported = [day for day in all_reported if day.day in set(days)]
    return _report(reported, ranked, published, context, labels, images, gallery)


def _outdated_days(files: Mapping[str, PublishedDay], dataset: Dataset) -> set[str]:
    """Return the published days whose ranked rows do not match the table, such as all days after a promotion."""
    outdated = {day for day, file in files.items() if not is_reported(day, file, dataset)}
    return outdated | (cut_short(dataset.paths) & files.keys())


def _write_pages(
    published: Published,
    ranked: pl.DataFrame,
    run_id: str,
    labels: Labels | None,
    gallery: Gallery | None,
    images: ImageReport | None,
    marks: str,
) -> PageContext:
    """Write `summary.json`, its schema and the page over all days."""
    dataset = published.dataset
    reports = dataset.paths.reports
    rows = tuple(as_rows(ranked.head(dataset.config.alerts.report_rows), dataset.config.timezone))
    context = page_context(published, published.headline, rows, reports / "report.html")
    summary = summarize(published, run_id, context, labels, images)
    write_report_file(reports / "summary.json", summary.text(), dataset.paths)
    write_report_file(reports / "summary.schema.json", schema_text(), dataset.paths)
    index = published.index()
    listed_days: Sequence[Mapping[str, Any]] = ()
    if dataset.config.is_daily:
        listed_days = with_causes(most_worth_a_look(index), dataset.paths, dataset.config.timezone, published.names)
    summary_json = summary.model_dump(mode="json")
    variables = report_variables(context, summary_json, index, listed_days, labels, gallery, images)
    brief = {day: each.brief_record() for day, each in published.assessments.items()}
    write_report({**variables, "assessed": brief}, dataset, marks)
    return context


def _report(
    days: Sequence[ReportDay],
    ranked: pl.DataFrame,
    published: Published,
    context: PageContext,
    labels: Labels | None,
    images: ImageReport | None,
    gallery: Gallery | None,
) -> Report:
    """Return the result of a run over `days`; the page over all days assesses the newest complete day."""
    config, reports = published.dataset.config, published.dataset.paths.reports
    with_rows = [day.day for day in days if day.rows]
    filling = published.filling
    complete = [day for day in with_rows if filling is None or day != filling.day]
    newest = max(complete or with_rows, default=None)
    headline = published.headline
    is_newer = not config.is_daily or headline is None or max((day.day for day in days), default="") >= headline
    judged = tuple(days) if is_newer or headline is None else (published.entries[headline],)
    assessed = [published.assessments[day.day] for day in judged if day.day in published.entries]
    is_on_page = context.assessment is not None and newest == headline
    of_run = ranked
    if config.is_daily:
        local = pl.col("event_time").dt.convert_time_zone(config.timezone)
        of_run = ranked.filter(local.dt.date().cast(pl.String).is_in([day.day for day in days]))
    return Report(
        page=reports / "report.html",
        summary=reports / "summary.json",
        alerts=reports / "alerts.parquet",
        days=tuple(days),
        ranked_rows=ranked.height,
        rows=sum(day.rows for day in days),
        flagged=sum(day.flagged for day in days),
        known_anomalies=sum(day.known_anomalies for day in days),
        known_flagged=sum(day.known_flagged for day in days),
        newest=newest,
        day_page=page if newest and (page := published.page_of(newest)).exists() else None,
        assessment=published.assess(newest) if newest and not is_on_page else context.assessment,
        charts=context.charts if is_on_page else published.charts(newest) if newest else (),
        strangest=published.row_details.explanations(
            tuple(as_rows(of_run.head(config.alerts.report_rows), config.timezone))
        ),
        labels=labels,
        images=images,
        gallery=gallery,
        drift=tuple(published.drift),
        filling=filling,
        newest_assessment=context.assessment,
        judged=judged,
        hidden=sum(each.flagged - each.known - each.new for each in assessed),
        known_drift=frozenset(each.day for each in assessed if each.known_as_a_whole),
    )
