"""The page of a report: one HTML file that needs nothing beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from ae_pipeline.reports.gallery import Gallery
from ae_pipeline.reports.labels import Labels
from ae_pipeline.reports.ranking import RankedRow
from ae_pipeline.storage import ALL_ROWS

_PICTURE_WIDTH, _PICTURE_HEIGHT = 160, 160
"""Space for a picture, CSS pixels."""


def render_page(
    summary: Mapping[str, Any], strangest: Sequence[RankedRow], labels: Labels | None, gallery: Gallery | None
) -> str:
    """Gives the page as HTML.

    Args:
        summary: What summary.json holds.
        strangest: Rows to list.
        labels: Scores against labels, where there are any.
        gallery: Pictures, where rows are images.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ae_pipeline", "reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": "{:,}".format, "percent": "{:.2%}".format}
    days = summary["days"]
    return environment.get_template("report.html.j2").render(
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
    )


def by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    """Puts columns together that were left out for the same reason."""
    reasons: dict[str, list[str]] = {}
    for column, reason in left_out.items():
        reasons.setdefault(reason, []).append(column)
    return reasons
