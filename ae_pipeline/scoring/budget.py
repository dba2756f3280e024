"""Tell whether more rows are flagged than an alert budget explains."""

import math

TOLERATED_FACTOR = 3
"""Multiple of the alert budget that a day or a run may flag without an alert."""


def is_over_budget(rows: int, flagged: int, budget: float, max_false_alarm_rate: float = 1e-3) -> bool:
    """Return whether a day flags more than three times its budget, and significantly more than chance.

    If the budget holds, the Chernoff bound limits the probability of a false alarm.

    Args:
        rows: Rows that are not known anomalies. The budget covers only normal rows.
        flagged: Flagged rows among them.
        budget: Share of normal rows that may be flagged.
        max_false_alarm_rate: Largest probability that rows within their budget count as over it.

    >>> is_over_budget(rows=1000, flagged=3, budget=0.001)
    False
    >>> is_over_budget(rows=1000, flagged=7, budget=0.001)
    True
    """
    expected = budget * rows
    if flagged <= TOLERATED_FACTOR * expected:
        return False
    return flagged * (1 + math.log(expected / flagged)) - expected < math.log(max_false_alarm_rate)
