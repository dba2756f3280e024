"""What somebody wants to know in the morning: is anything wrong, how bad is it, can the model be trusted."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ae_pipeline.monitoring.budget import ReportDay, is_over_budget
from ae_pipeline.monitoring.daily_drift import DayDrift
from ae_pipeline.monitoring.deviations import Deviation

_WEEKS = 8
"""Same weekdays before a day that tell how many rows it usually has."""

_COMPLETE = 0.8
"""Share of the usual number of rows below which a day looks incomplete."""


@dataclass(frozen=True)
class DayAssessment:
    """Of a day.

    Attributes:
        day: ISO date.
        is_wrong: Whether somebody should look.
        message: Why, or that nothing is.
        aside: What else somebody must know to understand the words; may be empty.
        rows: On that day.
        flagged: Of them.
        known: Of these, known anomalies.
        expected: Flagged rows that the budget would have, of those that are no known anomalies.
        usual_rows: Median of the same weekday in the weeks before; None where there are none.
        deviations: The day as a whole.
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

    @property
    def completeness(self) -> float | None:
        """Rows beside the usual number, 1 for as many."""
        return self.rows / self.usual_rows if self.usual_rows else None


def assess_day(
    entry: ReportDay,
    previous: Mapping[str, int],
    drift: DayDrift | None,
    deviations: Sequence[Deviation],
    budget: float,
) -> DayAssessment:
    """Judges a day.

    Args:
        entry: Its ranked rows.
        previous: Rows of the days before it, by day.
        drift: How far it is from the training window, where that was measured.
        deviations: The same in words.
        budget: Share of rows that may be flagged.
    """
    rows, flagged = entry.rows - entry.known_anomalies, entry.flagged - entry.known_flagged
    usual = _usual_rows(entry.day, previous)
    wrong, aside = [], ""
    is_over = is_over_budget(rows, flagged, budget)
    if is_over:
        wrong.append(f"{flagged:,} rows are flagged, {flagged / max(budget * rows, 1e-9):.0f} times the budget")
    if deviations:
        more = len(deviations) - 1
        also = f", and the day is unusual in {more} more {'way' if more == 1 else 'ways'}" if more else ""
        wrong.append(deviations[0].message + also)
    elif drift and drift.effects:
        wrong.append(f"the day as a whole is unlike those that the model learnt from ({drift.message})")
    but = " that are not known anomalies" if entry.known_anomalies else ""
    counts = f"{flagged:,} of {rows:,} rows{but} are flagged, and the alert budget allows {_few(budget * rows)}"
    if wrong and not is_over:
        calm = "not single rows" if flagged <= budget * rows else "single rows no more than chance makes of the budget"
        aside = f"The day as a whole is unusual, {calm}: {counts}."
    if usual and entry.rows < _COMPLETE * usual:
        wrong.append(f"{entry.rows:,} rows came, where the same weekday usually has {usual:,}")
    judged = "" if drift is None or drift.is_judged else "; too few rows to hold the day as a whole against the window"
    return DayAssessment(
        entry.day,
        bool(wrong),
        "; ".join(wrong) or f"nothing unusual: {counts}{judged}",
        aside,
        entry.rows,
        entry.flagged,
        entry.known_flagged,
        budget * rows,
        usual,
        tuple(deviations),
    )


def _few(count: float) -> str:
    return f"{count:,.0f}" if count >= 10 else f"{count:.1f}"


def _usual_rows(day: str, previous: Mapping[str, int]) -> int | None:
    try:
        date = dt.date.fromisoformat(day)
    except ValueError:  # rows without event time
        return None
    weeks = [(date - dt.timedelta(weeks=number)).isoformat() for number in range(1, _WEEKS + 1)]
    known = [previous[week] for week in weeks if week in previous]
    return int(np.median(known)) if len(known) >= 2 else None


def assessment_json(verdict: DayAssessment) -> dict[str, Any]:
    """Gives what summary.json keeps of a verdict."""
    return {
        "day": verdict.day,
        "is_wrong": verdict.is_wrong,
        "words": verdict.message,
        "aside": verdict.aside,
        "rows": verdict.rows,
        "flagged": verdict.flagged,
        "known": verdict.known,
        "expected": verdict.expected,
        "usual_rows": verdict.usual_rows,
        "deviations": [
            {
                "columns": list(each.columns),
                "words": each.message,
                "rows": each.rows,
                "where": each.where,
                "splits": list(each.splits),
            }
            for each in verdict.deviations
        ],
    }
