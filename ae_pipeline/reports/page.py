"""The pages of a report: HTML files that need nothing beside them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.resources import files
from typing import Any

import jinja2
import markupsafe

from ae_pipeline.monitoring.alerts import alerts_of
from ae_pipeline.monitoring.daily_drift import read_drift
from ae_pipeline.monitoring.deviations import DETAILED
from ae_pipeline.registry.history import history
from ae_pipeline.reports.charts import scripts
from ae_pipeline.reports.gallery import Gallery
from ae_pipeline.reports.labels import Labels
from ae_pipeline.reports.row_details import MOST_TOLD
from ae_pipeline.reports.view import PageContext
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.paths import DatasetPaths

_BEGIN, _END = "<!-- operations -->", "<!-- end of operations -->"
"""Around the part of the page that changes without a new report."""

_YEAR = 366
"""Days that are drawn as bars."""

_MOST = {"most_told": MOST_TOLD, "detailed": DETAILED, "listed": 30}
"""Rows that are explained though not flagged; deviations of a day that are shown in full, and in a line."""

_PICTURE_WIDTH, _PICTURE_HEIGHT = 160, 160
"""Space for a picture, CSS pixels."""


def render_page(
    summary: Mapping[str, Any],
    shown: PageContext,
    index: Sequence[Mapping[str, Any]],
    listed: Sequence[Mapping[str, Any]],
    labels: Labels | None,
    gallery: Gallery | None,
    features: str,
    operations: str = "",
) -> str:
    """Gives the page over all days as HTML.

    Args:
        summary: What summary.json holds.
        shown: Verdict of the newest day, rows, causes and charts.
        index: All days.
        listed: Those of them that are most worth a look.
        labels: Scores against labels, where there are any.
        gallery: Pictures, where rows are images.
        features: Where those of the verdict's day are, beside the page.
        operations: Of `render_operations`.
    """
    return _render(
        "report.html.j2",
        shown,
        summary=summary,
        labels=labels,
        gallery=gallery,
        last_year=index[-_YEAR:],
        index=listed,
        highest=max([1, *(entry["flagged"] for entry in index[-_YEAR:])]),
        share=summary["flagged"] / max(summary["rows"], 1),
        left_out=by_reason(summary["columns_left_out"]),
        features=features,
        budget=summary["budget"],
        rate=summary["false_discovery_rate"],
        space=(_PICTURE_WIDTH, _PICTURE_HEIGHT),
        operations=markupsafe.Markup(operations),  # noqa: S704 (our own template has made it)
    )


def render_day(
    dataset: str,
    shown: PageContext,
    features: str,
    labels: Labels | None,
    budget: float,
    rate: float | None,
    beside: tuple[str | None, str | None],
) -> str:
    """Gives the page of one day as HTML.

    Args:
        dataset: Its name.
        shown: Verdict of the day, rows, causes and charts.
        features: Where its features are, beside the page.
        labels: Whether rows are known as anomalies or not.
        budget: That the model was calibrated for.
        rate: Of false discoveries, where rows are marked by it.
        beside: The days before and after it that have a page.
    """
    given = {
        "dataset": dataset,
        "features": features,
        "labels": labels,
        "budget": budget,
        "rate": rate,
        "beside": beside,
    }
    return _render("day.html.j2", shown, **given)


def _render(template: str, shown: PageContext, **given: Any) -> str:
    own = {field.name: getattr(shown, field.name) for field in fields(shown)}
    read = files("ae_pipeline").joinpath("reports")
    own_text = {name: read.joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    # Our own files and a library's, which must not be escaped.
    plain = {name: markupsafe.Markup(text) for name, text in (*own_text.items(), ("vega", _vega(shown)))}  # noqa: S704
    return _environment().get_template(template).render(**own, **plain, **_MOST, **given)


def _vega(shown: PageContext) -> str:
    return scripts(shown.cache) if shown.charts else ""


def render_operations(paths: DatasetPaths, min_rows: int) -> str:
    """Gives the part of the page that tells of drift, alerts and versions, as they are on disk now."""
    drift = [{**asdict(day), "words": day.message} for day in read_drift(paths, min_rows)]
    template = _environment().get_template("operations.html.j2")
    return template.render(drift=drift, alerts=alerts_of(paths), history=history(paths))


def refresh_operations(paths: DatasetPaths, min_rows: int) -> None:
    """Brings that part of the page up to date, without making the report anew; does nothing where there is none."""
    page = paths.reports / "report.html"
    if not page.exists():
        return
    previous, found, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if found and ended:
        write_text(page, f"{previous}{_BEGIN}\n{render_operations(paths, min_rows)}\n{_END}{after}")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ae_pipeline", "reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    # Within a script element only its own end and a comment's beginning mean anything; JSON may escape both.
    environment.filters["in_script"] = lambda text: markupsafe.Markup(text.replace("<", "\\u003c"))  # noqa: S704
    # A link to a row must lead to it also when others stand above it.
    environment.filters["mark"] = lambda row_id: hashlib.sha256(row_id.encode()).hexdigest()[:12]
    environment.filters |= {"count": "{:,}".format, "percent": "{:.2%}".format}
    return environment


def by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    """Puts columns together that were left out for the same reason."""
    reasons: dict[str, list[str]] = {}
    for column, reason in left_out.items():
        reasons.setdefault(reason, []).append(column)
    return reasons
