"""Pages of single days: written as files, or drawn when the data server is asked for one."""

from pathlib import Path

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.common.text import plural
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latents.read import published_days
from ae_pipeline.monitoring.daily_drift import read_all_days
from ae_pipeline.reports.context import day_variables, page_context
from ae_pipeline.reports.files import record_report_file, write_report_file
from ae_pipeline.reports.page import refresh_operations, render_day
from ae_pipeline.reports.ranking import all_ranked, as_rows, is_reported, ranked_day, reported_days
from ae_pipeline.reports.review import review_of
from ae_pipeline.reports.view import Published
from ae_pipeline.storage.dataset import Dataset


def day_page(day: str, dataset: Dataset, bundle: ModelBundle, model_version: int) -> Path:
    """Write the page of a reported day, and link it from the page over all days.

    Args:
        day: ISO date.
        dataset: Configuration and paths of the dataset.
        bundle: Model that scored the published table.
        model_version: Version of the model.

    Returns:
        Path of the page.

    Raises:
        PublicationError: The dataset has no days, or the report has no rows of this day.
    """
    page = write_day_page(day, _published(day, dataset, bundle, model_version))
    if page is None:
        raise _outdated(day, dataset)
    refresh_operations(dataset)
    return page


def draw_day_page(day: str, dataset: Dataset, bundle: ModelBundle, model_version: int) -> str:
    """Return the page of a reported day as HTML, without writing a file: a stored page is renewed by each later run.

    Args:
        day: ISO date.
        dataset: Configuration and paths of the dataset.
        bundle: Model that scored the published table.
        model_version: Version of the model.

    Raises:
        PublicationError: The dataset has no days, or the report has no rows of this day.
    """
    text = _render(day, _published(day, dataset, bundle, model_version))
    if text is None:
        raise _outdated(day, dataset)
    return text


def write_day_page(day: str, published: Published) -> Path | None:
    """Write the page of one day, or delete it if the day has no rows.

    Args:
        day: ISO date.
        published: Published table.

    Returns:
        Path of the page; None if the day has no rows.
    """
    page, paths = published.page_of(day), published.dataset.paths
    text = _render(day, published)
    if text is None:
        page.unlink(missing_ok=True)
        record_report_file(page, paths)
        return None
    write_report_file(page, text, paths)
    return page


def _render(day: str, published: Published) -> str | None:
    """Return the page of one day as HTML; None if the day has no rows."""
    entry, dataset = published.entries.get(day), published.dataset
    if entry is None or not entry.rows:
        return None
    ranked = ranked_day(day, dataset.paths).head(dataset.config.alerts.report_rows)
    rows = tuple(as_rows(ranked, dataset.config.timezone))
    context = page_context(published, day, rows, published.page_of(day))
    return render_day(day_variables(published, day, context), dataset)


def _published(day: str, dataset: Dataset, bundle: ModelBundle, model_version: int) -> Published:
    """Return the published table.

    Raises:
        PublicationError: The dataset has no days, or the report has no current rows of this day.
    """
    config, paths = dataset.config, dataset.paths
    if not config.is_daily:
        nouns = plural(noun_of_rows(config))
        raise PublicationError(
            f"{dataset.name!r} has no event time, so its {nouns} have no days; open the page of all {nouns}, "
            "report.html"
        )
    files = published_days(paths)
    if not files or not min(files) <= day <= max(files):
        reported = f"days {min(files)} to {max(files)}" if files else "no day yet"
        raise PublicationError(
            f"{day!r} has no report; {dataset.name!r} has reports of {reported}; name one of its days as an ISO date"
        )
    if not is_reported(day, files.get(day), dataset):
        raise _outdated(day, dataset)
    return Published(
        files=files,
        dataset=dataset,
        bundle=bundle,
        model_version=model_version,
        entries=reported_days(files, paths),
        drift=read_all_days(paths, config.drift.min_rows),
        review=review_of(all_ranked(paths, set(files)), list(files), dataset),
    )


def _outdated(day: str, dataset: Dataset) -> PublicationError:
    nouns = plural(noun_of_rows(dataset.config))
    return PublicationError(
        f"the report of {dataset.name!r} has no current {nouns} of {day}; materialize that partition of "
        "anomaly_report, or name another day"
    )
