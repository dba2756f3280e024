"""Scores to p-values against held-out rows, and the flag that an alert budget means."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ae_pipeline.common.errors import TrainingError

Array = npt.NDArray[np.float64]

_SAME = 1e-7
"""Share of a score by which another may differ and still tie with it."""


@dataclass(frozen=True)
class Calibration:
    """Scores of held-out rows, which turn a new score into a conformal p-value.

    For a row exchangeable with the n calibration rows, P(p_value ≤ b) ≤ b for every b, and at least b − 1/(n + 1) where
    scores do not tie (Vovk, Gammerman & Shafer 2005, §2.2). Time breaks exchangeability: the promise fades as rows
    drift away from the calibration days.

    Attributes:
        scores: Of the calibration rows, rising, (n,).
        budget: Share of normal rows that may be flagged.
    """

    scores: Array
    budget: float

    def p_values(self, scores: Array) -> Array:
        """Gives (1 + number of calibration rows that score as high) / (n + 1) for each score.

        Scores that differ by less than a ten-millionth tie: rounding depends on the rows that are scored together, and
        must not part them.
        """
        as_high = len(self.scores) - np.searchsorted(self.scores, scores - _SAME * np.abs(scores), side="left")
        p_values: Array = (1 + as_high) / (len(self.scores) + 1)
        return p_values

    def flags(self, p_values: Array) -> npt.NDArray[np.bool_]:
        """Tells which rows fall into the budget."""
        return np.asarray(p_values <= self.budget)

    @property
    def threshold(self) -> float:
        """The lowest calibration score that is not flagged itself; a row is flagged when it scores higher."""
        n = len(self.scores)
        # Counted with the very division that makes p-values: a product such as 0.29 * 100 rounds to less than 29.
        within = int(self.flags(np.arange(1, n + 1) / (n + 1)).sum())
        return float(self.scores[n - within])


def benjamini_hochberg(p_values: Array, rate: float) -> npt.NDArray[np.bool_]:
    """Marks rows of which a share of at most `rate` is expected to be false alarms (Benjamini & Hochberg 1995).

    It holds for conformal p-values of one calibration though they depend on each other (Bates et al. 2023). Of m rows
    k are marked when the k-th lowest p-value is rate · k / m or less; no p-value of n calibration rows is below
    1 / (n + 1), so that fewer than m / (rate · (n + 1)) rows are never marked.

    Args:
        p_values: Of all rows that are judged together, (n,).
        rate: Share of false alarms among the marked rows.

    Returns:
        Shape (n,).
    """
    rising = np.sort(p_values)
    # The last bit of a product must not decide where the two are equal.
    most = rate * (1 + 1e-12) * np.arange(1, len(rising) + 1) / max(len(rising), 1)
    within = np.flatnonzero(rising <= most)
    return np.asarray(p_values <= (rising[within[-1]] if len(within) else -1.0))


def ks_distance(scores: Array, others: Array) -> float:
    """Gives the largest gap between the shares of two sets of scores up to any level (Smirnov's distance).

    0 where they are alike, 1 where all of one are higher; a few anomalies among many rows move it by no more than their
    share. It tells how far time has taken the rows, and not how surely.

    Args:
        scores: Of one or more rows.
        others: The same.
    """
    levels = np.union1d(scores, others)
    shares = [np.searchsorted(np.sort(some), levels, side="right") / len(some) for some in (scores, others)]
    return float(np.abs(shares[0] - shares[1]).max())


def calibrate(scores: Array, budget: float, days: int | None) -> Calibration:
    """Makes a calibration from the scores of held-out rows.

    Args:
        scores: Of rows that neither weights nor tails were fitted on, in any order.
        budget: Share of normal rows that may be flagged.
        days: How many days these rows span, to say how many would do; None where rows have no time.

    Raises:
        TrainingError: There are too few rows for the budget.
    """
    check_budget(len(scores), budget, days)
    return Calibration(np.sort(scores), budget)


def check_budget(rows: int, budget: float, days: int | None) -> None:
    """Asks whether so many calibration rows can tell a budget.

    Args:
        rows: Of the calibration.
        budget: Share of normal rows that may be flagged.
        days: How many days these rows span; None where rows have no time.

    Raises:
        TrainingError: They are too few.
    """
    needed = math.ceil(round(1 / budget, 6)) - 1
    if rows >= needed:
        return
    least = f"the budget to {1 / (rows + 1):.2g} or more"
    if days is None:
        held, remedy = f"there are {rows:,}", f"land more rows, or set {least}"
    else:
        enough = math.ceil(days * needed / max(rows, 1))
        held = f"the {days} calibration days hold {rows:,}"
        remedy = f"set calibration_days to about {enough}, or {least}"
    raise TrainingError(f"alerts.budget={budget:g} needs {needed:,} calibration rows, and {held}; {remedy}")


def ks_critical_value(rows: int, others: int) -> float:
    """Gives the gap that two samples of one distribution exceed once in a hundred times (Smirnov 1939)."""
    return 1.63 * math.sqrt(1 / rows + 1 / others)
