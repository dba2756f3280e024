"""The cards at the top of a page: alert budget, model, drift and completeness of a day."""

import datetime as dt
from typing import Any

import polars as pl

from ae_pipeline.config.display import PLAIN, ColumnNames
from ae_pipeline.monitoring.budget import is_over_budget
from ae_pipeline.monitoring.daily_drift import DayDrift
from ae_pipeline.monitoring.verdict import DayAssessment
from ae_pipeline.registry.history import Change, history
from ae_pipeline.reports.view import Published
from ae_pipeline.scoring.drift import Part
from ae_pipeline.storage.parquet import whole
from ae_pipeline.storage.paths import ALL_ROWS

_HINDSIGHT = dt.timedelta(days=7)
"""A model that was promoted so long after a day did not score the day when it was new."""

_TREND_DAYS = 30
"""Number of days in the trend."""

_NAMED_EFFECTS = 3
"""Number of drifted columns that the card names."""


def cards(published: Published, day: str | None, assessment: DayAssessment | None) -> dict[str, Any]:
    """Return the variables of the cards, as JSON-compatible values.

    Args:
        published: Published table.
        day: Day that the page assesses; None if no row is published.
        assessment: Assessment of that day.
    """
    return {
        "daily": published.dataset.config.is_daily,
        "assessment": assessment.record() if assessment else None,
        "recent": recent_days(published, day),
        "model": model_facts(published, day),
        "drift_summary": drift_summary(published.drift_by_day.get(day or ""), published.names),
        "values": value_completeness(published, day),
        "quarantined": sum(sum(file.quarantined.values()) for file in published.landed_files if day in file.days),
        "files_without_rows": sum(not file.days for file in published.landed_files),
        "files_with_refused_version": sum(
            bool(file.refused and file.days and not file.deleted) for file in published.landed_files
        ),
    }


def recent_days(published: Published, day: str | None) -> list[dict[str, Any]]:
    """Return counts and budget of the last days up to a day, the oldest first."""
    budget = published.bundle.calibration.budget
    entries = [entry for other, entry in sorted(published.entries.items()) if day and other <= day]
    return [
        {
            "day": entry.day,
            "rows": entry.rows,
            "flagged": entry.flagged,
            "expected": budget * (entry.rows - entry.known_anomalies),
            "is_over": is_over_budget(entry.rows - entry.known_anomalies, entry.flagged - entry.known_flagged, budget),
        }
        for entry in entries[-_TREND_DAYS:]
    ]


def model_facts(published: Published, day: str | None) -> dict[str, Any]:
    """Return version, training window and time of promotion of the model, relative to a day."""
    promotions = [
        entry
        for entry in history(published.dataset.paths)
        if entry.version == published.model_version and entry.change in {Change.PROMOTED, Change.ROLLED_BACK}
    ]
    last_day = published.bundle.window.days[-1]
    age, in_hindsight = None, False
    if day and published.dataset.config.is_daily:
        date = dt.date.fromisoformat(day)
        age = (date - dt.date.fromisoformat(last_day)).days if day > last_day else None
        in_hindsight = bool(promotions) and dt.date.fromisoformat(promotions[0].at[:10]) > date + _HINDSIGHT
    return {
        "version": published.model_version,
        "last_day": last_day if last_day != ALL_ROWS else None,
        "age": age,
        "since": promotions[-1].at[:10] if promotions else None,
        "in_hindsight": in_hindsight,
    }


def drift_summary(drift: DayDrift | None, names: ColumnNames = PLAIN) -> tuple[str, str]:
    """Return the drift of a day in a word or two, and in a sentence.

    Args:
        drift: Drift of the day; None if it was not measured.
        names: How the text names columns.
    """
    if drift is None:
        return "unknown", "the drift of this day was not measured"
    if not drift.is_judged:
        return "unknown", f"too few {names.rows} to compare the day with the training window"
    restriction = (
        "" if drift.is_after else "; only columns are compared, because the day is part of the training window"
    )
    if not drift.effects:
        return "none", f"no column, latent or score is far from the training window{restriction}"
    count = len(drift.effects)
    noun = "column" if all(effect.part == Part.COLUMN for effect in drift.effects) else "measurement"
    verb = "is" if count == 1 else "are"
    named = drift.effects[:_NAMED_EFFECTS]
    titles = (names.title(each.name) if each.part == Part.COLUMN else names.latent(each.name) for each in named)
    shown_names = ", ".join(dict.fromkeys(titles))
    more = f" and {count - _NAMED_EFFECTS} more" if count > _NAMED_EFFECTS else ""
    sentence = f"{count} {noun if count == 1 else f'{noun}s'} {verb} far from the training window: {shown_names}{more}"
    return "drifted", f"{sentence}{restriction}"


def value_completeness(published: Published, day: str | None) -> tuple[float, float] | None:
    """Return the share of values that are present, on a day and in the training window; None if unknown."""
    known = {entry.name: entry.missing for entry in published.bundle.reference if entry.part == Part.COLUMN}
    if day is None or not known:
        return None
    file = pl.scan_parquet(whole(published.dataset.paths.features(day)), glob=False)
    columns = [name for name in file.collect_schema().names() if name in known]
    rows = int(file.select(pl.len()).collect().item())
    nulls = file.select(pl.col(columns).null_count()).collect(engine="streaming").rows() if columns else [()]
    missing = sum(nulls[0]) + rows * (len(known) - len(columns))
    return 1 - missing / max(rows * len(known), 1), 1 - sum(known.values()) / len(known)


def unseen_days_summary(published: Published, day: str | None) -> str:
    """Return the share of flagged rows on the days after the training window, as text; empty without days."""
    if not published.dataset.config.is_daily or day is None:
        return ""
    last_day, budget = published.bundle.window.days[-1], published.bundle.calibration.budget
    after = [entry for other, entry in published.entries.items() if last_day < other <= day and entry.rows]
    rows = sum(entry.rows - entry.known_anomalies for entry in after)
    flagged = sum(entry.flagged - entry.known_flagged for entry in after)
    nouns = published.names.rows
    if not rows:
        return f"No day after the training window is published, so the performance on unseen {nouns} is unknown."
    days = "day" if len(after) == 1 else f"{len(after)} days"
    restriction = " that are not known anomalies" if any(entry.known_anomalies for entry in after) else ""
    return (
        f"On the {days} after its training window, the model flags {flagged:,} of {rows:,} {nouns}{restriction}: "
        f"{flagged / rows:.2%}. The alert budget is {budget:.2%}."
    )
