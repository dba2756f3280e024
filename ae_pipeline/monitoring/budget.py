"""Compare the flagged rows of a day with the alert budget."""

import math
from dataclasses import dataclass

TOLERATED_FACTOR = 3
"""Multiple of the alert budget that a day or a run may flag without an alert."""

_MAX_FALSE_ALARM_RATE = 1e-3
"""Largest probability that a day within its budget counts as over it."""


@dataclass(frozen=True, kw_only=True)
class ReportDay:
    """Counts of one reported day.

    Attributes:
        day: ISO date, or `ALL_ROWS`.
        rows: Scored rows.
        flagged: Rows within the alert budget.
        known_anomalies: Rows that the label marks as anomalies.
        known_flagged: Flagged known anomalies.
        discovery_count: Rows marked at the false discovery rate; 0 without one.
        content_hash: Content hash of the ranked rows.
    """

    day: str
    rows: int
    flagged: int
    known_anomalies: int
    known_flagged: int
    discovery_count: int
    content_hash: str


def is_over_budget(rows: int, flagged: int, budget: float) -> bool:
    """Return whether a day flags more than three times its budget, and significantly more than chance.

    If the budget holds, the Chernoff bound limits the probability of a false alarm to one in a thousand.

    Args:
        rows: Rows that are not known anomalies. The budget covers only normal rows.
        flagged: Flagged rows among them.
        budget: Share of normal rows that may be flagged.

    >>> is_over_budget(rows=1000, flagged=3, budget=0.001)
    False
    >>> is_over_budget(rows=1000, flagged=7, budget=0.001)
    True
    """
    expected = budget * rows
    if flagged <= TOLERATED_FACTOR * expected:
        return False
    return flagged * (1 + math.log(expected / flagged)) - expected < math.log(_MAX_FALSE_ALARM_RATE)
