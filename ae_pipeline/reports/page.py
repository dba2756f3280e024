"""The page of a report: one HTML file that needs nothing beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jinja2
import markupsafe

from ae_pipeline.alerting import alerts_of
from ae_pipeline.journal import history
from ae_pipeline.reports.drifted import read_drift
from ae_pipeline.reports.gallery import Gallery
from ae_pipeline.reports.labels import Labels
from ae_pipeline.reports.ranking import RankedRow
from ae_pipeline.storage import ALL_ROWS, DatasetPaths, write_text

_BEGIN, _END = "<!-- operations -->", "<!-- end of operations -->"
"""Around the part of the page that changes without a new report."""

_PICTURE_WIDTH, _PICTURE_HEIGHT = 160, 160
"""Space for a picture, CSS pixels."""


def render_page(
    summary: Mapping[str, Any],
    strangest: Sequence[RankedRow],
    labels: Labels | None,
    gallery: Gallery | None,
    operations: str = "",
) -> str:
    """Gives the page as HTML.

    Args:
        summary: What summary.json holds.
        strangest: Rows to list.
        labels: Scores against labels, where there are any.
        gallery: Pictures, where rows are images.
        operations: Of `render_operations`.
    """
    days = summary["days"]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            summary=summary,
            strangest=strangest,
            labels=labels,
            gallery=gallery,
            daily=summary["train_days"][0] != ALL_ROWS,
            worst=sorted(days, key=lambda entry: (-entry["flagged"], entry["day"]))[:10],
            highest=max([1, *(entry["flagged"] for entry in days)]),
            share=summary["flagged"] / max(summary["rows"], 1),
            left_out=by_reason(summary["columns_left_out"]),
            space=(_PICTURE_WIDTH, _PICTURE_HEIGHT),
            operations=markupsafe.Markup(operations),  # noqa: S704 (our own template has made it)
        )
    )


def render_operations(paths: DatasetPaths, min_rows: int) -> str:
    """Gives the part of the page that tells of drift, alerts and versions, as they are on disk now."""
    drift = [{**asdict(day), "words": day.words} for day in read_drift(paths, min_rows)]
    template = _environment().get_template("operations.html.j2")
    return template.render(drift=drift, alerts=alerts_of(paths), history=history(paths))


def refresh_operations(paths: DatasetPaths, min_rows: int) -> None:
    """Brings that part of the page up to date, without making the report anew; does nothing where there is none."""
    page = paths.reports / "report.html"
    if not page.exists():
        return
    before, found, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if found and ended:
        write_text(page, f"{before}{_BEGIN}\n{render_operations(paths, min_rows)}\n{_END}{after}")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ae_pipeline", "reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": "{:,}".format, "percent": "{:.2%}".format}
    return environment


def by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    """Puts columns together that were left out for the same reason."""
    reasons: dict[str, list[str]] = {}
    for column, reason in left_out.items():
        reasons.setdefault(reason, []).append(column)
    return reasons
