"""Whether a day flags more rows than its alert budget allows."""

import math
from dataclasses import dataclass

TOLERATED_FACTOR = 3
"""Times the alert budget that a day or a run may flag before somebody should look."""


_BY_CHANCE = 1e-3
"""How often chance may make a day of as many flagged rows look over its budget."""


@dataclass(frozen=True)
class ReportDay:
    """A day's ranked rows.

    Attributes:
        day: ISO date, or `ALL_ROWS`.
        rows: Rows scored.
        flagged: Rows within the alert budget.
        known_anomalies: Rows that the label calls anomalies.
        known_flagged: Flagged ones among these.
        discovery_count: Rows marked at the false discovery rate; 0 without one.
        content_hash: Of the ranked rows.
    """

    day: str
    rows: int
    flagged: int
    known_anomalies: int
    known_flagged: int
    discovery_count: int
    content_hash: str


def is_over_budget(rows: int, flagged: int, budget: float) -> bool:
    """Tells whether far more rows are flagged than the budget allows, and more than chance makes of so few rows.

    Where the budget holds, chance flags so many at most once in a thousand times (Chernoff's bound).

    Args:
        rows: That are not known anomalies: those should be flagged, and are none of what a budget is for.
        flagged: Among them.
        budget: Share of normal rows that may be flagged.
    """
    expected = budget * rows
    if flagged <= TOLERATED_FACTOR * expected:
        return False
    return flagged * (1 + math.log(expected / flagged)) - expected < math.log(_BY_CHANCE)
