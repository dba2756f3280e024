"""Assess a day: alert budget, drift, completeness and labels."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ae_pipeline.common.text import pluralize
from ae_pipeline.config.display import PLAIN, ColumnNames
from ae_pipeline.monitoring.budget import ReportDay
from ae_pipeline.monitoring.daily_drift import DayDrift
from ae_pipeline.monitoring.deviations import Deviation
from ae_pipeline.monitoring.feedback import UNREVIEWED, Review
from ae_pipeline.monitoring.verdict import (
    DEFAULT_LIMITS,
    MIN_LABELED,
    DayAssessment,
    DayState,
    LabelLimits,
    Reason,
    ReasonKind,
)

_WEEKS = 8
"""Previous weeks whose same weekday determines the usual number of rows."""

_MIN_WEEKS = 2
"""Weeks with rows that are needed to determine it."""

MIN_COMPLETENESS = 0.8
"""Share of the usual number of rows below which a day counts as incomplete."""


def assess_day(
    entry: ReportDay,
    previous: Mapping[str, int],
    drift: DayDrift | None,
    deviations: Sequence[Deviation],
    budget: float,
    filling: str = "",
    review: Review = UNREVIEWED,
    limits: LabelLimits = DEFAULT_LIMITS,
    names: ColumnNames = PLAIN,
) -> DayAssessment:
    """Return the assessment of a day.

    A day is wrong if it is over its alert budget, deviates from the training window, is incomplete, or if too many of
    its labeled anomalies are missed. A day that is still filling is incomplete and unlike other days, so that only its
    flagged rows count.

    Args:
        entry: Counts of the day.
        previous: Number of rows of days, by day. Those of the previous weeks count.
        drift: Drift of the day; None if it was not measured.
        deviations: Deviations of the day.
        budget: Share of normal rows that may be flagged.
        filling: Why the day counts as still filling; empty if it does not.
        review: Rows and days as people marked them.
        limits: Limits of recall and precision.
        names: How the message names columns and rows.
    """
    usual = usual_rows(entry.day, previous)
    if filling:
        drift, deviations = None, ()
    reasons = [reason] if (reason := _unusual_as_a_whole(drift, deviations, names)) else []
    if usual and not filling and entry.rows < MIN_COMPLETENESS * usual:
        message = f"{pluralize(entry.rows, names.row)} came, where the same weekday usually has {usual:,}"
        reasons.append(Reason(kind=ReasonKind.MISSING_ROWS, message=message, size=usual - entry.rows))
    counts = entry.images or entry  # a defect covers few of the patches of its image
    missed = counts.known_anomalies - counts.known_flagged
    if counts.known_anomalies >= MIN_LABELED and counts.known_flagged < limits.min_recall * counts.known_anomalies:
        noun = "anomalous images" if entry.images else "anomalies"
        message = (
            f"{missed:,} of {counts.known_anomalies:,} known {noun} are not flagged (recall "
            f"{counts.known_flagged / counts.known_anomalies:.0%}, at least {limits.min_recall:.0%} is expected)"
        )
        # A kind of its own, so that a mark that covers a number of patches does not cover that number of images.
        kind = ReasonKind.LOW_IMAGE_RECALL if entry.images else ReasonKind.LOW_RECALL
        reasons.append(Reason(kind=kind, message=message, size=missed))
    assessment = DayAssessment(
        day=entry.day,
        rows=entry.rows,
        flagged=entry.flagged,
        known=entry.known_flagged,
        known_anomalies=entry.known_anomalies,
        budget=budget,
        usual_rows=usual,
        deviations=tuple(deviations),
        base_reasons=tuple(reasons),
        is_compared=drift is None or drift.is_judged,
        filling=filling,
        limits=limits,
        images=entry.images,
        noun=names.row,
    )
    return assessment.reviewed(review, entry.day)


def first_with_verdict(day: str, verdict: DayState, earlier: Iterable[tuple[str, DayState]]) -> str:
    """Return the first of the days in a row, up to a day, that have its verdict.

    Args:
        day: Day with the verdict.
        verdict: Its verdict.
        earlier: Earlier days with their verdicts, the newest first. It is read up to the first other verdict.

    Returns:
        ISO date; the day itself if the day before has another verdict.

    >>> first_with_verdict("3", DayState.CALM, [("2", DayState.CALM), ("1", DayState.WRONG)])
    '2'
    """
    first = day
    for other, of_other in earlier:
        if of_other != verdict:
            break
        first = other
    return first


def _unusual_as_a_whole(drift: DayDrift | None, deviations: Sequence[Deviation], names: ColumnNames) -> Reason | None:
    """Return how the day as a whole is unusual; None if it is not."""
    if deviations:
        more = len(deviations) - 1
        ways = f", and the day is unusual in {more} more {'way' if more == 1 else 'ways'}" if more else ""
        return Reason(
            kind=ReasonKind.NULL_FLOOD if deviations[0].is_missing else ReasonKind.UNUSUAL_DAY,
            message=deviations[0].message + ways,
            size=max((deviation.rows for deviation in deviations), default=0) or len(deviations),
            columns=tuple(name for deviation in deviations for name in deviation.columns),
        )
    if drift and drift.effects:
        return Reason(
            kind=ReasonKind.DRIFT,
            message=f"the day as a whole is unlike the training window ({drift.message(names)})",
            size=len(drift.effects),
            columns=tuple(effect.name for effect in drift.effects),
        )
    return None


def usual_rows(day: str, previous: Mapping[str, int]) -> int | None:
    """Return the median number of rows on the same weekday of the previous weeks; None if fewer than two are known.

    Args:
        day: ISO date.
        previous: Number of rows of days, by day. Those of the previous weeks count.
    """
    try:
        date = dt.date.fromisoformat(day)
    except ValueError:  # rows without event time
        return None
    weeks = [(date - dt.timedelta(weeks=number)).isoformat() for number in range(1, _WEEKS + 1)]
    known = [previous[week] for week in weeks if week in previous]
    return int(np.median(known)) if len(known) >= _MIN_WEEKS else None
