"""Render the pages of a report: HTML files without external resources."""

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import polars as pl

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.common.escape import escape_json_in_html
from ae_pipeline.common.text import one_in, plural, pluralize, printable, short_number, with_article
from ae_pipeline.config.display import count_rejected, noun_of_rows
from ae_pipeline.encoding.event_time import EVENT_TIME
from ae_pipeline.ingestion.names import column_names
from ae_pipeline.monitoring.alerts import alerts_of
from ae_pipeline.monitoring.daily_drift import read_drift
from ae_pipeline.monitoring.day_assessment import MIN_COMPLETENESS, first_with_verdict
from ae_pipeline.monitoring.deviations import DETAILED
from ae_pipeline.monitoring.feedback import MarkState, marks_digest, marks_of
from ae_pipeline.monitoring.feedback_precision import precision_by_version
from ae_pipeline.monitoring.verdict import DayAssessment, DayState
from ae_pipeline.registry.history import history
from ae_pipeline.reports.files import damaged_report_files, write_report_file
from ae_pipeline.reports.index import day_entry, most_worth_a_look, with_causes
from ae_pipeline.reports.review import read_ranked, review_of
from ae_pipeline.reports.row_details import MAX_EXPLAINED
from ae_pipeline.reports.scripts import scripts
from ae_pipeline.reports.summary import assessment_json, day_count, read_summary
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

_CONTEXT_VERSION = 8
"""Increased whenever the templates need other variables."""

_CONSTANTS = {
    "max_explained": MAX_EXPLAINED,
    "detailed": DETAILED,
    "max_listed": 30,
    "min_completeness": MIN_COMPLETENESS,
}
"""Variables that are the same on all pages; `max_listed` is the number of deviations listed without details."""


def write_report(variables: Mapping[str, Any], dataset: Dataset, marks: str) -> Path:
    """Write the page over all days, and its variables beside it, so that it can be rendered again.

    Args:
        variables: Variables of the template, as JSON-compatible values.
        dataset: Configuration and paths of the dataset.
        marks: Digest of the marks, from before they were read.

    Returns:
        Path of the page.
    """
    content = {"version": _CONTEXT_VERSION, "marks": marks, "variables": variables}
    text = json.dumps(content, separators=(",", ":"))
    write_report_file(_context_path(dataset.paths), text, dataset.paths)
    page = dataset.paths.reports / "report.html"
    write_report_file(page, render_report(json.loads(text)["variables"], dataset), dataset.paths)
    return page


def refresh_operations(dataset: Dataset, refused: str | None = None) -> None:
    """Render the page over all days again, with the current marks, drift, alerts, versions and pages of days.

    The verdicts on the page and in `summary.json` leave out known rows, causes and days, and say since when they hold.
    Both say which landed files are refused. Nothing else changes.
    Nothing happens without a page, or if another version of the package wrote it. Without readable ranked rows the
    verdict stays as it is.

    Args:
        dataset: Configuration and paths of the dataset.
        refused: Which landed files are refused; by default what `summary.json` says.
    """
    if (context := _read_context(dataset.paths)) is not None:
        variables = _with_marks(context["variables"], dataset)
        if refused is None:
            refused = (read_summary(dataset.paths) or {}).get("refused", "")
        variables["summary"]["refused"] = refused
        write_report_file(
            dataset.paths.reports / "summary.json", json.dumps(variables["summary"], indent=1), dataset.paths
        )
        page = render_report(variables, dataset)
        write_report_file(dataset.paths.reports / "report.html", page, dataset.paths)


def _with_marks(variables: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Return the variables of the page with the verdict that follows from the present marks."""
    if not variables["assessment"] or not marks_digest(dataset.paths):
        return variables
    paths, summary = dataset.paths, variables["summary"]
    try:
        ranked = read_ranked(paths)
    except ConfigError:  # missing, damaged or of an earlier version: the next report writes them again
        return variables
    reviewed = review_of(ranked, [entry["day"] for entry in summary["days"]], dataset)
    noun = noun_of_rows(dataset.config)
    day = variables["assessment"]["day"] if dataset.config.is_daily else ALL_ROWS
    assessment = DayAssessment.from_record(variables["assessment"], noun).reviewed(reviewed, day)
    days = {
        other: DayAssessment.from_record(record, noun).reviewed(reviewed, other)
        for other, record in variables.get("assessed", {}).items()  # a report of an earlier version has none
    }
    if days and dataset.config.is_daily:
        earlier = (
            (other, days[other].verdict) for other in sorted(days, reverse=True) if days[other].rows and other < day
        )
        assessment = replace(assessment, since=first_with_verdict(day, assessment.verdict, earlier))
    counts = [day_count(other, each) for other, each in days.items()] or summary["days"]
    feedback = [{**asdict(each), "precision": each.precision} for each in precision_by_version(marks_of(paths))]
    return {
        **variables,
        **_listed_again(variables, days, dataset),
        "assessment": assessment.record(),
        "states": {row_id: state.text for row_id, state in reviewed.states.items()},
        "summary": {**summary, "verdict": assessment_json(assessment), "days": counts, "feedback": feedback},
    }


def _listed_again(variables: Mapping[str, Any], days: Mapping[str, DayAssessment], dataset: Dataset) -> dict[str, Any]:
    """Return the bars of the days and the listed days with the verdicts that follow from the present marks."""
    if not days:
        return {}
    index = [day_entry(day, each) for day, each in days.items()]
    entries = {entry["day"]: entry for entry in index}
    again: dict[str, Any] = {"bars": [{**bar, **entries.get(bar["day"], {})} for bar in variables["bars"]]}
    if dataset.config.is_daily:
        causes = {each["day"]: each["words"] for each in variables["listed_days"] if each["state"] != DayState.WRONG}
        shown = [{**each, "words": each["words"] or causes.get(each["day"], "")} for each in most_worth_a_look(index)]
        names = column_names(dataset)
        again["listed_days"] = shown
        with suppress(OSError, pl.exceptions.PolarsError):  # files are missing: the next report adds causes
            again["listed_days"] = with_causes(shown, dataset.paths, dataset.config.timezone, names)
    return again


def shown_marks(paths: DatasetPaths) -> str | None:
    """Return the digest of the marks that the last report was built with; None without a report."""
    context = _read_context(paths)
    return None if context is None else context.get("marks", "")


def is_current(paths: DatasetPaths) -> bool:
    """Return whether no file of a report is damaged, and a page over all days was built with all present marks.

    A page that cannot be rendered again, because another version of the package wrote it, is not current.
    """
    if damaged_report_files(paths):
        return False
    return not (paths.reports / "report.html").exists() or shown_marks(paths) == marks_digest(paths)


def _read_context(paths: DatasetPaths) -> dict[str, Any] | None:
    """Return the stored variables of the page, or None without a page or with those of another version."""
    path = _context_path(paths)
    if not (paths.reports / "report.html").exists() or not path.exists() or path in damaged_report_files(paths):
        return None
    try:
        context: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return context if context["version"] == _CONTEXT_VERSION else None
    except (ValueError, KeyError, TypeError):  # damaged, without a recorded digest
        return None


def render_report(variables: Mapping[str, Any], dataset: Dataset) -> str:
    """Return the page over all days as HTML.

    Drift, alerts, versions of the model and pages of days are read from the files of the dataset.

    Args:
        variables: Variables of the template.
        dataset: Configuration and paths of the dataset.
    """
    paths = dataset.paths
    names = column_names(dataset)
    drift = [{**asdict(day), "message": day.message(names)} for day in read_drift(paths, dataset.config.drift.min_rows)]
    return _render(
        "report.html.j2",
        {
            **variables,
            "drift": drift,
            "alerts": alerts_of(paths),
            "history": history(paths),
            "marks": marks_of(paths),
            "titles": {EVENT_TIME: names.title(EVENT_TIME), **variables["titles"]},
            "home": "../../",
            "left_out": by_reason(variables["summary"]["columns_left_out"]),
            "day_pages": {path.stem for path in (paths.reports / "days").glob("*.html")},
        },
        dataset,
    )


def render_day(variables: Mapping[str, Any], dataset: Dataset) -> str:
    """Return the page of one day as HTML.

    Args:
        variables: Variables of the template.
        dataset: Configuration and paths of the dataset.
    """
    return _render("day.html.j2", {**variables, "day_pages": (), "home": "../../../"}, dataset)


def by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the columns that are left out for each reason.

    Args:
        left_out: Reason by column.

    >>> by_reason({"a": "constant", "b": "identifier", "c": "constant"})
    {'constant': ['a', 'c'], 'identifier': ['b']}
    """
    reasons: dict[str, list[str]] = {}
    for column, reason in left_out.items():
        reasons.setdefault(reason, []).append(column)
    return reasons


def _context_path(paths: DatasetPaths) -> Path:
    return paths.reports / "report.context.json"


def _render(template: str, variables: Mapping[str, Any], dataset: Dataset) -> str:
    return render_page(template, {**variables, **_states_of(variables)}, dataset)


def render_page(template: str, variables: Mapping[str, Any], dataset: Dataset) -> str:
    """Return a page with the style and the scripts of all pages; without charts, it has no script that draws them.

    Args:
        template: Name of the template.
        variables: Variables of the template, with `charts`.
        dataset: Configuration and paths of the dataset.
    """
    folder = files("ae_pipeline").joinpath("reports")
    sources = {name: folder.joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    for name in ("csv", "latents"):
        sources[f"{name}_js"] = folder.joinpath(f"page.{name}.js").read_text(encoding="utf-8")
    sources["vega"] = scripts(dataset.paths.cache) if variables["charts"] else ""
    # Our own files and a library, which must not be escaped.
    unescaped = {name: markupsafe.Markup(text) for name, text in sources.items()}  # noqa: S704
    nouns = {"noun": noun_of_rows(dataset.config), "rejected": partial(count_rejected, config=dataset.config)}
    fixed = {**_CONSTANTS, **unescaped, **nouns}
    return page_environment().get_template(template).render(**fixed, **variables)


def _states_of(variables: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return for each group of rows, and each entity, how many of them are marked, such as `3 known`."""
    return {
        "group_states": _counted_states("group", len(variables["groups"]), variables),
        "entity_states": _counted_states("entity", len(variables["entities"]), variables),
    }


def _counted_states(name: str, count: int, variables: Mapping[str, Any]) -> list[str]:
    counts: dict[int, Counter[str]] = {}
    for row in variables["rows"]:
        if row[name] and (state := variables["states"].get(row["row_id"])):
            counts.setdefault(row[name], Counter())[state] += 1
    return [
        ", ".join(_counted(rows, state) for state, rows in sorted(counts.get(number, {}).items()))
        for number in range(1, count + 1)
    ]


def _counted(rows: int, state: str) -> str:
    is_noun = state == MarkState.FALSE_ALARM.text
    return pluralize(rows, state) if is_noun else f"{rows} {state}"


@cache
def page_environment() -> jinja2.Environment:
    """Return the environment that renders all pages: values are escaped, and filters format them.

    A process has one, because it keeps the compiled templates. Compiling them takes longer than drawing a page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ae_pipeline", "reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_as_shown,
    )
    # A script element ends at "</script". In JSON, "<" may be escaped.
    environment.filters["in_script"] = lambda text: markupsafe.Markup(escape_json_in_html(text))  # noqa: S704
    # A link to a row depends on its identity only, so that it stays valid when the order of the rows changes.
    environment.filters["mark"] = lambda row_id: hashlib.sha256(row_id.encode()).hexdigest()[:12]
    environment.filters["slug"] = lambda title: re.sub("[^a-z0-9]+", "-", title.lower())
    environment.filters["shell"] = shlex.quote
    environment.filters["explained"] = _explain
    environment.filters |= {"count": "{:,}".format, "percent": "{:.2%}".format, "one_in": one_in, "short": short_number}
    environment.filters |= {"plural": plural, "counted": pluralize, "article": with_article}
    return environment


_EXPLAINED_TERM = "stability index"

_EXPLANATION = markupsafe.Markup(
    '<abbr title="How far the values of the day are from those of the training window, after subtracting sampling '
    'noise and normal day-to-day variation (population stability index). 0 means no difference.">stability index</abbr>'
)


def _explain(text: str) -> markupsafe.Markup:
    """Return a text of the data as HTML, with an explanation at the term that few readers know."""
    return _EXPLANATION.join(markupsafe.escape(part) for part in printable(text).split(_EXPLAINED_TERM))


def _as_shown(value: Any) -> Any:
    """Escape control characters in texts of the data; our own Markup stays."""
    return printable(value) if isinstance(value, str) and not isinstance(value, markupsafe.Markup) else value
