"""Assess a day: alert budget, drift and completeness."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ae_pipeline.monitoring.budget import ReportDay, is_over_budget
from ae_pipeline.monitoring.daily_drift import DayDrift
from ae_pipeline.monitoring.deviations import Deviation

_WEEKS = 8
"""Previous weeks whose same weekday determines the usual number of rows."""

_MIN_WEEKS = 2
"""Weeks with rows that are needed to determine it."""

MIN_COMPLETENESS = 0.8
"""Share of the usual number of rows below which a day counts as incomplete."""


@dataclass(frozen=True, kw_only=True)
class DayAssessment:
    """Assessment of one day.

    Attributes:
        day: ISO date, or `all rows`.
        is_wrong: Whether the day needs attention.
        message: Reasons why it needs attention, or that nothing is unusual.
        aside: Remark that completes the message; may be empty.
        rows: Scored rows.
        flagged: Flagged rows.
        known: Flagged rows that are known anomalies.
        expected: Flagged rows that the budget allows, among rows that are not known anomalies.
        usual_rows: Median number of rows on the same weekday of the previous weeks; None if unknown.
        deviations: Differences between the day as a whole and the training window.
        is_filling: Whether rows of the day are still expected, so that only its flagged rows are assessed.
    """

    day: str
    is_wrong: bool
    message: str
    aside: str
    rows: int
    flagged: int
    known: int
    expected: float
    usual_rows: int | None
    deviations: tuple[Deviation, ...]
    is_filling: bool = False

    @property
    def completeness(self) -> float | None:
        """Number of rows relative to the usual number; None if that is unknown."""
        return self.rows / self.usual_rows if self.usual_rows else None


def assess_day(
    entry: ReportDay,
    previous: Mapping[str, int],
    drift: DayDrift | None,
    deviations: Sequence[Deviation],
    budget: float,
    filling: str = "",
) -> DayAssessment:
    """Return whether a day needs attention, and why.

    A day needs attention if it is over its alert budget, deviates from the training window, or is incomplete. A day
    that is still filling is incomplete and unlike other days, so that only its flagged rows count.

    Args:
        entry: Counts of the day.
        previous: Number of rows of the previous days, by day.
        drift: Drift of the day; None if it was not measured.
        deviations: Deviations of the day.
        budget: Share of normal rows that may be flagged.
        filling: Why the day counts as still filling; empty if it does not.
    """
    rows, flagged = entry.rows - entry.known_anomalies, entry.flagged - entry.known_flagged
    usual = usual_rows(entry.day, previous)
    if filling:
        drift, deviations = None, ()
    reasons, aside = [], ""
    is_over = is_over_budget(rows, flagged, budget)
    if is_over:
        reasons.append(f"{flagged:,} rows are flagged, {flagged / max(budget * rows, 1e-9):.0f} times the budget")
    if unusual := _unusual_as_a_whole(drift, deviations):
        reasons.append(unusual)
    restriction = " that are not known anomalies" if entry.known_anomalies else ""
    counts = (
        f"{flagged:,} of {rows:,} rows{restriction} are flagged, and the alert budget allows {_count(budget * rows)}"
    )
    if reasons and not is_over:
        level = "within the budget" if flagged <= budget * rows else "not significantly above the budget"
        aside = f"The day as a whole is unusual, but the number of flagged rows is {level}: {counts}."
    if usual and not filling and entry.rows < MIN_COMPLETENESS * usual:
        reasons.append(f"{entry.rows:,} rows came, where the same weekday usually has {usual:,}")
    compared = "" if drift is None or drift.is_judged else "; too few rows to compare the day with the training window"
    return DayAssessment(
        day=entry.day,
        is_wrong=bool(reasons),
        message="; ".join(reasons) or f"nothing unusual: {counts}{compared}",
        aside=f"{filling}. It is not compared with other days until it is complete." if filling else aside,
        rows=entry.rows,
        flagged=entry.flagged,
        known=entry.known_flagged,
        expected=budget * rows,
        usual_rows=usual,
        deviations=tuple(deviations),
        is_filling=bool(filling),
    )


def _unusual_as_a_whole(drift: DayDrift | None, deviations: Sequence[Deviation]) -> str:
    """Return how the day as a whole is unusual; empty if it is not."""
    if deviations:
        more = len(deviations) - 1
        return deviations[0].message + (
            f", and the day is unusual in {more} more {'way' if more == 1 else 'ways'}" if more else ""
        )
    if drift and drift.effects:
        return f"the day as a whole is unlike the training window ({drift.message})"
    return ""


def _count(rows: float) -> str:
    return f"{rows:,.0f}" if rows >= 10 else f"{rows:.1f}"


def usual_rows(day: str, previous: Mapping[str, int]) -> int | None:
    """Return the median number of rows on the same weekday of the previous weeks; None if fewer than two are known.

    Args:
        day: ISO date.
        previous: Number of rows of the previous days, by day.
    """
    try:
        date = dt.date.fromisoformat(day)
    except ValueError:  # rows without event time
        return None
    weeks = [(date - dt.timedelta(weeks=number)).isoformat() for number in range(1, _WEEKS + 1)]
    known = [previous[week] for week in weeks if week in previous]
    return int(np.median(known)) if len(known) >= _MIN_WEEKS else None


def assessment_json(assessment: DayAssessment) -> dict[str, Any]:
    """Return an assessment as `summary.json` stores it: messages are under the key `words`."""
    return {
        "day": assessment.day,
        "is_wrong": assessment.is_wrong,
        "words": assessment.message,
        "aside": assessment.aside,
        "rows": assessment.rows,
        "flagged": assessment.flagged,
        "known": assessment.known,
        "expected": assessment.expected,
        "usual_rows": assessment.usual_rows,
        "is_filling": assessment.is_filling,
        "deviations": [
            {
                "columns": list(deviation.columns),
                "words": deviation.message,
                "rows": deviation.rows,
                "where": deviation.where,
                "splits": list(deviation.splits),
            }
            for deviation in assessment.deviations
        ],
    }
